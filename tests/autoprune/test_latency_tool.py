"""Where the time goes: shares and savings on devices of known law, the command, its page and its errors."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner, Result

import autoprune
from autoprune.cli import app
from autoprune.cli import latency as cli_latency
from autoprune.cli.latency import bar
from autoprune.latency_tool import savings as latency_savings
from autoprune.latency_tool.profile import LatencyProfile
from autoprune.latency_tool.report import write_latency_report
from autoprune.latency_tool.tool import profile_latency
from autoprune.latency_tool.words import best_cuts, notes
from autoprune.measure import Stopwatch, TooNoisy
from autoprune.progress import NO_PROGRESS
from autoprune.runtimes import Runnable, Runtime, Session, Times
from autoprune.search_spaces import UserError, trace
from tests.autoprune.test_report import EVIL

OVERHEAD = 1.0
RATES = {"0": 0.02, "1": 0.01, "2": 0.005}
"""The device of known law: milliseconds for every output channel of a convolution, and an overhead."""


class KnownRuntime(Runtime):
    """Takes `OVERHEAD` and for each convolution its rate times its output channels; `noise` factors in turn."""

    name: ClassVar[str] = "known"
    threads, precision, clock, version = 1, "fp32", "cpu", "1.0"
    settings: Mapping[str, str] = {}

    def __init__(self, noise: tuple[float, ...] = (1.0,)) -> None:
        self.noise, self.runs, self.loaded = noise, 0, 0

    def open(self, dense: nn.Module, inputs: Any) -> Session:
        return KnownSession(self)


class KnownSession(Session):
    def __init__(self, runtime: KnownRuntime) -> None:
        self.runtime = runtime

    def load(self, model: nn.Module) -> Runnable:
        self.runtime.loaded += 1
        return Known(self.runtime, {n: m.out_channels for n, m in model.named_modules() if isinstance(m, nn.Conv2d)})


class Known:
    def __init__(self, runtime: KnownRuntime, widths: Mapping[str, int]) -> None:
        self.runtime, self.widths = runtime, widths

    def __call__(self) -> Times:
        self.runtime.runs += 1
        ms = (OVERHEAD + sum(self.layers().values())) * self.runtime.noise[self.runtime.runs % len(self.runtime.noise)]
        return Times(ms, ms)

    def layers(self) -> dict[str, float]:
        return {name: RATES[name] * width for name, width in self.widths.items()}


def net() -> nn.Sequential:
    """Two groups of 64 and 32 channels; the last convolution makes the output."""
    return nn.Sequential(nn.Conv2d(3, 64, 1), nn.Conv2d(64, 32, 1), nn.Conv2d(32, 10, 1), nn.ReLU()).eval()


IMAGE = torch.zeros(2, 3, 4, 4)
DENSE_MS = OVERHEAD + 0.02 * 64 + 0.01 * 32 + 0.005 * 10


def profile(runtime: Runtime | None = None, **settings: Any) -> LatencyProfile:
    return profile_latency(net(), IMAGE, runtime=runtime or KnownRuntime(), **settings)


@cache
def measured() -> LatencyProfile:
    """All cuts are measured."""
    return profile()


@cache
def predicted() -> LatencyProfile:
    """No cut is."""
    return profile(seconds=0)


def test_shares_and_savings_are_those_of_the_device() -> None:
    found = measured()
    assert found.dense.ms == pytest.approx(DENSE_MS)
    assert found.throughput == pytest.approx(2e3 / DENSE_MS)
    work = DENSE_MS - OVERHEAD
    assert [(layer.module, layer.kind) for layer in found.layers] == [("0", "Conv2d"), ("1", "Conv2d"), ("2", "Conv2d")]
    assert [layer.share for layer in found.layers] == pytest.approx([1.28 / work, 0.32 / work, 0.05 / work])
    assert found.timeless == {"ReLU": 1}
    first, second = found.savings
    assert (first.group, first.units, second.group, second.units) == ("0", 64, "1", 32)
    assert [cut and cut.kept for cut in first.cuts] == [56, 48, 32]
    assert [cut and cut.saved_ms for cut in first.cuts] == pytest.approx([0.02 * 8, 0.02 * 16, 0.02 * 32])
    assert [cut and cut.kept for cut in second.cuts] == [28, 24, 16]
    assert all(cut.measured and cut.low_ms == pytest.approx(cut.high_ms) for cut in first.cuts if cut)
    assert found.num_measured == (6, 6)
    assert not found.predictor


def test_macs_and_parameters_saved_are_counted_by_hand() -> None:
    cut = measured().savings[1].deepest
    assert cut is not None
    weights = 3 * 64 + 64 * 32 + 32 * 10
    assert cut.macs == pytest.approx((64 * 16 + 16 * 10) / weights)
    assert cut.params == pytest.approx((64 * 16 + 16 * 10 + 16) / (weights + 64 + 32 + 10))


def test_groups_are_ranked_by_time_and_not_by_macs() -> None:
    """Half of group 0 saves 47 % of the MACs and 24 % of the time, half of group 1 46 % and 6 %."""
    found = measured()
    assert [saving.group for saving in found.ranking] == ["0", "1"]
    cuts = [saving.deepest for saving in found.ranking]
    assert [cut and cut.saved for cut in cuts] == pytest.approx([0.64 / DENSE_MS, 0.16 / DENSE_MS])


def test_cuts_that_were_not_measured_are_predicted_with_an_interval() -> None:
    found = predicted()
    assert found.num_measured == (0, 6)
    assert "off by" in found.predictor
    for saving in found.savings:
        for cut in filter(None, saving.cuts):
            truth = RATES[saving.group] * (saving.units - cut.kept)
            assert cut.saved_ms == pytest.approx(truth, abs=0.03 * DENSE_MS)
            assert cut.low_ms <= cut.saved_ms <= cut.high_ms


def test_the_deepest_cuts_are_measured_first_until_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block of two takes 10 s: within 25 s there are two, and the third would end after 30."""
    clock = iter(range(0, 1000, 5))
    monkeypatch.setattr(latency_savings, "TOGETHER", 2)
    monkeypatch.setattr("autoprune.latency_tool.savings.time.monotonic", lambda: float(next(clock)))
    found = profile(seconds=25, cuts=(0.25, 0.5, 0.75))
    measured = [[cut.measured for cut in saving.cuts if cut] for saving in found.savings]
    assert measured == [[False, True, True], [False, True, True]]


