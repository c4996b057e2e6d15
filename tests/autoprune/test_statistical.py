from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import autoprune as ap
from autoprune.agents.base import Trial
from autoprune.bounds import Cut
from autoprune.prunings import describe_prunings, is_audited, rate_interval
from autoprune.races import LOSSES, Races, read_losses
from autoprune.search_spaces.errors import UserError
from autoprune.search_spaces.types import FloatArray
from autoprune.statistical import PairedTest, draw_order, weights
from autoprune.study import Study
from tests.autoprune.runs import SETTINGS, tiny_net
from tests.autoprune.test_bounds import answered, content, table_evaluator

# -- the test ----------------------------------------------------------------------------------------------------------


def race(theirs: FloatArray, losses: FloatArray, hardest: FloatArray, seed: int, error: float) -> bool:
    """Whether the candidate with these losses [N] is given up after any sample."""
    weight = weights(theirs, hardest.argsort().tolist())
    order = draw_order(weight, seed, 0)
    test = PairedTest(theirs[order], weight[order], error)
    return test.add(losses[order].tolist())


@pytest.mark.parametrize("kind", ["right or wrong", "heavy-tailed", "rarely wrong", "one against all"])
def test_what_is_as_good_is_seldom_cut(kind: str) -> None:
    """The hardest case there is: both sums are equal."""
    streams, samples, error = 3000, 120, 0.1
    cut = 0
    for seed in range(streams):
        rng = np.random.default_rng(seed)
        if kind == "heavy-tailed":
            theirs = rng.exponential(size=samples) ** 3
            losses = rng.permutation(theirs)
        elif kind == "one against all":  # the candidate loses a little everywhere and wins it back in one sample
            theirs, losses = np.zeros(samples), np.full(samples, 1.0)
            theirs[rng.integers(samples)] = samples
        else:
            theirs = (rng.random(samples) < (0.3 if kind == "right or wrong" else 0.04)).astype(float)
            losses = rng.permutation(theirs)
        cut += race(theirs, losses, rng.random(samples), seed, error)
    low, _ = rate_interval(cut, streams)
    assert low <= error, f"{cut} of {streams} were cut"


def test_what_is_worse_is_cut_soon() -> None:
    rng = np.random.default_rng(0)
    theirs = (rng.random(4000) < 0.2).astype(float)
    losses = np.maximum(theirs, rng.random(4000) < 0.2)  # right where the incumbent is, but for a fifth
    weight = weights(theirs, range(4000))
    order = draw_order(weight, 0, 0)
    test = PairedTest(theirs[order], weight[order], 0.05)
    assert test.add(losses[order][:300].tolist())


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=1, max_size=30), st.integers(1, 7))
def test_batches_do_not_matter(pairs: list[tuple[float, float]], batch: int) -> None:
    theirs, losses = np.array(pairs).T
    weight = weights(theirs, range(len(theirs)))
    whole, parts = PairedTest(theirs, weight, 0.05), PairedTest(theirs, weight, 0.05)
    once = whole.add(losses.tolist())
    cuts = [parts.add(losses[start : start + batch].tolist()) for start in range(0, len(losses), batch)]
    assert once == any(cuts)
    if np.isfinite(whole.capital):
        assert parts.capital == pytest.approx(whole.capital)


def test_the_mean_capital_of_equals_is_at_most_one() -> None:
    """All orders of a few samples, each with its probability: the capital is a martingale on the boundary."""
    from itertools import permutations

    theirs, losses = np.array([1.0, 0.0, 2.0, 0.5]), np.array([0.5, 1.5, 0.0, 1.5])
    weight = weights(theirs, [2, 0, 3, 1])
    for seen in range(1, 5):
        mean = 0.0
        for order in permutations(range(4)):
            chance, left = 1.0, weight.sum()
            for sample in order:
                chance *= weight[sample] / left
                left -= weight[sample]
            test = PairedTest(theirs[list(order)], weight[list(order)], 0.05)
            test.add(losses[list(order[:seen])].tolist())
            mean += chance * np.exp(test.capital)
        assert mean == pytest.approx(1)


