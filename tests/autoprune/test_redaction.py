from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url
from typer.testing import CliRunner

from autoprune import redaction
from autoprune.cli import app
from autoprune.failures import describe_error
from autoprune.redaction import redact, without_password

PASSWORDS = ["s3cret", "p%40ss%2Fw%3Ard", "p@ss", "p/ss", "p:ss:x", "p@s/s:w@rd", "pa?ss&x", "pa'ss", "ü€%20"]


@pytest.fixture(autouse=True)
def knows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_known", set())


@pytest.mark.parametrize("password", PASSWORDS)
@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg", "mysql+pymysql", "redis"])
def test_the_password_of_a_url_is_hidden_whatever_it_holds(scheme: str, password: str) -> None:
    url = f"{scheme}://ann:{password}@db.example:5432/studies?sslmode=require"
    for text in (url, f"Cannot connect to '{url}'.", f"first {url} second", f'{{"url": "{url}"}}'):
        shown = redact(text)
        assert password not in shown
        assert f"{scheme}://ann:***@db.example:5432/studies?sslmode=require" in shown
        assert redact(shown) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("mysql://h/x?user=ann&password=s3cret&charset=utf8", "mysql://h/x?user=ann&password=***&charset=utf8"),
        ("postgresql://h/x?sslpassword=s3cret", "postgresql://h/x?sslpassword=***"),
        ("connect(host=h password='s3 cret' user=ann)", "connect(host=h password='***' user=ann)"),
        ("{'password': 's3cret', 'user': 'ann'}", "{'password': '***', 'user': 'ann'}"),
        ("PGPASSWORD=s3cret psql", "PGPASSWORD=*** psql"),
        ("redis://:s3cret@h/0", "redis://:***@h/0"),
        ("a://u:s3cret@h and b://v:s4cret@h", "a://u:***@h and b://v:***@h"),
    ],
)
def test_settings_are_hidden_too(text: str, shown: str) -> None:
    assert redact(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "see https://example.com:8080/a, or write to ann@example.com",
        "sqlite:///runs/x/study.db",
        "Access denied for user 'ann'@'h' (using password: YES)",
        "latency@phone=8ms, macs=0.5x: 3 of 4",
        "postgresql://ann@db/x",
        "my_package.module:function(width=8)",
    ],
)
def test_what_is_no_password_stays(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize(
    ("url", "stored"),
    [
        ("postgresql://ann:s3cret@db/x", "postgresql://ann@db/x"),
        ("postgresql://ann:p%40ss@db:5432/x?sslmode=require", "postgresql://ann@db:5432/x?sslmode=require"),
        ("postgresql://ann:p@ss@db/x", "postgresql://ann@db/x"),
        ("postgresql://ann:p/ss@db/x", "postgresql://ann@db/x"),
        ("postgresql://ann:p?ss@db/x?a=1", "postgresql://ann@db/x?a=1"),
        ("postgresql://db/x?user=ann&password=s3cret&sslpassword=y&a=1", "postgresql://db/x?user=ann&a=1"),
        ("mysql+pymysql://ann@db/x", "mysql+pymysql://ann@db/x"),
        ("mysql://ann:s3cret@db/x@y", "mysql://ann@db/x@y"),
        ("sqlite:////home/ann/a@b/study.db", "sqlite:////home/ann/a@b/study.db"),
        ("sqlite:///study.db?timeout=60", "sqlite:///study.db?timeout=60"),
        ("postgresql://db/x?application_name=a@b", "postgresql://db/x?application_name=a@b"),
        ("study.db", "study.db"),
    ],
)
def test_a_url_is_stored_without_its_password_and_otherwise_as_it_was(url: str, stored: str) -> None:
    assert without_password(url) == stored
    assert without_password(stored) == stored
    if "://" in url and "p@ss" not in url:
        wanted = make_url(url)
        kept = {key: value for key, value in wanted.query.items() if "password" not in key}
        parsed = make_url(stored)
        assert parsed.password is None
        assert (parsed.username, parsed.host, parsed.database) == (wanted.username, wanted.host, wanted.database)
        assert dict(parsed.query) == kept


@pytest.mark.parametrize("password", ["p%40ss%2Fw%3Ard", "hunter2", "a+b c%21d"])
def test_a_password_that_went_by_is_hidden_in_every_form(password: str) -> None:
    without_password(f"postgresql://ann:{password}@db/x?sslpassword=other-one")
    plain = make_url(f"postgresql://ann:{password}@db/x").password
    for form in (password, plain):
        assert f"{form}" not in redact(f"FATAL: no entry for ann, {form}, database x")
    assert "other-one" not in redact("key: other-one")
    without_password("postgresql://postgres:postgres@db/x")
    assert redact("postgresql://postgres:postgres@db") == "postgresql://***:***@db"


@pytest.mark.parametrize("text", ["a://b:" * 20_000, "password" * 20_000, "x" * 200_000, "password='" * 20_000])
def test_no_text_takes_for_ever(text: str) -> None:
    assert "s3cret" not in redact(text + " a://b:s3cret@c")


def test_a_short_password_does_not_garble_every_text() -> None:
    without_password("postgresql://a:b@db/x")
    assert redact("a and b") == "a and b"
    assert redact("postgresql://a:b@db/x") == "postgresql://a:***@db/x"


@pytest.mark.parametrize("driver", ["postgresql+psycopg", "mysql+pymysql"])
def test_what_a_driver_says_of_a_closed_port(driver: str) -> None:
    pytest.importorskip(driver.partition("+")[2])
    url = f"{driver}://ann:hunt%40er2@127.0.0.1:1/x"
    without_password(url)
    with pytest.raises(Exception, match=r"127\.0\.0\.1") as raised:
        create_engine(url, connect_args={"connect_timeout": 1}).connect()
    raised.value.args = (f"{raised.value} for {url} (hunt@er2)",)
    shown = describe_error(raised.value)
    assert "hunt%40er2" not in shown
    assert "hunt@er2" not in shown


@pytest.mark.parametrize("debug", [[], ["--debug"]])
def test_the_command_line_hides_passwords_in_messages_warnings_and_tracebacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, debug: list[str]
) -> None:
    url = "postgresql://ann:hunter2@127.0.0.1:1/x"

    def broken(*_: object, **__: object) -> None:
        import warnings

        warnings.warn(f"slow: {url}", stacklevel=1)
        raise RuntimeError(f"could not connect to {url}")

    monkeypatch.setattr("autoprune.api.resume", broken)
    result = CliRunner().invoke(app, ["resume", str(tmp_path), *debug])
    assert result.exit_code == 1
    assert "hunter2" not in result.output
    assert "postgresql://ann:***@127.0.0.1:1/x" in result.output.replace("\n", "")
    assert ("Traceback" in result.output) == bool(debug)
