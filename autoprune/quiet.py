"""Circumstances under which times are measured, each put back afterwards."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def quiet(threads: int) -> Iterator[None]:
    """Measure with `threads` of torch, without gradients, and without the garbage collector.

    A pause of the collector is as long as a small network.
    """
    before, collecting = torch.get_num_threads(), gc.isenabled()
    torch.set_num_threads(threads)
    gc.collect()
    gc.disable()
    try:
        with torch.inference_mode():
            yield
    finally:
        if collecting:
            gc.enable()
        torch.set_num_threads(before)
