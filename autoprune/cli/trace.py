"""`autoprune trace`: what can be pruned in a model, what every layer costs, what stays and why."""

from __future__ import annotations

import json as json_module
from collections.abc import Mapping
from dataclasses import asdict
from math import prod
from pathlib import Path

import torch
import typer
from rich.table import Table
from torch import Tensor, nn

from autoprune.cli.show import say, stdout
from autoprune.data import load_data
from autoprune.data.base import Inputs
from autoprune.models import ModelSource, input_channels
from autoprune.search_spaces import SearchSpace, trace
from autoprune.search_spaces.budget import format_cost
from autoprune.search_spaces.errors import UserError

MANY_LEVELS = 6
"""Longer lists of levels are shown by their ends and their number."""


def print_trace(
    source: ModelSource, *, data: str | None, data_root: Path | None, shape: str | None, align: int, json: bool
) -> None:
    """Trace the model and print its groups, layers and frozen units.

    Raises:
        UserError: model, data or shape cannot be used, or nothing can be pruned.
    """
    model = source.build()
    example = example_of(model, data=data, data_root=data_root, shape=shape)
    space = trace(model, example, align=align)
    layers = layer_macs(space)
    if json:
        content = {
            "model": source.spec,
            "costs": space.cost_dict(space.dense),
            "smallest": space.cost_dict(space.smallest),
            "groups": [asdict(group) for group in space.groups],
            "frozen": [asdict(frozen) for frozen in space.frozen],
            "macs_per_layer": layers,
            "unknown_ops": dict(space.unknown_ops),
        }
        typer.echo(json_module.dumps(content, indent=2))
        return
    print_space(source.spec, example, space, layers)


def print_space(name: str, example: object, space: SearchSpace, layers: Mapping[str, int]) -> None:
    """Print a traced model as tables."""
    console = stdout()
    shape = f" on an input of {'x'.join(map(str, example.shape))}" if isinstance(example, Tensor) else ""
    say(console, f"{name}{shape}")
    dense, smallest = space.cost_dict(space.dense), space.cost_dict(space.smallest)
    for cost, value in dense.items():
        say(console, f"  {cost}: {format_cost(cost, value)}, smallest subnet {format_cost(cost, smallest[cost])}")
    groups = Table("group", "kind", "units", "levels", "exact", "parameters", title="Groups: cut together")
    for group in space.groups:
        few = len(group.levels) <= MANY_LEVELS
        levels = ", ".join(map(str, group.levels)) if few else f"{group.levels[0]} … {group.levels[-1]}"
        groups.add_row(
            group.name,
            group.kind,
            str(group.num_units),
            levels if few else f"{levels} ({len(group.levels)})",
            "yes" if group.exact else "no",
            str(len(group.producers)),
        )
    console.print(groups)
    total = sum(layers.values())
    costs = Table("layer", "MACs", "share", title="MACs per layer")
    for layer, macs in layers.items():
        costs.add_row(layer or "(model)", format_cost("macs", macs), f"{macs / total:.1%}")
    console.print(costs)
    if space.frozen:
        frozen = Table("units of", "units", "why they stay", "module", "op", title="Frozen")
        for item in space.frozen:
            frozen.add_row(item.name, str(item.num_units), item.reason, item.module, item.op)
        console.print(frozen)
    for op, module in space.unknown_ops.items():
        say(console, f"No rule for {op} in {module or 'the model'}: what it touches stays.")
    say(console, "1 MAC = 1 multiply-add = 2 FLOPs. A group that is not exact runs a norm or mean over its units.")


def example_of(
    model: nn.Module, *, data: str | None, data_root: Path | None, shape: str | None, batch: int | None = None
) -> Inputs:
    """The first `batch` samples of the data, or random numbers of a shape; by default one sample, 1xCx224x224.

    Raises:
        UserError: data or shape cannot be used, or shape and batch contradict each other.
    """
    if batch is not None and batch < 1:
        raise UserError(f"A batch holds at least 1 sample, but got --batch {batch}.")
    channels = input_channels(model)
    if data is not None:
        if shape is not None:
            raise UserError(f"Give either --data {data} or --input-shape {shape}: both say what the input is.")
        return load_data(data, root=data_root, channels=channels).example(batch or 1)
    sizes = read_shape(shape) if shape is not None else (1, channels or 3, 224, 224)
    if batch is not None and sizes[0] not in (1, batch):
        raise UserError(f"--input-shape {shape} holds {sizes[0]} samples, but --batch says {batch}.")
    sizes = (batch or sizes[0], *sizes[1:])
    return torch.randn(sizes, generator=torch.Generator().manual_seed(0))


def layer_macs(space: SearchSpace) -> dict[str, int]:
    """MACs of the dense model by module path, in order of execution."""
    layers: dict[str, int] = {}
    for op in space.ops:
        macs = sum(prod(f if isinstance(f, int) else f.atoms.size for f in factors) for factors in op.macs)
        if macs:
            layers[op.module] = layers.get(op.module, 0) + macs
    return layers


def read_shape(text: str) -> tuple[int, ...]:
    """Read ``1x3x224x224``."""
    try:
        sizes = tuple(int(part) for part in text.replace(",", "x").split("x"))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise UserError(f"An input shape is written like 1x3x224x224, but got {text!r}.")
    return sizes
