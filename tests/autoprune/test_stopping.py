"""Signals as they come: to this process, and to searches of their own."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from autoprune import stopping
from autoprune.agents.base import Trial
from autoprune.cli import app
from autoprune.stopping import GRACE_S, ONE_REQUEST_S, Stopped, listening
from autoprune.study import Study
from tests.autoprune.runs import DIGITS, NET

SENT = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]

LONG_S = 60.0
"""Seconds that nothing here takes."""


def send(number: int) -> None:
    os.kill(os.getpid(), number)


# -- one process -----------------------------------------------------------------------------------------------------


def test_nothing_is_wanted_where_nobody_listens() -> None:
    assert not stopping.wanted()
    stopping.check()


def stopped(step: Callable[[], None], grace_s: float = GRACE_S) -> Stopped:
    """How `step` was stopped."""

    def listened() -> None:
        with listening(grace_s):
            step()

    with pytest.raises(Stopped) as caught:
        listened()
    return caught.value


@pytest.mark.parametrize("number", SENT)
def test_the_first_request_waits_for_a_safe_point(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    silenced: list[int] = []
    monkeypatch.setattr(stopping, "_silence", lambda _: silenced.append(number))
    before = [signal.getsignal(each) for each in SENT]

    def step() -> None:
        stopping.check()
        assert not stopping.wanted()
        send(number)
        assert stopping.wanted()
        stopping.check()

    caught = stopped(step)
    assert isinstance(caught, KeyboardInterrupt)
    assert stopping.exit_code(caught) == 128 + number
    assert [signal.getsignal(each) for each in SENT] == before
    assert not stopping.wanted()
    assert silenced == ([number] if number == signal.SIGHUP else [])
    assert capsys.readouterr().err == "Stopping after this step, within 20 s; Ctrl-C again stops at once.\n"


def test_signals_that_come_together_are_one_request() -> None:
    def step() -> None:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            send(number)
        assert stopping.wanted()
        stopping.check()

    assert stopping.exit_code(stopped(step)) == 143


def test_the_second_request_stops_at_once_also_while_asleep() -> None:
    def step() -> None:
        send(signal.SIGTERM)
        threading.Timer(ONE_REQUEST_S * 1.2, send, [signal.SIGINT]).start()
        time.sleep(LONG_S)

    assert stopping.exit_code(stopped(step)) == 143


def test_a_step_that_takes_too_long_is_abandoned_also_while_asleep(capsys: pytest.CaptureFixture[str]) -> None:
    def step() -> None:
        send(signal.SIGINT)
        time.sleep(LONG_S)

    stopped(step, grace_s=0.1)
    assert "Not done after 0.1 s: abandoning this step." in capsys.readouterr().err


def test_cleaning_up_after_a_safe_point_is_not_abandoned() -> None:
    cleaned = []

    def step() -> None:
        send(signal.SIGINT)
        try:
            stopping.check()
        finally:
            time.sleep(0.3)
            cleaned.append(True)

    stopped(step, grace_s=0.1)
    assert cleaned


def test_without_a_grace_the_first_request_stops_at_once() -> None:
    def step() -> None:
        send(signal.SIGINT)
        time.sleep(LONG_S)

    assert stopping.exit_code(stopped(step, grace_s=0)) == 130


def test_what_is_ignored_stays_ignored() -> None:
    """A shell starts what runs in its background so, and `nohup` as well."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with listening():
            send(signal.SIGINT)
            assert not stopping.wanted()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_and_inner_blocks_change_no_handler() -> None:
    found: list[object] = []

    def elsewhere() -> None:
        with listening():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGTERM)]
    with listening():
        outer = signal.getsignal(signal.SIGTERM)
        with listening(grace_s=0):
            assert signal.getsignal(signal.SIGTERM) == outer
        assert signal.getsignal(signal.SIGTERM) == outer


def test_the_third_request_leaves_whatever_hangs() -> None:
    code = f"""
import os, signal, time
from autoprune import stopping
with stopping.listening(grace_s=0):
    try:
        signal.raise_signal(signal.SIGTERM)
    finally:
        time.sleep({ONE_REQUEST_S * 1.2})
        signal.raise_signal(signal.SIGTERM)
        print("still here", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=LONG_S)
    assert (done.returncode, done.stdout) == (143, "")
    assert done.stderr == "\nStopped at once. What was stored before can be gone on with.\n"


def test_a_forked_process_does_not_speak_for_its_parent() -> None:
    code = """
