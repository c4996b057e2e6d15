"""One measures at a time: a device that latency is measured on is lent to one worker of a study after the other."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from autoprune import stopping
from autoprune.storage import tables
from autoprune.storage.patience import patiently
from autoprune.storage.presence import Presence, beating

POLL_S = 0.1


@contextmanager
def lent(engine: Engine, presence: Presence, device: str) -> Iterator[None]:
    """Hold `device` while the block runs; wait for it as long as another worker holds it and is alive."""
    token = secrets.token_hex(16)
    if len(device) > tables.LONG:
        device = hashlib.sha256(device.encode()).hexdigest()
    while not patiently(engine, lambda: _take(engine, presence, device, token)):
        stopping.check()
        time.sleep(POLL_S)
    mine = tables.devices.c.name == device, tables.devices.c.token == token

    def beat() -> None:
        with engine.begin() as connection:
            connection.execute(update(tables.devices).where(*mine).values(beat=tables.devices.c.beat + 1))

    def give_back() -> None:
        with engine.begin() as connection:
            connection.execute(delete(tables.devices).where(*mine))

    try:
        with beating(beat):
            yield
    finally:
        patiently(engine, give_back)


def _take(engine: Engine, presence: Presence, device: str, token: str) -> bool:
    rows = tables.devices.c
    new = {"worker": presence.worker, "token": token, "beat": 0}
    with engine.connect() as connection:
        held = connection.execute(select(rows.worker, rows.token, rows.beat).where(rows.name == device)).first()
    try:
        with engine.begin() as connection:
            if held is None:
                connection.execute(insert(tables.devices).values(name=device, **new))
                return True
            if held.token == token:
                return True
            if not presence.is_stale(held.worker, held.token, held.beat):
                return False
            same = rows.name == device, rows.token == held.token, rows.beat == held.beat
            return connection.execute(update(tables.devices).where(*same).values(**new)).rowcount == 1
    except IntegrityError:
        return False
