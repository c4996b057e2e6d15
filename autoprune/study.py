"""The durable list of trials: an Optuna study in ``study.db`` (SQLite), one commit per finished trial.

A trial is evaluated first and stored then, whole, by `optuna.Study.add_trial`: `RDBStorage.create_new_trial` writes
a finished template in a single transaction (read in Optuna 5.0), so no trial is ever left running, and a kill loses
the one under way, which is asked again under the same number with the same seed. Only this module knows Optuna's
storage; ``optuna-dashboard sqlite:///runs/x/study.db`` opens it.
"""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState

from autoprune.agents.base import Reading, Trial
from autoprune.config import SearchConfig
from autoprune.files import atomic_folder, remove_leftovers
from autoprune.journal import check_journal
from autoprune.lock import FolderLock
from autoprune.search_spaces.budget import Budget
from autoprune.search_spaces.errors import UserError

FILE = "study.db"

_STATES = {"complete": TrialState.COMPLETE, "cut": TrialState.PRUNED, "failed": TrialState.FAIL}
_TRIAL = "trial"
"""Name of the attribute that holds a trial, as a table of these."""
_ATTRIBUTES = (
    "candidate",
    "state",
    "score",
    "costs",
    "share",
    "message",
    "seconds",
    "evaluated",
    "pruning",
    "audit",
    "ruled_out",
    "readings",
)


class Study:
    """A run folder with its configuration and trials; a context manager that holds the folder's lock.

    `create` and `open` give one that may append; `read` gives one for looking, which takes no lock.

    Attributes:
        path: the run folder.
        config: its settings.
        trials: what was tried so far, in number order: trial k is ``trials[k]``.
    """

    def __init__(self, path: Path, config: SearchConfig, study: optuna.Study, lock: FolderLock | None) -> None:
        self.path = path
        self.config = config
        self._study = study
        self._lock = lock
        self.trials: list[Trial] = []

    @classmethod
    def create(cls, path: Path, config: SearchConfig, fill: Callable[[Path], None] | None = None) -> Study:
        """Make the run folder `path`: all of it appears at once, or nothing.

        Args:
            path: must not exist, or be an empty folder.
            config: written to ``config.toml``.
            fill: puts further files into the folder it is given before that becomes `path`.

        Raises:
            UserError: `path` exists.
        """
        check_new(path)
        try:
            with atomic_folder(path, replace=False) as folder:
                config.write(folder)
                with _disk_errors(path):
                    _create_database(folder, path.name, config)
                if fill is not None:
                    fill(folder)
        except OSError:
            check_new(path)  # another process may have made it meanwhile
            raise
        return cls.open(path)

    @classmethod
    def open(cls, path: Path) -> Study:
        """Open a run folder to go on with it.

        Raises:
            UserError: not a run folder, of another format, damaged, or in use by another process.
        """
        SearchConfig.read(path)  # before the lock, which would leave a file in a folder that is not ours
        lock = FolderLock(path)
        try:
            remove_leftovers(path)
            return cls._load(path, lock)
        except BaseException:
            lock.release()
            raise

    @classmethod
    def read(cls, path: Path) -> Study:
        """Open a run folder to look at it, also while another process searches in it."""
        return cls._load(path, None)

    @classmethod
    def _load(cls, path: Path, lock: FolderLock | None) -> Study:
        config = SearchConfig.read(path)
        loaded = cls(path, config, _load_database(path / FILE), lock)
        try:
            frozen = loaded._study.get_trials(deepcopy=False)
            loaded.trials = [_from_optuna(trial.number, trial.user_attrs) for trial in frozen]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise _damaged(path / FILE, f"a trial cannot be read ({error!r})") from None
        return loaded

    def append(self, trial: Trial, keep_ratios: Mapping[str, float]) -> None:
        """Store a finished trial durably, in one commit; it is on the disk when this returns.

        Args:
            trial: its number must be the next one.
            keep_ratios: kept / dense per group of its candidate, shown as parameters by Optuna's tools.

        Raises:
            OSError: the disk is full; the study is as before.
        """
        assert self._lock is not None, "opened for reading only"
        assert trial.number == len(self.trials), f"trial {trial.number} cannot follow {len(self.trials)} trials"
        distributions: dict[str, BaseDistribution] = {name: FloatDistribution(0.0, 1.0) for name in keep_ratios}
        values = None
        if trial.state == "complete":
            assert trial.score is not None
            values = [trial.score, *(trial.costs[name] for name in objectives(self.config.budget)[1:])]
        frozen = optuna.trial.create_trial(
            state=_STATES[trial.state],
            values=values,
            params=dict(keep_ratios),
            distributions=distributions,
            # one attribute: Optuna looks every single one up before it writes it
            user_attrs={_TRIAL: {name: getattr(trial, name) for name in _ATTRIBUTES}},
        )
        if frozen.datetime_complete is not None:
            frozen.datetime_start = frozen.datetime_complete - timedelta(seconds=trial.seconds)
        with _disk_errors(self.path):
            self._study.add_trial(frozen)
        self.trials.append(trial)

    def change(self, **settings: Any) -> None:
        """Change settings, such as the planned number of trials, durably."""
        assert self._lock is not None, "opened for reading only"
        config = replace(self.config, **settings)
        config.write(self.path)
        self.config = config

    def close(self) -> None:
        """Release the folder."""
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> Study:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_new(path: Path) -> None:
    """Refuse a run folder that cannot be made, before any work is spent on it.

    Raises:
        UserError: `path` exists and is not an empty folder.
    """
    if path.is_dir() and not any(path.iterdir()):
        return
    if (path / "config.toml").exists():
        raise UserError(f"{path} exists. Go on with it: `autoprune resume {path}`; or choose another folder: --run.")
    if path.exists():
        raise UserError(f"{path} exists and is not a run folder. Choose another folder: --run.")
    nearest = next(parent for parent in path.absolute().parents if parent.exists())
    if not (nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)):
        raise UserError(f"{path} cannot be made: {nearest} is no folder that can be written to. Choose another: --run.")


