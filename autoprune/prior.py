"""The table of losses that agents start from: measured before the first trial, and the same for the whole study.

A KL table of a few levels per group, `profile/prior.json`, written after every group. `autoprune profile` measures its
own file, in as much detail as is asked for, and changes no proposal of a study that has begun.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from autoprune import stopping
from autoprune.agents import option_names
from autoprune.agents.table import Table
from autoprune.config import SearchConfig
from autoprune.failures import describe_error, disk_error
from autoprune.kl_table import KLTable
from autoprune.profiling import measure_table
from autoprune.progress import Progress
from autoprune.search_spaces.errors import UserError
from autoprune.study import Study
from autoprune.workbench import Workbench

PRIOR = Path("profile") / "prior.json"

LEVELS, SAMPLES = 3, 512
"""Levels per group and training samples: a table of all levels ranks hardly better (docs/kl-table.md)."""


def with_prior(bench: Workbench, study: Study, progress: Progress) -> Workbench:
    """The workbench with the table for its agent, measured as far as the run folder does not hold it.

    None is measured where the agent takes none, where the configuration says so, and where the model cannot be run cut
    in one group; the configuration then keeps that there is none, so that a resumed study has none either.

    Raises:
        UserError: the file was written by a newer release.
    """
    if not takes_prior(study.config):
        return bench
    path = study.path / PRIOR
    try:
        measured = measure_table(bench.evaluator, levels=LEVELS, samples=SAMPLES, path=path, progress=progress)
    except Exception as error:  # the user's model runs in here; trials will say what is wrong with it
        stopping.check()  # which reaches the processes that load data as well
        if disk_error(error) or study.trials or (isinstance(error, UserError) and path.is_file()):
            raise  # a study that began with a table has one to its end
        reason = error if isinstance(error, UserError) else describe_error(error)
        progress.say(f"The agent starts without a table of losses: {reason}")
        study.change(prior="off")
        return replace(bench, config=study.config)
    return replace(bench, prior=as_table(measured))


def takes_prior(config: SearchConfig) -> bool:
    """Whether a study has use for a table."""
    return config.prior == "kl" and (config.heuristic or "table" in option_names(config.agent))


def as_table(measured: KLTable) -> Table:
    """What agents see of a KL table; where a cut gave infinite outputs, ten times the largest finite loss."""
    finite = [value for values in measured.values for value in values if np.isfinite(value)]
    return Table.measured(np.where(np.isinf(values), 10 * max(finite), values) for values in measured.values)
