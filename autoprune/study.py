"""A run: its folder, its configuration and its trials, which an Optuna study in a database holds.

A trial is claimed first, then evaluated, and stored whole by one commit (see `storage`): a kill loses no more than the
trial under way, which is asked again under the same number with the same seed. Any number of workers may do so at once.
Only this module and `storage` know Optuna's storage; ``optuna-dashboard sqlite:///runs/x/study.db`` opens it.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from autoprune.agents.base import Trial
from autoprune.config import FILE as CONFIG
from autoprune.config import SearchConfig
from autoprune.files import atomic_folder, atomic_write, remove_leftovers
from autoprune.lock import FolderLock
from autoprune.measure.turns import alone
from autoprune.records import from_optuna, to_optuna
from autoprune.search_spaces.budget import Budget
from autoprune.search_spaces.errors import UserError
from autoprune.storage import Address, Claim, Database, Turn
from autoprune.storage.claims import Claims
from autoprune.storage.database import NoSuchStudy, damaged, storage_errors
from autoprune.storage.presence import Presence, beating
from autoprune.trust import check_storage

FILE = "study.db"

PROFILE = "profile"
"""Folder of what was measured once; workers that do not see the run folder get a copy of its JSON files."""


class Study:
    """A run with its configuration and trials; a context manager.

    `create` and `open` give one that holds the folder's lock, `join` one for a further worker; `read` gives one for
    looking.

    Attributes:
        path: the run folder; of a worker that does not see it, a temporary one with copies of what it needs.
        config: its settings.
        trials: what was tried so far, in the order in which it was stored: with one worker, that of their numbers.
        holds_folder: whether this process, and no other, writes to the run folder.
    """

    def __init__(self, path: Path, config: SearchConfig, database: Database) -> None:
        self.path = path
        self.config = config
        self.trials: list[Trial] = []
        self._sees_folder = True
        self.holds_folder = False
        self._database = database
        self._closing = ExitStack()  # what is let go of at the end, last things first
        self.news()

    @classmethod
    def create(cls, path: Path, config: SearchConfig) -> Study:
        """Make the run folder `path`: all of it appears at once, or nothing.

        Args:
            path: must not exist, or be an empty folder.
            config: written to ``config.toml``.

        Raises:
            UserError: `path` exists, or the storage cannot be used or holds a study of that name.
        """
        check_new(path)
        try:
            with atomic_folder(path, replace=False) as folder:
                config.write(folder)
                if config.storage is None:
                    _create_database(folder, path.name, config)
        except OSError:
            check_new(path)  # another process may have made it meanwhile
            raise
        if config.storage is not None:  # after the folder: a kill in between leaves one that `open` completes
            try:
                _create_database(path, path.name, config)
            except BaseException:
                shutil.rmtree(path)
                raise
        return cls.open(path)

    @classmethod
    def open(cls, path: Path) -> Study:
        """Open a run folder to go on with it.

        Raises:
            UserError: not a run folder, of another format, damaged, or in use by another process.
        """
        SearchConfig.read(path)  # before the lock, which would leave a file in a folder that is not ours
        with ExitStack() as opened:
            opened.callback(FolderLock(path).release)
            remove_leftovers(path)
            presence = _present(path, opened)
            try:
                study = cls._load(path, presence, opened)
            except NoSuchStudy:
                config = SearchConfig.read(path)
                if config.prepared:
                    raise
                _create_database(path, path.name, config)
                study = cls._load(path, presence, opened)
            opened.callback(presence.sweep)
            study.holds_folder = True
            study._claims.adopt([trial.number for trial in study.trials])
            study._closing = opened.pop_all()
        return study

    @classmethod
    def join(cls, path: Path, **settings: Any) -> Study:
        """Open a run folder for a further worker: while another process holds its lock, or none.

        Args:
            settings: of the configuration that are others for this worker.

        Raises:
            UserError: also where the search has not come to its first trial.
        """
        SearchConfig.read(path)
        with ExitStack() as opened:
            study = cls._load(path, _present(path, opened), opened)
            _check_ready(study._database)
            study.config = replace(study.config, **settings)
            study._closing = opened.pop_all()
        return study

    @classmethod
    def join_stored(cls, storage: str, name: str | None, **settings: Any) -> Study:
        """Open a study by its storage, for a worker on a machine that does not see the run folder.

        Args:
            storage: URL.
            name: of the study in it; None for the only one.
            settings: of the configuration that are others on this machine, such as `weights`.

        Raises:
            UserError: the storage cannot be used, or its search has not come to its first trial.
        """
        with ExitStack() as opened:
            database = Database.open(Address.named(storage), name, _present(None, opened))
            opened.callback(database.close)
            _check_ready(database)
            folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="autoprune-")))
            for relative, content in database.files().items():
                _write_below(folder, relative, content)
            study = cls(folder, replace(SearchConfig.read(folder), **settings), database)
            study._sees_folder = False
            study._closing = opened.pop_all()
        return study

    @classmethod
    def read(cls, path: Path) -> Study:
        """Open a run folder to look at it, also while other processes search in it."""
        with ExitStack() as opened:
            return cls._load(path, None, opened)

    @classmethod
    def _load(cls, path: Path, presence: Presence | None, opened: ExitStack) -> Study:
        config = SearchConfig.read(path)
        address = _address(path, config)
        check_storage(config, str(path), named=address.is_named)
        database = Database.open(address, config.study, presence)
        opened.callback(database.close)
        if database.study.user_attrs.get("id", config.id) != config.id:
            raise UserError(
                f"The study {config.study!r} in {address.shown} is that of another run, not of {path}. Restore the "
                "storage, or start a new run under another name: --study."
            )
        return cls(path, config, database)

    @property
    def address(self) -> Address:
        """Where its trials are."""
        return self._database.address

    @property
    def name(self) -> str:
        """Its name there."""
        name: str = self._database.study.study_name
        return name

    @property
    def where(self) -> str:
        """Where to find it, for messages: its folder, or for a worker that does not see that, its storage."""
        return str(self.path) if self._sees_folder else f"the study {self.name!r} in {self.address.shown}"

    @property
    def _claims(self) -> Claims:
        assert self._database.claims is not None, "opened for reading only"
        return self._database.claims

    def news(self) -> list[Trial]:
        """The trials that were stored, by whomever, since the last call; `trials` holds them from now on."""
        frozen = self._database.trials()[len(self.trials) :]
        try:
            new = [from_optuna(trial) for trial in frozen]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise damaged(self._database.address, f"a trial cannot be read ({error!r})") from None
        self.trials += new
        return new

    def next(self) -> Turn:
        """Claim a trial of those that are planned; see `Turn` for what else that tells."""
        with storage_errors(self.address):
            return self._claims.next(self.config.trials)

    @contextmanager
    def working(self, claim: Claim) -> Iterator[None]:
        """Keep a claim alive while the block runs; where it ends without storing, others may have the trial at once."""
        try:
            with beating(lambda: self._claims.beat(claim)):
                yield
        except BaseException:
            with suppress(Exception):  # without a storage to tell, the claim goes when its beat stands still
                self._claims.give_back(claim)
            raise

    def begin(self, claim: Claim, candidate: tuple[int, ...]) -> bool:
        """Say what is evaluated under a claim; False where another worker evaluates, or has evaluated, the same.

        Raises:
            LostClaim: another worker has taken the trial over.
        """
        with storage_errors(self.address):
            return self._claims.begin(claim, candidate)

    def forget(self, claim: Claim) -> None:
        """Let others evaluate what was begun under a claim."""
        self._claims.forget(claim)

    def pending(self, claim: Claim) -> dict[int, tuple[int, ...] | None]:
        """By number, what others evaluate now; None where they do not know yet."""
        with storage_errors(self.address):
            return self._claims.pending(claim)

    def store(
        self, claim: Claim, trial: Trial, keep_ratios: Mapping[str, float], limits: Mapping[str, float] | None = None
    ) -> list[Trial]:
        """Store a finished trial durably, in one commit; it is on the disk when this returns.

        Args:
            claim: of the trial's number.
            keep_ratios: kept / dense per group of its candidate, shown as parameters by Optuna's tools.
            limits: upper limit by cost, shown as constraints.

        Returns:
            As `news`, this trial included.

        Raises:
            LostClaim: another worker has taken the trial over; nothing is stored.
            OSError: the disk is full; the study is as before.
        """
        assert trial.number == claim.number
        names = objectives(self.config.budget)[1:]
        frozen = to_optuna(trial, keep_ratios, names, limits or {})
        keep = trial.state == "complete" and trial.pruning != "subproblem"
        if self._database.store(claim, frozen, keep_candidate=keep) != len(self.trials):
            return self.news()  # others stored some meanwhile, and these come first
        self.trials.append(trial)
        return [trial]

    @contextmanager
    def lend(self, device: str) -> Iterator[None]:
        """Hold a device on which latency is measured, while the block runs: one worker of a storage at a time.

        Args:
            device: the name of this machine, on which then nobody computes meanwhile, or of another device.
        """
        with alone() if device == socket.gethostname() else nullcontext(), self._database.lent(device):
            yield

    def annotate(self, text: str, of_trials: Mapping[int, str]) -> None:
        """Say in Markdown what optuna-dashboard is to show of the study, and by number of some of its trials.

        Replaces what was said before, also of other trials; what people wrote into the same notes stays.
        """
        stored = {trial.number: place for place, trial in enumerate(self.trials)}
        self._database.annotate(text, {stored[number]: said for number, said in of_trials.items()})

    def share(self) -> None:
        """Let workers that do not see the run folder have what they need of it; the configuration last."""
        for path in sorted((self.path / PROFILE).rglob("*.json")):
            self._database.put_file(path.relative_to(self.path).as_posix(), path.read_bytes())
        self._database.put_file(CONFIG, (self.path / CONFIG).read_bytes())

    def change(self, **settings: Any) -> None:
        """Change settings, such as the planned number of trials: durably, where this process holds the folder."""
        config = replace(self.config, **settings)
        if self.holds_folder:
            config.write(self.path)
        self.config = config

    def discard(self) -> None:
        """Remove the run folder, and the study from its storage: nothing was tried yet."""
        if self.config.storage is not None:
            self._database.delete()
        self.close()
        shutil.rmtree(self.path)

    def close(self) -> None:
        """Let go of the study and its folder."""
        self._closing.close()

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


def _present(folder: Path | None, opened: ExitStack) -> Presence:
    presence = Presence(folder)
    opened.callback(presence.leave)
    return presence


def _check_ready(database: Database) -> None:
    if not database.files(CONFIG):
        raise UserError(
            f"The search {database.study.study_name!r} in {database.address.shown} is still being prepared. Start this "
            "worker again once it tries candidates."
        )


def _create_database(folder: Path, name: str, config: SearchConfig) -> None:
    attributes = {key: getattr(config, key) for key in ("id", "model", "data", "budget", "agent", "seed")}
    Database.create(_address(folder, config), config.study or name, objectives(config.budget), attributes)


def _address(folder: Path, config: SearchConfig) -> Address:
    return Address.of_file(folder / FILE) if config.storage is None else Address.parse(config.storage)


def _write_below(folder: Path, relative: str, content: bytes) -> None:
    """Write a file that a database names, if that is a name below `folder`."""
    path = (folder / relative).resolve()
    if folder.resolve() not in path.parents:
        raise UserError(f"The study holds a file named {relative!r}, which leads out of its folder. Do not use it.")
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, content)
