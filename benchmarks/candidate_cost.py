"""What a candidate costs: its costs, and the subnet itself, against the floor and against Torch-Pruning.

    pip install torch-pruning==1.6.1
    OMP_NUM_THREADS=1 python benchmarks/candidate_cost.py

CPU time of one thread; medians of repeats in turns, so that what else the machine does hits all alike. Prints two
markdown tables: networks against the floor and the peer, then growth with depth.

- trace: once per model, with everything that costs need.
- floor: the least that makes the same subnet from sizes, indices and attributes that are known beforehand: a copy of
  every module and its containers, `index_select` of what is cut, a clone of the rest, attributes set. Bound to one
  candidate, and right only for modules without references between them, hooks or cached values.
- materialise: `space.materialise(candidate)`; the ranking of units is computed once per space, and not in it.
- shared: `materialise(candidate, share=True)`, for scoring, against the floor that shares too.
- peer: what Torch-Pruning needs for a candidate: it cuts in place, so a copy, a dependency graph, the pruner, one step.
"""

from __future__ import annotations

import argparse
import copy
import gc
import itertools
import time
from collections import OrderedDict
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

from autoprune.search_spaces import Candidate, SearchSpace, trace

NETWORKS = ("resnet18", "resnet50", "mobilenet_v2", "vit_b_16", "densenet121")
DEEP = ("cifar_resnet20", "cifar_resnet110", "cifar_resnet1202", "densenet121", "densenet201")
RATIO = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS, help="of torchvision; default: %(default)s")
    parser.add_argument("--deep", nargs="*", default=DEEP, help="for growth with depth; default: %(default)s")
    parser.add_argument("--repeats", type=int, default=15, help="default: %(default)s")
    parser.add_argument("--no-peer", action="store_true", help="leave Torch-Pruning out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    peer = None if options.no_peer else import_peer()
    print(
        "| network | groups | trace, ms | costs of 1, us | of 100,000, s | floor, ms | materialise, ms | x floor ",
        end="",
    )
    print("| floor, shared | shared, ms | x floor | peer, ms | peer / materialise |")
    print("|" + 13 * "---|")
    for name in options.networks:
        print(row(name, options.repeats, peer), flush=True)
    print()
    print_header(
        "network", "ops", "trace, ms", "us per op", "costs of 1, us", "tensors", "materialise, ms", "us per tensor"
    )
    for name in options.deep:
        print(deep_row(name, options.repeats), flush=True)


def print_header(*columns: str) -> None:
    print(f"| {' | '.join(columns)} |\n|{len(columns) * '---|'}")


def row(name: str, repeats: int, peer: Any) -> str:
    model, image = make(name)
    space, trace_s = traced(model, image)
    candidate = space.candidate(RATIO)
    calls = {
        "floor": make_floor(space, candidate, share=False),
        "own": lambda: space.materialise(candidate),
        "shared floor": make_floor(space, candidate, share=True),
        "shared": lambda: space.materialise(candidate, share=True),
    }
    check_same(calls["floor"](), calls["own"](), image)
    s = medians(calls, repeats)
    cells = [name, len(space.groups), f"{1e3 * trace_s:.0f}", f"{1e6 * cost_s(space):.0f}", f"{batch_s(space):.2f}"]
    for floor, ours in (("floor", "own"), ("shared floor", "shared")):
        cells += [f"{1e3 * s[floor]:.1f}", f"{1e3 * s[ours]:.1f}", f"{s[ours] / s[floor]:.2f}"]
    if peer is not None:
        both = medians({"peer": lambda: prune_with_peer(peer, model, image), "own": calls["own"]}, max(3, repeats // 5))
        cells += [f"{1e3 * both['peer']:.0f}", f"{both['peer'] / both['own']:.0f}"]
    else:
        cells += ["", ""]
    return f"| {' | '.join(map(str, cells))} |"


def deep_row(name: str, repeats: int) -> str:
    model, image = make(name)
    space, trace_s = traced(model, image)
    candidate = space.candidate(RATIO)
    own = medians({"own": lambda: space.materialise(candidate)}, repeats)["own"]
    ops, tensors = len(space.ops), len(model.state_dict())
    cells = [name, ops, f"{1e3 * trace_s:.0f}", f"{1e6 * trace_s / ops:.0f}", f"{1e6 * cost_s(space):.0f}"]
    cells += [tensors, f"{1e3 * own:.1f}", f"{1e6 * own / tensors:.0f}"]
    return f"| {' | '.join(map(str, cells))} |"


# -- what is measured -------------------------------------------------------------------------------------------------


def seconds(call: Callable[[], Any]) -> float:
    start = time.thread_time()
    call()
    return time.thread_time() - start


def medians(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Seconds by name, in turns, after one round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 1):
        for name, call in calls.items():
            gc.collect()  # nobody pays for what another one left
            times[name].append(seconds(call))
    return {name: median(values[1:]) for name, values in times.items()}


def traced(model: nn.Module, image: Tensor) -> tuple[SearchSpace, float]:
    """The space, and the median time to make it ready for costs."""

    def call() -> None:
        nonlocal space
        space = trace(model, image)
        space.costs(space.dense)

    space: Any = None
    elapsed = medians({"trace": call}, 3)["trace"]
    return space, elapsed


def cost_s(space: SearchSpace) -> float:
    """Seconds for one candidate, in a row of many, as a search asks for them."""
    candidate = space.candidate(RATIO)
    return median(seconds(lambda: space.costs(candidate)) for _ in range(200))


def batch_s(space: SearchSpace, num: int = 100_000) -> float:
    candidates = np.random.default_rng(0).integers(0, space.num_levels, (num, len(space.groups)))
    return medians({"costs": lambda: space.costs(candidates)}, 3)["costs"]


def make_floor(space: SearchSpace, candidate: Candidate, *, share: bool) -> Callable[[], nn.Module]:
    """A function that makes one certain subnet, with all that does not touch a tensor or a module done before."""
    model, kept = space.model, space.kept(candidate)
    modules = dict(model.named_modules())
    indices: dict[bytes, Tensor] = {}
    places = []
    for path, module in modules.items():
        for short in (*module._parameters, *module._buffers):
            cuts = [
                (dim, indices.setdefault(index.tobytes(), torch.as_tensor(index)))
                for dim, index in enumerate(kept.get(f"{path}.{short}" if path else short, ()))
                if index is not None
            ]
            places.append((module, short, cuts))
    attributes = [(modules[path], name, value) for path, name, value in space.attributes(candidate)]

    def floor() -> nn.Module:
        copies: dict[nn.Module, nn.Module] = {}
        smaller = copied(model, copies)
        with torch.no_grad():
            for module, short, cuts in places:
                is_parameter = short in module._parameters
                tensor = (module._parameters if is_parameter else module._buffers)[short]
                if tensor is None:
                    continue
                data = tensor
                for dim, index in cuts:
                    data = data.index_select(dim, index)
                if not cuts and not (share and is_parameter):
                    data = data.clone()
                if is_parameter:
                    copies[module]._parameters[short] = nn.Parameter(data, tensor.requires_grad)
                else:
                    copies[module]._buffers[short] = data
        for module, name, value in attributes:
            vars(copies[module])[name] = value
        return smaller

    return floor


def copied(module: nn.Module, copies: dict[nn.Module, nn.Module]) -> nn.Module:
    """A new module with containers of its own; tensors are still those of the old one."""
    smaller = copies[module] = object.__new__(type(module))
    state = vars(smaller)
    for name, value in vars(module).items():
        state[name] = value.copy() if type(value) in (dict, OrderedDict, set, list) else value
    for name, child in module._modules.items():
        if child is not None:
            state["_modules"][name] = copied(child, copies)
    return smaller


def check_same(a: nn.Module, b: nn.Module, image: Tensor) -> None:
    """The floor makes what `materialise` makes."""
    assert repr(a) == repr(b)
    with torch.no_grad():
        assert torch.equal(a(image), b(image))


def import_peer() -> Any:
    try:
        import torch_pruning
    except ImportError as error:
        raise SystemExit("Torch-Pruning is missing: pip install torch-pruning==1.6.1, or pass --no-peer.") from error
    return torch_pruning


def prune_with_peer(peer: Any, model: nn.Module, image: Tensor) -> nn.Module:
    """As in its examples for torchvision: every layer but the classifier; ViT widths are multiples of its heads."""
    smaller: Any = copy.deepcopy(model)
    classifiers = [m for m in smaller.modules() if isinstance(m, nn.Linear) and m.out_features == 1000]
    is_vit = isinstance(smaller, torchvision.models.VisionTransformer)
    pruner = peer.pruner.MagnitudePruner(
        smaller,
        image,
        importance=peer.importance.MagnitudeImportance(p=2),
        pruning_ratio=RATIO,
        ignored_layers=classifiers,
        round_to=smaller.encoder.layers[0].num_heads if is_vit else None,
    )
    pruner.step()
    if is_vit:
        smaller.hidden_dim = smaller.conv_proj.out_channels
    return smaller


# -- networks ---------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """Two convolutions and a skip."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        stride = 1 if width == out else 2
        self.conv1, self.bn1 = nn.Conv2d(width, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.skip = nn.Identity() if width == out else nn.Conv2d(width, out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + self.skip(x)).relu()


class CifarResNet(nn.Sequential):
    """He et al. 2016, arXiv:1512.03385, sec. 4.2: 6 n + 2 layers, widths 16, 32, 64."""

    def __init__(self, depth: int) -> None:
        widths = [16, *(width for width in (16, 32, 64) for _ in range((depth - 2) // 6))]
        blocks = [Block(width, out) for width, out in itertools.pairwise(widths)]
        stem = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
        super().__init__(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def make(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    if name.startswith("cifar_resnet"):
        return CifarResNet(int(name.removeprefix("cifar_resnet"))).eval(), torch.randn(1, 3, 32, 32)
    return torchvision.models.get_model(name, weights=None).eval(), torch.randn(1, 3, 224, 224)


if __name__ == "__main__":
    main()
