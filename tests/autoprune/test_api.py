from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import autoprune as ap
from autoprune.config import SearchConfig
from autoprune.data import Batches
from autoprune.finished import Finished
from autoprune.gauges import FOLDER
from autoprune.models import ModelSource
from autoprune.points import export_point, fine_tune
from autoprune.search_spaces.budget import Budget
from tests.autoprune.documents import rewrite
from tests.autoprune.runs import SETTINGS, loaders, tiny_net

NAMED = ModelSource("autoprune.nets:small_resnet", {"widths": [8, 16], "blocks": [1, 1]})


def own_score(model: nn.Module, batches: Batches) -> float:
    """Minus the cross entropy."""
    with torch.no_grad():
        losses = [nn.functional.cross_entropy(model(inputs), targets) for inputs, targets in batches]
    return -float(torch.stack(losses).mean())


def content(result: ap.Result) -> list[tuple[Any, ...]]:
    return [(t.number, t.candidate, t.state, t.score, t.costs, t.share, t.message) for t in result.trials]


def test_own_module_and_loaders_from_search_to_loaded_subnet(tmp_path: Path) -> None:
    model = tiny_net()
    before = copy.deepcopy(model.state_dict())
    result = ap.search(
        model, **loaders(), **SETTINGS, trials=4, run=tmp_path / "r", finetune=ap.FineTune(epochs=2, lr=0.1)
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert len(result.trials) == 4
    assert 1 <= len(result.front) <= 2
    assert result.front[0].score == max(t.score for t in result.trials if t.score is not None)
    assert result.dense.latency is not None
    for k, point in enumerate(result.front):
        assert point.path == tmp_path / "r" / "front" / str(k)
        assert point.costs["macs"] <= 0.5 * result.dense.costs["macs"]
        assert point.latency is not None
        assert point.latency.reference == "dense"
        assert None not in (point.finetuned, point.test_before, point.test_after)
        small = ap.load(point.path, model=tiny_net())
        assert sum(p.numel() for p in small.parameters()) == point.costs["params"]
        right = [(small(x).argmax(1) == y).float().mean() for x, y in loaders()["test"]]
        assert float(torch.stack(right).mean()) == pytest.approx(point.test_after, abs=1e-6)
    assert (tmp_path / "r" / "report.html").stat().st_size > 1000
    assert result.budget == Budget.parse("macs=0.5x")


def test_search_in_two_sessions_equals_one(tmp_path: Path) -> None:
    whole = ap.search(tiny_net(), **loaders(), **SETTINGS, trials=6, sweep=(1.0, 0.6), run=tmp_path / "whole")
    ap.search(tiny_net(), **loaders(), **SETTINGS, trials=2, sweep=(1.0, 0.6), run=tmp_path / "parts")
    parts = ap.resume(tmp_path / "parts", trials=4, model=tiny_net(), **loaders())
    assert content(parts) == content(whole)
    assert [p.candidate for p in parts.front] == [p.candidate for p in whole.front]
    again = ap.resume(tmp_path / "parts", model=tiny_net(), **loaders())
    assert again.front == parts.front  # nothing was done again: even the latencies are those measured before


@pytest.mark.parametrize("agent", ["nsga2", "greedy"])
def test_search_for_a_front_in_two_sessions_equals_one(tmp_path: Path, agent: str) -> None:
    """One agent is told the costs, and the other gets a seat for each share of the budget."""
    options = {"population": 3} if agent == "nsga2" else {}
    settings = {**SETTINGS, "points": 1, "budget": ["macs=0.6x", "params=0.7x"], "aim": "front", "agent": agent}
    settings["agent_options"] = options
    whole = ap.search(tiny_net(), **loaders(), **settings, trials=12, run=tmp_path / "whole")
    ap.search(tiny_net(), **loaders(), **settings, trials=5, run=tmp_path / "parts")
    parts = ap.resume(tmp_path / "parts", trials=7, model=tiny_net(), **loaders())
    assert content(parts) == content(whole)
    sizes = {trial.costs["macs"] for trial in whole.trials}
    assert min(sizes) < 0.6 * max(sizes)
    assert len({trial.share for trial in whole.trials}) == (1 if agent == "nsga2" else 5)


def test_resume_refuses_what_is_not_the_same(tmp_path: Path) -> None:
    ap.search(tiny_net(), **loaders(), **SETTINGS, trials=1, run=tmp_path / "r")
    other = tiny_net()
    with torch.no_grad():
        next(other.parameters())[0] += 1e-3
    with pytest.raises(ap.UserError, match=r"dense weights are not those"):
        ap.resume(tmp_path / "r", model=other, **loaders())
    wider = ModelSource(NAMED.spec, {"widths": [8, 24], "blocks": [1, 1]}).build()
    with pytest.raises(ap.UserError, match=r"are not those that"):
        ap.resume(tmp_path / "r", model=wider, **loaders())
    with pytest.raises(ap.UserError, match=r"is not the data that"):
        ap.resume(tmp_path / "r", model=tiny_net(), train=loaders()["test"])
    with pytest.raises(ap.UserError, match=r"hand it over again.*model="):
        ap.resume(tmp_path / "r", **loaders())
    with pytest.raises(ap.UserError, match=r"hand it over again.*train="):
        ap.resume(tmp_path / "r", model=tiny_net())
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'modle'; known: model"):
        ap.resume(tmp_path / "r", modle=tiny_net(), **loaders())  # type: ignore[call-arg]
    assert ap.resume(tmp_path / "r", model=tiny_net(), **loaders()).trials


def test_split_does_not_depend_on_the_seed(tmp_path: Path) -> None:
    """A dense model trained on the training split of one seed must never be scored on it under another."""
    for seed in (0, 1):
        ap.search(NAMED, data="digits", **SETTINGS, trials=1, seed=seed, run=tmp_path / str(seed))
    first, second = (SearchConfig.read(tmp_path / seed).fingerprints for seed in ("0", "1"))
    assert first == second


def test_own_scoring_function(tmp_path: Path) -> None:
    settings = {**SETTINGS, "points": 1}
    result = ap.search(tiny_net(), **loaders(), **settings, trials=2, run=tmp_path / "r", score=own_score)
    assert result.dense.score == pytest.approx(own_score(tiny_net(), ap.data_from_loaders(**loaders()).search))
    assert all(trial.score is not None and trial.score < 0 for trial in result.trials)
    with pytest.raises(ap.UserError, match=r"score="):
        ap.resume(tmp_path / "r", trials=1, model=tiny_net(), **loaders())
    assert len(ap.resume(tmp_path / "r", trials=1, model=tiny_net(), **loaders(), score=own_score).trials) == 3


def test_latency_budget_has_a_model_and_is_checked_on_the_device(tmp_path: Path) -> None:
    run = tmp_path / "r"
    budget = {"budget": ["latency=9s", "macs=0.9x"]}  # a net so small is overhead only: no share of it is sure
    result = ap.search(NAMED, data="digits", **{**SETTINGS, **budget}, trials=2, run=run)
    assert all(0 < trial.costs["latency"] <= 9000 for trial in result.trials)
    for point in result.front:
        assert point.latency is not None
        assert point.latency.ratio is not None
        assert point.measured["latency"].value == point.latency.ms
        assert point.misses == ()
    model = run / FOLDER / "eager-1.json"
    rewrite(model, lambda content: content.update(fingerprint="other"))
    with pytest.raises(ap.UserError, match=r"another device.*--measure-latency"):
        ap.resume(run, trials=1)
    assert len(ap.resume(run, trials=1, measure_latency=True).trials) == 3
    assert len(ap.resume(run, trials=1).trials) == 4


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"budget": "macs=0.0001x"}, "smallest subnet costs"),
        ({"budget": "latency=0.000001ms"}, "smallest subnet costs"),
        ({"budget": "makz=0.5x"}, "Did you mean 'macs'"),
        ({"budget": 0.5}, r"A budget is a limit or a list of limits, for example .*, but got 0\.5"),
        ({"budget": ["macs=0.5x", 3]}, r"A budget is a limit or a list of limits"),
        ({"agent": "tpo"}, "Did you mean 'tpe'"),
        ({"agent": "tpe", "agent_options": {"n_start": 3}}, "n_startup"),
        ({"importance": "l3"}, "Unknown importance"),
        ({"score": "acuracy"}, "Did you mean 'accuracy'"),
        ({"formats": ["onx"]}, "Did you mean 'onnx'"),
        ({"trials": 0}, "`trials` must be"),
        ({"sweep": (1.0, 1.5)}, "`sweep` must"),
        ({"aim": "size"}, "Unknown aim 'size'"),
        ({"device": "tpu"}, "Unknown device"),
        ({"data": "digitz"}, "Did you mean 'digits'"),
        ({"data": None}, "needs data"),
        ({"data": "digits", "train": [1]}, "not both"),
        ({"test": [1]}, "need one for `train`"),
        ({"precision": "fp8"}, "Unknown precision"),
        ({"model": "autoprune.nets:resnet"}, "small_resnet|digits_resnet"),
        ({"model": ModelSource("torchvision:vit_b_16")}, "does not run|cannot run|fail"),
    ],
)
def test_bad_input_names_the_mistake_and_leaves_nothing(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    given = {"model": NAMED, "data": "digits", **SETTINGS, "trials": 1, "run": tmp_path / "r", **wrong}
    with pytest.raises(ap.UserError, match=message):
        ap.search(given.pop("model"), **given)
    assert list(tmp_path.iterdir()) == []


def test_point_is_fine_tuned_and_exported_afterwards(tmp_path: Path) -> None:
    run = tmp_path / "r"
    ap.search(tiny_net(), **loaders(), **{**SETTINGS, "points": 1}, recovery="slice", trials=2, run=run)
    with pytest.raises(ap.UserError, match="no point 7"):
        fine_tune(run, ap.FineTune(epochs=1), point=7, model=tiny_net(), **loaders())
    pruned = ap.load(run / "front" / "0", model=tiny_net())
    point = fine_tune(run, ap.FineTune(epochs=1, lr=0.1), model=tiny_net(), **loaders())
    assert point.finetuned is not None
    stored = Finished.read(run)
    assert stored is not None
    assert stored.points[0] == point
    tuned = ap.load(run / "front" / "0", model=tiny_net())
    assert not torch.equal(next(pruned.parameters()), next(tuned.parameters()))
    for kind, name in (("folder", "copy"), ("onnx", "a.onnx"), ("torch-export", "a.pt2")):
        written = export_point(run, kind, out=tmp_path / name, model=tiny_net())
        assert written.exists()
        with pytest.raises(ap.UserError, match="exists"):
            export_point(run, kind, out=tmp_path / name, model=tiny_net())
    assert torch.equal(next(ap.load(tmp_path / "copy", model=tiny_net()).parameters()), next(tuned.parameters()))


def test_unfinished_run_is_finished_by_resume(tmp_path: Path) -> None:
    run = tmp_path / "r"
    done = ap.search(NAMED, data="digits", **SETTINGS, trials=2, run=run)
    (run / "front.json").unlink()
    (run / "front" / "9").mkdir()
    with pytest.raises(ap.UserError, match=r"not finished.*autoprune resume"):
        export_point(run, "folder")
    again = ap.resume(run)
    assert [p.candidate for p in again.front] == [p.candidate for p in done.front]
    assert not (run / "front" / "9").exists()


def test_nothing_complete_is_said_so(tmp_path: Path) -> None:
    def broken(model: nn.Module, batches: Batches) -> float:
        if sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in tiny_net().parameters()):
            raise RuntimeError("fails on subnets")
        return 1.0

    with pytest.raises(ap.UserError, match="None of the 1 trials"):
        ap.search(tiny_net(), **loaders(), **SETTINGS, trials=1, run=tmp_path / "r", score=broken)
