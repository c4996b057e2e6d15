"""The KL table: what it measures, that it lasts, and that nothing is mixed."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner, Result

import autoprune as ap
from autoprune import profiling
from autoprune.cli import app
from autoprune.data import Data
from autoprune.documents import Damaged, Unreadable
from autoprune.estimate import estimate
from autoprune.evaluate import Evaluator
from autoprune.kl_table import KLTable, bends, monotone, spread
from autoprune.profiling import TABLE, measure_table
from autoprune.search_spaces.types import Group
from tests.autoprune.fakes import ListBatches, conv_net, image_data
from tests.autoprune.runs import DIGITS, NET, QUICK, SETTINGS, loaders, tiny_net

SAMPLES = 40


def evaluator(**settings: Any) -> Evaluator:
    data = settings.pop("data", None) or image_data()
    model = settings.pop("model", None) or conv_net(dropout=0.0)
    return Evaluator(ap.trace(model, data.example(2)), data, calibration_samples=48, precision="fp32", **settings)


def table(values: list[list[float]], **more: Any) -> KLTable:
    """Groups with a level for each value, and the dense one."""
    groups = [
        Group(f"g{i}", "channels", len(v) + 1, tuple(range(1, len(v) + 2)), True, ()) for i, v in enumerate(values)
    ]
    found = replace(KLTable.empty(groups, {}, "f"), **more)
    for index, row in enumerate(values):
        found = found.with_measured(index, {k: v for k, v in enumerate(row) if not math.isnan(v)})
    return found


# -- the table ------------------------------------------------------------------------------------------------------


def test_keeping_more_never_hurts_more_and_raw_values_stay() -> None:
    found = table([[3.0, 1.0, 2.0, 0.5], [0.2, -0.1]])
    assert found.raw[0].tolist() == [3.0, 1.0, 2.0, 0.5, 0.0]
    assert found.values[0].tolist() == [3.0, 1.5, 1.5, 0.5, 0.0]
    assert found.values[1].tolist() == [0.2, 0.0, 0.0]
    for seed in range(50):
        raw = np.append(np.random.default_rng(seed).normal(size=7), 0.0)
        values = monotone(raw)
        assert (np.diff(values) <= 0).all()
        assert values[-1] == 0
        falling = np.append(np.sort(np.abs(raw[:-1]))[::-1], 0.0)
        assert np.array_equal(monotone(falling), falling)


def test_infinite_values() -> None:
    assert monotone(np.array([1.0, math.inf, 3.0, 4.0, 0.0])).tolist() == [math.inf, math.inf, 3.5, 3.5, 0.0]
    assert monotone(np.array([math.inf, 0.0])).tolist() == [math.inf, 0.0]
    assert table([[math.inf, math.nan, 2.0]]).raw[0].tolist() == [math.inf, math.inf, 2.0, 0.0]


def test_prediction_is_the_sum_over_groups() -> None:
    found = table([[3.0, 1.0], [0.5], []])
    candidates = [(0, 0, 0), (1, 1, 0), (2, 0, 0), (2, 1, 0)]
    assert found.predict(candidates).tolist() == [3.5, 1.0, 0.5, 0.0]
    assert found.predict(np.array(candidates)[:0].reshape(0, 3)).shape == (0,)
    assert found.by_sensitivity() == [0, 1]


def test_levels_in_between() -> None:
    gap = math.nan
    geometric = pytest.approx([4.0, 4 ** (2 / 3), 4 ** (1 / 3), 1.0, 0.0])
    assert table([[4.0, gap, gap, 1.0]]).raw[0].tolist() == geometric
    assert table([[4.0, gap, 1.0, gap]]).raw[0].tolist() == pytest.approx([4.0, 2.0, 1.0, 0.5, 0.0])
    assert table([[1.0, gap, -0.5]]).raw[0].tolist() == pytest.approx([1.0, 0.25, -0.5, 0.0])
    along = table([[4.0, gap, gap, 1.0]], estimate=((10.0, 3.0, 2.0, 1.0, 0.0),)).raw[0]
    assert along.tolist() == pytest.approx([4.0, 1 + 3 * 2 / 9, 1 + 3 * 1 / 9, 1.0, 0.0])
    flat = table([[4.0, gap, gap, 1.0]], estimate=((0.0,) * 5,)).raw[0]
    assert flat.tolist() == geometric
    with pytest.raises(ap.UserError, match="no values of 'g0' yet"):
        _ = table([[gap]]).raw


def test_choice_of_levels() -> None:
    assert spread(9, 99) == list(range(8))
    assert spread(9, 3) == [0, 4, 7]
    assert spread(9, 1) == [0]
    assert spread(1, 4) == []
    units = list(range(1, 10))
    assert bends(units, [8.0 - k for k in range(9)]) == [0]
    assert bends(units, [20.0, 0.0, 0, 0, 0, 0, 0, 0, 0]) == [0, 1]
    assert bends([5], [0.0]) == []


def test_tables_last_to_the_last_bit_and_damage_is_noticed(tmp_path: Path) -> None:
    found = table([[1 / 3, math.inf], [0.1]], estimate=((0.3, 0.2, 0.0), (1.0, 0.0)), settings={"samples": 3})
    path = tmp_path / "kl.json"
    found.save(path)
    assert KLTable.load(path) == found
    content = json.loads(path.read_text())
    old = {name: value for name, value in content.items() if name != "digest"}
    changes: tuple[dict[str, Any], ...] = ({"format": 2}, {"measured": {}}, {"estimate": [[1.0]]}, {"levels": 3})
    for change in changes:
        path.write_text(json.dumps({**content, **change}))
        with pytest.raises(Damaged, match="not what was written"):
            KLTable.load(path)
        path.write_text(json.dumps({**old, **change}))
        with pytest.raises(Unreadable, match="newer" if "format" in change else "is damaged"):
            KLTable.load(path)


# -- measuring ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recovery", ["slice", "recalibrate", "repair"])
def test_values_are_those_of_one_group_candidates(recovery: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By an own loop over the samples; sharing what is in front of the cut changes no bit."""
    judge = evaluator(recovery=recovery)
    space = judge.space
    assert isinstance(space, ap.search_spaces.SearchSpace)
    with monkeypatch.context() as patch:
        if recovery != "repair":
            patch.setattr(profiling.Meter, "_alone", lambda *_: pytest.fail("nothing was shared"))
        found = measure_table(judge, samples=SAMPLES, share=True)
    assert found.measured == measure_table(judge, samples=SAMPLES, share=False).measured
    assert found.settings["divergence"] == "classes"
    inputs = torch.cat([x for x, _ in judge.data.train.draw(SAMPLES, judge.data.seed + 1) if isinstance(x, Tensor)])
    for group, levels in enumerate(found.levels):
        assert set(found.measured[group]) == set(range(len(levels) - 1))
        for level, value in found.measured[group].items():
            cut = (*space.dense[:group], level, *space.dense[group + 1 :])
            with torch.no_grad():
                p, q = (net(inputs).log_softmax(1) for net in (space.model, judge.network(cut)))
            assert value == pytest.approx(float((p.exp() * (p - q)).sum(1).mean()), rel=1e-4, abs=1e-6)
            assert found.raw[group][level] == value
    assert found.predict([space.dense]).tolist() == [0.0]
    assert len(inputs) == SAMPLES


