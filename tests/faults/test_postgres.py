"""The server and the proxy that tests of a shared storage rely on do what they say."""

from __future__ import annotations

from collections.abc import Iterator

import optuna
import pytest
import sqlalchemy
from sqlalchemy.exc import OperationalError

from tests.faults.postgres import NoServer, Postgres, postgres
from tests.faults.proxy import Proxy


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    try:
        with postgres() as server:
            yield server
    except NoServer as why:
        pytest.skip(f"no PostgreSQL server: {why}")


def engine(url: str) -> sqlalchemy.Engine:
    return sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)


def one(url: str) -> int:
    with engine(url).connect() as connection:
        return int(connection.execute(sqlalchemy.text("select 1")).scalar_one())


def test_holds_a_study(server: Postgres) -> None:
    study = optuna.create_study(study_name="s", storage=server.url)
    study.add_trial(optuna.create_trial(value=1.0))
    study._storage.remove_session()
    assert [trial.value for trial in optuna.load_study(study_name="s", storage=server.url).trials] == [1.0]


def test_asks_for_the_password(server: Postgres) -> None:
    with pytest.raises(OperationalError, match="password"):
        one(server.url.replace("autoprune:", "autoprune:x"))


def test_stops_and_starts(server: Postgres) -> None:
    server.stop()
    with pytest.raises(OperationalError):
        one(server.url)
    server.start()
    assert one(server.url) == 1


def test_proxy_passes_refuses_and_drops(server: Postgres) -> None:
    with Proxy(server.port) as proxy:
        url = server.behind(proxy.port)
        assert one(url) == 1
        with engine(url).connect() as connection:
            proxy.drop()
            with pytest.raises(OperationalError):
                connection.execute(sqlalchemy.text("select 1"))
        proxy.refusing = True
        with pytest.raises(OperationalError):
            one(url)
        proxy.refusing = False
        assert one(url) == 1
        assert proxy.accepted == 3


def test_proxy_cuts_in_the_middle_of_a_message(server: Postgres) -> None:
    with Proxy(server.port) as proxy, engine(server.behind(proxy.port)).connect() as connection:
        connection.execute(sqlalchemy.text("create table written (value text)"))
        connection.commit()
        proxy.cut_after(40)
        with pytest.raises(OperationalError):
            connection.execute(sqlalchemy.text(f"insert into written values ('{'x' * 100}')"))
    with engine(server.url).connect() as connection:
        assert connection.execute(sqlalchemy.text("select count(*) from written")).scalar_one() == 0


def test_proxy_loses_an_answer(server: Postgres) -> None:
    with Proxy(server.port) as proxy, engine(server.behind(proxy.port)).connect() as connection:
        connection.execute(sqlalchemy.text("create table answered (value text)"))
        connection.commit()
        connection.execute(sqlalchemy.text("insert into answered values ('x')"))
        proxy.lose_answer(1)
        with pytest.raises(OperationalError):
            connection.commit()
    with engine(server.url).connect() as connection:
        assert connection.execute(sqlalchemy.text("select count(*) from answered")).scalar_one() == 1
