"""Importing this does a trace: torch loads much of itself only at its first meta tensor, which takes seconds."""

from __future__ import annotations

import torch

import autoprune.search_spaces.verify
import tests.zoo.check
from autoprune.search_spaces import trace
from tests.search_spaces.nets import IMAGE, Plain

__all__ = ["autoprune", "tests"]

torch.set_num_threads(1)
trace(Plain(), IMAGE)
