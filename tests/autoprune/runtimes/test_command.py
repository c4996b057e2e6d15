"""The protocol of the user's own command."""

from __future__ import annotations

import json
import re
import shlex
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from autoprune.runtimes.base import Session
from autoprune.runtimes.command import CommandRuntime, read_times
from autoprune.runtimes.spec import make_runtime
from autoprune.search_spaces.errors import UserError
from tests.autoprune.runtimes.nets import image

onnx = pytest.importorskip("onnx")


def script(folder: Path, body: str) -> str:
    path = folder / "time it.sh"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return f"'{path}'"


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.Flatten(), nn.Linear(256, 2)).eval()


@pytest.mark.parametrize(
    ("output", "times"),
    [
        ("3.5\n", [3.5]),
        ("loading\n1\n2 3\n\n", [1, 2, 3]),
        ("7\nwarming up\n5\n", [5]),
        ("", []),
        ("3 ms\n", []),
        ("1\ndone\n", []),
        ("nan\n", []),
        ("1\n-2\n", []),
        ("0\n", []),
        ("0\n5.1\n", [5.1]),
    ],
)
def test_last_lines_of_numbers_count(output: str, times: list[float]) -> None:
    assert read_times(output) == times


def test_command_gets_file_threads_and_no_shell(net: nn.Module, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    words = script(
        tmp_path, f'echo "$AUTOPRUNE_THREADS|$2|$3|$(wc -c < "$1")" >> {seen}; echo \'$1\'; echo 4; echo 2 9'
    )
    runtime = make_runtime(f"command:{words} {{onnx}} '$HOME > x'", threads=3)
    assert (runtime.clock, runtime.threads, runtime.version) == ("reported", 3, "1")
    with runtime.open(net, image(2)) as session:
        runnable = session.load(net)
        assert runnable() == (4.0, None)
        assert runnable.layers() is None
        path: Path = runnable.path  # type: ignore[attr-defined]
        graph = onnx.load(path).graph
        assert seen.read_text() == f"3|$HOME > x||{path.stat().st_size}\n"
        other: Path = session.load(net).path  # type: ignore[attr-defined]
        assert not other.exists(), "nobody can run it any more"
        assert path.exists()
    assert [d.dim_value for d in graph.input[0].type.tensor_type.shape.dim] == [2, 3, 32, 32]
    assert not path.exists()


@pytest.fixture(scope="module")
def opened(net: nn.Module) -> Session:
    return CommandRuntime("true").open(net, image())


def test_script_of_the_documentation_runs(opened: Session, net: nn.Module, tmp_path: Path) -> None:
    text = (Path(__file__).parents[3] / "docs" / "runtimes.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    path = tmp_path / "time_it.py"
    path.write_text(code)
    opened._runtime = CommandRuntime(shlex.join([sys.executable, str(path)]))  # type: ignore[attr-defined]
    assert opened.load(net)().wall > 0


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("echo board is off >&2; exit 3", r"exit code 3.*board is off"),
        ("echo 12 milliseconds", r"must print milliseconds.*12 milliseconds"),
        ("true", r"must print milliseconds.*printed nothing"),
        ("echo 5; exec sleep 20", r"longer than 0\.5 s"),
    ],
)
def test_failures_say_what_happened(opened: Session, net: nn.Module, tmp_path: Path, body: str, message: str) -> None:
    opened._runtime = CommandRuntime(script(tmp_path, body), timeout_s=0.5)  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=message):
        opened.load(net)()


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_what_a_command_started_ends_with_it(
    opened: Session, net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException] | None
) -> None:
    """After a timeout, and after control-C, which other sessions of the terminal do not get."""
    seen = tmp_path / "pid"
    command = script(tmp_path, f"sleep 20 & echo $! > '{seen}.part'; mv '{seen}.part' '{seen}'; wait")
    communicate = subprocess.Popen.communicate

    def interrupted(process: subprocess.Popen[str], **settings: Any) -> Any:
        while error is not None and not seen.exists():
            time.sleep(0.01)
        if error is not None:
            raise error
        return communicate(process, **settings)

    monkeypatch.setattr(subprocess.Popen, "communicate", interrupted)
    opened._runtime = CommandRuntime(command, timeout_s=1.0)  # type: ignore[attr-defined]
    with pytest.raises(error or UserError):
        opened.load(net)()
    assert not is_running(int(seen.read_text()))


def is_running(pid: int) -> bool:
    """Within 5 s: a process that was killed ends soon, but not at once; as a zombie it has ended."""
    for _ in range(500):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return False
        except (FileNotFoundError, ProcessLookupError):
            return False
        time.sleep(0.01)
    return True


def test_commands_that_cannot_be_run_are_refused_at_once() -> None:
    for command, message in (("", "needs a command"), ("./no-such-file", "was not found"), ("'a", "cannot be read")):
        with pytest.raises(UserError, match=message):
            make_runtime(f"command:{command}")


def test_settings_name_the_command() -> None:
    described = make_runtime("command:true --board 3").describe()
    assert described == "command 1 model, 1 thread, command true --board 3"
    assert json.dumps(described)