def test_only_training_samples_are_read() -> None:
    data = image_data()

    class Forbidden(ListBatches):
        def __iter__(self) -> Any:
            raise AssertionError("the search split was read")

    judge = evaluator(data=data)
    judge.data = Data(data.name, data.train, data.search, Forbidden())
    _ = judge.data.fingerprint  # looks at the first batch
    object.__setattr__(judge.data, "search", Forbidden())
    assert measure_table(judge, samples=SAMPLES).settings["split"] == "train"


@pytest.mark.parametrize("levels", ["all", "auto"])
def test_broken_off_between_groups_it_ends_as_if_it_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, levels: str
) -> None:
    whole, broken = tmp_path / "whole" / "kl.json", tmp_path / "broken" / "kl.json"
    measure_table(evaluator(), samples=SAMPLES, path=whole, levels=levels)
    original = profiling.Meter.measure
    done: list[int] = []

    def once(self: Any, candidates: Any) -> Any:
        if done:
            raise KeyboardInterrupt
        done.append(len(candidates))
        return original(self, candidates)

    with monkeypatch.context() as patch:
        patch.setattr(profiling.Meter, "measure", once)
        with pytest.raises(KeyboardInterrupt):
            measure_table(evaluator(), samples=SAMPLES, path=broken, levels=levels)
    assert sum(map(len, KLTable.load(broken).measured)) == done[0]
    measure_table(evaluator(), samples=SAMPLES, path=broken, levels=levels)
    assert broken.read_bytes() == whole.read_bytes()
    monkeypatch.setattr(profiling.Meter, "measure", lambda *_: pytest.fail("all was measured already"))
    measure_table(evaluator(), samples=SAMPLES, path=whole, levels=levels)


def other_weights() -> nn.Module:
    return conv_net(seed=1, dropout=0.0)


@pytest.mark.parametrize(
    "change",
    [
        {"model": other_weights()},
        {"data": image_data(seed=5)},
        {"recovery": "slice"},
        {"importance": "l1"},
        {"seed": 3},
        {"samples": SAMPLES + 1},
        {"divergence": "squares"},
    ],
    ids=["weights", "data", "recovery", "importance", "seed", "samples", "divergence"],
)
def test_another_fingerprint_is_measured_anew_and_said(tmp_path: Path, change: dict[str, Any]) -> None:
    said: list[str] = []

    class Says(type(profiling.NO_PROGRESS)):  # type: ignore[misc]
        def say(self, text: str) -> None:
            said.append(text)

    path = tmp_path / "p" / "kl.json"
    before = measure_table(evaluator(), samples=SAMPLES, path=path, levels=2, progress=Says())
    measure_table(evaluator(), samples=SAMPLES, path=path, levels=2, progress=Says())
    assert said == []
    own = {name: value for name, value in change.items() if name in ("samples", "divergence")}
    change = {name: value for name, value in change.items() if name not in own}
    settings: dict[str, Any] = {"samples": SAMPLES, "levels": 2, **own}
    after = measure_table(evaluator(**change), path=path, progress=Says(), **settings)
    assert len(said) == 1
    assert after.fingerprint != before.fingerprint
    assert KLTable.load(path) == after == measure_table(evaluator(**change), **settings)


