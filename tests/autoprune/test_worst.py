from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import autoprune as ap
from autoprune.bounds import Cut
from autoprune.data.base import Data
from autoprune.evaluate import Evaluator
from autoprune.front import front
from autoprune.prunings import REASONS
from autoprune.search_spaces.errors import UserError
from autoprune.study import objectives
from autoprune.worst import WorstOf
from tests.autoprune.fakes import Constant, ListBatches
from tests.autoprune.runs import SETTINGS, tiny_net
from tests.autoprune.test_bounds import TableSpace, answered, content, play, studies, table_evaluator


def pairs(inputs: Any, targets: Tensor) -> Tensor:
    """Two slices, that no class is alone in."""
    return targets // 2


@settings(deadline=None, max_examples=120)
@given(studies(), st.booleans(), st.booleans())
def test_front_and_scores_are_those_of_full_evaluation(
    study: tuple[Tensor, Tensor, list[dict[str, float]], int, list[int]], grouped: bool, learnt: bool
) -> None:
    tables, targets, costs, batch_size, order = study
    evaluator = table_evaluator(tables, targets, WorstOf(pairs) if grouped else "worst_class_accuracy", batch_size)
    full = play(evaluator, costs, bounded=False)  # in the order of the split: the order must not matter at all
    slices = pairs(None, targets) if grouped else targets
    for trial in full:
        right = tables[trial.candidate[0]].argmax(1) == targets
        assert trial.score == min(float(right[slices == s].double().mean()) for s in slices.unique())
    evaluator.use_order(evaluator.hardest_first((0,)) or order if learnt else order)
    bounded = play(evaluator, costs, bounded=True)
    names = list(costs[0])
    assert [(t.number, t.score) for t in front(bounded, names)] == [(t.number, t.score) for t in front(full, names)]
    for one, other in zip(bounded, full, strict=True):
        assert one.score is not None
        assert other.score is not None
        assert one.score >= other.score
        assert one.state == "cut" or one.score == other.score


def test_a_candidate_falls_at_its_first_slice() -> None:
    """Of ten classes of ten samples the hardest comes first: two wrong answers there are enough."""
    targets = torch.arange(10).repeat(10)
    tables = torch.zeros(3, 100, 10)
    tables[:, torch.arange(100), targets] = 1.0
    wrong = (targets == 7).nonzero().flatten()
    tables[:2, wrong[:3], 7] = -1.0
    tables[0, wrong[2], 7] = 1.0  # candidate 0 has two wrong of class 7, candidate 1 three
    evaluator = table_evaluator(tables, targets, "worst_class_accuracy")
    order = evaluator.hardest_first((1,))
    assert order is not None
    assert order[:3] == wrong[:3].tolist()
    assert sorted(order[:10]) == sorted(wrong.tolist())
    evaluator.use_order(order)
    assert evaluator.evaluate((0,)) == 0.8
    assert evaluator.evaluate_above((1,), 0.8) == Cut(0.8, 2 / 100, "minimax")
    assert evaluator.evaluate_above((1,), 0.7) == Cut(0.7, 3 / 100, "minimax")
    assert evaluator.evaluate_above((1,), 0.69) == 0.7


def test_slices_come_from_inputs_too() -> None:
    inputs, targets = torch.tensor([[0.0], [0.0], [5.0], [5.0]]), torch.tensor([0, 0, 0, 1])
    model = Constant(torch.tensor([[1.0, 0.0]] * 4))
    split = ListBatches((inputs, targets))
    assert WorstOf()(model, split) == 0.0
    assert WorstOf(lambda inputs, targets: cast(Tensor, inputs)[:, 0].long())(model, split) == 0.5


@pytest.mark.parametrize(
    "slices",
    [
        lambda inputs, targets: targets.float(),
        lambda inputs, targets: targets[:2],
        lambda inputs, targets: targets.tolist(),
    ],
)
def test_slices_that_are_none(slices: Any) -> None:
    split = ListBatches((torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64)))
    with pytest.raises(UserError, match="one whole number for each of the 3 samples"):
        WorstOf(slices)(Constant(torch.zeros(3, 2)), split)


def test_pixels_need_slices_of_the_users() -> None:
    split = ListBatches((torch.zeros(2, 1), torch.zeros(2, 3, 3, dtype=torch.int64)))
    space = TableSpace(torch.zeros(2, 2, 2))
    space.model = nn.Linear(1, 1)
    with pytest.raises(UserError, match="one whole number"):
        _ = Evaluator(space, Data("x", split, split), score="worst_class_accuracy", calibration_samples=0).score_dense  # type: ignore[arg-type]


def options(score: Any) -> dict[str, Any]:
    model = tiny_net()
    data = {"train": answered(model, 100, 1), "search": answered(model, 200, 2)}
    return {**SETTINGS, **data, "agent": "random", "trials": 10, "score": score, "latency_repeats": 1, "points": 1}


def test_a_search_by_the_worst_class(tmp_path: Path) -> None:
    model, settings = tiny_net(), options("worst_class_accuracy")
    exact = ap.search(model, run=tmp_path / "exact", **settings)
    off = ap.search(model, run=tmp_path / "off", bounds="off", **settings)
    names = objectives(SETTINGS["budget"])[1:]
    fronts = [[(t.number, t.candidate, t.score) for t in front(r.trials, names)] for r in (exact, off)]
    assert fronts[0] == fronts[1]
    assert exact.dense.score == 1.0
    cut = [trial for trial in exact.trials if trial.state == "cut"]
    assert any(trial.pruning == "minimax" for trial in cut)
    assert {trial.pruning for trial in cut} <= {"minimax", "subproblem"}
    assert all(trial.pruning is not None and trial.message == REASONS[trial.pruning] for trial in cut)


def test_a_search_by_slices_of_the_users_goes_on(tmp_path: Path) -> None:
    model, settings = tiny_net(), options(WorstOf(pairs))
    whole = ap.search(model, run=tmp_path / "whole", **settings)
    ap.search(model, run=tmp_path / "half", **{**settings, "trials": 4})
    again = {name: settings[name] for name in ("train", "search", "score")}
    assert content(ap.resume(tmp_path / "half", trials=6, model=model, **again).trials) == content(whole.trials)
    with pytest.raises(UserError, match="score"):
        ap.resume(tmp_path / "half", trials=1, model=model, train=again["train"], search=again["search"])
