from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

import autoprune
from autoprune.agents.base import Trial
from autoprune.cli import app
from autoprune.evaluate import Evaluator
from autoprune.study import Study
from tests.autoprune.runs import DIGITS, NET, QUICK


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def search(run: Path, *more: str | Path) -> Result:
    return call("search", *NET, *DIGITS, *QUICK, "--budget", "macs=0.5x", "--points", "2", "--run", run, *more)


def failed(result: Result, *words: str) -> bool:
    """One line on stderr that begins with ``error:`` and holds the words; exit code 2; no traceback."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    progress = ("Searching", "Measuring", "Profiling", "The dense model")
    lines = [line for line in result.stderr.splitlines() if not line.startswith(progress)]
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert "Traceback" not in result.stderr
    return all(word in lines[0] for word in words)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("cli") / "r"
    result = search(run, "--trials", "3", "--finetune-epochs", "1", "--seed", "1")
    assert result.exit_code == 0, result.output
    return run


def test_search_ends_with_the_table_and_the_report(tmp_path: Path) -> None:
    result = search(tmp_path / "r", "--trials", "2", "--format", "onnx")
    assert result.exit_code == 0, result.output
    for words in ("2 of 2: 2 complete", "macs=0.5x", "dense", "point 0", "accuracy, test split", "report.html"):
        assert words in result.stdout
    assert "Searching: 2/2 trials, best" in result.stderr
    assert (tmp_path / "r" / "front" / "0" / "model.onnx").is_file()


def test_json_of_search_and_show_is_the_whole_run(tmp_path: Path) -> None:
    result = search(tmp_path / "r", "--trials", "2", "--json")
    shown = json.loads(result.stdout)
    assert shown == json.loads(call("show", tmp_path / "r", "--json").stdout)
    assert [trial["state"] for trial in shown["trials"]] == ["complete"] * 2
    assert shown["front"][0]["score"] == max(trial["score"] for trial in shown["trials"])
    assert shown["dense"]["costs"]["macs"] > shown["front"][0]["costs"]["macs"]
    assert shown["config"]["budget"] == ["macs=0.5x"]


def test_resume_adds_trials(tmp_path: Path) -> None:
    assert search(tmp_path / "r", "--trials", "1").exit_code == 0
    assert "3 of 3" in call("resume", tmp_path / "r", "--trials", "2").stdout
    assert failed(call("resume", tmp_path / "r", "--trials", "0"), "at least 1")


def test_show_lists_trials_and_why_they_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Evaluator.evaluate
    numbers = iter(range(100))

    def sometimes(self: Evaluator, candidate: Any) -> float:
        if next(numbers) == 1:
            raise MemoryError("too [large]")
        return original(self, candidate)

    monkeypatch.setattr(Evaluator, "evaluate", sometimes)
    result = search(tmp_path / "r", "--trials", "3", "--bounds", "off")
    assert "Trial 1 failed: MemoryError: too [large]" in result.stderr
    assert "3 of 3: 2 complete, 1 failed" in result.stdout
    shown = call("show", tmp_path / "r", "--trials").stdout
    assert "1 × failed: MemoryError: too [large]" in shown
    assert shown.count("complete") == 3


def test_interrupt_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Evaluator.evaluate
    numbers = iter(range(100))

    def stopped(self: Evaluator, candidate: Any) -> float:
        if next(numbers) == 2:
            raise KeyboardInterrupt
        return original(self, candidate)

    monkeypatch.setattr(Evaluator, "evaluate", stopped)
    result = search(tmp_path / "r", "--trials", "5", "--bounds", "off")
    assert result.exit_code == 130
    assert f"Stopped. 2 of 5 trials are stored. Go on with: autoprune resume {tmp_path / 'r'}" in result.stderr
    shown = call("show", tmp_path / "r").stdout
    assert "2 of 5" in shown
    assert "Front of the trials so far" in shown
    assert "5 of 5" in call("resume", tmp_path / "r").stdout


def test_interrupt_before_the_first_trial_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("autoprune.beginning.make_workbench", stopped)
    result = search(tmp_path / "r")
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == "Stopped. Nothing was stored."
    assert list(tmp_path.iterdir()) == []


def test_finetune_and_export(finished: Path, tmp_path: Path) -> None:
    result = call("finetune", finished, "--epochs", "1", "--finetune-arg", "lr=0.05")
    assert result.exit_code == 0, result.output
    assert "fine-tuned" in result.stdout
    for kind, name in (("folder", "a"), ("onnx", "b.onnx"), ("torch-export", "c.pt2")):
        written = call("export", finished, "--format", kind, "--out", tmp_path / name)
        assert written.stdout.strip() == str(tmp_path / name), written.output
    assert autoprune.load(tmp_path / "a")(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_train_then_search_with_the_weights(tmp_path: Path) -> None:
    weights = tmp_path / "dense.safetensors"
    train: list[str | Path] = ["train", *NET, "--data", "digits", "--epochs", "2", "--out", weights]
    result = call(*train)
    assert result.exit_code == 0, result.output
    assert "on the search split" in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["dense.safetensors"]
    assert failed(call(*train), "exists")
    assert failed(call(*train[:-1], tmp_path / "x.bin"), ".safetensors")
    assert search(tmp_path / "r", "--weights", weights, "--trials", "1").exit_code == 0
    shown = json.loads(call("show", tmp_path / "r", "--json").stdout)
    assert shown["dense"]["score"] > 0.5


def test_trace(tmp_path: Path) -> None:
    result = call("trace", *NET, "--data", "digits")
    assert result.exit_code == 0
    for words in ("stages.1.0.conv1", "MACs per layer", "an output of the model", "multiply-add"):
        assert words in result.stdout
    content = json.loads(call("trace", *NET, "--input-shape", "2x1x8x8", "--json").stdout)
    assert sum(content["macs_per_layer"].values()) == content["costs"]["macs"]
    assert {group["name"] for group in content["groups"]} >= {"stem", "stages.1.0.conv1"}
    fine = json.loads(call("trace", *NET, "--data", "digits", "--align", "1", "--json").stdout)
    assert all(group["levels"] == [*range(1, group["num_units"] + 1)] for group in fine["groups"])
    assert failed(call("trace", *NET, "--input-shape", "1x1xa"), "1x3x224x224")
    assert failed(call("trace", *NET, "--data", "digits", "--align", "3"), "power of two")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "torchvision:resnet1"], ["Did you mean", "resnet18"]),
        (["--model", "nowhere.at_all:f"], ["nowhere"]),
        (["--data", "digitz"], ["Did you mean 'digits'"]),
        (["--agent", "tpo"], ["Did you mean 'tpe'"]),
        (["--budget", "macs=0.5q"], ["Unknown unit 'q'"]),
        (["--budget", "params=10"], ["smallest subnet costs"]),
        (["--weights", "absent.safetensors"], ["absent.safetensors", "not exist"]),
        (["--model-arg", "widths"], ["NAME=VALUE"]),
        (["--finetune-arg", "lr=0.1"], ["no epochs"]),
        (["--finetune-epochs", "1", "--finetune-arg", "learning=0.1"], ["setting of fine-tuning"]),
        (["--format", "onx"], ["Did you mean 'onnx'"]),
        (["--search-size", "5000"], ["5,000"]),
        (["--run", __file__], ["exists and is not a run folder"]),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    assert failed(search(tmp_path / "r", "--trials", "1", *arguments), *words)
    assert list(tmp_path.iterdir()) == []


def test_bad_folders(finished: Path, tmp_path: Path) -> None:
    assert failed(search(finished), "autoprune resume")
    for command in ("resume", "show", "finetune", "export"):
        assert failed(call(command, tmp_path), "is not a run folder")
        assert failed(call(command, tmp_path / "absent"), "no run folder")
    with Study.open(finished):
        # flock counts per open file: another descriptor of this process is as good as another process
        assert failed(call("resume", finished), "in use by process")
        assert failed(call("finetune", finished), "in use by process")
        assert call("show", finished).exit_code == 0


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    torch.save({"head.weight": torch.zeros(3, 3)}, tmp_path / "w.pt")
    assert failed(search(tmp_path / "r", "--weights", tmp_path / "w.pt"), "do not fit")


def test_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Study.store

    def full(self: Study, *args: Any) -> list[Trial]:
        if len(self.trials) == 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(self.path))
        return original(self, *args)

    monkeypatch.setattr(Study, "store", full)
    assert failed(search(tmp_path / "r", "--trials", "4"), "No space left on device", "is stored")
    monkeypatch.undo()
    assert "4 of 4" in call("resume", tmp_path / "r").stdout


def test_a_dense_model_that_cannot_be_scored_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_score.py").write_text("def broken(model, batches):\n    raise ValueError('boom')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    result = search(tmp_path / "r", "--score", "own_score:broken")
    assert failed(result, "The dense model cannot be scored", "ValueError: boom", "own_score.py:2")
    assert not (tmp_path / "r").exists()


def test_fine_tuning_that_fails_for_every_point_is_said_and_loses_nothing(tmp_path: Path) -> None:
    run = tmp_path / "r"
    result = search(run, "--trials", "2", "--finetune-epochs", "1", "--finetune-arg", "lr=1e30")
    assert result.exit_code == 2
    assert "The loss became nan in epoch 1" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: Fine-tuning failed for every point")
    before = (run / "front.json").read_bytes()
    assert call("show", run).exit_code == 0
    result = call("finetune", run, "--epochs", "1", "--finetune-arg", "lr=1e30")
    assert result.exit_code == 2
    assert "stays as it was" in result.stderr
    assert (run / "front.json").read_bytes() == before
    assert call("resume", run).exit_code == 0


def test_a_damaged_point_is_named_and_nothing_is_written(finished: Path, tmp_path: Path) -> None:
    run, out = tmp_path / "r", tmp_path / "out"
    shutil.copytree(finished, run)
    weights = run / "front" / "0" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    result = call("export", run, "--point", "0", "--format", "folder", "--out", out)
    assert failed(result, str(weights))
    assert not out.exists()


def test_mistakes_of_ours_are_code_1_and_debug_shows_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*args: Any, **kwargs: Any) -> None:
        raise KeyError("oh")

    monkeypatch.setattr("autoprune.api.search", bug)
    result = search(tmp_path / "r")
    assert result.exit_code == 1
    assert "--debug" in result.stderr
    assert "Traceback" not in result.stderr
    assert "Traceback" in search(tmp_path / "r", "--debug").stderr


def test_every_command_has_help_and_an_example() -> None:
    for command in ("search", "resume", "show", "finetune", "export", "trace", "train"):
        result = call(command, "--help")
        assert result.exit_code == 0
        assert f"Example: autoprune {command}" in " ".join(result.stdout.split())


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys; from autoprune.cli import app; app(['-h'], standalone_mode=False); assert 'torch' not in "
    code += "sys.modules"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_version() -> None:
    assert call("--version").stdout == f"autoprune {autoprune.__version__}\n"
