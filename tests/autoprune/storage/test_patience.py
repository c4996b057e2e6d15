"""What becomes of a call whose server goes away for a while."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy.engine import make_url
from sqlalchemy.exc import IntegrityError, OperationalError, PendingRollbackError

from autoprune import stopping
from autoprune.storage import patience
from autoprune.storage.patience import StorageWarning, is_broken, patiently


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(patience, "time", clock)
    return clock


def engine(dialect: str = "postgresql") -> Any:
    url = make_url("postgresql://ann:s3cret@db/studies")
    return SimpleNamespace(dialect=SimpleNamespace(name=dialect), url=url)


def away(text: str = "connection refused") -> OperationalError:
    return OperationalError("SELECT 1", {}, Exception(text))


class Server:
    """Answers again `after` seconds."""

    def __init__(self, clock: Clock, after: float, error: Exception | None = None) -> None:
        self.clock, self.after, self.error, self.calls = clock, after, error or away(), 0

    def __call__(self) -> str:
        self.calls += 1
        if self.clock.now < self.after:
            raise self.error
        return "answer"


def test_a_moment_passes_without_a_word(clock: Clock) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert patiently(engine(), Server(clock, 0.3)) == "answer"


def test_each_outage_is_told_once_without_the_password(clock: Clock) -> None:
    for _ in range(2):
        server = Server(clock, clock.now + 60)
        with pytest.warns(StorageWarning) as told:
            assert patiently(engine(), server) == "answer"
        (text,) = (str(warning.message) for warning in told)
        assert "postgresql://ann@db/studies does not answer (connection refused). Trying again for up to 5 min" in text
        assert 5 < server.calls < 20


def test_patience_ends(clock: Clock) -> None:
    with pytest.warns(StorageWarning), pytest.raises(OperationalError):
        patiently(engine(), Server(clock, 10_000))
    assert patience.PATIENCE_S < clock.now < 2 * patience.PATIENCE_S


def test_who_waits_can_be_stopped(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    def check() -> None:
        if clock.now > 2:
            raise stopping.Stopped(2)

    monkeypatch.setattr(stopping, "check", check)
    with pytest.warns(StorageWarning), pytest.raises(stopping.Stopped):
        patiently(engine(), Server(clock, 60))
    assert clock.now < 2 + 2 * patience.SLICE_S


@pytest.mark.parametrize(
    ("dialect", "error"),
    [("sqlite", away()), ("postgresql", IntegrityError("", {}, Exception())), ("postgresql", ValueError())],
)
def test_other_errors_are_raised_at_once(clock: Clock, dialect: str, error: Exception) -> None:
    server = Server(clock, 60, error)
    with pytest.raises(type(error)):
        patiently(engine(dialect), server)
    assert server.calls == 1


def test_what_optuna_makes_of_a_broken_connection_is_recognised() -> None:
    wrapped = RuntimeError("An exception is raised during the commit")
    wrapped.__cause__ = PendingRollbackError("Can't reconnect until invalid transaction is rolled back")
    assert is_broken(wrapped)
    assert not is_broken(RuntimeError("something else"))
