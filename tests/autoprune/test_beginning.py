"""A search that is stopped before its first trial goes on where it was, and ends as one that never was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from typer.testing import CliRunner

import autoprune as ap
from autoprune import stopping
from autoprune.bounds import ORDER
from autoprune.cli import app
from autoprune.config import SearchConfig
from autoprune.evaluate import Evaluator
from autoprune.files import write_json
from autoprune.gauges import FOLDER, Gauges
from autoprune.importance import SCORES_FILE
from autoprune.latency import LatencyModel
from autoprune.measure import Stopwatch
from autoprune.measure.device_profile import DeviceProfile, read_entries
from autoprune.measure.race import TooNoisy
from autoprune.preparing import DEVICE
from autoprune.search_spaces import SearchSpace
from autoprune.study import Study
from tests.autoprune.runs import SETTINGS, loaders, tiny_net

GIVEN: dict[str, Any] = {
    **SETTINGS,
    "importance": "taylor",
    "importance_samples": 64,
    "agent": "tpe",
    "bounds": "statistical",
    "points": 1,
    "trials": 5,
}


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def outcome(result: ap.Result) -> list[Any]:
    return [(t.number, t.candidate, t.state, t.score, t.costs) for t in result.trials]


def kill_at(moment: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Die when a file is about to get its name for the `moment`-th time; 0 for never."""
    replace, count = Path.replace, 0

    def counted(self: Path, target: Any) -> Path:
        nonlocal count
        count += 1
        if count == moment:
            raise Killed
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", counted)


@pytest.mark.slow
def test_killed_at_every_write_before_the_first_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process gets one write further than the one before it, so every phase is left half done once."""
    run = tmp_path / "r"
    whole = ap.search(tiny_net(), **loaders(), **GIVEN, run=tmp_path / "whole")
    kills, unprepared = 0, 0
    while kills < 60:
        with monkeypatch.context() as patch:
            kill_at(2, patch)
            try:
                if run.exists():
                    ap.resume(run, model=tiny_net(), **loaders())
                else:
                    ap.search(tiny_net(), **loaders(), **GIVEN, run=run)
            except Killed:
                kills += 1
                if not run.exists():
                    continue
                unprepared += not SearchConfig.read(run).prepared
                with Study.read(run) as study:
                    if study.trials:
                        break
            else:
                break
    assert unprepared >= 3
    result = ap.resume(run, model=tiny_net(), **loaders())
    assert outcome(result) == outcome(whole)
    for name in (SCORES_FILE, ORDER):
        assert (run / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert SearchConfig.read(run) == SearchConfig.read(tmp_path / "whole")
    assert SearchConfig.read(run).prepared


def interrupt_in(patch: pytest.MonkeyPatch, owner: Any, name: str, calls: int = 1) -> None:
    original, count = getattr(owner, name), 0

    def stopped(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count == calls:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    patch.setattr(owner, name, stopped)


@pytest.mark.parametrize(
    ("owner", "name"),
    [(SearchSpace, "collect"), (Evaluator, "hardest_first")],
    ids=["importance", "order"],
)
def test_stopped_in_a_phase_keeps_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    run = tmp_path / "r"
    with monkeypatch.context() as patch:
        interrupt_in(patch, owner, name)
        with pytest.raises(KeyboardInterrupt):
            ap.search(tiny_net(), **loaders(), **GIVEN, run=run)
    config = SearchConfig.read(run)
    assert not config.prepared
    with pytest.raises(ap.UserError, match=r"exists\. Go on with it: `autoprune resume"):
        ap.search(tiny_net(), **loaders(), **GIVEN, run=run)
    for work in (ap.profile, ap.proxy):
        with pytest.raises(ap.UserError, match=r"stopped before its first trial\. .*autoprune resume"):
            work(run, model=tiny_net(), **loaders())
    with pytest.raises(ap.UserError, match="dense weights are not those"):
        ap.resume(run, model=other_weights(), **loaders())
    assert len(ap.resume(run, trials=1, model=tiny_net(), **loaders()).trials) == 6


def other_weights() -> Any:
    net = tiny_net()
    for parameter in net.parameters():
        parameter.data.mul_(2)
    return net


def test_what_was_measured_of_a_device_stays_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after the first of two races, and again after the first of two devices: nothing is run twice."""
    run, measure = tmp_path / "r", Stopwatch.measure
    raced: list[int] = []

    def noted(self: Stopwatch, models: Any, **kwargs: Any) -> Any:
        found = measure(self, models, **kwargs)
        raced.append(len(models))
        return found

    settings = {**SETTINGS, "latency_subnets": 12, "points": 1, "measure_trials": "off", "trials": 2}
    settings |= {"budget": ["latency=9s", "throughput=0.1/s", "macs=0.9x"], "throughput_batch": 4}
    monkeypatch.setattr(Stopwatch, "measure", noted)
    monkeypatch.setattr("autoprune.measure.device_profile.Entry.stale", lambda *_: None)  # whatever this machine does
    with monkeypatch.context() as patch:
        interrupt_in(patch, stopping, "check")
        with pytest.raises(KeyboardInterrupt):
            ap.search(tiny_net(), **loaders(), **settings, run=run)
    first = raced.copy()
    assert first[-1] == 8
    (entry,) = read_entries(run / DEVICE).values()
    (network,) = entry._networks.values()
    kept = {candidate: sample.ms / network.dense.value for candidate, sample in network.samples.items()}
    assert len(kept) == 8
    assert not (run / FOLDER).exists()
    raced.clear()
    with monkeypatch.context() as patch:
        interrupt_in(patch, stopping, "check", calls=2)  # after the second race, then after the first device
        with pytest.raises(KeyboardInterrupt):
            ap.resume(run, model=tiny_net(), **loaders())
    assert sum(raced) == 12 - 8
    model = LatencyModel.load(run / FOLDER / "eager-1.json", space_of(run))
    ratios = {sample.candidate: sample.ms / model.dense_ms for sample in model.samples}
    assert {c: ratios[c] for c in kept} == pytest.approx(kept)
    stored = (run / FOLDER / "eager-1.json").read_bytes()
    raced.clear()
    ap.resume(run, model=tiny_net(), **loaders())
    assert raced.count(8) == 1, "of the first device nothing"
    assert (run / FOLDER / "eager-1.json").read_bytes() == stored


