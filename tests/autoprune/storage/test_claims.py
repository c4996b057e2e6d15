"""Claims: each number goes to one worker at a time, and its trial is stored once, by the worker that holds it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from autoprune.storage import Address, Claim, Database, LostClaim
from autoprune.storage import presence as presence_module
from autoprune.storage.presence import Presence, beating


def frozen(number: int) -> FrozenTrial:
    return optuna.trial.create_trial(state=TrialState.COMPLETE, values=[0.5, 1.0], user_attrs={"number": number})


@pytest.fixture
def address(tmp_path: Path) -> Address:
    made = Address.of_file(tmp_path / "study.db")
    Database.create(made, "s", ["score", "macs"], {})
    return made


@pytest.fixture
def open_worker(address: Address, tmp_path: Path) -> Iterator[list[Database]]:
    """Workers of one run folder."""
    made = [Database.open(address, None, Presence(tmp_path)) for _ in range(5)]
    yield made
    for database in made:
        database.close()


def claimed(database: Database, planned: int = 10) -> Claim:
    assert database.claims is not None
    claim = database.claims.next(planned).claim
    assert claim is not None
    return claim


def numbers(database: Database) -> list[int]:
    return [trial.user_attrs["number"] for trial in database.trials()]


def test_numbers_are_given_out_once_and_no_more_than_planned(open_worker: list[Database]) -> None:
    given = [claimed(database, 4).number for database in open_worker[:4]]
    assert given == [0, 1, 2, 3]
    assert open_worker[4].claims is not None
    turn = open_worker[4].claims.next(4)
    assert turn.claim is None
    assert sorted(turn.pending) == given
    assert turn.stored == 0


def test_threads_share_the_numbers_among_them(address: Address, tmp_path: Path) -> None:
    """Every number is stored exactly once, however the workers interleave."""
    planned = 40
    start = threading.Barrier(4)

    def work(_: int) -> int:
        database = Database.open(address, None, Presence(tmp_path))
        assert database.claims is not None
        start.wait()
        count = 0
        while (turn := database.claims.next(planned)).claim is not None or turn.pending:
            if turn.claim is not None:
                database.store(turn.claim, frozen(turn.claim.number), keep_candidate=True)
                count += 1
        database.close()
        return count

    with ThreadPoolExecutor(4) as pool:
        counts = list(pool.map(work, range(4)))
    assert sum(counts) == planned
    reader = Database.open(address, None, None)
    assert sorted(numbers(reader)) == list(range(planned))
    assert [trial.number for trial in reader.trials()] == list(range(planned))


def test_what_a_dead_worker_held_is_taken_over_at_once(open_worker: list[Database], tmp_path: Path) -> None:
    first, second, *_ = open_worker
    old = claimed(first)
    assert claimed(second).number == 1  # the first is alive
    assert first.claims is not None
    assert first.claims.presence._held is not None
    first.claims.presence._held.release()  # as the kernel does when a process is killed
    new = claimed(second)
    assert (old.number, new.number) == (0, 0)
    assert new.token != old.token


def test_what_is_held_by_one_that_has_left_is_taken_first(open_worker: list[Database]) -> None:
    """It could not give it back: the disk was full."""
    first, second, *_ = open_worker
    number = claimed(first).number
    assert first.claims is not None
    first.claims.presence.leave()
    assert claimed(second).number == number


def test_what_was_given_back_is_taken_first(open_worker: list[Database]) -> None:
    claims = [claimed(database) for database in open_worker[:3]]
    assert open_worker[1].claims is not None
    open_worker[1].claims.give_back(claims[1])
    assert claimed(open_worker[3]).number == 1
    assert claimed(open_worker[4]).number == 3


def test_a_worker_has_one_trial_at_a_time(open_worker: list[Database]) -> None:
    """What else is in its name was lost on the way to it, with a connection or an exception."""
    first, second, *_ = open_worker
    assert claimed(first).number == 0
    assert claimed(second).number == 1
    assert claimed(first).number == 0


def test_a_worker_that_hangs_loses_its_trial_and_its_late_result_is_dropped(
    address: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers on other machines: only the beat tells that they live. Time is that of the one who looks on."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    first, second = (Database.open(address, None, Presence(None)) for _ in range(2))
    assert first.claims is not None
    assert second.claims is not None
    old = claimed(first, 1)
    assert second.claims.next(1).claim is None  # sees it for the first time
    now[0] += presence_module.LEASE_S - 1
    assert second.claims.next(1).claim is None
    first.claims.beat(old)
    now[0] += 2
    assert second.claims.next(1).claim is None  # it has beaten in between
    now[0] += presence_module.LEASE_S + 1
    new = claimed(second, 1)
    assert new.number == old.number
    with pytest.raises(LostClaim):
        first.claims.begin(old, (1, 2))
    with pytest.raises(LostClaim):
        first.store(old, frozen(100), keep_candidate=True)
    assert numbers(second) == []
    second.store(new, frozen(0), keep_candidate=True)
    with pytest.raises(LostClaim):
        first.store(old, frozen(100), keep_candidate=True)
    assert numbers(second) == numbers(first) == [0]
    first.close()
    second.close()


def test_a_result_is_stored_once_even_if_the_worker_is_told_that_it_was_not(open_worker: list[Database]) -> None:
    """As where a connection breaks after the commit: the second attempt finds its own trial."""
    database = open_worker[0]
    claim = claimed(database)
    database.store(claim, frozen(0), keep_candidate=True)
    database.store(claim, frozen(0), keep_candidate=True)
    assert numbers(database) == [0]


def test_nobody_evaluates_what_another_does(open_worker: list[Database]) -> None:
    first, second, third, *_ = open_worker
    assert first.claims is not None
    assert second.claims is not None
    assert third.claims is not None
    one, two = claimed(first), claimed(second)
    assert first.claims.begin(one, (3, 4))
    assert not second.claims.begin(two, (3, 4))
    assert second.claims.begin(two, (3, 5))
    assert third.claims.next(10).pending == {0: (3, 4), 1: (3, 5)}
    assert first.claims.pending(one) == {1: (3, 5), 2: None}
    first.store(one, frozen(0), keep_candidate=True)
    second.store(two, frozen(1), keep_candidate=False)  # failed: it may be tried again
    other = claimed(first)
    assert not first.claims.begin(other, (3, 4))
    assert first.claims.begin(other, (3, 5))


def test_a_candidate_that_was_begun_and_lost_may_be_evaluated_by_who_takes_over(open_worker: list[Database]) -> None:
    first, second, *_ = open_worker
    assert first.claims is not None
    assert second.claims is not None
    old = claimed(first)
    assert first.claims.begin(old, (3, 4))
    first.claims.give_back(old)
    assert second.claims.begin(claimed(second), (3, 4))


def test_trials_from_before_there_were_claims_are_not_given_out(address: Address) -> None:
    reader = Database.open(address, None, None)
    for number in range(3):
        reader.study.add_trial(frozen(number))
    database = Database.open(address, None, Presence(None))
    assert database.claims is not None
    database.claims.adopt([0, 1, 2])
    database.claims.adopt([0, 1, 2])
    turn = database.claims.next(10)
    assert turn.claim is not None
    assert (turn.claim.number, turn.stored) == (3, 3)


def test_one_worker_after_the_other_has_a_device(open_worker: list[Database]) -> None:
    inside, most, lock = 0, 0, threading.Lock()

    def measure(database: Database) -> None:
        nonlocal inside, most
        for _ in range(3):
            with database.lent("board"):
                with lock:
                    inside += 1
                    most = max(most, inside)
                time.sleep(0.01)
                with lock:
                    inside -= 1

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(measure, open_worker))
    assert most == 1
    with open_worker[0].lent("board"), open_worker[1].lent("another"):
        pass


def test_a_device_that_a_dead_worker_held_is_free(open_worker: list[Database]) -> None:
    first, second, *_ = open_worker
    assert first.claims is not None
    lent = first.lent("board")
    lent.__enter__()
    assert first.claims.presence._held is not None
    first.claims.presence._held.release()
    with second.lent("board"):
        pass


def test_beats_come_while_the_block_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence_module, "BEAT_S", 0.001)
    beaten = threading.Event()
    calls = []

    def beat() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise OSError("the storage does not answer")
        beaten.set()

    with beating(beat):
        assert beaten.wait(10)  # went on after the error
    count = len(calls)
    time.sleep(0.02)
    assert len(calls) == count


def test_files_come_back_whole_or_not_at_all(open_worker: list[Database]) -> None:
    first, second, *_ = open_worker
    first.put_file("profile/prior.json", b"one")
    first.put_file("profile/prior.json", b"two")
    first.put_file("config.toml", bytes(300_000))
    assert second.files() == {"profile/prior.json": b"two", "config.toml": bytes(300_000)}
    with second.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE autoprune_files SET content = X'78' WHERE name = 'config.toml'")
    assert first.files("config.toml") == {}


def test_what_a_dead_worker_had_begun_may_be_evaluated_by_one_that_waits_for_it(open_worker: list[Database]) -> None:
    """The waiting worker has a claim of its own and asks for no other meanwhile."""
    first, second, *_ = open_worker
    assert first.claims is not None
    assert second.claims is not None
    assert first.claims.begin(claimed(first), (3, 4))
    waiting = claimed(second)
    assert not second.claims.begin(waiting, (3, 4))
    assert second.claims.pending(waiting) == {0: (3, 4)}
    assert not second.claims.begin(waiting, (3, 4))
    assert first.claims.presence._held is not None
    first.claims.presence._held.release()  # as the kernel does when a process is killed
    second.claims.pending(waiting)
    assert second.claims.begin(waiting, (3, 4))
    assert claimed(open_worker[2]).number == 0


def test_what_was_forgotten_may_be_evaluated_by_others(open_worker: list[Database]) -> None:
    first, second, *_ = open_worker
    assert first.claims is not None
    assert second.claims is not None
    one = claimed(first)
    assert first.claims.begin(one, (3, 4))
    first.claims.forget(one)
    assert second.claims.begin(claimed(second), (3, 4))
    first.store(one, frozen(0), keep_candidate=True)  # the claim is still its owner's


def test_names_of_workers_from_a_database_touch_no_file(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    presence = Presence(tmp_path)
    for name in (str(victim), "../victim"):
        assert not presence.is_gone(name)
    (tmp_path / "workers" / "link").symlink_to(victim)
    presence.is_gone("link")
    presence.sweep()
    assert victim.read_text() == "precious"
