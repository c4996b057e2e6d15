from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import autoprune as ap
from autoprune.agents import make_agent
from autoprune.agents.base import Trial
from autoprune.bounds import ORDER, Cut, Staircase, load_order, save_order
from autoprune.config import SearchConfig
from autoprune.controller import Controller, Seat
from autoprune.data.base import Data
from autoprune.data.loaders import LoaderBatches
from autoprune.data.ordered import OrderedBatches, hold
from autoprune.data.tensors import TensorBatches
from autoprune.documents import Damaged
from autoprune.evaluate import Evaluator
from autoprune.front import front
from autoprune.prunings import REASONS, describe_prunings
from autoprune.scores import DivergenceFromDense, TopK
from autoprune.search_spaces import Budget
from autoprune.search_spaces.errors import UserError
from autoprune.search_spaces.types import Candidate
from autoprune.study import Study, objectives
from tests.autoprune.fakes import FakeSpace, ListBatches, conv_net, image_data
from tests.autoprune.runs import SETTINGS, blobs, tiny_net
from tests.fakes import tiny_space

# -- networks that are tables: what each candidate answers to each sample --------------------------------------------


class Lookup(nn.Module):
    """Returns row x of a table of logits."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.table[x.long().flatten()]


class TableSpace:
    """Candidate (k,) is table k of logits [candidates, samples, classes]; the dense model is the last."""

    def __init__(self, tables: Tensor) -> None:
        self.tables = tables
        self.model: nn.Module = Lookup(tables[-1])

    def materialise(self, candidate: Candidate, importance: str = "l2", *, share: bool = False) -> nn.Module:
        return Lookup(self.tables[candidate[0]])


def table_evaluator(tables: Tensor, targets: Tensor, score: Any, batch_size: int = 1) -> Evaluator:
    split = TensorBatches(torch.arange(len(targets)).float().unsqueeze(1), targets, batch_size=batch_size)
    return Evaluator(TableSpace(tables), Data("table", split, split), score=score, calibration_samples=0)


def play(evaluator: Evaluator, costs: Sequence[dict[str, float]], *, bounded: bool) -> list[Trial]:
    """The trials of candidates (0,), (1,) ... as the controller makes them."""
    stairs = Staircase(list(costs[0]))
    trials = []
    for number, cost in enumerate(costs):
        alpha = stairs.alpha(cost) if bounded else None
        found = evaluator.evaluate((number,)) if alpha is None else evaluator.evaluate_above((number,), alpha)
        cut = isinstance(found, Cut)
        trial = Trial(
            number=number,
            candidate=(number,),
            state="cut" if cut else "complete",
            score=found.bound if isinstance(found, Cut) else found,
            costs=cost,
            evaluated=found.evaluated if isinstance(found, Cut) else 1.0,
        )
        stairs.add(trial)
        trials.append(trial)
    return trials


@st.composite
def studies(draw: st.DrawFn) -> tuple[Tensor, Tensor, list[dict[str, float]], int, list[int]]:
    """Tables of logits, targets, costs with many ties, a batch size, and an order of samples."""
    candidates, samples = draw(st.integers(2, 9)), draw(st.integers(1, 14))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    spread = draw(st.sampled_from([0.5, 2.0, 30.0]))
    targets = torch.randint(3, (samples,), generator=rng)
    tables = spread * torch.randn(candidates + 1, samples, 3, generator=rng)
    # Candidates are good to different degrees, and some are equal.
    skill = torch.randint(4, (candidates + 1, 1), generator=rng).float()
    tables[:, torch.arange(samples), targets] += spread * skill
    if draw(st.booleans()):
        tables[1] = tables[0]
    names = draw(st.sampled_from([["macs"], ["macs", "params"]]))
    costs = [
        {name: float(draw(st.integers(1, 4))) for name in names}  # few values: ties are the rule
        for _ in range(candidates)
    ]
    return tables, targets, costs, draw(st.integers(1, 6)), draw(st.permutations(range(samples)))


@settings(deadline=None, max_examples=120)
@given(studies(), st.sampled_from(["accuracy", "kl"]), st.booleans())
def test_front_and_scores_are_those_of_full_evaluation(
    study: tuple[Tensor, Tensor, list[dict[str, float]], int, list[int]], score: str, ordered: bool
) -> None:
    tables, targets, costs, batch_size, order = study
    evaluator = table_evaluator(tables, targets, score, batch_size)
    full = play(evaluator, costs, bounded=False)  # in the order of the split: the order must not matter at all
    if ordered:
        evaluator.use_order(order)
    bounded = play(evaluator, costs, bounded=True)
    names = list(costs[0])
    assert [(t.number, t.score) for t in front(bounded, names)] == [(t.number, t.score) for t in front(full, names)]
    for one, other in zip(bounded, full, strict=True):
        assert one.score is not None
        assert other.score is not None
        assert one.score >= other.score, "a bound is never below the score"
        assert one.state == "cut" or one.score == other.score


@settings(deadline=None, max_examples=200)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=40), st.integers(0, 40))
def test_a_prefix_bounds_the_score_to_the_last_bit(losses: list[float], seen: int) -> None:
    score = DivergenceFromDense(nn.Identity(), "fp32")
    score._total = len(losses)
    bound = score.value(losses[:seen], len(losses))
    assert bound >= score.value(losses, len(losses)) == score.value(losses[::-1], len(losses))


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(0, 3)), max_size=12),
    st.tuples(st.integers(0, 3), st.integers(0, 3)),
)
def test_staircase_by_brute_force(points: list[tuple[int, int, int]], at: tuple[int, int]) -> None:
    stairs = Staircase(["macs", "params"])
    for number, (score, macs, params) in enumerate(points):
        stairs.add(_trial(number, "complete", score, macs=macs, params=params))
        stairs.add(_trial(number, "cut", 9, macs=0, params=0))  # a bound is no score
        stairs.add(_trial(number, "failed", None, macs=0, params=0))
    expected = max((s for s, m, p in points if m <= at[0] and p <= at[1]), default=None)
    assert stairs.alpha({"macs": at[0], "params": at[1], "memory": 0}) == expected


def _trial(number: int, state: Any, score: float | None, **costs: float) -> Trial:
    return Trial(number=number, candidate=(number,), state=state, score=score, costs=costs)


# -- ties, by hand ---------------------------------------------------------------------------------------------------


def test_cut_as_soon_as_it_is_certain_and_not_before() -> None:
    targets = torch.zeros(4, dtype=torch.int64)
    right, wrong = [5.0, 0.0], [0.0, 5.0]
    tables = torch.tensor([[right] * 4, [wrong, right, wrong, right], [right] * 4])
    evaluator = table_evaluator(tables, targets, "accuracy")
    assert evaluator.evaluate_above((1,), 0.5) == Cut(0.5, 3 / 4)  # at most 2 of 4 after the third sample
    assert evaluator.evaluate_above((1,), 0.75) == Cut(0.75, 1 / 4)
    assert evaluator.evaluate_above((1,), 0.49) == 0.5
    assert evaluator.evaluate_above((0,), 1.0) == Cut(1.0, 0.0)  # nothing is better than 1: not even run
    assert evaluator.evaluate_above((0,), 0.99) == 1.0


def test_an_equal_score_survives_where_it_costs_less() -> None:
    tables = torch.tensor([[[0.0, 5.0], [5.0, 0.0]]]).repeat(5, 1, 1)  # the first sample wrong: at most 1/2
    costs = [{"macs": m, "params": p} for m, p in ((2.0, 2.0), (2.0, 2.0), (2.0, 1.0), (1.0, 3.0))]
    trials = play(table_evaluator(tables, torch.zeros(2).long(), "accuracy"), costs, bounded=True)
    assert [trial.state for trial in trials] == ["complete", "cut", "complete", "complete"]
    assert {trial.number for trial in front(trials, ["macs", "params"])} == {2, 3}


# -- the score -------------------------------------------------------------------------------------------------------


def test_pixels_are_bounded_too() -> None:
    targets = torch.zeros(3, 2, 2, dtype=torch.int64)
    logits = torch.zeros(3, 2, 2, 2)
    logits[:, 1] = torch.tensor([[1.0, -1.0], [-1.0, -1.0]])  # one pixel of four wrong
    score = TopK()
    assert score.losses(0, None, targets, logits).tolist() == [1, 1, 1]
    assert score.total(ListBatches((torch.zeros(3, 1), targets))) == 12


def test_hardness_is_how_far_the_right_class_lies_behind() -> None:
    logits = torch.tensor([[3.0, 1.0, 0.0], [1.0, 3.0, 0.0], [0.0, 0.0, 1.0]])
    targets = torch.tensor([0, 0, 1])
    assert TopK().hardness(0, None, targets, logits).tolist() == [-2.0, 2.0, 1.0]
    assert TopK(2).hardness(0, None, targets, logits).tolist() == [-3.0, -1.0, 0.0]


def test_a_function_of_the_users_is_never_cut() -> None:
    tables = torch.rand(3, 4, 2)
    evaluator = table_evaluator(tables, torch.zeros(4).long(), lambda model, batches: 0.25)
    assert not evaluator.bounded
    assert evaluator.hardest_first((0,)) is None
    with pytest.raises(UserError, match="does not fit"):
        evaluator.use_order(range(4))


@pytest.mark.parametrize("score", ["accuracy", "top5", "kl"])
def test_an_order_changes_no_score_of_a_network(score: str) -> None:
    """Bit for bit here: these layers compute each sample alike in whatever batch it stands."""
    plain = Evaluator(FakeSpace(conv_net()), image_data(), score=score, calibration_samples=64)
    sorted_ = Evaluator(FakeSpace(conv_net()), image_data(), score=score, calibration_samples=64)
    order = sorted_.hardest_first((2,))
    assert order is not None
    sorted_.use_order(order)
    for width in range(8):
        full = plain.evaluate((width,))
        assert sorted_.evaluate((width,)) == full == sorted_.evaluate_above((width,), full - 1e-9)
        cut = sorted_.evaluate_above((width,), full * 0.5 if score == "kl" else full + 0.5 * (1 - full))
        assert isinstance(cut, Cut)
        assert full <= cut.bound
    assert sorted_.score_dense == plain.score_dense


def test_hardest_first_is_the_order_of_the_losses() -> None:
    evaluator = Evaluator(FakeSpace(conv_net()), image_data(), score="kl", calibration_samples=64)
    order = evaluator.hardest_first((2,))
    assert order is not None
    assert sorted(order) == list(range(48))
    evaluator.use_order(order)
    assert evaluator._ordered is not None
    score, batches = evaluator._ordered
    network = evaluator.subnet((2,))
    losses = [x for n, (i, t) in enumerate(batches) for x in score.losses(n, i, t, network(i).detach()).tolist()]
    assert losses == sorted(losses, reverse=True)


def test_a_network_that_fails_gives_no_order() -> None:
    tables = torch.rand(3, 4, 2)
    tables[0, 2, 1] = math.nan
    assert table_evaluator(tables, torch.zeros(4).long(), "accuracy").hardest_first((0,)) is None


# -- samples in another order ----------------------------------------------------------------------------------------


def test_samples_come_in_the_order_that_was_given() -> None:
    x, y = blobs(10, 0)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0)).tolist()
    loader = LoaderBatches([(x[:4], y[:4]), (x[4:8], y[4:8]), (x[8:], y[8:])], "search")
    stored = LoaderBatches(DataLoader(TensorDataset(x, y), batch_size=4), "search")
    for split, most in ((TensorBatches(x, y, batch_size=4), 0), (loader, 10**6), (stored, 10**6), (stored, 0)):
        held = hold(split, max_bytes=most)
        assert held is not None
        batches = OrderedBatches(held[0], order, held[1])
        parts = list(batches)
        assert (len(batches), batches.num_samples) == (3, 10)
        assert [len(targets) for _, targets in parts] == [4, 4, 2]
        assert torch.equal(torch.cat([cast(Tensor, inputs) for inputs, _ in parts]), x[order])
        assert torch.equal(torch.cat([targets for _, targets in parts]), y[order])


def test_inputs_of_several_tensors_are_held_too() -> None:
    x = torch.arange(6.0)
    split = ListBatches(({"a": x[:3], "b": -x[:3]}, x[:3]), ({"a": x[3:], "b": -x[3:]}, x[3:]))
    held = hold(split)
    assert held is not None
    inputs, targets = next(held[0].in_order([torch.tensor([5, 0])]))
    assert isinstance(inputs, dict)
    assert [inputs["a"].tolist(), inputs["b"].tolist(), targets.tolist()] == [[5, 0], [-5, 0], [5, 0]]


def test_random_transforms_are_never_read_in_another_order() -> None:
    class Noisy(TensorDataset):
        def __getitem__(self, index: int) -> Any:
            return self.tensors[0][index] + torch.rand(()), self.tensors[1][index]

    split = LoaderBatches(DataLoader(Noisy(*blobs(10, 0)), batch_size=4), "search")
    assert hold(split) is not None  # in memory: every pass of a loader draws the same
    assert hold(split, max_bytes=0) is None


def test_what_does_not_fit_into_memory_is_bounded_in_its_own_order(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = blobs(40, 0)
    split = ListBatches(*zip(x.split(8), y.split(8), strict=True))
    assert hold(split, max_bytes=40 * 65 * 8 // 3) is None
    assert hold(ListBatches((x[:8], y[:8].reshape(2, 4).T), (x[8:], y[8:].unsqueeze(1).repeat(1, 3)))) is None
    monkeypatch.setattr("autoprune.evaluate.hold", lambda split: None)
    data = replace(image_data(), search=ListBatches(*image_data().search))
    evaluator = Evaluator(FakeSpace(conv_net()), data, score="accuracy", calibration_samples=64)
    assert evaluator.hardest_first((3,)) is None
    full = evaluator.evaluate((3,))
    cut = evaluator.evaluate_above((3,), full + 0.5)
    assert isinstance(cut, Cut)
    assert 0 < cut.evaluated < 1


# -- the controller --------------------------------------------------------------------------------------------------

SPACE = tiny_space()
LIMITS = ("macs=0.6x",)


def worth(candidate: Candidate) -> float:
    return sum((i + 1) * level for i, level in enumerate(candidate)) / 100


def bounded_worth(candidate: Candidate, alpha: float) -> float | Cut:
    score = worth(candidate)
    return score if score > alpha else Cut((score + alpha) / 2, 0.25)


def controller(study: Study, evaluate_above: Any = bounded_worth) -> Controller:
    budget = Budget.parse(LIMITS)
    config = study.config
    seats = [Seat(make_agent(config.agent, SPACE, budget.scaled(s), seed=config.seed), s) for s in config.sweep]
    return Controller(
        study=study, space=SPACE, seats=seats, budget=budget, evaluate=worth, evaluate_above=evaluate_above
    )


def config(trials: int, agent: str) -> SearchConfig:
    return SearchConfig(budget=LIMITS, trials=trials, agent=agent, sweep=(1.0, 0.7))


def content(trials: Sequence[Trial]) -> list[Trial]:
    return [replace(trial, seconds=0.0) for trial in trials]


def test_the_front_of_a_study_is_that_without_bounds(tmp_path: Path) -> None:
    names = objectives(LIMITS)[1:]
    fronts = []
    for name, above in (("exact", bounded_worth), ("off", None)):
        with Study.create(tmp_path / name, config(30, "random")) as study:
            trials = controller(study, above).run()
        fronts.append([(t.number, t.candidate, t.score, t.costs) for t in front(trials, names)])
        states = {trial.state for trial in trials}
        assert states == ({"complete", "cut"} if above else {"complete"})
    assert fronts[0] == fronts[1]
    stored = Study.read(tmp_path / "exact").trials
    for trial in stored:
        if trial.state == "cut":
            assert trial.score is not None
            assert worth(trial.candidate) <= trial.score
            assert trial.pruning is not None
            assert trial.message == REASONS[trial.pruning]
            assert (trial.evaluated, trial.pruning) in [(0.25, "alpha-beta"), (0.0, "subproblem")]


@pytest.mark.parametrize("agent", ["random", "tpe", "uniform", "bnb"])
def test_interrupted_search_with_bounds_is_the_unbroken_one(tmp_path: Path, agent: str) -> None:
    with Study.create(tmp_path / "whole", config(16, agent)) as study:
        whole = list(controller(study).run())
    Study.create(tmp_path / "broken", config(16, agent)).close()
    calls = 0

    def interrupted(candidate: Candidate, alpha: float) -> float | Cut:
        nonlocal calls
        calls += 1
        if calls % 5 == 0:
            raise KeyboardInterrupt
        return bounded_worth(candidate, alpha)

    while len(Study.read(tmp_path / "broken").trials) < 16:
        with Study.open(tmp_path / "broken") as study, suppress(KeyboardInterrupt):
            controller(study, interrupted).run()
    assert content(Study.read(tmp_path / "broken").trials) == content(whole)
    assert agent == "uniform" or any(trial.state == "cut" for trial in whole)


def test_cuts_are_counted_by_subnet() -> None:
    trials = [
        Trial(number=0, candidate=(0,), state="complete", score=1.0),
        Trial(number=1, candidate=(1,), state="cut", score=1.0, evaluated=0.5),
        Trial(number=2, candidate=(1,), state="cut", score=1.0, evaluated=0.0),
        Trial(number=3, candidate=(0,), state="complete", score=1.0, evaluated=0.0),
        Trial(number=4, candidate=(2,), state="failed", score=None),
    ]
    assert describe_prunings(trials) == ["2 of 5 trials cut; 75 % of the samples evaluated"]
    assert describe_prunings(trials[:1]) == []


# -- a real network --------------------------------------------------------------------------------------------------


def answered(model: nn.Module, num_samples: int, seed: int) -> DataLoader[Any]:
    """Images whose labels are what the dense network answers, so that it need not be trained to be right."""
    images, _ = blobs(num_samples, seed)
    with torch.no_grad():
        return DataLoader(TensorDataset(images, model(images).argmax(1)), batch_size=16)


@pytest.mark.parametrize("score", ["accuracy", "kl"])
def test_a_search_finds_the_same_front_with_and_without(tmp_path: Path, score: str) -> None:
    model = tiny_net()
    data: dict[str, Any] = {"train": answered(model, 100, 1), "search": answered(model, 200, 2)}
    options = {**SETTINGS, **data, "agent": "random", "trials": 14, "score": score, "latency_repeats": 1, "points": 1}
    exact = ap.search(model, run=tmp_path / "exact", **options)
    off = ap.search(model, run=tmp_path / "off", bounds="off", **options)
    names = objectives(SETTINGS["budget"])[1:]
    fronts = [[(t.number, t.candidate, t.score) for t in front(r.trials, names)] for r in (exact, off)]
    assert fronts[0] == fronts[1]
    assert exact.front[0].score == off.front[0].score
    assert {trial.state for trial in off.trials} == {"complete"}
    for one, other in zip(exact.trials, off.trials, strict=True):
        assert one.candidate == other.candidate
        assert one.state == "cut" or one.score == other.score
        assert one.score is not None
        assert one.score >= (other.score or 0.0)
    share, counted = describe_prunings(exact.trials)
    assert counted.startswith("by name: alpha-beta")
    assert share in (tmp_path / "exact" / "report.html").read_text()

    # Stopped and resumed, with the order that was kept or with one made again: the same.
    ap.search(model, run=tmp_path / "half", **{**options, "trials": 5})
    order = load_order(tmp_path / "half")
    assert order == load_order(tmp_path / "exact")
    if score == "kl":
        (tmp_path / "half" / ORDER).unlink()
    resumed = ap.resume(tmp_path / "half", trials=9, model=model, **data)
    assert content(resumed.trials) == content(exact.trials)


def test_a_damaged_order_is_refused(tmp_path: Path) -> None:
    save_order(tmp_path, [2, 0, 1])
    assert load_order(tmp_path) == [2, 0, 1]
    for text in ("{", json.dumps({"order": ["a"]}), "[1]"):
        (tmp_path / ORDER).write_text(text)
        with pytest.raises(Damaged, match=r"order\.json is damaged"):
            load_order(tmp_path)
    with pytest.raises(Damaged, match="is missing"):
        load_order(tmp_path / "elsewhere")


def test_unknown_bounds() -> None:
    with pytest.raises(UserError, match=r"Unknown bounds 'exat'. Did you mean 'exact'\?"):
        SearchConfig(budget=LIMITS, bounds="exat")