def test_a_device_profile_remembers_what_was_measured(tmp_path: Path) -> None:
    path = tmp_path / "device.json"
    first, again = KnownRuntime(), KnownRuntime()
    known = profile(first, device_profile=path)
    assert profile(again, device_profile=path).savings == known.savings
    assert (first.loaded, again.loaded) == (1 + 6, 1), "the dense network alone"


def test_a_device_profile_knows_images_of_other_sizes_apart(tmp_path: Path) -> None:
    path = tmp_path / "device.json"
    profile(device_profile=path)
    other = KnownRuntime()
    profile_latency(net(), torch.zeros(2, 3, 8, 8), runtime=other, device_profile=path)
    assert other.loaded == 1 + 6


def test_a_device_profile_of_a_slower_machine_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "device.json"
    profile(device_profile=path)
    faster = KnownRuntime(noise=(0.5,))
    found = profile(faster, device_profile=path)
    assert faster.loaded == 1 + 6
    cut = found.savings[0].deepest
    assert cut is not None
    assert cut.saved_ms == pytest.approx(0.5 * 0.64)


def test_levels_follow_the_step_of_the_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a step of 2, 58 of 64 channels are nearest to a cut of 10 %; the device profile remembers the step."""
    asked: list[tuple[str, ...]] = []

    def steps(runtime: Runtime, kinds: Iterable[str], **rest: Any) -> dict[str, int]:
        asked.append(tuple(kinds))
        return {"conv": 2}

    monkeypatch.setattr("autoprune.align.find_steps", steps)
    for _ in range(2):
        found = profile(align="auto", device_profile=tmp_path / "device.json")
        assert found.align == 2
        assert [cut and cut.kept for cut in found.savings[0].cuts] == [58, 48, 32]
        assert "multiples of 2" in " ".join(notes(found))
    assert asked == [("conv",)]


def test_cuts_that_make_the_network_slower_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device that pays 1 ms for widths beside multiples of 16, cutting group 0 from 64 to 56 costs 0.84 ms."""
    law = Known.layers
    monkeypatch.setattr(
        Known,
        "layers",
        lambda self: {**law(self), "pad": float(any(w % 16 for n, w in self.widths.items() if n != "2"))},
    )
    found = profile(cuts=(0.125, 0.5))
    (cut, _), (other, _) = (saving.cuts for saving in found.savings)
    assert cut is not None
    assert cut.saved_ms == pytest.approx(0.02 * 8 - 1)
    assert other is not None
    assert other.kept == 28
    text = " ".join(best_cuts(found))
    assert "2 cuts make the network slower: 1 to 28 of 32 (0.96 ms), 0 to 56 of 64 (0.84 ms): the runtime" in text
    assert [saving.group for saving in found.ranking] == ["0", "1"], "by the deepest cut, which is in step"


