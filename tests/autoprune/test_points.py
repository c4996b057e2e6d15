"""What is done to one point of a finished front is kept, and never makes it worse."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import autoprune as ap
from autoprune.points import export_point, fine_tune
from autoprune.study import check_new
from tests.autoprune.runs import SETTINGS, loaders, tiny_net


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("points") / "r"
    quick = ap.FineTune(epochs=1, lr=0.01)
    ap.search(tiny_net(), **loaders(), **SETTINGS, trials=3, run=run, finetune=quick)
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "r"))


GIVEN: dict[str, Any] = {"model": tiny_net(), **loaders()}
LONGER = ap.FineTune(epochs=4, lr=0.1)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(ap.load(folder, model=tiny_net()).state_dict())


def test_a_fine_tuning_by_hand_outlives_a_new_front(run: Path) -> None:
    tuned = fine_tune(run, LONGER, point=0, **GIVEN)
    assert tuned.recipe is not None
    assert tuned.recipe["epochs"] == 4
    assert tuned.path is not None
    before = weights(tuned.path)
    result = ap.resume(run, trials=1, **GIVEN)
    (again,) = [point for point in result.front if point.trial == tuned.trial]
    assert (again.recipe, again.finetuned) == (tuned.recipe, tuned.finetuned)
    assert again.path is not None
    after = weights(again.path)
    assert all(torch.equal(after[name], before[name]) for name in before)
    others = [point.recipe for point in result.front if point.trial != tuned.trial]
    assert all(recipe is not None and recipe["epochs"] == 1 for recipe in others)


def test_a_worse_fine_tuning_does_not_replace_a_point(run: Path) -> None:
    good = fine_tune(run, LONGER, point=0, **GIVEN)
    before = (run / "front.json").read_bytes()
    assert fine_tune(run, ap.FineTune(epochs=1, lr=1e-6), point=0, **GIVEN) == good
    assert (run / "front.json").read_bytes() == before


def test_a_front_folder_that_is_missing_is_made_again(run: Path) -> None:
    before = weights(run / "front" / "0")
    shutil.rmtree(run / "front" / "0")
    with pytest.raises(ap.UserError, match=r"is missing. Make it again: autoprune resume"):
        export_point(run, "folder", point=0, out=run / "out", model=tiny_net())
    ap.resume(run, **GIVEN)
    after = weights(run / "front" / "0")
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert json.loads((run / "front.json").read_text())["num_trials"] == 3


def test_a_folder_that_cannot_be_made_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ap.UserError, match="is no folder that can be written to"):
        check_new(tmp_path / "file" / "r")


def test_ctrl_c_while_torch_is_imported_leaves_at_once(tmp_path: Path) -> None:
    """A stand-in for torch that is interrupted half-way through its import."""
    (tmp_path / "torch.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(30)\n")
    path = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); "
    code = path + "from autoprune.cli.errors import _load_torch; _load_torch()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert (done.returncode, done.stderr) == (130, "Stopped. Nothing was begun.\n")
