"""What every test runs under: one thread, repeatable hypothesis examples, a quiet Optuna."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

# Before torch is loaded, and for the processes that tests start: tiny networks on few cores are fastest on one thread,
# and their sums then come out the same everywhere.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import optuna
import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
optuna.logging.set_verbosity(optuna.logging.WARNING)

# No deadline: a first call compiles or allocates, and machines differ. Explore anew with --hypothesis-profile=explore.
settings.register_profile("repeatable", deadline=None, derandomize=True, print_blob=True)
settings.register_profile("explore", deadline=None, max_examples=1000)
settings.load_profile("repeatable")


@pytest.fixture(scope="session", autouse=True)
def own_state_folder() -> Iterator[None]:
    """Searches note that their user trusts them: here, not in the home folder of whoever runs the tests."""
    with tempfile.TemporaryDirectory(prefix="autoprune-state-") as folder:
        os.environ["XDG_STATE_HOME"] = folder
        yield
