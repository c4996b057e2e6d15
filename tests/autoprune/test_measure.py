from __future__ import annotations

import gc
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from autoprune.measure import Latency, device, measure
from autoprune.measure.device import device_fingerprint, device_info
from autoprune.measure.robust import WIDER
from autoprune.progress import RichProgress
from autoprune.search_spaces.errors import UserError
from tests.autoprune.scripted import Scripted, ScriptedRuntime


class Logger(nn.Module):
    """Writes its name and the circumstances of the call into a log."""

    def __init__(self, name: str, log: list[tuple[object, ...]]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.name, self.log = name, log

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
        states = self.training, torch.is_inference_mode_enabled(), torch.get_num_threads(), gc.isenabled()
        self.log.append((self.name, *states))
        return x * scale


def test_networks_take_turns_in_the_stated_circumstances() -> None:
    log: list[tuple[object, ...]] = []
    models = {name: Logger(name, log).train() for name in "abc"}
    threads, collecting = torch.get_num_threads(), gc.isenabled()
    result = measure(models, torch.zeros(4, 1), repeats=4, warmup=0, threads=2)
    assert "".join(str(entry[0]) for entry in log) == "aabbccccbbaaaabbccccbbaa"
    assert {entry[1:] for entry in log} == {(False, True, 2, False)}
    assert (torch.get_num_threads(), gc.isenabled()) == (threads, collecting)
    assert all(model.training for model in models.values())
    assert result["a"].batch == 4
    assert result["a"].threads == 2
    assert result["a"].ratio is None


def test_progress_reports_every_round(capsys: pytest.CaptureFixture[str]) -> None:
    progress = RichProgress()
    result = measure({"a": Logger("a", [])}, torch.zeros(1), repeats=3, warmup=2, progress=progress)["a"]
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Warming up: 0/8 rounds")
    assert any(line.startswith("Measuring latency: 0/3 rounds") for line in lines)
    assert lines[-1].startswith("Measuring latency: 3/3 rounds"), result


def test_settings_come_back_after_an_exception() -> None:
    class Breaks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("mine")

    threads = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="mine"):
        measure({"a": Breaks()}, torch.zeros(1), threads=2)
    assert torch.get_num_threads() == threads
    assert gc.isenabled()


def test_statistics_by_hand() -> None:
    dense, half = [2.0, 4.0, 8.0, 4.0, 4.0], [1.0, 3.0, 2.0, 2.0, 2.0]
    models = {"dense": Scripted(lambda run: dense[run]), "half": Scripted(lambda run: (half[run], 0.25))}
    result = measure(models, torch.zeros(1, 1), runtime=ScriptedRuntime("wall"), repeats=5, warmup=0)
    assert result["dense"].ms == 4.0
    assert result["dense"].ratio == 1.0
    assert result["half"].ms == result["half"].median_ms == result["half"].wall_ms == 2.0
    assert result["half"].samples_ms == (1.0, 3.0, 2.0, 2.0, 2.0)
    interval = 2 * 0.5**WIDER, 2 * 1.5**WIDER  # of 1 to 3: five samples are too few for less
    assert (result["half"].low_ms, result["half"].high_ms) == pytest.approx(interval)
    assert result["half"].p10_ms == pytest.approx(1.4)
    assert result["half"].iqr_ms == 0.0
    assert result["half"].ratio == 0.5  # of 0.5, 0.75, 0.25, 0.5, 0.5
    assert (result["half"].ratio_low, result["half"].ratio_high) == pytest.approx((interval[0] / 4, interval[1] / 4))
    assert result["half"].reference == "dense"
    assert result["half"].cpu_ms == 0.25


def test_the_warm_up_ends_when_times_no_longer_fall() -> None:
    def warm_up(times: list[float], least: int) -> tuple[int, bool]:
        model = Scripted(lambda run: times[run] if run < len(times) else 1.0)
        latency = measure({"a": model}, torch.zeros(1), runtime=ScriptedRuntime(), repeats=1, warmup=least)["a"]
        return latency.warmup, latency.settled

    assert warm_up([9.0, 8.0, 4.0, 4.1, 3.9, 4.0], 2) == (6, True)  # 3.9 is not 5 % below 4
    assert warm_up([0.9**i for i in range(20)], 5) == (20, False)
    assert warm_up([1.0] * 20, 7) == (7, True)


