"""Keep passwords out of what is shown or stored: `redact` for any text, `without_password` for a storage URL.

Messages of database drivers repeat a password in other forms than the URL it came in. So the password of every URL
that goes through `without_password` is remembered for the life of the process, and hidden wherever it turns up.
"""

from __future__ import annotations

import re
from urllib.parse import quote, quote_plus, unquote, unquote_plus

HIDDEN = "***"

SHORTEST = 4
"""Shorter passwords are hidden in URLs and settings only: looked for anywhere, they would garble every text."""

# Up to the last @ before a space or a double quote: a password may hold @ : and / where nobody encoded them. Two URLs
# without a space between them lose what stands between, which is the right way to be wrong. The lengths are bounded, so
# that no text from elsewhere takes for ever.
_URL = re.compile(r"([A-Za-z][\w+.-]{0,40}://[^\s:/@\"]{0,200}):[^\s\"]{0,500}@")
_SETTING = re.compile(
    r"(\b\w*(?:password|passwd|pwd|passphrase)(?:\s*=|[\"']\s*:)\s*)('[^']*'|\"[^\"]*\"|[^\s&;,'\")}]+)", re.IGNORECASE
)
_SECRET_KEY = re.compile(r"password|passwd|pwd|passphrase", re.IGNORECASE)

_known: set[str] = set()


def redact(text: str) -> str:
    """`text` with every password in it replaced by ``***``.

    Hidden are ``scheme://user:password@``, ``password=...`` and the like in query strings and connection settings,
    and every password that `without_password` has seen.
    """
    text = _URL.sub(rf"\1:{HIDDEN}@", text)
    text = _SETTING.sub(_hide_setting, text)
    for secret in sorted(_known, key=len, reverse=True):
        if secret in text:
            text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", HIDDEN, text)
    return text


def without_password(url: str) -> str:
    """The URL as it may be stored and shown: without the password, and without settings such as ``sslpassword``.

    ``postgresql://ann:s3cret@db/x?sslpassword=y`` becomes ``postgresql://ann@db/x``. A driver finds the password again
    in its own places, ``~/.pgpass`` or ``PGPASSWORD``.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    place, _, query = rest.partition("?")
    userinfo, at, after = _split_userinfo(place)
    if not at and "@" in query:  # a password with a bare ? in it
        userinfo, at, after = _split_userinfo(rest)
        after, _, query = after.partition("?")
    user, _, password = userinfo.partition(":")
    _remember(password)
    kept = []
    for setting in query.split("&"):
        name, _, value = setting.partition("=")
        if _SECRET_KEY.search(unquote(name)):
            _remember(value)
        elif setting:
            kept.append(setting)
    return f"{scheme}://{user}{at}{after}" + (f"?{'&'.join(kept)}" if kept else "")


def _split_userinfo(text: str) -> tuple[str, str, str]:
    """``("ann:s3cret", "@", "db/x")``; user and @ are empty where there is none."""
    authority, slash, path = text.partition("/")
    if "@" in authority:
        userinfo, at, host = authority.rpartition("@")
        return userinfo, at, host + slash + path
    userinfo, at, rest = text.partition("@")  # a password with a bare / in it
    return (userinfo, at, rest) if at and ":" in authority else ("", "", text)


def _remember(password: str) -> None:
    """Remember a password of this process in the forms in which messages show it."""
    plain = {password, unquote(password), unquote_plus(password)}
    forms = plain | {quote(each, safe="") for each in plain} | {quote_plus(each) for each in plain}
    _known.update(form for form in forms if len(form) >= SHORTEST)


def _hide_setting(found: re.Match[str]) -> str:
    value = found[2]
    mark = value[0] if value[0] in "'\"" else ""
    return f"{found[1]}{mark}{HIDDEN}{mark}"
