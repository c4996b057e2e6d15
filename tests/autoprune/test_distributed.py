"""Several processes train as one does; they fail, stop and go on together."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from autoprune.cli import app
from autoprune.distributed import ALONE, check_alone, joined, launched
from autoprune.search_spaces.errors import UserError
from tests.autoprune import team
from tests.autoprune.runs import DIGITS, NET, QUICK
from tests.autoprune.test_finetune import StopAfter

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def run(out: Path, *names: str, world: int = 2) -> list[tuple[int, str]]:
    """Exit code and stderr of each process, which torchrun would start alike; a hang is a failure of the test."""
    port = str(free_port())
    own = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    own |= {"CUDA_VISIBLE_DEVICES": "", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    command = [sys.executable, "-m", "tests.autoprune.team", str(out), *names]
    processes = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **own, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        errors = [process.communicate(timeout=240)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, error) for process, error in zip(processes, errors, strict=True)]


def states(out: Path, name: str, world: int = 2) -> list[dict[str, torch.Tensor]]:
    return [torch.load(out / f"{name}-{rank}.pt", weights_only=True) for rank in range(world)]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes wrote until one of them failed."""
    out = tmp_path_factory.mktemp("team")
    ends = run(out, *team.EQUAL, "diverges", "stops", "hard", "fails")
    (out / "ends").write_text(repr(ends))
    return out


@pytest.mark.parametrize("name", team.EQUAL)
def test_two_processes_train_as_one_does(name: str, whole: Path) -> None:
    alone = team.EQUAL[name](ALONE).model.state_dict()
    ours, theirs = states(whole, name)
    assert same(ours, theirs), "every process returns the same network"
    began = team.plain().state_dict()
    for key, tensor in alone.items():
        torch.testing.assert_close(ours[key], tensor, rtol=1e-9, atol=1e-11)  # in float64
        assert torch.equal(tensor, began[key]) == key.startswith("extra")  # all that the loss depends on was trained


def test_what_fails_for_all_leaves_the_best_to_all(whole: Path) -> None:
    ours, theirs = states(whole, "diverged")
    assert same(ours, theirs)
    assert same(ours, team.plain().state_dict())
    texts = [(whole / f"diverged-{rank}").read_text() for rank in range(2)]
    assert texts[0] == texts[1]
    assert re.match(r"The loss became (nan|inf) in epoch 1, step \d of 6", texts[0])


def test_a_stop_of_one_stops_all_at_one_step(whole: Path) -> None:
    assert [(whole / f"stopped-{rank}").read_text() for rank in range(2)] == [str(int(signal.SIGTERM))] * 2
    ours, theirs = states(whole, "stopped")
    assert same(ours, theirs)
    assert same(ours, states(whole, "hard")[0]), "and what goes on from there ends the same"


def test_what_fails_on_one_ends_all_with_one_message(whole: Path) -> None:
    (code, error), (other, silent) = ast.literal_eval((whole / "ends").read_text())
    assert (code, other, silent) == (2, 2, "")
    assert re.fullmatch(r"error: The model has 6 outputs.* \(process 1 of 2\)\n", error)


@pytest.mark.slow
def test_a_killed_process_ends_all_and_they_go_on(whole: Path, tmp_path: Path) -> None:
    (code, error), (killed, _) = run(tmp_path, "killed")
    assert (code, killed) == (2, -signal.SIGKILL)
    assert re.fullmatch(r"error: Another of the 2 processes is gone.*the same command goes on from there\.\n", error)
    shutil.copy(tmp_path / "killed.checkpoint", tmp_path / "alone.checkpoint")
    assert run(tmp_path, "resumed") == [(0, ""), (0, "")]
    assert same(states(tmp_path, "resumed")[0], states(whole, "hard")[0])
    # another number of processes goes on as well, with other rounding
    seen = StopAfter(10**6)
    result = team.hard(ALONE, tmp_path / "alone.checkpoint", progress=seen)
    assert len(result.history) == 3
    assert 10**6 - seen.steps == 3 * team.STEPS - 8


@pytest.mark.slow
def test_three_processes(tmp_path: Path) -> None:
    """With three the order of a sum matters: going on must keep it."""
    assert run(tmp_path, "sgd", "too-few", "hard", "stops", world=3) == [(0, "")] * 3
    for name in ("sgd", "too-few"):
        alone = team.EQUAL[name](ALONE).model.state_dict()
        for found in states(tmp_path, name, world=3):
            for key, tensor in alone.items():
                torch.testing.assert_close(found[key], tensor, rtol=1e-9, atol=1e-11)
    assert same(states(tmp_path, "stopped", world=3)[2], states(tmp_path, "hard", world=3)[0])


def command_line(run: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "autoprune", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, *command], cwd=run, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.slow
def test_the_command_line_under_torchrun(tmp_path: Path) -> None:
    arguments = [*NET, *DIGITS, *QUICK, "--budget", "macs=0.5x", "--trials", "3", "--points", "1"]
    searched = CliRunner().invoke(app, ["search", *arguments, "--run", str(tmp_path / "r")])
    assert searched.exit_code == 0, searched.output
    done = command_line(tmp_path, "finetune", "r", "--epochs", "2", "--json")
    assert done.returncode == 0, done.stderr
    (point,) = json.loads(done.stdout)["front"]  # once: by process 0 alone
    assert point["recipe"]["epochs"] == 2
    assert done.stderr.count("Fine-tuning point 0: 22/22 steps") == 1
    assert "Warning" not in done.stderr
    for refused, why in (
        (["finetune", "r", "--point", "7", "--epochs", "2"], "error: There is no point '7'"),
        (["resume", "r"], "error: Only fine-tuning runs under torchrun, but it started 2 processes of `autoprune re"),
    ):
        failed = command_line(tmp_path, *refused)
        assert failed.returncode != 0
        assert failed.stderr.count("error: ") == failed.stderr.count(why) == 1


def test_alone_is_a_team_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with joined() as alone:
        assert alone is ALONE
        assert (alone.rank, alone.world, alone.is_main) == (0, 1, True)
        assert alone.exchange(2.5, True) == (2.5, True)
        assert alone.share({"a": 1}) == {"a": 1}
    assert launched() == 1
    check_alone("search")
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"started 2 processes of `search`.*then fine-tune: torchrun --nproc-per-node"):
        check_alone("search")
