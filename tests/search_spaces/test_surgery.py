"""Cutting leaves the dense model alone and keeps everything that is not a size."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from autoprune.search_spaces import trace
from autoprune.search_spaces.surgery import named_tensors, set_attributes, to_meta
from tests.search_spaces.nets import IMAGE, NETS, InvertedResidual, Plain, Shared, randomised


@pytest.mark.parametrize("name", NETS)
def test_the_dense_model_is_untouched_bit_for_bit(name: str) -> None:
    make, example = NETS[name]
    model = randomised(make()).train()
    before = copy.deepcopy(model.state_dict())
    attributes = {path: {k: v for k, v in vars(m).items() if isinstance(v, int)} for path, m in model.named_modules()}
    space = trace(model, example)
    subnet = space.materialise(space.smallest, share=True)
    space.verify(space.smallest)
    subnet.train()(example)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert attributes == {
        path: {k: v for k, v in vars(m).items() if isinstance(v, int)} for path, m in model.named_modules()
    }
    assert not any(hasattr(t, "_autoprune_labels") for t in named_tensors(model).values())


@pytest.mark.parametrize("name", NETS)
def test_keeping_everything_is_bit_exact(name: str) -> None:
    make, example = NETS[name]
    model = randomised(make())
    space = trace(model, example)
    with torch.no_grad():
        assert torch.equal(space.materialise(space.dense)(example), model(example))


def test_flags_hooks_names_and_dtype_are_kept() -> None:
    model: Any = randomised(Plain()).double()
    model[0][0].weight.requires_grad_(False)
    calls: list[Any] = []
    model[1].register_forward_hook(lambda module, args, out: calls.append(out.shape))
    model.train()
    space = trace(model, IMAGE.double(), align=1)
    subnet: Any = space.materialise(space.candidate(0.5))
    calls.clear()
    subnet(IMAGE.double())
    assert calls == [torch.Size([2, 12, 8, 8])]
    assert subnet.training
    assert [n for n, _ in subnet.named_parameters()] == [n for n, _ in model.named_parameters()]
    assert not subnet[0][0].weight.requires_grad
    assert subnet[1][0].weight.requires_grad
    assert {p.dtype for p in subnet.parameters()} == {torch.float64}
    assert type(subnet) is Plain


def test_tied_weights_stay_tied() -> None:
    space = trace(randomised(Shared()), IMAGE)
    subnet: Any = space.materialise(space.smallest)
    assert subnet.again.weight is subnet.up.weight


def test_shared_storage_only_where_asked_for_and_never_of_buffers() -> None:
    model = randomised(Plain())
    space = trace(model, IMAGE, align=1)
    candidate = space.candidate({"0.0": 0.5})  # the last linear layer stays whole
    pointers = {name: t.data_ptr() for name, t in named_tensors(model).items()}
    for share in (True, False):
        subnet = space.materialise(candidate, share=share)
        shared = {name for name, t in named_tensors(subnet).items() if t.data_ptr() == pointers[name]}
        assert shared == ({"1.1.weight", "1.1.bias", "4.weight", "4.bias"} if share else set())


class Allocations(TorchDispatchMode):
    """Counts the tensors that ops make in new memory, and their bytes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.known: set[int] = set()
        self.made: list[torch.UntypedStorage] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for tensor in tree_leaves(out):
            if tensor.untyped_storage()._cdata not in given:
                self.made.append(tensor.untyped_storage())  # held, so that no address is used twice
        return out


@pytest.mark.parametrize("name", ["mobilenet_v2", "densenet121", "vit_b_16"])
def test_scoring_allocates_what_is_cut_and_nothing_else(name: str) -> None:
    """One allocation per cut dimension and per buffer (running statistics are written to), none for what stays."""
    model = torchvision.models.get_model(name, weights=None)
    space = trace(model, torch.zeros(1, 3, 224, 224))
    some = list(space.candidate(0.5))
    some[1::2] = space.dense[1::2]
    candidate = tuple(some)
    kept = space.kept(candidate)  # ranks the units, once per space
    with Allocations() as allocations:
        subnet = space.materialise(candidate, share=True)
    dims = sum(index is not None for indices in kept.values() for index in indices)
    assert len(allocations.made) == dims + sum(name not in kept for name, _ in model.named_buffers())
    small, dense = named_tensors(subnet), named_tensors(model)
    shared = {name for name in small if small[name].data_ptr() == dense[name].data_ptr()}
    assert shared == {name for name, _ in model.named_parameters() if name not in kept}
    with Allocations() as allocations:
        space.materialise(space.dense, share=True)
    assert len(allocations.made) == len(list(model.named_buffers()))


@pytest.mark.parametrize("share", [False, True])
def test_a_subnet_is_freed_at_once_when_nobody_holds_it(share: bool) -> None:
    """Not at the next garbage collection: a search makes thousands, each as large as the model."""
    space = trace(InvertedResidual(), IMAGE)
    gc.disable()
    try:
        subnet = weakref.ref(space.materialise(space.smallest, share=share))
        assert subnet() is None
    finally:
        gc.enable()


def test_attributes_follow_the_sizes() -> None:
    space = trace(randomised(InvertedResidual()), IMAGE, align=1)
    candidate = space.candidate({"expand.0": 0.25, "squeeze": 0.5})
    subnet: Any = space.materialise(candidate)
    assert (subnet.expand[0].out_channels, subnet.expand[1].num_features) == (4, 4)
    depthwise = subnet.depthwise[0]
    assert (depthwise.in_channels, depthwise.out_channels, depthwise.groups) == (4, 8, 4)
    assert (subnet.squeeze.in_channels, subnet.squeeze.out_channels) == (8, 4)
    assert subnet.project.out_channels == 6
    again = to_meta(space.model)
    set_attributes(again, space.attributes(candidate))
    assert repr(again) == repr(subnet)


def test_channels_last_is_kept() -> None:
    model = randomised(Plain()).to(memory_format=torch.channels_last)
    space = trace(model, IMAGE, align=1)
    subnet: Any = space.materialise(space.candidate(0.5))
    assert subnet[1][0].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("criterion", ["l1", "l2"])
def test_the_least_important_units_go_first(criterion: str) -> None:
    model: Any = randomised(Plain())
    with torch.no_grad():
        model[0][0].weight[[2, 5, 11]] = 1e-4
    space = trace(model, IMAGE, align=1)
    kept, _ = space.kept_units(space.candidate({"0.0": 13 / 16}), criterion)
    assert set(range(16)) - set(kept.tolist()) == {2, 5, 11}


def test_modules_that_hold_modules_in_lists_are_copied() -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(6, 16), nn.Linear(16, 4)])
            self.order = [self.layers[0], self.layers[1]]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.order[1](self.order[0](x).relu())
            return y

    space = trace(Listed().eval(), torch.zeros(1, 6), align=1)
    subnet: Any = space.materialise(space.candidate(0.5))
    assert subnet.order[0] is subnet.layers[0]
    assert subnet(torch.zeros(1, 6)).shape == (1, 4)
