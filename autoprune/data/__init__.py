"""Where images and labels come from: built-in data sets, folders, the user's own loaders.

    data = load_data("fashion-mnist")                # or "imagefolder:DIR", "package.module:function"
    data = data_from_loaders(train_loader)           # search split carved from it
    for inputs, targets in data.train_epoch(seed=0, epoch=3): ...

A search looks at `data.search`, carved from training data; `data.test` is for final numbers only.
"""

from __future__ import annotations

from autoprune.data.base import Batch, Batches, Data, Inputs, TrainBatches, batch_size_of, forward, to_device
from autoprune.data.loaders import data_from_loaders
from autoprune.data.sets import load_data
from autoprune.data.tensors import Augment, TensorBatches

__all__ = [
    "Augment",
    "Batch",
    "Batches",
    "Data",
    "Inputs",
    "TensorBatches",
    "TrainBatches",
    "batch_size_of",
    "data_from_loaders",
    "forward",
    "load_data",
    "to_device",
]
