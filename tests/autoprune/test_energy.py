from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from autoprune.measure import Stopwatch
from autoprune.measure.energy import MIN_MS, EnergyMeter
from autoprune.runtimes import Times
from autoprune.search_spaces.errors import UserError
from tests.autoprune.scripted import Scripted, ScriptedRuntime

RANGE = 1_000_000


def counter(folder: Path, name: str, label: str, microjoules: int = 0) -> Path:
    path = folder / name
    path.mkdir(parents=True)
    for file, value in (("name", label), ("max_energy_range_uj", RANGE), ("energy_uj", microjoules)):
        (path / file).write_text(f"{value}\n")
    return path / "energy_uj"


class Work:
    """Each run takes `ms` milliseconds and moves every counter by so many microjoules."""

    def __init__(self, ms: float, **counters: tuple[Path, int]) -> None:
        self.ms, self.counters, self.runs = ms, counters, 0

    def __call__(self) -> Times:
        self.runs += 1
        for path, step in self.counters.values():
            path.write_text(f"{(int(path.read_text()) + step) % (RANGE + 1)}\n")
        return Times(self.ms, self.ms)

    def layers(self) -> None:
        return None


def test_energy_of_a_run_by_hand_over_two_packages_and_many_wraps(tmp_path: Path) -> None:
    first = counter(tmp_path, "intel-rapl:0", "package-0", 999_000)
    second = counter(tmp_path, "intel-rapl:1", "package-1", 5)
    part = counter(tmp_path, "intel-rapl:0:0", "core")
    again = counter(tmp_path, "intel-rapl-mmio:0", "package-0")
    work = Work(2.0, a=(first, 300_000), b=(second, 40_000), part=(part, 10_000), again=(again, 300_000))
    assert EnergyMeter(tmp_path).millijoules(work) == pytest.approx(340.0)
    assert work.runs * 2.0 >= MIN_MS


def test_a_slow_network_still_runs_a_few_times(tmp_path: Path) -> None:
    work = Work(5000.0, a=(counter(tmp_path, "intel-rapl:0", "package-0"), 1000))
    assert EnergyMeter(tmp_path).millijoules(work) == 1.0
    assert work.runs == 5


def test_a_stopwatch_states_the_energy(tmp_path: Path) -> None:
    path = counter(tmp_path, "intel-rapl:0", "package-0")

    def script(run: int) -> float:
        path.write_text(str((int(path.read_text()) + 2500) % (RANGE + 1)))
        return 4.0

    dense: nn.Module = Scripted(script)
    with Stopwatch(ScriptedRuntime(), dense, None, energy=EnergyMeter(tmp_path)) as stopwatch:
        assert stopwatch.measure({})["dense"].energy_mj == 2.5
    with Stopwatch(ScriptedRuntime(), dense, None) as stopwatch:
        assert stopwatch.measure({})["dense"].energy_mj is None


def test_a_machine_without_counters_is_told_what_it_needs(tmp_path: Path) -> None:
    counter(tmp_path, "intel-rapl:0:0", "core")
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match=r"no counter of a processor package.*RAPL.*no virtual machine"):
            EnergyMeter(folder)


def test_a_counter_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = counter(tmp_path, "intel-rapl:0", "package-0")
    read = Path.read_text

    def refuse(self: Path, encoding: str | None = None) -> str:
        if self == path:
            raise PermissionError(13, "Permission denied")
        return read(self, encoding=encoding)

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(UserError, match=r"may not be read by this user.*sudo chmod a\+r .*intel-rapl:\*/energy_uj"):
        EnergyMeter(tmp_path)
