"""The database of a study: Optuna's tables, which its tools show, and ours beside them.

Optuna stores a finished trial in one transaction (`RDBStorage.create_new_trial` with a template, read in Optuna 5.0).
Just before that commits, the claim of the trial is marked as done in the same transaction; where it was lost meanwhile,
all of it is rolled back. So every trial is stored whole, exactly once, by one commit.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import sqlite3
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial
from sqlalchemy import Engine, create_engine, delete, event, insert, select
from sqlalchemy.exc import ProgrammingError, SQLAlchemyError
from sqlalchemy.orm import Session
from sqlalchemy.pool import QueuePool

from autoprune.journal import check_journal
from autoprune.search_spaces.errors import UserError
from autoprune.storage import devices, notes, tables
from autoprune.storage.address import VARIABLE, Address
from autoprune.storage.claims import Claim, Claims, LostClaim
from autoprune.storage.patience import is_broken, patiently, said
from autoprune.storage.presence import Presence


class NoSuchStudy(UserError):
    """The storage holds no study of that name."""


class Database:
    """One study in a database, for a worker that appends to it or, without `presence`, for a reader.

    Attributes:
        address: where it is.
        study: Optuna's.
        claims: who evaluates which trial; None for a reader.
    """

    def __init__(self, address: Address, storage: RDBStorage, study: optuna.Study, presence: Presence | None) -> None:
        self.address = address
        self.study = study
        self.claims: Claims | None = None
        # Optuna's number of the study, which our tables name it by
        self._study_id: int = storage.get_study_id_from_name(study.study_name)
        self._storage = storage
        self._cached = study._storage
        self._finishing: Any = None  # the statement that goes with the transaction under way
        if presence is not None:
            tables.metadata.create_all(storage.engine)
            self.claims = Claims(_claims_engine(address, storage.engine), self._study_id, presence)
            event.listen(storage.scoped_session, "before_commit", self._finish_claim)

    @property
    def engine(self) -> Engine:
        """SQLAlchemy's."""
        engine: Engine = self._storage.engine
        return engine

    @classmethod
    def create(cls, address: Address, name: str, objectives: Sequence[str], attributes: Mapping[str, Any]) -> None:
        """Make a study; the first of its objectives is maximised, the others are minimised.

        Raises:
            UserError: the storage cannot be used, or holds a study of that name.
        """
        with _quiet_optuna(), storage_errors(address):
            storage = _open_storage(address, writing=True)
            try:
                study = optuna.create_study(
                    study_name=name,
                    storage=storage,
                    directions=[StudyDirection.MAXIMIZE] + [StudyDirection.MINIMIZE] * (len(objectives) - 1),
                )
            except optuna.exceptions.DuplicatedStudyError:
                raise UserError(
                    f"{address.shown} holds a study {name!r} already. Choose another name: --study, or take part in "
                    f"it: autoprune worker --storage {address.shown} --study {name}"
                ) from None
            study.set_metric_names(list(objectives))
            for key, value in attributes.items():
                study.set_user_attr(key, value)
            tables.metadata.create_all(storage.engine)
            storage.engine.dispose()

    @classmethod
    def open(cls, address: Address, name: str | None, presence: Presence | None) -> Database:
        """Open a study to append to it, or without `presence` to look at it.

        Args:
            name: of the study; None for the only one there is.

        Raises:
            UserError: it is missing, damaged, or the storage cannot be used.
        """
        if address.path is not None:
            _check_file(address)
        with _quiet_optuna(), storage_errors(address):
            try:
                storage = _open_storage(address, writing=presence is not None)
                cached = optuna.storages.get_storage(storage)  # finished trials are read once
                name = _chosen(name, optuna.get_all_study_names(storage), address)
                return cls(address, storage, optuna.load_study(study_name=name, storage=cached), presence)
            except (ValueError, RuntimeError, optuna.exceptions.StorageInternalError, SQLAlchemyError) as error:
                if address.path is None or isinstance(error, UserError) or as_os_error(error, None) is not None:
                    raise
                raise damaged(address, str(error.__cause__ or error)) from error

    def trials(self) -> list[FrozenTrial]:
        """All trials in the order in which they were stored; what was read before is not read again."""
        with storage_errors(self.address):
            return patiently(self.engine, lambda: self.study.get_trials(deepcopy=False))

    def store(self, claim: Claim, trial: FrozenTrial, *, keep_candidate: bool) -> int | None:
        """Store a trial and mark its claim as done, in one transaction.

        Returns:
            How many trials were stored before it; None where that is not known.

        Raises:
            LostClaim: another worker has taken the trial over, and nothing is stored.
        """
        assert self.claims is not None
        claims, statement = self.claims, self.claims.done_by(claim, keep_candidate=keep_candidate)

        def add() -> int | None:
            self._finishing = statement
            try:
                added = self._cached.create_new_trial(self._study_id, template_trial=trial)
                return self._cached.get_trial(added).number  # known without asking the database
            except LostClaim:
                if not claims.is_stored(claim):  # by an attempt before, whose connection broke when it was done
                    raise
                return None
            finally:
                self._finishing = None

        with storage_errors(self.address):
            return patiently(self.engine, add)

    def _finish_claim(self, session: Session) -> None:
        statement = self._finishing
        if statement is not None and session.connection().execute(statement).rowcount != 1:
            raise LostClaim("the trial was taken over by another worker")

    def lent(self, device: str) -> AbstractContextManager[None]:
        """Hold a device on which latency is measured, while the block runs: see `devices`."""
        assert self.claims is not None
        return devices.lent(self.claims.engine, self.claims.presence, device)

    def annotate(self, text: str, of_trials: Mapping[int, str]) -> None:
        """Make these our notes for optuna-dashboard, of the study and by Optuna's number of its trials: see `notes`."""
        number = self._storage.get_trial_id_from_study_id_trial_number
        rows, study_id = tables.attributes.c, self._study_id

        def put() -> None:
            texts: dict[int | None, str] = {number(study_id, k): said for k, said in of_trials.items()}
            texts[None] = text
            with self.engine.begin() as connection:  # one transaction: Optuna's own commits every attribute
                found = connection.execute(select(rows.key, rows.value_json).where(rows.study_id == study_id))
                for key, value in notes.changes({key: json.loads(value) for key, value in found}, texts).items():
                    connection.execute(delete(tables.attributes).where(rows.study_id == study_id, rows.key == key))
                    new = {"study_id": study_id, "key": key, "value_json": json.dumps(value)}
                    connection.execute(insert(tables.attributes).values(**new))

        with storage_errors(self.address):
            patiently(self.engine, put)

    def put_file(self, name: str, content: bytes) -> None:
        """Keep a file for workers that do not see the run folder; replaces one of that name."""
        rows, study_id, digest = tables.files.c, self._study_id, _sha256(content)

        def put() -> None:
            with self.engine.begin() as connection:
                same = rows.study_id == study_id, rows.name == name
                if connection.execute(select(rows.digest).where(*same)).scalar() == digest:
                    return
                connection.execute(delete(tables.files).where(*same))
                connection.execute(
                    insert(tables.files).values(study_id=study_id, name=name, digest=digest, content=content)
                )

        with storage_errors(self.address):
            patiently(self.engine, put)

    def files(self, name: str | None = None) -> dict[str, bytes]:
        """The files that are kept for workers, or the one of that name, whole ones only."""
        rows = tables.files.c
        wanted = select(rows.name, rows.digest, rows.content).where(rows.study_id == self._study_id)
        wanted = wanted if name is None else wanted.where(rows.name == name)

        def read() -> dict[str, bytes]:
            with self.engine.connect() as connection:
                found = connection.execute(wanted).all()
            return {row.name: row.content for row in found if _sha256(row.content) == row.digest}

        with storage_errors(self.address):
            return patiently(self.engine, read)

    def delete(self) -> None:
        """Remove the study, and what our tables hold of it."""
        with storage_errors(self.address):
            optuna.delete_study(study_name=self.study.study_name, storage=self._storage)
            with self.engine.begin() as connection:
                for table in (tables.claims, tables.files):
                    connection.execute(delete(table).where(table.c.study_id == self._study_id))

    def close(self) -> None:
        """Close all connections."""
        if self.claims is not None:
            self.claims.engine.dispose()
        self.engine.dispose()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def damaged(address: Address, why: str) -> UserError:
    """The message about a study that cannot be read."""
    return UserError(f"{address.path} is damaged or not a study: {why}. Restore it from a copy, or start a new run.")


