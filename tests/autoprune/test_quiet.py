from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from autoprune.measure.quiet import PRIORITY, quiet

OTHER = 3
"""Nice value of a thread beside the calling one."""


class Nice(dict[int, int]):
    """Nice values by thread, as Linux keeps them; nothing real is changed."""

    @property
    def caller(self) -> int:
        """The id of the calling thread."""
        return threading.get_native_id()


@contextmanager
def thread(ends: threading.Event) -> Iterator[int]:
    """The id of a thread that lives until `ends`."""
    running = threading.Thread(target=ends.wait)
    running.start()
    assert running.native_id is not None
    try:
        yield running.native_id
    finally:
        ends.set()
        running.join()


@pytest.fixture
def nice(monkeypatch: pytest.MonkeyPatch) -> Nice:
    values = Nice()
    monkeypatch.setattr(os, "getpriority", lambda which, who: values.get(who or values.caller, 0))
    monkeypatch.setattr(os, "setpriority", lambda which, who, value: values.update({who: value}))
    return values


def test_everything_is_put_back_even_after_an_exception(nice: Nice) -> None:
    collecting = gc.isenabled()

    def work() -> None:
        with quiet():
            assert nice[nice.caller] == PRIORITY
            assert not gc.isenabled()
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        work()
    assert nice[nice.caller] == 0
    assert gc.isenabled() == collecting


def test_all_threads_are_raised_and_those_started_meanwhile_do_not_stay_so(nice: Nice) -> None:
    """A thread inherits the priority of the one that starts it."""
    with thread(threading.Event()) as old:
        nice[old] = OTHER
        with ExitStack() as stack:
            with quiet():
                assert nice[old] == PRIORITY
                new = stack.enter_context(thread(threading.Event()))
                nice[new] = nice[nice.caller]
            assert (nice[nice.caller], nice[old], nice[new]) == (0, OTHER, 0)


def test_a_higher_priority_stays(nice: Nice) -> None:
    nice[nice.caller] = -19
    with quiet():
        assert nice[nice.caller] == -19
    assert nice[nice.caller] == -19


def test_a_user_who_may_not_raise_the_priority_measures_all_the_same(
    nice: Nice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(which: int, who: int, value: int) -> None:
        if value < nice.get(who, 0):
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "setpriority", refuse)
    with quiet():
        assert nice == {}
