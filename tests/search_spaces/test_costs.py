"""Costs as sums of products: against sums written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.sparse import csr_array

from autoprune.search_spaces.costs import Sums, memory_changes
from autoprune.search_spaces.groups import Counts
from autoprune.search_spaces.labels import Field


@pytest.mark.parametrize("seed", range(20))
def test_peaks_are_those_of_what_is_alive(seed: int) -> None:
    rng = np.random.default_rng(seed)
    births = np.sort(rng.integers(0, 15, 25))
    births = np.unique(births, return_inverse=True)[1].tolist()  # every moment allocates something
    lives = rng.integers(1, 12, len(births))
    end = births[-1] + 1
    deaths = {i: int(b + n) for i, (b, n) in enumerate(zip(births, lives, strict=True)) if b + n < end}
    sizes = rng.integers(1, 100, len(births))
    alive = [
        sum(size for i, size in enumerate(sizes) if births[i] <= moment < deaths.get(i, end)) for moment in range(end)
    ]
    sums = (memory_changes(births, deaths) @ sizes).cumsum()
    assert sums.max() == max(alive)
    assert set(sums.tolist()) <= set(alive)


@pytest.mark.parametrize("seed", range(20))
def test_sums_are_sums_of_products(seed: int) -> None:
    """With fields that never vary, fields of equal counts, equal products and products without a field."""
    rng = np.random.default_rng(seed)
    fields = [Field((0,), np.array([i])) for i in range(8)]
    per_unit = rng.integers(0, 3, (8, 3)) * rng.integers(0, 2, (8, 1))
    per_unit[5] = per_unit[2]
    fixed = rng.integers(0, 4, 8)
    fixed[5] = fixed[2]
    counts = Counts(fixed, csr_array(per_unit), {f.atoms.tobytes(): i for i, f in enumerate(fields)})
    products = [
        [int(rng.integers(1, 9)), *(fields[i] for i in rng.integers(0, 8, rng.integers(0, 4)))] for _ in range(12)
    ]
    weights = rng.integers(-2, 3, (4, 12))
    units = rng.integers(1, 50, (7, 3))
    got = Sums(counts, products, weights)(units)
    for j, kept in enumerate(units):
        sizes = fixed + per_unit @ kept
        values = [math.prod(f if isinstance(f, int) else int(sizes[f.atoms[0]]) for f in p) for p in products]
        assert got[:, j].tolist() == (weights @ values).tolist()
