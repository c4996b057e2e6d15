from __future__ import annotations

import gc
import json
import re

import pytest
import torch
from torch import Tensor, nn

from autoprune import measure as module
from autoprune.device import device_fingerprint, device_info
from autoprune.measure import Latency, measure
from autoprune.progress import RichProgress
from autoprune.search_spaces.errors import UserError


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


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[list[float]]:
    """Replace the timer: every run of a network takes the next time of a list of milliseconds."""
    times: list[list[float]] = [[]]

    def timer(call):  # type: ignore[no-untyped-def]
        call()
        return (times[0].pop(0) if times[0] else 1.0), 0.25

    monkeypatch.setattr(module, "_cpu_thread_time", timer)
    return times


def test_networks_take_turns_in_the_stated_circumstances() -> None:
    log: list[tuple[object, ...]] = []
    models = {name: Logger(name, log).train() for name in "abc"}
    threads, collecting = torch.get_num_threads(), gc.isenabled()
    result = measure(models, torch.zeros(4, 1), repeats=4, warmup=0, threads=2)
    assert [entry[0] for entry in log] == list("abccbaabccba")
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
    assert lines[0].startswith("Measuring latency: 0/11 rounds")
    assert lines[-1].startswith("Measuring latency: 11/11 rounds"), result


def test_settings_come_back_after_an_exception() -> None:
    class Breaks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("mine")

    threads = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="mine"):
        measure({"a": Breaks()}, torch.zeros(1), threads=2)
    assert torch.get_num_threads() == threads
    assert gc.isenabled()


def test_statistics_by_hand(clock: list[list[float]]) -> None:
    log: list[tuple[object, ...]] = []
    models = {"dense": Logger("dense", log), "half": Logger("half", log)}
    dense, half = [2.0, 4.0, 8.0, 4.0, 4.0], [1.0, 3.0, 2.0, 2.0, 2.0]
    rounds = [(d, h) if i % 2 == 0 else (h, d) for i, (d, h) in enumerate(zip(dense, half, strict=True))]
    clock[0] = [value for pair in rounds for value in pair]
    result = measure(models, torch.zeros(1, 1), repeats=5, warmup=0)
    assert result["dense"].median_ms == 4.0
    assert result["dense"].ratio == 1.0
    assert result["half"].median_ms == 2.0
    assert result["half"].samples_ms == (1.0, 3.0, 2.0, 2.0, 2.0)
    assert result["half"].p10_ms == pytest.approx(1.4)
    assert result["half"].iqr_ms == 0.0
    assert result["half"].ratio == 0.5  # of 0.5, 0.75, 0.25, 0.5, 0.5
    assert result["half"].reference == "dense"
    assert result["half"].cpu_ms == 0.25


def test_the_warm_up_ends_when_times_no_longer_fall(clock: list[list[float]]) -> None:
    models = {"a": Logger("a", [])}
    clock[0] = [9.0, 8.0, 4.0, 4.1, 3.9, 4.0]  # 3.9 is not 5 % below 4
    settled = measure(models, torch.zeros(1, 1), repeats=1, warmup=2)["a"]
    assert (settled.warmup, settled.settled) == (6, True)
    clock[0] = [0.9**i for i in range(20)]
    falling = measure(models, torch.zeros(1, 1), repeats=1, warmup=5)["a"]
    assert (falling.warmup, falling.settled) == (20, False)
    clock[0] = [1.0] * 20
    assert measure(models, torch.zeros(1, 1), repeats=1, warmup=7)["a"].warmup == 7


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
    result = measure({"a": nn.Linear(2, 2).bfloat16()}, torch.zeros(1, 2).bfloat16(), repeats=3)["a"]
    assert re.fullmatch(r"[\d.]+ ms ± [\d.]+ \(IQR\), 3 repeats, batch 1, 1 thread, eager bf16", str(result))
    assert Latency.from_dict(json.loads(json.dumps(result.to_dict()))) == result


@pytest.mark.parametrize(
    ("median", "iqr", "text"),
    [
        (8.23, 0.31, "8.2 ms ± 0.3"),
        (0.5041, 0.1, "0.50 ms ± 0.10"),
        (104.2, 0.02, "104.20 ms ± 0.02"),
        (12.0, 0.0, "12.0000 ms ± 0.0000"),
    ],
)
def test_digits(median: float, iqr: float, text: str) -> None:
    values = measure({"a": Logger("a", [])}, torch.zeros(1), repeats=1, warmup=0)["a"].to_dict()
    assert Latency.from_dict({**values, "median_ms": median, "iqr_ms": iqr}).short == text


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
