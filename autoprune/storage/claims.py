"""Who evaluates which trial: claims with a lease, so that any number of workers share a study without a coordinator.

A number is claimed before its candidate is thought of, by inserting its row: of two workers one fails and takes the
next. The owner of a claim counts its `beat` up; a claim whose owner has ended is taken over under the same number (see
`presence`), which changes its token. The result is stored by the transaction that marks the row as done where the token
is still the owner's (`done_by`): so a worker that was paused and wakes up late stores nothing.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.sql import func

from autoprune.search_spaces.types import Candidate
from autoprune.storage import tables
from autoprune.storage.patience import patiently
from autoprune.storage.presence import Presence


class LostClaim(Exception):
    """Another worker has taken the trial over: what was found out about it is not stored."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to evaluate trial `number`, as long as the row still holds `token`."""

    number: int
    token: str


@dataclass(frozen=True, slots=True)
class Turn:
    """What a worker that asks for work is told.

    Attributes:
        claim: a trial for it; None where there is none (left).
        pending: candidates that others evaluate now, by number; None where that is not known yet.
        stored: how many trials are stored, at least.
    """

    claim: Claim | None
    pending: dict[int, Candidate | None]
    stored: int


@dataclass(slots=True)
class Claims:
    """The claims of one study.

    Attributes:
        engine: of the database.
        study_id: Optuna's.
        presence: of this worker.
    """

    engine: Engine
    study_id: int
    presence: Presence

    def next(self, planned: int) -> Turn:
        """Claim the lowest number that nobody works on any more, else the next one below `planned`."""
        attempts = itertools.count()

        def attempt() -> Turn:
            if next(attempts):
                self.presence.look_anew()
            return self._next(planned)

        return patiently(self.engine, attempt)

    def _next(self, planned: int) -> Turn:
        rows, token = tables.claims.c, secrets.token_hex(16)
        while True:
            with self.engine.connect() as connection:
                last = connection.execute(select(func.max(rows.number)).where(rows.study_id == self.study_id)).scalar()
            begun = 0 if last is None else last + 1
            unfinished = self._unfinished()  # afterwards: what is begun in between must not count as stored
            wanted = min(begun, planned)
            stored = wanted - sum(row.number < wanted for row in unfinished)
            pending = {row.number: _candidate(row.candidate) for row in unfinished}
            for row in unfinished:
                if row.number < planned and self._is_free(row) and self._take_over(row, token):
                    del pending[row.number]
                    return Turn(Claim(row.number, token), pending, stored)
            if begun >= planned:
                return Turn(None, pending, stored)
            claim = Claim(begun, token)
            try:
                with self.engine.begin() as connection:
                    connection.execute(insert(tables.claims).values(**self._row(claim)))
                return Turn(claim, pending, stored)
            except IntegrityError:
                continue  # another worker was faster

    def pending(self, claim: Claim) -> dict[int, Candidate | None]:
        """What others evaluate now, by number; None where they do not know yet.

        What one has begun that has ended meanwhile may be evaluated by others from now on.
        """
        others = [row for row in patiently(self.engine, self._unfinished) if row.token != claim.token]
        for row in others:
            if row.candidate is not None and self._is_free(row):
                self._take_over(row, token="")
        return {row.number: _candidate(row.candidate) for row in others}

    def _unfinished(self) -> Sequence[Any]:
        rows = tables.claims.c
        wanted = select(rows.number, rows.worker, rows.token, rows.beat, rows.candidate)
        wanted = wanted.where(rows.study_id == self.study_id, rows.done == 0).order_by(rows.number)
        with self.engine.connect() as connection:
            return connection.execute(wanted).all()

    def _row(self, claim: Claim, done: int = 0) -> dict[str, Any]:
        own = {"worker": self.presence.worker, "token": claim.token, "beat": 0}
        return {"study_id": self.study_id, "number": claim.number, "done": done, **own}

    def _is_free(self, row: Any) -> bool:
        """Whether nobody works on an unfinished claim. A worker has one at most: what else is in our name is not worked
        on, such as one whose answer was lost with the connection.
        """
        return row.worker == self.presence.worker or self.presence.is_stale(row.worker, row.token, row.beat)

    def _take_over(self, row: Any, token: str) -> bool:
        """Change the token of a claim that nobody works on; False where another was faster."""
        new = {"worker": self.presence.worker, "token": token, "beat": 0, "candidate": None, "digest": None}
        rows = tables.claims.c
        return self._update(Claim(row.number, row.token), rows.beat == row.beat, rows.done == 0, **new)

    def begin(self, claim: Claim, candidate: Candidate) -> bool:
        """Say what is evaluated under a claim; False where another worker evaluates, or has evaluated, the same.

        Raises:
            LostClaim: it was taken over.
        """
        values = {"candidate": json.dumps(candidate), "digest": _digest(candidate)}
        try:
            changed = patiently(self.engine, lambda: self._update(claim, tables.claims.c.done == 0, **values))
        except IntegrityError:
            return False
        if not changed:
            raise LostClaim(f"trial {claim.number} was taken over by another worker")
        return True

    def forget(self, claim: Claim) -> None:
        """Let others evaluate what was begun under a claim; the claim stays."""
        patiently(self.engine, lambda: self._update(claim, tables.claims.c.done == 0, candidate=None, digest=None))

    def give_back(self, claim: Claim) -> None:
        """Let others take the trial at once."""
        self._update(claim, tables.claims.c.done == 0, token="", candidate=None, digest=None)

    def is_stored(self, claim: Claim) -> bool:
        """Whether the trial is stored, by the owner of this claim."""
        rows = tables.claims.c
        found = select(rows.done).where(
            rows.study_id == self.study_id, rows.number == claim.number, rows.token == claim.token
        )
        with self.engine.connect() as connection:
            return connection.execute(found).scalar() == 1

    def beat(self, claim: Claim) -> None:
        """Say that the owner of a claim is alive."""
        self._update(claim, tables.claims.c.done == 0, beat=tables.claims.c.beat + 1)

    def _update(self, claim: Claim, *where: Any, **values: Any) -> bool:
        with self.engine.begin() as connection:
            return connection.execute(self.change(claim, *where, **values)).rowcount == 1

    def change(self, claim: Claim, *where: Any, **values: Any) -> Any:
        """The SQL statement that changes the row of a claim, if it is still the owner's."""
        rows = tables.claims.c
        mine = (rows.study_id == self.study_id, rows.number == claim.number, rows.token == claim.token)
        return update(tables.claims).where(*mine, *where).values(**values)

    def done_by(self, claim: Claim, *, keep_candidate: bool) -> Any:
        """The SQL statement by which the owner of a claim, and nobody else, marks its trial as stored.

        Args:
            keep_candidate: nobody may evaluate the candidate again.
        """
        forgotten = {} if keep_candidate else {"digest": None}
        return self.change(claim, tables.claims.c.done == 0, done=1, candidate=None, **forgotten)

    def adopt(self, numbers: Sequence[int]) -> None:
        """Mark trials as stored that were stored before there were claims."""
        rows = tables.claims.c
        with self.engine.begin() as connection:
            known = set(connection.execute(select(rows.number).where(rows.study_id == self.study_id)).scalars())
            missing = [self._row(Claim(number, ""), done=1) for number in numbers if number not in known]
            if missing:
                connection.execute(insert(tables.claims), missing)


def _candidate(text: str | None) -> Candidate | None:
    return None if text is None else tuple(json.loads(text))


def _digest(candidate: Candidate) -> str:
    return hashlib.sha256(json.dumps(candidate).encode()).hexdigest()
