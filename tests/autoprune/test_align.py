"""Levels in multiples of what was asked for, and what `auto` comes to."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import autoprune as ap
from autoprune.align import DEFAULT, needs_steps, read_align, resolve_align
from autoprune.config import FILE, SearchConfig
from autoprune.search_spaces import UserError, trace
from tests.autoprune.runs import SETTINGS, loaders, tiny_net

LATENCY, MACS = SearchConfig(budget=("latency@phone=8ms",)), SearchConfig(budget=("macs=0.5x", "size=2MB"))


def test_a_number_is_what_it_says_whatever_was_measured() -> None:
    config = SearchConfig(budget=("latency=8ms",), align=16)
    assert resolve_align(config, {"conv": 4}) == 16
    assert not needs_steps(config)


def test_auto_is_the_largest_step_where_something_measured_is_limited() -> None:
    assert needs_steps(LATENCY)
    assert not needs_steps(MACS)
    assert all(needs_steps(SearchConfig(budget=(limit,))) for limit in ("throughput=2x", "energy=0.5x", "latency=1x"))
    assert resolve_align(LATENCY, {"conv": 16, "depthwise": 4, "linear": 1}) == 16
    assert resolve_align(LATENCY, {"conv": 1}) == 1
    assert resolve_align(MACS) == resolve_align(LATENCY) == DEFAULT == 8


@pytest.mark.parametrize("bad", [0, 3, -8, True, "eight", 8.0])
def test_what_is_no_power_of_two_is_refused(bad: int) -> None:
    with pytest.raises(UserError, match="power of two"):
        SearchConfig(budget=("macs=0.5x",), align=bad)


def test_align_as_typed() -> None:
    assert [read_align(text) for text in ("auto", "1", "16")] == ["auto", 1, 16]
    for text in ("-8", "eight", "8.0", ""):
        with pytest.raises(UserError, match=f"but got '{text}'"):
            read_align(text)


@pytest.mark.parametrize("bad", [0, 3, -8])
def test_trace_refuses_what_is_no_power_of_two(bad: int) -> None:
    with pytest.raises(UserError, match="power of two"):
        trace(tiny_net(), torch.zeros(1, 1, 8, 8), align=bad)


def test_the_run_folder_holds_the_number_and_resume_takes_it(tmp_path: Path) -> None:
    given = {**loaders(), **SETTINGS}
    ap.search(tiny_net(), **given, align=1, trials=1, run=tmp_path / "one")
    ap.search(tiny_net(), **given, trials=1, run=tmp_path / "auto")
    assert [SearchConfig.read(tmp_path / name).align for name in ("one", "auto")] == [1, 8]
    resumed = ap.resume(tmp_path / "one", trials=1, model=tiny_net(), **loaders())
    assert len(resumed.trials) == 2
    space = trace(tiny_net(), torch.zeros(1, 1, 8, 8), align=1)
    assert SearchConfig.read(tmp_path / "one").fingerprints["space"] == space.fingerprint


def test_a_run_made_before_there_was_a_choice_had_8(tmp_path: Path) -> None:
    SearchConfig(budget=("macs=0.5x",)).write(tmp_path)
    path = tmp_path / FILE
    text, found = re.subn(r"^align = .*\n", "", path.read_text(), flags=re.MULTILINE)
    assert found == 1
    path.write_text(text)
    assert SearchConfig.read(tmp_path).align == 8
