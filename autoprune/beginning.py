"""Begin a search: cheap checks, then the run folder, which everything that takes long is kept in from then on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from autoprune.align import needs_steps
from autoprune.config import SearchConfig
from autoprune.preparing import check
from autoprune.progress import Progress
from autoprune.runtimes.base import MeasuringFailed
from autoprune.search_spaces.errors import UserError
from autoprune.study import PROFILE, Study
from autoprune.trust import remember
from autoprune.workbench import Objects, Workbench, fingerprints, make_workbench


def begin(path: Path, config: SearchConfig, objects: Objects, progress: Progress) -> tuple[Study, Workbench]:
    """Find out, as far as that is cheap, that a search can work; then make its run folder.

    Returns:
        The study, open, its configuration not yet `prepared`; and what the search works with.

    Raises:
        UserError: it cannot work; there is no folder then.
    """
    bench = make_workbench(config, objects)
    check(bench, progress)
    config = replace(
        bench.config,
        align="auto" if needs_steps(config) else bench.config.align,
        precision=bench.evaluator.precision,
        prepared=False,
        fingerprints=fingerprints(bench),
    )
    remember(config)  # whoever starts a search trusts it
    return Study.create(path, config), bench


@contextmanager
def discarded_unless_prepared(study: Study) -> Iterator[None]:
    """Remove the run folder that this process made where the user's input is at fault before the first trial.

    Whatever else ends the block, a stop, a full disk or a device that fails after it has measured, leaves a folder that
    can be resumed.
    """
    try:
        yield
    except UserError as error:
        if study.config.prepared:
            raise
        if isinstance(error, MeasuringFailed) and any((study.path / PROFILE).rglob("*.json")):
            raise UserError(
                f"{error} What was measured before is kept. Go on with it: autoprune resume {study.path}"
            ) from None
        study.discard()
        raise
