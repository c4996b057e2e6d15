from __future__ import annotations

import gc
import os

import pytest

from autoprune.quiet import PRIORITY, quiet


@pytest.fixture
def nice(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The process's nice values, the last one in force; nothing real is changed."""
    values = [3]
    monkeypatch.setattr(os, "getpriority", lambda which, who: values[-1])
    monkeypatch.setattr(os, "setpriority", lambda which, who, value: values.append(value))
    return values


def test_everything_is_put_back_even_after_an_exception(nice: list[int]) -> None:
    collecting = gc.isenabled()

    def work() -> None:
        with quiet():
            assert nice == [3, PRIORITY]
            assert not gc.isenabled()
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        work()
    assert nice == [3, PRIORITY, 3]
    assert gc.isenabled() == collecting


def test_a_higher_priority_stays(nice: list[int]) -> None:
    nice.append(-19)
    with quiet():
        assert nice[-1] == -19


def test_a_user_who_may_not_raise_the_priority_measures_all_the_same(
    nice: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(which: int, who: int, value: int) -> None:
        if value < nice[-1]:
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "setpriority", refuse)
    with quiet():
        assert nice == [3]
