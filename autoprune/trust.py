"""What a configuration may make this machine do: run code and reach files only where its user said so.

A configuration names functions to import, commands to run, and files outside of the run folder: those are its *risks*.
A run that this user started on this machine is trusted without a word; one from elsewhere has to be trusted once, with
``--trust`` (``trust=True`` in Python). What is remembered, in ``$XDG_STATE_HOME/autoprune/trusted.json``, is a digest
of the run's random id with each risk as it is written: a line that is changed afterwards is trusted no more. A
configuration without risks needs no trust.

This is the one rule, for run folders, studies in a database and exported folders alike (`direnv allow` and git's
``safe.directory`` work like it). It looks at what is named, not at what the named module holds.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from autoprune.files import atomic_write
from autoprune.lock import locked
from autoprune.search_spaces.errors import UserError

if TYPE_CHECKING:
    from autoprune.config import SearchConfig

__all__ = [
    "check_trusted",
    "describe_call",
    "is_harmless_model",
    "is_trusted",
    "new_id",
    "remember",
    "risks",
]

FILE = "trusted.json"
FORMAT = 1
MOST = 5000
"""Digests that are kept, the newest: about one for each run that needs trust."""

# Arguments by which torchvision and timm read files or fetch weights, or take another model than the one named.
_UNSAFE_ARGUMENTS = re.compile(r"weights|pretrained|checkpoint|cache|name|url|file|path|hub|root|dir")


def check_trusted(config: SearchConfig, where: str, *, trust: bool) -> None:
    """Refuse to go on with a configuration whose risks this user has not accepted.

    Args:
        config: as it was read; what the caller hands over in Python instead of a risk is taken out of it before.
        where: the run folder or the study, for the message.
        trust: the user accepts the risks, now and from now on.

    Raises:
        UserError: saying what would be done, and how to allow it.
    """
    if trust:
        remember(config)
        return
    if is_trusted(config):
        return
    asked = "; ".join(f"{name}: {text}" for name, text in risks(config).items())
    why = (
        "You did not start it here, or its configuration was changed since"
        if config.id
        else "It was made by an older release, so nobody noted who started it"
    )
    raise UserError(
        f"{where} runs code, or reaches files, that its configuration names ({asked}). {why}. If you trust where it "
        f"comes from, say so{' once' if config.id else ''}: --trust, or trust=True in Python."
    )


def check_storage(config: SearchConfig, where: str, *, named: bool) -> None:
    """Refuse to connect to a storage that a configuration from elsewhere names: drivers send passwords there, and more.

    Args:
        named: the user has given the same storage, which is remembered.

    Raises:
        UserError: neither this user's search began there, nor did they name it.
    """
    if config.storage is None:
        return
    if named:
        remember(config, ["storage"])
    elif _digest(config.id, "storage", risks(config)["storage"]) not in _read(_state_file()):
        raise UserError(
            f"{where} keeps its trials at {config.storage}, which you have not used with it. If you trust that "
            "storage, name it: --storage, or the environment variable AUTOPRUNE_STORAGE."
        )


def is_trusted(config: SearchConfig) -> bool:
    """Whether a configuration has no risks, or only ones that this user has accepted."""
    known = _read(_state_file())
    return all(_digest(config.id, name, text) in known for name, text in risks(config).items())


def remember(config: SearchConfig, only: Iterable[str] | None = None) -> None:
    """Trust the risks of a configuration, or `only` some, from now on; where that cannot be stored, warn."""
    new = [_digest(config.id, name, text) for name, text in risks(config).items() if only is None or name in only]
    if not new or not config.id:
        return
    path = _state_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with locked(path):
            kept = _read(path)
            if kept.keys() >= set(new):
                return
            newest = list({**kept, **dict.fromkeys(new)})[-MOST:]
            atomic_write(path, json.dumps({"format": FORMAT, "trusted": newest}, indent=0) + "\n", mode=0o600)
    except OSError as error:
        warnings.warn(
            f"{path} cannot be written ({error.strerror or error}), so nobody will remember that you trust this run: "
            "going on with it needs --trust. XDG_STATE_HOME names another place.",
            stacklevel=2,
        )


def new_id() -> str:
    """A random name for a run. It has no influence on the search, and tells runs apart whose settings are the same."""
    return uuid4().hex


def risks(config: SearchConfig) -> dict[str, str]:
    """What a configuration would run or reach: setting -> what it asks for, in words that change when it does."""
    found: dict[str, str] = {}
    if config.model is not None and not is_harmless_model(config.model, config.model_args):
        found["model"] = f"calls {describe_call(config.model, config.model_args)}"
    if config.weights is not None:
        found["weights"] = f"reads {config.weights}"
    if config.data is not None and ":" in config.data:
        kind, _, place = config.data.partition(":")
        found["data"] = f"reads the images in {place}" if kind == "imagefolder" else f"calls {config.data}()"
    if config.data_root is not None:
        found["data_root"] = f"reads and downloads {config.data} in {config.data_root}"
    if ":" in config.score:
        found["score"] = f"calls {config.score}"
    commands = [text for text in config.runtimes if "command" in text]
    if commands:
        found["runtimes"] = f"runs {json.dumps(commands)}"
    if config.storage is not None:
        found["storage"] = f"connects to {config.storage}"
    if config.device_profile is not None:
        found["device_profile"] = f"writes {config.device_profile}"
    return found


def is_harmless_model(spec: str, kwargs: Mapping[str, Any]) -> bool:
    """Whether building a model runs only code of torchvision, timm or autoprune, and reads and fetches nothing."""
    family, _, name = spec.partition(":")
    if family in ("torchvision", "timm"):
        return re.fullmatch(r"[\w.]+", name) is not None and _is_harmless(kwargs)
    if family == "autoprune.nets":
        from autoprune import nets

        return getattr(getattr(nets, name, None), "__module__", None) == nets.__name__
    return False


def describe_call(spec: str, kwargs: Mapping[str, Any]) -> str:
    """``package.module:function(size=7)``."""
    return f"{spec}({', '.join(f'{key}={json.dumps(value, default=repr)}' for key, value in kwargs.items())})"


def _is_harmless(value: Any) -> bool:
    """Numbers and plain words, at any depth, and no name that stands for a file or for other weights."""
    if isinstance(value, Mapping):
        return all(not _UNSAFE_ARGUMENTS.search(key) and _is_harmless(inner) for key, inner in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_harmless, value))
    return not isinstance(value, str) or re.fullmatch(r"[\w-]*", value) is not None


def _digest(run: str | None, name: str, text: str) -> str:
    return hashlib.sha256(json.dumps([run, name, text]).encode()).hexdigest()[:32]


def _state_file() -> Path:
    """Where this user's trust is kept; as the XDG Base Directory Specification says, a relative path is ignored."""
    base = Path(os.environ.get("XDG_STATE_HOME", ""))
    if not base.is_absolute():
        try:
            base = Path.home() / ".local" / "state"
        except RuntimeError:  # a user without a home, as in some containers: nothing can be kept, and nothing is there
            base = Path(os.devnull)
    return base / "autoprune" / FILE


def _read(path: Path) -> dict[str, None]:
    """The digests in the file, the oldest first; none where it is missing or damaged: trust is then asked for again."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        digests: Iterable[Any] = content["trusted"] if content["format"] == FORMAT else ()
        return dict.fromkeys(digest for digest in digests if isinstance(digest, str))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
