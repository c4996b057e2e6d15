"""How far the outputs of a cut network are from those of the dense one, on the same inputs; no labels are needed.

- ``classes``: KL(dense || subnet) in nats of the softmax over dimension 1 of class scores [N, C, ...]; a mean over
  samples and, for dense outputs, pixels.
- ``tokens``: the same over the last dimension of token scores [N, T, V]; padding counts as any other token.
- ``squares``: |dense - subnet|^2 / |dense|^2, summed over all float tensors of the output, in whatever they are
  nested; 1 per tensor is what an output of zeros gives. Integers (class indices of boxes, masks) are left out.

``auto`` decides by what the data says, then by what the output calls itself; see `choose`.

Outputs whose number depends on the data, boxes for example: the shorter tensor is continued with zeros, so that a
missing box counts with its own square. It compares boxes by rank, not by place: give a function of your own where
that is not what you want.

Shape letters: N samples, C classes, T tokens, V words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import zip_longest
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from autoprune.running import logits_of
from autoprune.scores import divergence
from autoprune.search_spaces.errors import UserError, unknown
from autoprune.search_spaces.tracer import tensors

DIVERGENCES = ("auto", "classes", "tokens", "squares")

_NOT_FINITE = "The dense network's outputs are NaN or infinite: check its weights and the data."

Divergence: TypeAlias = Callable[[Any, Any], Tensor]
"""(output of the dense network, output of the subnet) -> one or several numbers, whose mean is the batch's."""


def choose(wanted: str | Divergence, output: Any, targets: Any) -> str:
    """Name of the divergence for outputs like `output` of the dense network, on samples with `targets`.

    "auto" takes the first that holds:

    1. Targets are class indices that fit the scores: [N, ...] for [N, C, ...] is "classes", [N, T] for [N, T, V] is
       "tokens" (where both fit, "tokens" if the output is an object with `logits`).
    2. The output is an object or dict with ``logits``: "tokens" for three dimensions, else "classes". Or a dict with
       ``out``: "classes".
    3. Anything else, a bare tensor without fitting targets among it: "squares".

    Raises:
        UserError: an unknown name, or outputs without a float tensor.
    """
    if callable(wanted):
        return getattr(wanted, "__qualname__", type(wanted).__name__)
    if wanted not in DIVERGENCES:
        raise unknown("divergence", wanted, DIVERGENCES)
    if not floats(output):
        raise UserError(
            "The model's output holds no float tensor, so nothing tells how far a subnet is from it. Give a function "
            "of your own: divergence=callable(dense_output, output)."
        )
    if wanted != "auto":
        return wanted
    try:
        scores = logits_of(output)
    except UserError:
        return "squares"
    is_named = not isinstance(output, Tensor)
    has_logits = is_named and not (isinstance(output, Mapping) and "logits" not in output)
    fitting = [name for name, dim in (("classes", 1), ("tokens", -1)) if _indices(targets, scores, dim)]
    if fitting:
        return fitting[-1 if has_logits else 0]
    if not is_named:
        return "squares"
    return "tokens" if has_logits and scores.dim() == 3 else "classes"


def compare(name: str, wanted: str | Divergence, dense: Any, output: Any) -> float:
    """Divergence of one batch of outputs.

    Args:
        name: what `choose` gave.
        wanted: the user's function where it is one.

    Returns:
        A number >= 0, or infinity where the subnet's output is not finite.

    Raises:
        UserError: an output of the dense network is NaN or infinite, the subnet's scores have another shape, or the
            user's function returned something else.
    """
    if callable(wanted):
        try:
            value = float(torch.as_tensor(wanted(dense, output)).double().mean())
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"The divergence {name} must return numbers, but it failed: {error}") from None
    elif name == "squares":
        value = squares(dense, output)
    else:
        value = _kl(logits_of(dense), logits_of(output), dim=1 if name == "classes" else -1)
    return value if value == value else float("inf")


def squares(dense: Any, output: Any) -> float:
    """Sum over the float tensors of |a - b|^2 / |a|^2; |b|^2 divides where the dense tensor is all zero."""
    total = 0.0
    for a, b in zip_longest(floats(dense), floats(output)):
        a, b = _alike(a, b)
        if not bool(a.isfinite().all()):
            raise UserError(_NOT_FINITE)
        difference = float((a - b).square().sum())
        scale = float(a.square().sum()) or float(b.square().sum())
        total += difference / scale if difference else 0.0
    return total


def floats(output: Any) -> list[Tensor]:
    """The float tensors of an output, in order; complex numbers as pairs."""
    pairs = (torch.view_as_real(tensor) if tensor.is_complex() else tensor for tensor in tensors(output))
    return [tensor for tensor in pairs if tensor.is_floating_point()]


def _kl(dense: Tensor, output: Tensor, dim: int) -> float:
    if dense.shape != output.shape:
        raise UserError(f"The subnet returns {list(output.shape)} where the dense model returned {list(dense.shape)}.")
    if not bool(dense.isfinite().all()):
        raise UserError(_NOT_FINITE)
    log_p, log_q = (F.log_softmax(x, dim).movedim(dim, 1) for x in (dense, output))
    # Rounding may put a sum below zero by 1e-8.
    return max(0.0, float(divergence(log_p, log_q).double().mean())) if bool(output.isfinite().all()) else float("inf")


def _indices(targets: Any, scores: Tensor, dim: int) -> bool:
    """Whether `targets` are indices along `dim` of the scores."""
    if not isinstance(targets, Tensor) or targets.is_floating_point() or targets.dtype == torch.bool:
        return False
    shape = list(scores.shape)
    size = shape.pop(dim)
    if dim == -1 and scores.dim() != 3:
        return False
    # Negative ones are what losses ignore.
    return list(targets.shape) == shape and int(targets.max()) < size


def _alike(a: Tensor | None, b: Tensor | None) -> tuple[Tensor, Tensor]:
    """Both in float64 and of one shape, continued with zeros; a missing tensor is empty."""
    nothing = torch.zeros(0)
    a, b = (nothing if a is None else a), (nothing if b is None else b)
    if a.device != b.device:  # one of them is missing
        a, b = (x.to((b if a is nothing else a).device) for x in (a, b))
    if a.dim() != b.dim():
        a, b = a.flatten(), b.flatten()
    shape = [max(sizes) for sizes in zip(a.shape, b.shape, strict=True)]
    return _padded(a.double(), shape), _padded(b.double(), shape)


def _padded(tensor: Tensor, shape: list[int]) -> Tensor:
    missing = [wanted - size for wanted, size in zip(shape, tensor.shape, strict=True)]
    return F.pad(tensor, [amount for end in reversed(missing) for amount in (0, end)]) if any(missing) else tensor
