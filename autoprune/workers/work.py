"""Take part in a search that was begun elsewhere: `work`, which any number of processes and machines may do at once.

    ap.work("runs/first")                                             # where the run folder is seen
    ap.work(storage="postgresql://ann@db.example.org/studies", study="first")     # where it is not

Workers need no coordinator: they claim trials in the storage (see `storage.claims`), and what one has not finished when
it ends is taken over. The run folder is finished (front, fine-tuning, report) by `search` or `resume` alone.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from autoprune.preparing import load_devices, read_hardest_first
from autoprune.prior import with_prior
from autoprune.progress import NO_PROGRESS, Progress
from autoprune.search_spaces.errors import UserError
from autoprune.searching import make_seats, run_trials
from autoprune.storage.address import VARIABLE
from autoprune.study import Study
from autoprune.workbench import HandedOver, rebuild_workbench

if TYPE_CHECKING:
    from typing_extensions import Unpack


def work(
    run: str | Path | None = None,
    *,
    storage: str | None = None,
    study: str | None = None,
    weights: str | Path | None = None,
    data_root: str | Path | None = None,
    trust: bool = False,
    progress: Progress = NO_PROGRESS,
    **given: Unpack[HandedOver],
) -> int:
    """Evaluate trials of a search until all that are planned are stored; return how many there are.

    Args:
        run: its folder, where this machine sees it; else:
        storage, study: URL of its storage (None: that in ``AUTOPRUNE_STORAGE``), and its name there (None: the only
            one).
        weights, data_root: where these are on this machine, if not where the search found them.
        trust: let a study from elsewhere run the code that its configuration names, now and later.
        progress: where to report to.
        given: what the search was handed over in Python, as for `resume`.

    Raises:
        UserError: the study cannot be used, is not ready for workers yet, or model, data or weights are others here.
    """
    if run is None and storage is None:
        storage = os.environ.get(VARIABLE)
    if (run is None) == (storage is None):
        raise UserError(
            f"A worker is given a run folder, or --storage (or {VARIABLE}) and --study where it does not see that."
        )
    own = {"weights": weights, "data_root": data_root}
    settings = {name: str(Path(path).expanduser().absolute()) for name, path in own.items() if path is not None}
    joined = Study.join_stored(storage, study, **settings) if storage else Study.join(Path(run or ""), **settings)
    with joined:
        bench = rebuild_workbench(
            joined.config, joined.path, progress, where=joined.where, own=settings, trust=trust, **given
        )
        with bench.gauges:
            bench.gauges.lend = joined.lend
            bench.gauges.measuring = bench.config.measure_trials == "on"
            bench.gauges.mend = (
                "Trials of this search are measured: start workers on machines like the one that it began on, or begin "
                "a search with --measure-trials off."
            )
            load_devices(bench, joined.path, progress)
            order = read_hardest_first(bench, make_seats(bench)[0].agent.uniform(), joined.path, progress)
            return len(run_trials(joined, with_prior(bench, joined, progress), order, progress))
