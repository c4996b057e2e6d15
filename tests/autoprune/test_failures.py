from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from autoprune import stopping
from autoprune.cli.errors import _explained
from autoprune.config import SearchConfig
from autoprune.failures import DISK, disk_error, ends_search, kind_of
from autoprune.finetune import FineTune
from autoprune.finish import tune
from autoprune.front import FrontPoint
from autoprune.prior import takes_prior, with_prior
from autoprune.progress import NO_PROGRESS
from autoprune.running import EvaluationFailed
from autoprune.search_spaces.errors import UserError
from autoprune.search_spaces.types import Candidate
from autoprune.study import Study
from tests.autoprune.fakes import conv_net, image_data
from tests.autoprune.test_controller import config, controller, score


def raised(error: Exception) -> Exception:
    with pytest.raises(type(error)) as caught:
        raise error
    return caught.value


def by_one_line(kind: type[Exception], words: str) -> Exception:
    try:
        raise kind(words)
    except kind as error:
        return error


def test_failures_are_of_a_kind_where_type_and_place_are_the_same() -> None:
    one, other = by_one_line(ValueError, "layer 1"), by_one_line(ValueError, "layer 2")
    assert kind_of(one) == kind_of(other)
    assert kind_of(one) != kind_of(by_one_line(KeyError, "layer 1"))
    assert kind_of(one) != kind_of(raised(ValueError("layer 1")))


def test_out_of_memory_is_one_kind_whatever_was_wanted_and_wherever() -> None:
    errors = [
        by_one_line(torch.OutOfMemoryError, "CUDA out of memory. Tried to allocate 2.00 GiB"),
        raised(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 30.00 MiB")),
        raised(MemoryError()),
        raised(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 7 bytes")),
    ]
    assert {kind_of(error) for error in errors} == {"out of memory"}
    assert kind_of(EvaluationFailed("the score kl is nan")) != kind_of(MemoryError())


def test_out_of_memory_three_times_stops_the_search_and_resuming_makes_up_for_it(tmp_path: Path) -> None:
    sizes = iter(range(1, 100))

    def hungry(candidate: Candidate) -> float:
        raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {next(sizes)} MiB")

    for round_number in (1, 2):  # the three that stopped it do not stop the next one before three new ones
        with (Study.open if round_number == 2 else create)(tmp_path / "r") as study:
            with pytest.raises(UserError, match=f"3 trials.*allocate {3 * round_number} MiB.*autoprune resume"):
                controller(study, hungry).run()
            assert len(study.trials) == 3 * round_number
    with Study.open(tmp_path / "r") as study:
        trials = controller(study).run()
    assert [trial.state for trial in trials] == ["failed"] * 6 + ["complete"] * 5


def create(path: Path) -> Study:
    settings: SearchConfig = config(5, agent="random")
    return Study.create(path, settings)


@pytest.mark.parametrize("number", sorted(DISK))
def test_the_disk_ends_the_search_and_no_trial(number: int, tmp_path: Path) -> None:
    def broken(candidate: Candidate) -> float:
        if len(study.trials) == 2:
            raise OSError(number, os.strerror(number), "/somewhere/x")
        return score(candidate)

    with create(tmp_path / "r") as study, pytest.raises(OSError, match=os.strerror(number)) as caught:
        controller(study, broken).run()
    assert [trial.state for trial in Study.read(tmp_path / "r").trials] == ["complete"] * 2
    text, code = _explained(caught.value, "`autoprune resume r`")
    assert code == 2
    assert text.startswith(f"{os.strerror(number)}: /somewhere/x. What was finished before is stored: {DISK[number]}")
    assert text.endswith("then go on with `autoprune resume r`.")


def test_the_disk_is_seen_behind_what_libraries_raise() -> None:
    assert disk_error(RuntimeError("Error while serializing: No space left on device (os error 28)")) is not None
    wrapped = RuntimeError("cannot write")
    wrapped.__cause__ = OSError(errno.EROFS, "Read-only file system")
    assert ends_search(wrapped)
    assert not ends_search(FileNotFoundError(errno.ENOENT, "No such file"))
    assert not ends_search(RuntimeError("cannot write"))


def test_what_fails_while_stopping_is_no_failed_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in a terminal ends the processes that load data, and their evaluation fails."""

    def broken(candidate: Candidate) -> float:
        os.kill(os.getpid(), 2)
        raise RuntimeError("DataLoader worker exited unexpectedly")

    with create(tmp_path / "r") as study:
        with stopping.listening(), pytest.raises(stopping.Stopped):
            controller(study, broken).run()
        assert study.trials == []


def test_a_full_disk_does_not_turn_the_prior_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("autoprune.prior.measure_table", full)
    settings = config(agent="kl")
    assert takes_prior(settings)
    with Study.create(tmp_path / "r", settings) as study:
        with pytest.raises(OSError, match="No space"):
            with_prior(SimpleNamespace(evaluator=None), study, NO_PROGRESS)  # type: ignore[arg-type]
        assert study.config.prior == settings.prior


def test_fine_tuning_that_runs_out_of_memory_names_the_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    class Said(type(NO_PROGRESS)):  # type: ignore[misc]
        def say(self, text: str) -> None:
            said.append(text)

    def hungry(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    network, data = conv_net(), image_data()
    monkeypatch.setattr("autoprune.finish.finetune", hungry)
    monkeypatch.setattr("autoprune.finish._repaired", lambda point, *_: (point, network))
    bench: Any = SimpleNamespace(
        evaluator=None, data=data, space=SimpleNamespace(model=network), config=SimpleNamespace(seed=0)
    )
    point = FrontPoint(trial=0, candidate=(1,), costs={}, score=0.5)
    tuned, model = tune(point, tmp_path, bench, FineTune(epochs=1), Said(), "Fine-tuning point 0")
    assert tuned.recipe is None
    assert model is network
    assert said[0].startswith("Fine-tuning point 0 ran out of memory in batches of 16 samples (OutOfMemoryError: CUDA")
    assert said[0].endswith("Try --finetune-arg batch_size=8.")