def objectives(budget: Sequence[str]) -> list[str]:
    """Names of the study's objectives: the score (maximised), MACs and every budgeted cost (minimised)."""
    return ["score", *dict.fromkeys(["macs", *Budget.parse(budget).costs])]


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Raise what SQLite says of the disk as the OSError that it is, for the study in the run folder `path`."""
    try:
        yield
    except Exception as error:
        cause = error if isinstance(error, sqlite3.Error) else error.__cause__
        while cause is not None and not isinstance(cause, sqlite3.Error):
            cause = cause.__cause__
        if cause is None:
            raise
        full = "disk is full" in str(cause)
        code, words = (errno.ENOSPC, "No space left on device") if full else (errno.EIO, f"Cannot store: {cause}")
        raise OSError(code, words, str(path / FILE)) from error


def _create_database(folder: Path, name: str, config: SearchConfig) -> None:
    names = objectives(config.budget)
    with _quiet_optuna():
        storage = _storage(folder / FILE)
        study = optuna.create_study(
            study_name=name,
            storage=storage,
            directions=[StudyDirection.MAXIMIZE] + [StudyDirection.MINIMIZE] * (len(names) - 1),
        )
        study.set_metric_names(names)
        for key in ("model", "data", "budget", "agent", "seed"):
            study.set_user_attr(key, getattr(config, key))
        storage.engine.dispose()


def _load_database(path: Path) -> optuna.Study:
    if not path.is_file():
        raise UserError(f"{path} is missing. Restore it from a copy, or start a new run.")
    check_journal(path)
    try:
        connection = sqlite3.connect(path)
        try:
            (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        finally:
            connection.close()
        if verdict != "ok":
            raise _damaged(path, verdict)
        with _quiet_optuna():
            return optuna.load_study(study_name=None, storage=_storage(path))
    except (
        sqlite3.DatabaseError,
        optuna.exceptions.StorageInternalError,
        KeyError,
        RuntimeError,
        ValueError,
    ) as error:
        if isinstance(error, UserError):
            raise
        raise _damaged(path, str(error.__cause__ or error)) from error


def _storage(path: Path) -> RDBStorage:
    # A creator, not a URL: a path may hold characters that a URL would read as its own.
    return RDBStorage("sqlite://", engine_kwargs={"creator": lambda: sqlite3.connect(path, timeout=60)})


def _damaged(path: Path, why: str) -> UserError:
    return UserError(f"{path} is damaged or not a study: {why}. Restore it from a copy, or start a new run.")


def _from_optuna(number: int, attributes: Mapping[str, Any]) -> Trial:
    # Older studies keep an attribute for each, and do not say: the share evaluated, before trials could be cut; the
    # pruning, before it had a name; and what was measured, before trials were.
    attributes = attributes.get(_TRIAL, attributes)
    pruning = "alpha-beta" if attributes["state"] == "cut" else None
    if (attributes["message"] or "").startswith("same subnet"):
        pruning = "subproblem"
    attributes = {"evaluated": 1.0, "pruning": pruning, "audit": None, "ruled_out": {}, "readings": (), **attributes}
    values = {name: attributes[name] for name in _ATTRIBUTES}
    values["candidate"] = tuple(values["candidate"])
    values["readings"] = tuple(
        Reading(tuple(candidate), gauge, ratio, se) for candidate, gauge, ratio, se in values["readings"]
    )
    return Trial(number=number, **values)


@contextmanager
def _quiet_optuna() -> Iterator[None]:
    """Silence Optuna's "experimental" warnings and its line about every study made."""
    optuna.logging.set_verbosity(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
