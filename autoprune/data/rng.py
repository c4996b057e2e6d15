"""Random numbers that depend on a key such as (seed, epoch), and code that draws from the process-wide generators.

Data loaders, samplers and the user's transforms draw from the global generators of torch, numpy and Python. They are
run with those generators swapped for private ones: the draws are a function of the key and the global ones stay as
they are.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import torch

from autoprune.search_spaces.errors import UserError

_T = TypeVar("_T")
_END = object()


def key_seed(*key: int) -> int:
    """Mix non-negative integers into one seed below 2^63; other keys, also shorter ones, give other seeds."""
    if any(part < 0 for part in key):
        raise UserError(f"A seed is an integer from 0 on, but got {min(key)}.")
    return int(np.random.SeedSequence((len(key), *key)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator(*key: int) -> torch.Generator:
    """Return a CPU generator whose stream is a function of `key`."""
    return torch.Generator().manual_seed(key_seed(*key))


def mixed(seed: int, step: int) -> int:
    """Return a seed below 2^63 for each step of what has `seed`: as `key_seed`, but cheap enough for every step.

    Source: splitmix64; Steele, Lea & Flood 2014, "Fast Splittable Pseudorandom Number Generators".
    """
    z = (seed + (step + 1) * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return (z ^ (z >> 31)) >> 1


def seed_global(seed: int) -> None:
    """Make what the global CPU generators give from here on a function of `seed`; to be called in `PrivateRandom`."""
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


class PrivateRandom:
    """A context manager in which the global CPU generators are private streams, a function of `key`.

    It can be entered again: the streams go on where they were left.
    """

    def __init__(self, *key: int) -> None:
        seed = key_seed(*key)
        self._states = (
            generator(*key).get_state(),
            np.random.RandomState(seed % 2**32).get_state(),
            random.Random(seed).getstate(),
        )

    def __enter__(self) -> None:
        self._swap()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._swap()

    def _swap(self) -> None:
        outside: tuple[Any, ...] = (torch.get_rng_state(), np.random.get_state(), random.getstate())
        torch.set_rng_state(self._states[0])
        np.random.set_state(self._states[1])
        random.setstate(self._states[2])
        self._states = outside


def iterate(iterable: Iterable[_T], *key: int) -> Iterator[_T]:
    """Yield from `iterable`, whose own random draws are made a function of `key`."""
    private = PrivateRandom(*key)
    with private:
        iterator: Iterator[Any] = iter(iterable)
    while True:
        with private:
            item: Any = next(iterator, _END)
        if item is _END:
            return
        yield item