def test_a_disturbed_block_is_measured_again_before_the_machine_is_called_noisy() -> None:
    """The second of the two measurements is content with intervals four times as wide: of a cut, and of the subnets
    that a model learns from.
    """
    space = trace(net(), IMAGE)
    asked: list[float | None] = []

    class Disturbed(Stopwatch):
        def measure(self, models: Mapping[str, nn.Module], *, accuracy: float | None = None, **rest: Any) -> Any:
            asked.append(accuracy)
            if accuracy == 0.01:
                raise TooNoisy("The machine is too noisy.")
            return super().measure(models, accuracy=accuracy, **rest)

    with Disturbed(KnownRuntime(), space.model, IMAGE) as stopwatch:
        dense = stopwatch.measure({})["dense"]
        common: dict[str, Any] = {"dense": dense, "accuracy": 0.01, "profile": None, "progress": NO_PROGRESS}
        savings, _ = latency_savings.find_savings(space, stopwatch, [0.5], seconds=60, **common)
        assert asked == [None, 0.01, 0.04]
        cut = savings[0].deepest
        assert cut is not None
        assert cut.saved_ms == pytest.approx(0.64)
        asked.clear()
        latency_savings.find_savings(space, stopwatch, [0.5], seconds=0, **common)
    assert asked[:2] == [0.01, 0.04]


def test_what_is_no_noise_is_not_measured_again() -> None:
    """A network that the runtime cannot load is no better at another accuracy."""

    class Broken(KnownSession):
        def load(self, model: nn.Module) -> Runnable:
            if self.runtime.loaded:
                self.runtime.loaded += 1
                raise UserError("This network cannot be loaded.")
            return super().load(model)

    runtime = KnownRuntime()
    runtime.open = lambda dense, inputs: Broken(runtime)  # type: ignore[method-assign]
    with pytest.raises(UserError, match="cannot be loaded"):
        profile(runtime, cuts=(0.5,))
    assert runtime.loaded == 1 + 1


