"""What an error means for a search: one failed trial, or the end.

The user's model, data and score run in every evaluation, and what they raise ends one trial. A disk that cannot be
written to would end every one: the search stops there, and goes on when that is mended.
"""

from __future__ import annotations

import errno
import os
import traceback
from dataclasses import dataclass
from typing import Any, NamedTuple

from autoprune import stopping
from autoprune.memory import is_out_of_memory, release
from autoprune.redaction import redact
from autoprune.running import EvaluationFailed
from autoprune.search_spaces.errors import UserError

_WRITE = "allow reading and writing there, or take a folder where it is allowed"

DISK = {
    errno.ENOSPC: "make room on the disk",
    errno.EDQUOT: "make room, or have the quota raised",
    errno.EROFS: "make the file system writable (some become read-only after an error: see dmesg)",
    errno.EACCES: _WRITE,
    errno.EPERM: _WRITE,
    errno.EBUSY: "end the other process that holds it, or wait for it",
    errno.EIO: "look after the disk or the network share, which has failed (see dmesg)",
}
"""Errors that the next trial would meet as well, and what to do about them."""


def disk_error(error: BaseException) -> OSError | None:
    """The error of the disk that `error` is, or was raised from; None where it is something else."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and link.errno in DISK:
            return link
        if os.strerror(errno.ENOSPC) in str(link):  # libraries that write by themselves have types of their own
            return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        link = link.__cause__
    return None


def ends_search(error: Exception) -> bool:
    """Whether no trial can work, as it is set up or as the disk is."""
    return isinstance(error, UserError) or disk_error(error) is not None


def kind_of(error: Exception) -> str:
    """The same for errors that have the same cause as far as one can tell: by what was raised and where.

    Out of memory is one kind, whatever was to be allocated and wherever.
    """
    if is_out_of_memory(error):
        return "out of memory"
    if isinstance(error, EvaluationFailed):
        return "not finite"
    frames = traceback.extract_tb(error.__traceback__)
    where = f" {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{where}"


class Failure(NamedTuple):
    """A failed trial: the kind of its failure, and what it said."""

    kind: str
    message: str

    @property
    def outcome(self) -> dict[str, Any]:
        """What its trial says."""
        return {"state": "failed", "message": self.message}


def failure_of(error: Exception) -> Failure:
    """What becomes of the trial that `error` ended; raises what ends more than a trial."""
    if ends_search(error):
        raise error
    stopping.check()  # Ctrl-C reaches the processes that load data as well: without them an evaluation fails
    failure = Failure(kind_of(error), describe_error(error))
    release(error)
    return failure


def describe_error(error: Exception) -> str:
    """What was raised and where, without passwords: it is kept in the study."""
    if isinstance(error, EvaluationFailed):  # raised by us, and says it all
        return f"{error}."
    text = redact(f"{type(error).__name__}: {error}").strip().rstrip(".")
    frames = traceback.extract_tb(error.__traceback__)
    return f"{text} ({frames[-1].filename}:{frames[-1].lineno})." if frames else f"{text}."


@dataclass(slots=True)
class Streak:
    """Counts trials that fail one after the other, all in the same way."""

    kind: str | None = None
    length: int = 0

    def count(self, failure: Failure | None) -> int:
        """Count a trial, None for one that did not fail; return how many in a row failed in its way."""
        if failure is None:
            self.kind, self.length = None, 0
        else:
            self.length = self.length + 1 if failure.kind == self.kind else 1
            self.kind = failure.kind
        return self.length