def space_of(run: Path) -> SearchSpace:
    return ap.trace(tiny_net(), next(iter(loaders()["train"]))[0][:1], align=int(SearchConfig.read(run).align))


@pytest.mark.slow
def test_steps_of_a_runtime_are_kept_one_kind_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def found(runtime: Any, kinds: Any, **kwargs: Any) -> dict[str, int]:
        asked.append(list(kinds))
        return dict.fromkeys(kinds, 16)

    monkeypatch.setattr("autoprune.align.find_steps", found)
    monkeypatch.setattr("autoprune.align.WIDE", 2)
    run, settings = tmp_path / "r", {**SETTINGS, "budget": "latency=9s", "trials": 1, "points": 1}
    with monkeypatch.context() as patch:
        interrupt_in(patch, stopping, "check")
        with pytest.raises(KeyboardInterrupt):
            ap.search(tiny_net(), **loaders(), **settings, run=run)
    assert asked == [["conv"]]
    assert (SearchConfig.read(run).align, SearchConfig.read(run).prepared) == ("auto", False)
    result = ap.resume(run, model=tiny_net(), **loaders())
    assert asked == [["conv"], ["linear"]]
    assert SearchConfig.read(run).align == 16
    assert len(result.trials) == 1
    ap.resume(run, trials=1, model=tiny_net(), **loaders())  # the space that was settled is the one it began with


def test_own_loss_is_asked_for_again_as_long_as_it_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def loss(output: Tensor, targets: Tensor) -> Tensor:
        return output.square().mean()

    run = tmp_path / "r"
    whole = ap.search(tiny_net(), **loaders(), **GIVEN, importance_loss=loss, run=tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt_in(patch, SearchSpace, "collect")
        with pytest.raises(KeyboardInterrupt):
            ap.search(tiny_net(), **loaders(), **GIVEN, importance_loss=loss, run=run)
    with pytest.raises(ap.UserError, match=r"importance_loss=\.\.\."):
        ap.resume(run, model=tiny_net(), **loaders())
    result = ap.resume(run, model=tiny_net(), importance_loss=loss, **loaders())
    assert outcome(result) == outcome(whole)
    ap.resume(run, model=tiny_net(), **loaders())


def test_what_can_be_told_before_minutes_of_measuring_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Gauges, "learn_devices", raise_(AssertionError("measured")))
    settings = {**SETTINGS, "budget": "latency=0.5x"}
    for wrong, words in (
        ({"agent": "tpe", "agent_options": {"n_start": 3}}, "n_startup"),
        ({"agent": "annealing", "agent_options": {"clusters": 0}}, "clusters"),
        ({"budget": ["latency=0.5x", "macs=0.0001x"]}, "smallest subnet"),
        ({"score": lambda model, batches: 1 / 0}, "cannot be scored"),
    ):
        with pytest.raises(ap.UserError, match=words):
            ap.search(tiny_net(), **{**loaders(), **settings, **wrong}, run=tmp_path / "r")
        assert list(tmp_path.iterdir()) == []