@pytest.mark.parametrize("clock", ["reported", "cuda events", "cpu"])
def test_the_energy_of_this_processor_is_not_taken_for_that_of_a_device(
    clock: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Meter:
        def millijoules(self, run: Runnable) -> float:
            return 7.0

    monkeypatch.setattr("autoprune.latency_tool.tool.EnergyMeter", Meter)
    runtime = KnownRuntime()
    runtime.clock = clock
    found = profile(runtime, cuts=(0.5,))
    here = clock == "cpu"
    assert found.dense.energy_mj == (7.0 if here else None)
    assert found.no_energy == ("" if here else "Energy is only measured on the processor of this machine.")


def test_steps_are_not_measured_where_that_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` is then 8, as in a search."""
    monkeypatch.setattr("autoprune.align.find_steps", lambda *_, **__: {"conv": 2})
    monkeypatch.setattr(KnownRuntime, "name", "compile")
    assert profile(align="auto", seconds=0).align == 8
    monkeypatch.undo()
    monkeypatch.setattr("autoprune.align.find_steps", lambda *_, **__: {"conv": 2})
    assert profile(align="auto", seconds=0).align == 2
    narrow = nn.Sequential(nn.Conv2d(3, 32, 1), nn.Conv2d(32, 10, 1)).eval()
    assert profile_latency(narrow, IMAGE, runtime=KnownRuntime(), align="auto").align == 8


class Untraceable(nn.Module):
    """What cannot be cut: the kernel is made from the values of the input."""

    def forward(self, x: Tensor) -> Tensor:
        return x * float(x.sum())


def test_what_cannot_be_cut_is_still_timed() -> None:
    found = profile_latency(Untraceable(), IMAGE, runtime=KnownRuntime())
    assert found.dense.ms == pytest.approx(OVERHEAD)
    assert found.savings == ()
    assert "Untraceable" in found.refusal


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"cuts": (25,)}, "Write 25 % as 0.25"),
        ({"cuts": ()}, "between 0 and 1"),
        ({"runtime": "onnx"}, "Unknown runtime 'onnx'. Did you mean 'onnxruntime'"),
        ({"accuracy": 0}, "accuracy"),
        ({"align": 0}, "`align` must be a whole number"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        profile_latency(net(), IMAGE, **{"runtime": KnownRuntime(), **settings})


def test_inputs_that_do_not_fit() -> None:
    with pytest.raises(UserError, match=r"does not run on an input of 2x4x4x4: RuntimeError"):
        profile_latency(net(), torch.zeros(2, 4, 4, 4), runtime=KnownRuntime())


def test_json_holds_everything_and_names_no_object() -> None:
    found = profile(seconds=0, cuts=(0.01, 0.5))
    content = json.loads(json.dumps(found.to_dict()))
    assert content["ranking"] == ["0", "1"]
    assert content["dense"]["ms"] == pytest.approx(DENSE_MS)
    assert content["inputs"] == [[2, 3, 4, 4]]
    assert set(content["savings"][0]["cuts"][1]) == {
        *("kept", "saved_ms", "low_ms", "high_ms", "saved", "macs", "params", "measured")
    }
    assert content["savings"][1]["cuts"][0] is None, "the level nearest to 1 % is the whole group"


def test_names_load_from_the_package() -> None:
    assert autoprune.profile_latency is profile_latency
    assert autoprune.LatencyProfile is LatencyProfile


# -- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_shows_every_group_and_loads_nothing(tmp_path: Path) -> None:
    write_latency_report(tmp_path / "page.html", [measured(), predicted()])
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    for words in ("Where the time goes", "known 1.0 fp32, 1 thread", "6 of 6 cuts measured", "0 of 6 cuts measured"):
        assert words in text
    assert text.count("Hatched bars are predicted.") == 1
    assert "default-src 'none'" in text
    assert not re.search(r'(?:src|href)="(?!data:)', re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL))


def test_names_cannot_break_out_of_the_page(tmp_path: Path) -> None:
    model = nn.Sequential()
    model.add_module(EVIL.replace(".", ""), nn.Conv2d(3, 16, 1))
    model.add_module("last", nn.Conv2d(16, 10, 1))
    rates = dict.fromkeys((EVIL.replace(".", ""), "last"), 0.01)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RATES, EVIL.replace(".", ""), 0.01)
        patch.setitem(RATES, "last", 0.01)
        found = profile_latency(model.eval(), IMAGE, runtime=KnownRuntime(), network=EVIL)
    assert len(found.layers) == len(rates)
    write_latency_report(tmp_path / "page.html", [found])
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<img src=x" not in text
    assert "<script>alert" not in text
    assert "&lt;img src=x" in text


# -- the command ------------------------------------------------------------------------------------------------------

NET = ["--model", "autoprune.nets:small_resnet", "--model-arg", "widths=[8, 16]", "--model-arg", "blocks=[1, 1]"]
ROUGH = ["--accuracy", "0.9"]
"""The real clock has a part in these tests: any accuracy will do."""


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["latency", *map(str, arguments)])


def test_command_on_two_runtimes(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    result = call(
        *NET,
        *ROUGH,
        "--input-shape",
        "1x1x32x32",
        "--runtime",
        "eager",
        "--runtime",
        "onnxruntime",
        "--cut",
        "0.5",
        "--out",
        page,
    )
    assert result.exit_code == 0, result.output
    for words in ("eager", "onnxruntime", "1x1x32x32", "stages.1.0.conv1", "cuts measured", str(page)):
        assert words in result.stdout
    text = page.read_text(encoding="utf-8")
    assert "autoprune.nets:small_resnet" in text
    assert text.count("What a cut of one group saves") == 2


def test_command_gives_json(tmp_path: Path) -> None:
    result = call(*NET, *ROUGH, "--data", "digits", "--batch", "4", "--cut", "0.5", "--json")
    assert result.exit_code == 0, result.output
    (found,) = json.loads(result.stdout)["profiles"]
    assert found["inputs"] == [[4, 1, 8, 8]]
    assert found["dense"]["batch"] == 4
    assert found["cuts"] == [0.5]
    assert all(len(saving["cuts"]) == 1 for saving in found["savings"])


def test_command_on_what_cannot_be_cut() -> None:
    result = call("--model", "torch.nn:ReLU", *ROUGH, "--input-shape", "1x8")
    assert result.exit_code == 0, result.output
    assert "Nothing can be cut." in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--runtime", "onx"], "Unknown runtime 'onx'"),
        (["--input-shape", "1x1xa"], "1x3x224x224"),
        (["--input-shape", "1x7x8x8"], "does not run on an input of 1x7x8x8"),
        (["--input-shape", "2x1x8x8", "--batch", "4"], "holds 2 samples, but --batch says 4"),
        (["--batch", "0"], "at least 1 sample"),
        (["--data", "digits", "--input-shape", "1x1x8x8"], "both say what the input is"),
        (["--out", "nowhere/page.html"], "there is no folder nowhere"),
        (["--cut", "1.5"], "between 0 and 1"),
        (["--runtime", "onnxruntime", "--device", "cuda"], "only eager and compile do"),
    ],
)
def test_errors_of_the_command(arguments: list[str], words: str) -> None:
    result = call(*NET, *arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.count("error:") == 1
    assert words in result.stderr


def test_a_noisy_machine_is_refused_with_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = (1.0, 3.0, 1.5, 9.0, 1.2, 30.0, 2.0)
    monkeypatch.setitem(RATES, "0", 0.02)
    monkeypatch.setattr(cli_latency, "make_runtime", lambda name, **settings: KnownRuntime(noise))
    monkeypatch.setattr(Known, "layers", lambda self: {"layer": 1.0})
    result = call(*NET, "--input-shape", "1x1x8x8")
    assert result.exit_code == 2, result.output
    assert "too noisy" in result.stderr
    assert result.stderr.count("error:") == 1


def test_bars_are_in_proportion() -> None:
    assert [bar(share, 4) for share in (0, 0.25, 0.5, 1, 2, -1)] == ["", "█", "██", "████", "████", ""]
    assert bar(1 / 32, 4) == "▏"