_DISK = {
    "disk is full": errno.ENOSPC,
    "disk I/O error": errno.EIO,
    "readonly": errno.EROFS,
    "unable to open": errno.EACCES,
    "is locked": errno.EBUSY,
}


def as_os_error(error: BaseException, path: Path | None) -> OSError | None:
    """What SQLite says of the disk, where that is the cause of `error`; None for another cause."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, sqlite3.OperationalError):
        cause = cause.__cause__
    code = next((code for words, code in _DISK.items() if words in str(cause)), None)
    if code is None:
        return None
    if code == errno.EIO and path is not None and _is_full(path.parent):
        code = errno.ENOSPC  # where SQLite cannot extend its index of the log
    return OSError(code, f"{os.strerror(code)} ({cause})", str(path))


def _is_full(folder: Path) -> bool:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize < 2**16


@contextmanager
def storage_errors(address: Address) -> Iterator[None]:
    """Raise what SQLite says of the disk as the OSError that it is, and what a server says as a UserError."""
    try:
        yield
    except Exception as error:
        of_disk = as_os_error(error, address.path)
        if of_disk is not None:
            raise of_disk from error
        if address.path is None and is_broken(error):
            raise UserError(
                f"The storage {address.shown} cannot be reached: {said(error)}. What is stored there stays. Check the "
                f"server, the name and the password (the URL with it can be given as {VARIABLE}), then go on with the "
                "same command."
            ) from None
        if address.path is None and isinstance(_first(error), ProgrammingError):
            raise UserError(
                f"The storage {address.shown} refuses: {said(error)}. The user of the URL must be allowed to make, "
                "read and write tables there."
            ) from None
        raise


def _first(error: BaseException) -> BaseException:
    """What SQLAlchemy raised, whatever Optuna made of it."""
    while isinstance(error.__cause__, SQLAlchemyError):
        error = error.__cause__
    return error


def _chosen(name: str | None, names: Sequence[str], address: Address) -> str:
    """The name of the study that is wanted: the only one, where none was given."""
    if name in names:
        return str(name)
    if name is None and len(names) == 1:
        return names[0]
    what = f"{len(names)} studies" if name is None else f"no study {name!r}"
    known = ", ".join([*sorted(names)[:10], *(["..."] if len(names) > 10 else [])]) if names else "none"
    raise NoSuchStudy(f"{address.shown} holds {what}. Name one of these: --study NAME. There are: {known}.")


def _open_storage(address: Address, *, writing: bool) -> RDBStorage:
    url, settings = address.for_optuna(writing=writing)
    return RDBStorage(url, engine_kwargs=settings)


def _claims_engine(address: Address, engine: Engine) -> Engine:
    """Where claims are written: a file is not synced for them, since one that a power cut takes back is harmless."""
    if address.path is None:
        return engine
    url, settings = address.for_optuna(writing=True, sync=False)
    return create_engine(url, poolclass=QueuePool, **settings)


def _check_file(address: Address) -> None:
    """Raise a UserError where the file of a study is missing or damaged."""
    path = address.path
    assert path is not None
    if not path.is_file():
        raise UserError(f"{path} is missing. Restore it from a copy, or start a new run.")
    check_journal(path)
    try:
        with closing(address.connect(writing=False)) as connection:
            (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            held = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
            if verdict == "ok" and not {"studies", "trials"} <= held:
                verdict = "it holds no study"
    except sqlite3.DatabaseError as error:
        of_disk = as_os_error(error, path)
        if of_disk is not None:
            raise of_disk from error
        raise damaged(address, str(error)) from error
    if verdict != "ok":
        raise damaged(address, verdict)


@contextmanager
def _quiet_optuna() -> Iterator[None]:
    """Silence Optuna: what is experimental, each study made, and pages of SQL where a server goes away."""
    optuna.logging.set_verbosity(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
