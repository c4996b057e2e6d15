"""Storage URLs: what they mean, and that their passwords are not shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoprune.search_spaces.errors import UserError
from autoprune.storage import Address
from autoprune.storage import address as address_module
from autoprune.storage.address import VARIABLE


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address_module, "_known", {})
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://ann:s3cret@db/studies", "postgresql+psycopg://ann@db/studies"),
        ("postgres://ann:s3cret@db:5433/studies", "postgresql+psycopg://ann@db:5433/studies"),
        (
            "postgresql://ann:s3%40cr%2Fet@db/studies?sslmode=require",
            "postgresql+psycopg://ann@db/studies?sslmode=require",
        ),
        ("postgresql://ann@db/studies?password=s3cret", "postgresql+psycopg://ann@db/studies"),
        ("mysql://ann:s3cret@db/studies", "mysql+pymysql://ann@db/studies"),
    ],
)
def test_passwords_are_kept_but_not_shown(text: str, shown: str) -> None:
    address = Address.parse(text)
    assert address.shown == shown
    assert "s3" not in repr(address)
    assert "s3" in address.secret
    assert Address.parse(shown) == address  # known from now on in this process


def test_the_environment_brings_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "postgresql://ann:s3cret@db/studies")
    assert "s3cret" in Address.parse("postgresql://ann@db/studies").secret
    assert "s3cret" not in Address.parse("postgresql://ann@elsewhere/studies").secret


def test_a_sqlite_url_is_a_file(tmp_path: Path) -> None:
    assert Address.parse(f"sqlite:///{tmp_path}/s.db") == Address.of_file(tmp_path / "s.db")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "as a URL"),
        ("runs/first", "as a URL"),
        ("sqlite://", "in memory is lost"),
        ("oracle://ann:s3cret@db/studies", "postgresql"),
        ("ann:s3cret@db", "as a URL"),
    ],
)
def test_what_is_no_storage_is_refused_without_its_password(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        Address.parse(text)
    assert "s3cret" not in str(caught.value)


def test_a_missing_driver_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address_module, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install autoprune\[postgresql\]"):
        Address.parse("postgresql://db/studies")
