"""Fit the last layer of a classifier to the probabilities of the dense network, not to its scores.

Least squares weighs every score alike; what counts is which class is likelier, and by how much. The loss is
KL(dense || network), convex in the weights of one linear layer: L-BFGS finds its minimum, no step size to choose.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from torch import Tensor

from autoprune.search_spaces.types import FloatArray

RIDGES = (1e-3, 1e-2, 1e-1)
"""On the squared distance to the weights given, inputs scaled to mean square 1; held-out samples choose."""

ITERATIONS = 50


def fit_classifier(x: Tensor, old: Tensor, scores: Tensor, cut: int) -> Tensor:
    """Weights [O, D] with a smaller divergence than `old` on the rows from `cut` on; `old` where none has.

    Args:
        x: inputs [R, D].
        scores: those of the dense network [R, O].
        cut: rows before it are fitted.
    """
    x, wanted = x.double(), F.log_softmax(scores.double(), 1)
    scale = x[:cut].square().mean(0).sqrt().clamp(min=1e-6)
    x = x / scale
    start = old * scale
    best, least = old, _divergence(start, x[cut:], wanted[cut:])[0]
    for ridge in RIDGES:

        def loss(flat: FloatArray, ridge: float = ridge) -> tuple[float, FloatArray]:
            weights = torch.as_tensor(flat).to(start).reshape(start.shape)
            value, gradient = _divergence(weights, x[:cut], wanted[:cut])
            away = weights - start
            total = value + ridge * float(away.square().sum())
            return total, (gradient + 2 * ridge * away).ravel().cpu().numpy()

        found = minimize(
            loss, start.ravel().cpu().numpy(), jac=True, method="L-BFGS-B", options={"maxiter": ITERATIONS}
        )
        weights = torch.as_tensor(found.x).to(start).reshape(start.shape)
        divergence = _divergence(weights, x[cut:], wanted[cut:])[0]
        if divergence < least:
            best, least = (weights / scale).to(old), divergence
    return best


def _divergence(weights: Tensor, x: Tensor, wanted: Tensor) -> tuple[float, Tensor]:
    """Mean KL in nats, and its gradient [O, D]."""
    log_q, p = F.log_softmax(x @ weights.T, 1), wanted.exp()
    return float((p * (wanted - log_q)).sum()) / len(x), (log_q.exp() - p).T @ x / len(x)
