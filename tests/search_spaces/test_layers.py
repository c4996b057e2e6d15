"""Layers seen in a run: their inputs, weights and outputs fit together for every kind that is found."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoprune.search_spaces import UserError, trace
from autoprune.search_spaces.layers import Call, LayerWatch, watching
from autoprune.search_spaces.moments import collect_moments
from autoprune.search_spaces.surgery import named_tensors
from tests.search_spaces.nets import IMAGE, TOKENS, Attention, InvertedResidual, conv


class Stored(nn.Module):
    """A product with a raw weight [inputs, outputs], as GPT-2 has it, and a functional convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.randn(12, 5))
        self.shift = nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.shift, x.reshape(-1, 12), self.rows)


class Checked(LayerWatch):
    """Computes every layer again from its windows."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.seen: list[str] = []
        self.named = named_tensors(model)

    def on_layer(self, call: Call) -> Any:
        out = call.run()
        rows = torch.arange(0, call.num_rows, 2)
        layer = call.layer
        matrix = layer.matrix(self.named[layer.name])
        assert torch.equal(layer.shaped(matrix, self.named[layer.name]), self.named[layer.name])
        again = (call.windows(rows) @ matrix.flatten(2).mT).movedim(0, 1).reshape(len(rows), -1)
        if layer.bias is not None:
            again = again + self.named[layer.bias]
        torch.testing.assert_close(again, call.outputs(out, rows), rtol=1e-4, atol=1e-5)
        assert call.fits(out, again.shape[1])
        assert not call.fits(out, again.shape[1] + 1)
        self.seen.append(layer.name)
        return out


CASES: dict[str, tuple[nn.Module, Tensor]] = {
    "conv1d": (nn.Conv1d(12, 8, 3, stride=2, padding=1), TOKENS.mT),
    "conv2d": (nn.Conv2d(3, 8, (3, 5), stride=(2, 1), padding=(1, 0), dilation=(2, 1)), IMAGE),
    "conv3d": (nn.Conv3d(2, 4, 3, padding=1, bias=False), torch.randn(2, 2, 5, 4, 3)),
    "grouped": (nn.Conv2d(6, 8, 3, groups=2), torch.randn(2, 6, 7, 7)),
    "depthwise": (nn.Conv2d(6, 12, 3, groups=6, padding="same"), torch.randn(2, 6, 7, 7)),
    "channels_last": (nn.Conv2d(3, 8, 3), IMAGE.contiguous(memory_format=torch.channels_last)),
    "linear": (nn.Linear(12, 5), TOKENS),
    "linear_without_bias": (nn.Linear(12, 5, bias=False), TOKENS[:, 0]),
    "stored": (Stored(), TOKENS),
}


@pytest.mark.parametrize("case", CASES)
def test_windows_times_weights_are_the_outputs(case: str) -> None:
    model, example = CASES[case]
    watch = Checked(model)
    watching(watch, model, lambda: model(example))
    assert len(watch.seen) == 1


def test_packed_and_attention_layers_are_found() -> None:
    model = Attention().eval()
    watch = Checked(model)
    watching(watch, model, lambda: model(TOKENS))
    linear = [name for name, p in model.named_parameters() if p.dim() == 2]
    assert set(watch.seen) == set(linear)


def test_what_is_no_layer_is_left_out() -> None:
    """A transposed convolution, a weight that is computed, a product of two activations."""

    class Others(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.scaled = nn.ConvTranspose2d(3, 4, 2), nn.Parameter(torch.randn(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            y = self.up(x).flatten(2).mean(2)
            y = F.linear(y, 2 * self.scaled)
            return y @ y.mT

    model = Others()
    watch = Checked(model)
    watching(watch, model, lambda: model(IMAGE))
    assert watch.seen == []


def test_uses_count_every_op_that_takes_a_weight() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.other = nn.Embedding(9, 6), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(self.other(self.table(x)), self.table.weight)

    model = Tied()
    watch = LayerWatch(model)
    watching(watch, model, lambda: model(torch.tensor([[1, 2, 3]])))
    assert watch.uses["table.weight"] == 2
    assert watch.uses["other.weight"] == 1


# -- moments ----------------------------------------------------------------------------------------------------------


def test_moments_are_those_of_the_inputs_over_all_batches() -> None:
    model = nn.Sequential(conv(3, 12), nn.Conv2d(12, 8, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))
    images = torch.randn(6, 3, 8, 8)
    space = trace(model.eval(), IMAGE, align=1)
    moments = collect_moments(space, [images[:4], images[4:]])
    with torch.no_grad():
        inputs = model[0](images)
    for half in range(2):
        x = inputs[:, 6 * half : 6 * half + 6].movedim(1, -1).reshape(-1, 6).double()
        torch.testing.assert_close(moments["1.weight"].second[half].double(), x.T @ x / len(x), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(moments["1.weight"].mean[half], x.mean(0), rtol=1e-5, atol=1e-6)
    assert set(moments) == {"0.0.weight", "1.weight", "4.weight"}


def test_a_depthwise_layer_has_no_moments_and_an_empty_set_is_refused() -> None:
    model = InvertedResidual().eval()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    space = trace(model, IMAGE, align=1)
    depthwise = {n for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.groups > 1}
    assert depthwise
    assert not {f"{n}.weight" for n in depthwise} & set(collect_moments(space, [IMAGE]))
    with pytest.raises(UserError, match="at least one batch"):
        collect_moments(space, [])
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