def test_orders_are_drawn_by_weight() -> None:
    weight = np.array([1.0, 2.0, 5.0])
    orders = [tuple(draw_order(weight, 0, number).tolist()) for number in range(4000)]
    first = np.bincount([order[0] for order in orders], minlength=3) / 4000
    assert np.abs(first - weight / 8).max() < 0.03
    rest = [order[1] for order in orders if order[0] == 2]
    assert abs(np.mean(np.array(rest) == 1) - 2 / 3) < 0.04


def test_interval_of_a_rate() -> None:
    assert rate_interval(0, 10) == pytest.approx((0.0, 1 - 0.025 ** (1 / 10)))
    assert rate_interval(10, 10) == pytest.approx((0.025 ** (1 / 10), 1.0))
    low, high = rate_interval(3, 20)
    assert 0 < low < 3 / 20 < high < 1


# -- in the evaluation -------------------------------------------------------------------------------------------------


def tables(skills: list[float], samples: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [candidates, samples, 2] that are right in these shares of the samples, and targets; the last is dense."""
    rng = torch.Generator().manual_seed(0)
    right = torch.stack([torch.rand(samples, generator=rng) < skill for skill in [*skills, 1.0]])
    return torch.stack([right.float(), (~right).float()], dim=2), torch.zeros(samples, dtype=torch.int64)


def incumbent(races: Races) -> Trial:
    found = races(0, (0,), None)
    assert isinstance(found, float)
    return Trial(number=0, candidate=(0,), state="complete", score=found)


@pytest.mark.parametrize("score", ["accuracy", "kl"])
def test_a_race_is_cut_or_gives_the_score(tmp_path: Path, score: str) -> None:
    logits, targets = tables([0.9, 0.5, 0.97])
    evaluator = table_evaluator(logits, targets, score, batch_size=16)
    races = Races(evaluator, list(range(400)), tmp_path, audit=0.0)
    first = incumbent(races)
    lost = races(1, (1,), first)
    assert isinstance(lost, Cut)
    assert (lost.pruning, lost.audit) == ("statistical", None)
    assert lost.evaluated < 0.5
    assert first.score == lost.bound >= evaluator.evaluate((1,))
    assert races(2, (2,), first) == evaluator.evaluate((2,)) > evaluator.evaluate((0,))


def test_an_audit_finishes_what_would_be_cut(tmp_path: Path) -> None:
    logits, targets = tables([0.9, 0.5])
    races = Races(table_evaluator(logits, targets, "accuracy", batch_size=16), list(range(400)), tmp_path, audit=1.0)
    first = incumbent(races)
    found = races(1, (1,), first)
    assert isinstance(found, Cut)
    assert (found.pruning, found.audit) == ("statistical", True)
    assert first.score is not None
    assert found.bound <= first.score, "stopped by the exact bound, so certain"

    # What is better, but unlucky with its first samples: cut, and by the audit found to be wrong.
    worse = Trial(number=2, candidate=(1,), state="complete", score=races.evaluator.evaluate((1,)))
    hasty = Races(races.evaluator, races.hardest_first, tmp_path, error=0.9, audit=1.0)
    outcomes = [hasty(number, (0,), worse) for number in range(3, 40)]
    assert all(isinstance(each, float) or each == Cut(first.score, 1.0, "statistical", False) for each in outcomes)
    assert any(isinstance(each, Cut) for each in outcomes)


def test_losses_are_kept_and_made_again(tmp_path: Path) -> None:
    logits, targets = tables([0.9, 0.5])
    evaluator = table_evaluator(logits, targets, "accuracy", batch_size=16)
    first = incumbent(Races(evaluator, list(range(400)), tmp_path))
    outcomes = []
    (path,), said = (tmp_path / LOSSES).iterdir(), []
    progress: Any = type("Lines", (), {"say": lambda _, text: said.append(text)})()
    whole = path.read_bytes()
    old = np.load(path)["losses"]
    flipped = bytearray(whole)
    flipped[whole.index(b"\x93NUMPY") + 128] ^= 1
    for stored in (whole, None, whole[:-40], bytes(flipped), b"\x93NUMPY"):
        path.unlink()
        if stored is not None:
            path.write_bytes(stored)
        outcomes.append(Races(evaluator, list(range(400)), tmp_path, progress=progress)(1, (1,), first))
        assert np.array_equal(read_losses(path, 400), old)
    assert all(outcome == outcomes[0] for outcome in outcomes)
    assert len(said) == 3
    assert all(f"{path.name} is damaged" in line for line in said)
    with path.open("wb") as file:
        np.savez(file, losses=old, format=2)
    with pytest.raises(UserError, match="newer autoprune"):
        Races(evaluator, list(range(400)), tmp_path)(1, (1,), first)


# -- in a study --------------------------------------------------------------------------------------------------------


def options(**more: Any) -> dict[str, Any]:
    model = tiny_net()
    data = {"train": answered(model, 100, 1), "search": answered(model, 200, 2)}
    quick = {"agent": "random", "trials": 12, "latency_repeats": 1, "points": 1, "bounds": "statistical"}
    return {**SETTINGS, **data, **quick, **more}


def test_a_search_with_races(tmp_path: Path) -> None:
    whole = ap.search(tiny_net(), run=tmp_path / "whole", **options(audit=0.0))
    assert {(t.state, t.audit) for t in whole.trials if t.pruning == "statistical"} == {("cut", None)}
    lines = describe_prunings(whole.trials)
    assert any(line.startswith("statistical: none of ") for line in lines)
    assert all(line in (tmp_path / "whole" / "report.html").read_text() for line in lines)


def test_a_search_with_audited_races_goes_on_as_if_unbroken(tmp_path: Path) -> None:
    model, settings = tiny_net(), options(audit=1.0)
    whole = ap.search(model, run=tmp_path / "whole", **settings)
    audits = [trial.audit for trial in whole.trials if trial.pruning == "statistical"]
    assert audits
    assert None not in audits
    ap.search(model, run=tmp_path / "half", **{**settings, "trials": 5})
    data = {name: settings[name] for name in ("train", "search")}
    ap.resume(tmp_path / "half", trials=7, model=model, **data)
    assert content(Study.read(tmp_path / "half").trials) == content(whole.trials)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"score": "worst_class_accuracy"}, "mean over samples"),
        ({"score": lambda model, batches: 0.5}, "mean over samples"),
        ({"error_rate": 5}, "0 < error_rate < 1"),
        ({"audit": 10}, "0 <= audit <= 1"),
    ],
)
def test_where_it_cannot_be_used_it_is_refused(tmp_path: Path, more: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ap.search(tiny_net(), run=tmp_path / "run", **options(**more))
    assert not (tmp_path / "run").exists()


def test_coins_are_those_of_the_trial() -> None:
    coins = [is_audited(3, number, 0.2) for number in range(2000)]
    assert coins == [is_audited(3, number, 0.2) for number in range(2000)]
    assert 300 < sum(coins) < 500
    assert not any(is_audited(3, number, 0.0) for number in range(50))


def test_audits_are_described() -> None:
    cut = Trial(number=0, candidate=(0,), state="cut", score=1.0, evaluated=0.2, pruning="statistical")
    right = replace(cut, number=1, candidate=(1,), audit=True)
    wrong = replace(right, number=2, candidate=(2,), state="complete", audit=False, evaluated=1.0)
    assert describe_prunings([cut])[-1] == "statistical: none of 1 cuts was audited yet"
    assert describe_prunings([cut, right, wrong])[1:] == [
        "by name: statistical 1",
        "statistical: 2 of 3 cuts audited, 1 of them wrong (1 to 99 % at 95 % confidence)",
    ]