import os, signal, time
from autoprune import stopping
with stopping.listening():
    child = os.fork()
    if not child:
        os.kill(os.getpid(), signal.SIGINT)  # as a terminal sends it to all
        assert not stopping.wanted()
        os.kill(os.getpid(), signal.SIGTERM)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), stopping.wanted())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=LONG_S)
    assert (done.stdout, done.stderr) == ("-15 False\n", "")


def test_closing_the_terminal_does_not_break_the_step_that_runs(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from autoprune import stopping
found = Path({str(tmp_path / "found")!r})
with stopping.listening():
    print("ready", flush=True)
    while not stopping.wanted():
        pass
    print("a line that nobody can read", flush=True)
    try:
        stopping.check()
    except stopping.Stopped as stopped:
        found.write_text(str(stopping.exit_code(stopped)))
"""
    process, terminal = pty.fork()
    if not process:
        os.execv(sys.executable, [sys.executable, "-c", code])
    assert b"ready" in os.read(terminal, 1000)
    os.close(terminal)
    os.waitpid(process, 0)
    assert (tmp_path / "found").read_text() == "129"


# -- searches --------------------------------------------------------------------------------------------------------

PACED = """
import os, time
from pathlib import Path

here = Path(os.environ["PACED"])
calls = 0

def score(model, batches):
    global calls
    calls += 1
    if (here / "hold").exists() and calls == int((here / "hold").read_text()):
        (here / "held").touch()
        while not (here / "go").exists():
            time.sleep(0.01)
    return -sum(p.numel() for p in model.parameters()) / 1e6
"""

SEARCH = ["search", *NET, *DIGITS, "--recovery", "slice", "--budget", "macs=0.5x", "--score", "paced:score"]
SEARCH += ["--agent", "random", "--prior", "off", "--trials", "4", "--points", "1"]


@pytest.fixture
def paced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose score waits in call number `hold` until there is `go`."""
    (tmp_path / "paced.py").write_text(PACED)
    monkeypatch.setenv("PACED", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@contextmanager
def held(folder: Path, call: int, *words: str | Path) -> Iterator[subprocess.Popen[str]]:
    """A command in a process of its own that waits in this call of its score."""
    for name in ("go", "held"):
        (folder / name).unlink(missing_ok=True)
    (folder / "hold").write_text(str(call))
    with subprocess.Popen(
        [sys.executable, "-m", "autoprune", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        killer = threading.Timer(LONG_S, process.kill)
        killer.start()
        while not (folder / "held").exists() and process.poll() is None:
            time.sleep(0.01)
        yield process
        killer.cancel()


def until(process: subprocess.Popen[str], words: str) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if words in line:
            return
    raise AssertionError(f"it never said {words!r}")


def content(trials: list[Trial]) -> list[tuple[object, ...]]:
    return [(t.number, t.candidate, t.state, t.score, t.costs) for t in trials]


def test_a_search_that_is_stopped_and_resumed_is_the_unbroken_one(paced: Path) -> None:
    run = paced / "r"
    with held(paced, 3, *SEARCH, "--run", run) as process:  # the dense model, trial 0, trial 1
        process.send_signal(signal.SIGINT)
        until(process, "Stopping after this step")
        (paced / "go").touch()
        _, said = process.communicate()
    assert process.returncode == 130
    assert said.splitlines()[-1] == f"Stopped. 2 of 4 trials are stored. Go on with: autoprune resume {run}"

    with held(paced, 1, "resume", run) as process:  # trial 2
        process.send_signal(signal.SIGTERM)
        until(process, "Stopping after this step")
        time.sleep(ONE_REQUEST_S * 1.2)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate()
    assert process.returncode == 143
    assert said.splitlines()[-1] == f"Stopped. 2 of 4 trials are stored. Go on with: autoprune resume {run}"

    (paced / "hold").unlink()
    for words in (["resume", str(run)], [*SEARCH, "--run", str(paced / "whole")]):
        assert CliRunner().invoke(app, words).exit_code == 0
    assert content(Study.read(run).trials) == content(Study.read(paced / "whole").trials)
    assert len(Study.read(run).trials) == 4
