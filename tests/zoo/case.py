"""One network of the zoo: how to build it, and what it runs on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor, nn

Inputs: TypeAlias = Tensor | tuple[Any, ...] | Mapping[str, Any]
"""As `autoprune.trace` takes them: one tensor, a tuple of positional or a dict of keyword arguments, or both kinds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A network to check. `build` and the inputs are called in the network's own process, with the seed set.

    Attributes:
        library, name: what the record and the table call it; names are unique within a library.
        build: makes the model; its weights are overwritten by random ones, its initialisers are skipped.
        inputs: example inputs in evaluation mode: small, and of batch 2 at least where `train_inputs` is None.
        train_inputs: inputs in training mode, where they are others (batch norm needs two values, detection targets).
        sizes_vary: the first dimension of an output depends on the data (the number of boxes).
        limit: why this network is known to fail; its failure is shown, and does not fail the run.
        seconds, gigabytes: what the process may take; None: the run's own limits.
    """

    library: str
    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Inputs]
    train_inputs: Callable[[], Inputs] | None = None
    sizes_vary: bool = False
    limit: str = ""
    seconds: float | None = None
    gigabytes: float | None = None