def raise_(error: BaseException) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        raise error

    return call


@pytest.mark.parametrize("error", [ap.UserError("no"), TooNoisy("too noisy")], ids=["input", "noise"])
def test_what_the_user_has_to_mend_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: ap.UserError
) -> None:
    monkeypatch.setattr(Gauges, "learn_devices", raise_(error))
    with pytest.raises(ap.UserError):
        ap.search(tiny_net(), **loaders(), **{**SETTINGS, "budget": "latency=9s"}, run=tmp_path / "r")
    assert list(tmp_path.iterdir()) == []


def test_what_a_device_measured_before_it_failed_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: Gauges, gauges: Any, space: Any, config: Any, run: Path, *rest: Any) -> None:
        (run / "profile").mkdir(exist_ok=True)
        write_json(run / "profile" / "device.json", {})
        raise TooNoisy("too noisy.")

    monkeypatch.setattr(Gauges, "learn_devices", fails)
    with pytest.raises(ap.UserError, match=r"too noisy. What was measured before is kept.*autoprune resume"):
        ap.search(tiny_net(), **loaders(), **{**SETTINGS, "budget": "latency=9s"}, run=tmp_path / "r")
    assert (tmp_path / "r" / "profile" / "device.json").is_file()


@pytest.mark.slow
def test_what_a_full_disk_interrupts_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("autoprune.preparing.save_order", raise_(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space"):
            ap.search(tiny_net(), **loaders(), **GIVEN, run=tmp_path / "r")
    assert len(ap.resume(tmp_path / "r", model=tiny_net(), **loaders()).trials) == 5


def test_the_command_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.autoprune.runs import DIGITS, NET, QUICK

    run = tmp_path / "r"
    arguments = ["search", *NET, *DIGITS, *QUICK, "--budget", "macs=0.5x", "--trials", "1", "--run", str(run)]
    with monkeypatch.context() as patch:
        interrupt_in(patch, Evaluator, "hardest_first")
        stopped = CliRunner().invoke(app, arguments)
    assert stopped.exit_code == 130
    assert f"Go on with: autoprune resume {run}" in stopped.stderr
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 2
    assert f"`autoprune resume {run}`" in again.stderr
    assert CliRunner().invoke(app, ["show", str(run)]).exit_code == 0
    assert CliRunner().invoke(app, ["resume", str(run)]).exit_code == 0


@pytest.mark.slow
def test_a_run_of_an_earlier_release_counts_as_prepared(tmp_path: Path) -> None:
    run = tmp_path / "r"
    ap.search(tiny_net(), **loaders(), **{**SETTINGS, "points": 1}, trials=1, run=run)
    text = (run / "config.toml").read_text()
    assert "prepared = true\n" in text
    (run / "config.toml").write_text(text.replace("prepared = true\n", ""))
    assert len(ap.resume(run, trials=1, model=tiny_net(), **loaders()).trials) == 2


@pytest.mark.slow
def test_the_own_profile_is_forgotten_where_all_is_to_be_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "r"
    settings = {**SETTINGS, "budget": ["latency=9s", "macs=0.9x"], "points": 1, "measure_trials": "off"}
    ap.search(tiny_net(), **loaders(), **settings, trials=1, run=run)
    (run / FOLDER / "eager-1.json").write_text("{")  # damaged: rebuilt from what was measured
    races: list[int] = []
    measure = LatencyModel.measure

    def noted(*args: Any, profile: DeviceProfile, **kwargs: Any) -> Any:
        races.append(sum(len(n.samples) for entry in profile._entries.values() for n in entry._networks.values()))
        return measure(*args, profile=profile, **kwargs)

    monkeypatch.setattr(LatencyModel, "measure", noted)
    ap.resume(run, trials=1, model=tiny_net(), **loaders())
    assert races == [8]
    assert SearchConfig.read(run).readings_from == 1, "nothing is learnt from trials with an earlier model"
    ap.resume(run, trials=1, measure_latency=True, model=tiny_net(), **loaders())
    assert races == [8, 0]
