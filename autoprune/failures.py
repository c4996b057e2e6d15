"""What an error means for a search: one failed trial, or the end.

The user's model, data and score run in every evaluation, and what they raise ends one trial. A disk that cannot be
written to would end every one: the search stops there, and goes on when that is mended.
"""

from __future__ import annotations

import errno
import os
import traceback

from autoprune.memory import is_out_of_memory
from autoprune.running import EvaluationFailed
from autoprune.search_spaces.errors import UserError

_WRITE = "allow writing there, or take a folder where it is allowed"

DISK = {
    errno.ENOSPC: "make room on the disk",
    errno.EDQUOT: "make room, or have the quota raised",
    errno.EROFS: "make the file system writable (some become read-only after an error: see dmesg)",
    errno.EACCES: _WRITE,
    errno.EPERM: _WRITE,
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