def test_networks_that_draw_random_numbers_are_measured_one_by_one() -> None:
    class Noisy(type(conv_net())):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = super().forward(x + 0.1 * torch.randn(x.shape))
            return found

    def noisy() -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net: nn.Module = Noisy(dropout=0.0).eval()
            return net

    once, again = (measure_table(evaluator(model=noisy()), samples=SAMPLES, share=share) for share in (True, False))
    assert once == again


def test_own_divergence_and_outputs_that_are_no_scores() -> None:
    def largest(dense: Tensor, output: Tensor) -> Tensor:
        return (dense - output).abs().amax(1)

    found = measure_table(evaluator(recovery="slice"), samples=SAMPLES, levels=2, divergence=largest)
    assert found.settings["divergence"].endswith("largest")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 1, 3)).eval()
    maps = measure_table(evaluator(model=model, recovery="slice"), samples=SAMPLES, levels="auto")
    assert maps.settings["divergence"] == "squares"
    assert all((values[:-1] > 0).all() for values in maps.values)


def test_estimate_of_a_linear_network_is_its_squared_error() -> None:
    """Where outputs are linear in the gates and units do not interact, the estimate is what is measured."""
    torch.manual_seed(0)
    first, last = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
    last.weight.data = torch.eye(8)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), first, last, nn.Flatten()).eval()
    judge = evaluator(model=model, recovery="slice", data=image_data(train=512))
    space = judge.space
    group = next(i for i, g in enumerate(space.groups) if g.name == "2")  # type: ignore[attr-defined]
    found = measure_table(judge, samples=512, divergence="squares", levels="all")
    curve = estimate(judge, space, list(judge.data.train.draw(512, 1)), "squares")[group]  # type: ignore[arg-type]
    assert np.array(curve) == pytest.approx(found.raw[group], rel=0.5)


@pytest.mark.parametrize("bad", [{"levels": 0}, {"levels": "most"}, {"samples": 0}, {"divergence": "nats"}])
def test_wrong_settings(bad: dict[str, Any]) -> None:
    with pytest.raises(ap.UserError):
        measure_table(evaluator(), **bad)


# -- a run folder ---------------------------------------------------------------------------------------------------


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_command_line(tmp_path: Path) -> None:
    run = tmp_path / "r"
    done = call(
        "search", *NET, *DIGITS, *QUICK, "--budget", "macs=0.5x", "--points", "1", "--trials", "1", "--run", run
    )
    assert done.exit_code == 0, done.output
    shown = call("profile", run, "--levels", "2", "--samples", "64")
    assert shown.exit_code == 0, shown.output
    for words in ("KL in nats", "stem", "about 50% kept", "2 of ", "Most sensitive", str(TABLE)):
        assert words in shown.stdout
    assert "Profiling" in shown.stderr
    content = json.loads(call("profile", run, "--samples", "64", "--json").stdout)
    assert content["settings"]["samples"] == 64
    assert [group["values"][-1] for group in content["groups"]] == [0.0] * len(content["groups"])
    assert sorted(content["by_sensitivity"]) == sorted(group["name"] for group in content["groups"])
    for arguments, words in (
        ([run, "--levels", "many"], "'all', 'auto' or a number"),
        ([run, "--samples", "0"], "samples >= 1"),
        ([run, "--divergence", "kl"], "Unknown divergence 'kl'"),
        ([tmp_path / "none"], "none"),
    ):
        failed = call("profile", *arguments)
        assert (failed.exit_code, failed.stdout) == (2, "")
        assert words in failed.stderr
        assert failed.stderr.count("error: ") == 1
    whole = (run / TABLE).read_bytes()
    (run / TABLE).write_text("{")
    again = call("profile", run, "--samples", "64", "--json")
    assert f"{run / TABLE} is damaged: it is not a JSON file" in again.stderr
    assert (run / TABLE).read_bytes() == whole
    (run / TABLE).write_text('{"format": 2}')
    refused = call("profile", run)
    assert (refused.exit_code, (run / TABLE).read_text()) == (2, '{"format": 2}')
    assert "newer autoprune" in refused.stderr


def test_from_python(tmp_path: Path) -> None:
    ap.search(tiny_net(), **loaders(), **SETTINGS, trials=1, run=tmp_path / "r")
    found = ap.profile(tmp_path / "r", levels="auto", samples=100, model=tiny_net(), **loaders())
    assert KLTable.load(tmp_path / "r" / TABLE) == found
    with pytest.raises(ap.UserError, match="model="):
        ap.profile(tmp_path / "r")