@pytest.mark.parametrize(
    "inputs",
    [
        torch.zeros(3, 1),
        (torch.zeros(3, 1),),
        {"x": torch.zeros(3, 1)},
        ((torch.zeros(3, 1),), {"scale": 2.0}),
        ((), {"x": torch.zeros(3, 1), "scale": 2.0}),
    ],
)
def test_inputs_of_every_form(inputs: object) -> None:
    result = measure({"a": Logger("a", [])}, inputs, repeats=2, warmup=1)["a"]
    assert result.batch == 3
    assert result.median_ms > 0
    assert result.cpu_ms is not None
    assert len(result.samples_ms) == result.repeats == 2


def test_a_latency_reads_well_and_survives_json() -> None:
    result = measure({"a": Scripted(lambda run: 2.0 + run / 10)}, torch.zeros(1, 2), runtime=ScriptedRuntime())["a"]
    assert str(result) == "4.0 ms ± 0.8 (95 %), 30 repeats, batch 1, 1 thread, scripted 1.0 fp32, processor time"
    assert Latency.from_dict(json.loads(json.dumps(result.to_dict()))) == result


OLD = {
    **{"median_ms": 4.0, "p10_ms": 3.1, "iqr_ms": 1.0, "cpu_ms": 3.9, "ratio": 0.5, "reference": "dense"},
    **{"repeats": 9, "warmup": 5, "settled": True, "threads": 1, "batch": 1, "precision": "fp32", "device": "A cpu"},
    **{"clock": "wall", "runtime": "eager", "samples_ms": [4.0, 3.0, 5.0, 4.5, 3.5, 4.2, 3.8, 9.0, 2.0]},
}
"""What the release before the runtimes wrote into ``front.json``."""


def test_what_an_older_release_wrote_is_read() -> None:
    latency = Latency.from_dict(OLD)
    assert (latency.ms, latency.wall_ms, latency.cpu_ms, latency.clock) == (4.0, 4.0, 3.9, "wall")
    interval = 4 * (3 / 4) ** WIDER, 4 * (5 / 4) ** WIDER  # second and eighth of nine
    assert (latency.low_ms, latency.high_ms) == pytest.approx(interval)
    assert (latency.ratio, latency.ratio_low, latency.energy_mj, latency.remarks) == (0.5, None, None, ())
    assert Latency.from_dict(latency.to_dict()) == latency


@pytest.mark.parametrize(
    ("ms", "half", "text"),
    [
        (8.23, 0.31, "8.2 ms ± 0.3"),
        (0.5041, 0.1, "0.50 ms ± 0.10"),
        (104.2, 0.02, "104.20 ms ± 0.02"),
        (12.0, 0.0, "12.0000 ms ± 0.0000"),
    ],
)
def test_digits(ms: float, half: float, text: str) -> None:
    assert replace(Latency.from_dict(OLD), ms=ms, low_ms=ms - half, high_ms=ms + half).short == text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repeats": 0}, "`repeats` must be a whole number of at least 1"),
        ({"threads": 0}, "`threads` must be"),
        ({"warmup": -1}, "`warmup` must be"),
        ({"reference": "desne"}, r"Unknown reference network 'desne'. Did you mean 'dense'\?"),
        ({"models": {}}, "at least one network"),
        ({"models": {"a": nn.Linear(1, 1, device="meta")}}, "one CPU or CUDA device, but got"),
    ],
)
def test_what_cannot_be_measured(options: dict[str, object], message: str) -> None:
    models = options.pop("models", {"dense": nn.Identity()})
    with pytest.raises(UserError, match=message):
        measure(models, torch.zeros(1), **options)  # type: ignore[arg-type]


def test_the_governor_is_stated_and_changes_no_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "CPUFREQ", tmp_path)
    before = device_fingerprint()
    assert device_info()["governor"] is None
    (tmp_path / "scaling_governor").write_text("powersave\n")
    assert device_info()["governor"] == "powersave"
    assert device_fingerprint() == before


def test_the_device_does_not_depend_on_the_threads() -> None:
    before, threads = device_fingerprint(), torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert device_info()["threads"] == threads + 1
        assert device_fingerprint() == before
    finally:
        torch.set_num_threads(threads)
    assert device_info()["cpu"]
    assert device_info()["cores"] >= 1
    assert re.fullmatch("[0-9a-f]{12}", before)
    json.dumps(device_info())
