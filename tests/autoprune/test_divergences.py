"""Divergences by hand, and which one outputs get."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import autoprune as ap
from autoprune.divergences import choose, compare, squares

P, Q = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.25, 0.5])
KL = 0.5 * math.log(2) - 0.25 * math.log(2)  # sum of p log(p / q)


@dataclass
class Named:
    logits: Tensor


def test_kl_of_classes_by_hand() -> None:
    dense, other = P.log().repeat(4, 1) + 3, Q.log().repeat(4, 1) - 1  # a constant changes no softmax
    assert compare("classes", "auto", dense, other) == pytest.approx(KL)
    assert compare("classes", "auto", dense, dense) == 0
    half = torch.cat([dense[:2], other[:2]])
    assert compare("classes", "auto", dense, half) == pytest.approx(KL / 2)


def test_pixels_count_as_samples_and_tokens_run_over_the_last_dimension() -> None:
    dense = P.log().reshape(1, 3, 1, 1).repeat(2, 1, 5, 5)
    other = dense.clone()
    other[:, :, 0] = Q.log().reshape(1, 3, 1)
    assert compare("classes", "auto", {"out": dense}, {"out": other}) == pytest.approx(KL / 5)
    words, others = P.log().repeat(2, 4, 1), P.log().repeat(2, 4, 1)
    others[:, 1] = Q.log()
    assert compare("tokens", "auto", Named(words), Named(others)) == pytest.approx(KL / 4)


def test_squares_by_hand() -> None:
    a, b = torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 5.0]])
    assert squares(a, b) == pytest.approx(1 / 25)
    nested = {"boxes": [a, (a,)], "labels": torch.tensor([1])}
    changed = {"boxes": [b, (torch.zeros(1, 2),)], "labels": torch.tensor([7])}
    assert squares(nested, changed) == pytest.approx(1 / 25 + 1)
    assert squares(Named(a), Named(b)) == pytest.approx(1 / 25)
    assert squares(torch.zeros(3), torch.zeros(3)) == 0
    assert squares(torch.zeros(3), torch.ones(3)) == 1
    assert squares(torch.tensor([3 + 4j]), torch.tensor([3 + 5j])) == pytest.approx(1 / 25)


def test_missing_boxes_count_with_their_own_square() -> None:
    two, one = torch.tensor([[3.0, 0.0], [0.0, 4.0]]), torch.tensor([[3.0, 0.0]])
    assert squares([two], [one]) == pytest.approx(16 / 25)
    assert squares([one], [two]) == pytest.approx(16 / 9)
    assert squares([two], [two[:0]]) == 1
    assert squares([two, one], [two]) == 1
    assert squares([two], [two, one]) == 1
    assert squares(two, two.flatten()) == 0


def test_outputs_that_are_not_finite() -> None:
    good, bad = torch.ones(2, 3), torch.full((2, 3), math.nan)
    for name in ("classes", "squares"):
        assert compare(name, "auto", good, bad) == math.inf
        with pytest.raises(ap.UserError, match="dense network's outputs are NaN"):
            compare(name, "auto", bad, good)


SCORES, CLASSES = torch.randn(4, 6), torch.tensor([0, 5, 2, 1])


@pytest.mark.parametrize(
    ("output", "targets", "expected"),
    [
        (SCORES, CLASSES, "classes"),
        (SCORES, torch.randn(4, 6), "squares"),
        (SCORES, CLASSES + 1, "squares"),
        (SCORES, None, "squares"),
        ({"logits": SCORES}, None, "classes"),
        (Named(torch.randn(2, 5, 9)), None, "tokens"),
        (Named(torch.randn(2, 5, 9)), torch.tensor([[-100, 8, 0, 1, 2]] * 2), "tokens"),
        (Named(torch.randn(2, 5, 8, 8)), None, "classes"),
        ({"out": torch.randn(2, 5, 8, 8), "aux": SCORES}, None, "classes"),
        (torch.randn(2, 5, 9), torch.zeros(2, 5, dtype=torch.long), "tokens"),
        (torch.randn(2, 5, 9), torch.zeros(2, 9, dtype=torch.long), "classes"),
        (torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8), "squares"),
        ([{"boxes": SCORES, "labels": CLASSES}], None, "squares"),
    ],
)
def test_auto(output: Any, targets: Any, expected: str) -> None:
    assert choose("auto", output, targets) == expected
    assert choose("squares", output, targets) == "squares"


def test_own_function_and_wrong_settings() -> None:
    def furthest(dense: Tensor, output: Tensor) -> Tensor:
        return (dense - output).abs().amax(1)

    assert choose(furthest, SCORES, None).endswith("furthest")
    assert compare("furthest", furthest, torch.zeros(2, 2), torch.tensor([[1.0, 0.0], [0.0, 3.0]])) == 2
    with pytest.raises(ap.UserError, match="must return numbers"):
        compare("f", lambda a, b: "far", SCORES, SCORES)  # type: ignore[arg-type, return-value]
    with pytest.raises(ap.UserError, match="Did you mean 'classes'"):
        choose("clases", SCORES, None)
    with pytest.raises(ap.UserError, match="no float tensor"):
        choose("auto", CLASSES, None)
