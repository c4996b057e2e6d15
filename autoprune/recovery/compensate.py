"""Rebuild cut inputs from kept ones, in closed form, and fold that into the layers that read them: no data touched.

Source: design of the moments in `search_spaces.moments`. The same idea with other estimators: He et al. 2017,
"Channel Pruning for Accelerating Very Deep Neural Networks", arXiv:1707.06168 (least squares on data, layer by layer).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from autoprune.search_spaces import SearchSpace
from autoprune.search_spaces.moments import Moments
from autoprune.search_spaces.surgery import Kept, named_tensors
from autoprune.search_spaces.types import IntArray

RIDGE = 1e-3
"""Added to the diagonal of the kept second moments, in units of its mean."""


def compensate(
    space: SearchSpace, subnet: nn.Module, kept: Kept, moments: Mapping[str, Moments], *, ridge: float = RIDGE
) -> list[str]:
    """Change the weights of `subnet` in place; those that it shares with the dense model are left alone.

    Args:
        kept: what the cut kept of every tensor, as `space.kept` gives it.

    Returns:
        Names of the weights that changed.
    """
    dense, own = named_tensors(space.model), named_tensors(subnet)
    changed = []
    with torch.no_grad():
        for name, moment in moments.items():
            layer = moment.layer
            inputs = kept.get(name, (None, None))[layer.in_dim]
            if inputs is None:
                continue
            matrix, shift = _folded(moment, dense[name], inputs, ridge, centred=layer.bias is not None)
            outputs = kept[name][1 - layer.in_dim]
            if outputs is not None:
                matrix, shift = _rows(matrix, outputs), _rows(shift, outputs)
            own[name].copy_(layer.shaped(matrix.to(own[name].dtype), own[name]))
            if layer.bias is not None:
                bias = dense[layer.bias] if outputs is None else dense[layer.bias][torch.as_tensor(outputs)]
                own[layer.bias].copy_(bias + shift.reshape(-1).to(bias.dtype))
            changed.append(name)
    return changed


def _folded(moment: Moments, weight: Tensor, inputs: IntArray, ridge: float, *, centred: bool) -> tuple[Tensor, Tensor]:
    """Weights of the kept inputs [g, O, K, k], and what the bias gains [g, O]; in float64."""
    second, mean = moment.second, moment.mean
    matrix = moment.layer.matrix(weight).double()
    k = torch.as_tensor(inputs, device=weight.device)
    cut = np.setdiff1d(np.arange(second.shape[-1]), inputs)
    p = torch.as_tensor(cut, device=weight.device)
    s_kk, s_kp = second[:, k][:, :, k].double(), second[:, k][:, :, p].double()
    if centred:
        s_kk -= mean[:, k].unsqueeze(-1) * mean[:, k].unsqueeze(-2)
        s_kp -= mean[:, k].unsqueeze(-1) * mean[:, p].unsqueeze(-2)
    diagonal = s_kk.diagonal(dim1=-2, dim2=-1)
    diagonal += ridge * diagonal.mean(-1, keepdim=True).clamp(min=1e-12)
    b = torch.linalg.solve(s_kk, s_kp)  # [g, K, P]
    lost = matrix[:, :, p]
    folded = matrix[:, :, k] + torch.einsum("gopt,gkp->gokt", lost, b)
    shift = matrix.new_zeros(matrix.shape[:2])
    if centred:
        constant = mean[:, p] - torch.einsum("gkp,gk->gp", b, mean[:, k])
        shift = torch.einsum("gopt,gp->go", lost, constant)
    return folded, shift


def _rows(values: Tensor, outputs: IntArray) -> Tensor:
    """Kept outputs of [g, O, ...], numbered over all groups; every group keeps as many."""
    flat = values.flatten(0, 1)[torch.as_tensor(outputs, device=values.device)]
    return flat.reshape(values.shape[0], -1, *values.shape[2:])
