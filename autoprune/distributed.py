"""Several processes that train one network together, as ``torchrun`` starts them: who is there, and how they agree.

    with joined() as team:
        if team.is_main: ...
        loss, stop = team.exchange(own_loss, stopping.wanted())

Outside of the gradients, which DistributedDataParallel sums, processes meet in `Team.exchange` only, whatever they
wait for: so a process that fails can answer there, and no other waits for ever. What fails ends them all with one
message, from process 0; the others leave without a word. Whoever does not answer at all is ended by torchrun, as soon
as one of the processes is gone.

Messages go over gloo, also where there are GPUs (a few numbers need no GPU, which would have to wait for them);
gradients over nccl on GPUs, else over gloo. Bytes are sent as they are, objects as ``torch.save`` writes them, read
with ``weights_only=True``.
"""

from __future__ import annotations

import io
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from autoprune.search_spaces.errors import UserError
from autoprune.stopping import Stopped

TIMEOUT = timedelta(hours=2)
"""How long a process waits for another one that lives but does not answer: process 0 scores while the others wait."""

FAREWELL = timedelta(seconds=20)
"""How long a process that fails tries to tell the others; one that hangs is left to torchrun, which ends it."""

HEAD_START_S = 2.0
"""The others leave this much after process 0: torchrun ends all as soon as one has left, and 0 has the message."""

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_TEXT_BYTES = 4096
_GLOO = re.compile("gloo|Operation timed out")  # gloo raises a plain RuntimeError


class PeerLost(UserError):
    """Another process of the team is gone, or does not answer."""


class Team:
    """The processes of one training; of one alone, every method returns what it was given.

    Attributes:
        rank: number of this process, from 0.
        world: how many there are.
    """

    def __init__(self, rank: int = 0, world: int = 1, group: Any = None) -> None:
        self.rank, self.world, self._group = rank, world, group
        self._over = False  # a failure has been told, or there is nobody to tell

    @property
    def is_main(self) -> bool:
        """Whether this is process 0, the one that scores, writes and reports."""
        return self.rank == 0

    def exchange(self, value: float = 0.0, stop: bool = False, *, at: int = 0) -> tuple[float, bool]:
        """Wait for all processes; return the sum of their values, and whether one of them wants to stop.

        Args:
            value: of this process; the sum is the same, bit for bit, on all of them.
            stop: whether this one wants to.
            at: a number that must be the same on all processes, such as that of the step.

        Raises:
            UserError: another process failed with one, is gone, or is `at` another place.
            Stopped: another process was stopped.
            RuntimeError: another process failed otherwise.
        """
        if self.world == 1:
            return value, stop
        rows = self._gather([value, float(stop), float(at), 0.0], TIMEOUT)
        if bool(rows[:, 3].any()):
            self._over = True
            raise _failure(*self._reason(rows, ""), self.world)
        if bool((rows[:, 2] != at).any()):
            raise UserError(
                f"The processes are at different steps ({[int(step) for step in rows[:, 2]]}): the training data must "
                "give the same number of batches on each of them."
            )
        return sum(rows[:, 0].tolist()), bool(rows[:, 1].any())

    def share(self, value: Any) -> Any:
        """Return the `value` of process 0: tensors (on the CPU), numbers, strings, None, lists and dicts of them."""
        if self.world == 1:
            return value
        buffer = io.BytesIO()
        if self.is_main:
            torch.save(value, buffer)
        size, _ = self.exchange(len(buffer.getbuffer()))
        content = torch.empty(int(size), dtype=torch.uint8)
        if self.is_main:
            content = torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8)
        with self.connected():
            dist.broadcast(content, 0, group=self._group)
        if self.is_main:
            return value
        return torch.load(io.BytesIO(content.numpy().tobytes()), map_location="cpu", weights_only=True)

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Turn what torch raises where a process is gone into `PeerLost`."""
        try:
            yield
        except RuntimeError as error:
            if self.world == 1 or not (isinstance(error, dist.DistError) or _GLOO.search(str(error))):
                raise
            self._over = True
            raise PeerLost(
                f"Another of the {self.world} processes is gone or does not answer. What was trained up to the last "
                "checkpoint is stored: the same command goes on from there."
            ) from error

    def leave(self, error: BaseException) -> None:
        """Tell the others that this process fails with `error`; those that are not process 0 end here, silently.

        Raises:
            SystemExit: this is not process 0, which reports what happened.
        """
        if not self._over:
            try:
                self._reason(self._gather([0.0, 0.0, 0.0, float(_code(error))], FAREWELL), str(error) or repr(error))
            except PeerLost:
                return  # nobody else can report it
        if not self.is_main:
            time.sleep(HEAD_START_S)
            raise SystemExit(_code(error))

    def _gather(self, row: list[float], timeout: timedelta) -> Tensor:
        """Return the rows of all processes, float64 [world, len(row)]."""
        rows = torch.zeros(self.world, len(row), dtype=torch.float64)
        with self.connected():
            mine = torch.tensor(row, dtype=torch.float64)
            dist.all_gather(list(rows), mine, group=self._group, async_op=True).wait(timeout)
        return rows

    def _reason(self, rows: Tensor, own: str) -> tuple[int, int, str]:
        """Rank and exit code of the first process that failed, and what it says."""
        rank = int((rows[:, 3] != 0).nonzero()[0])
        text = torch.zeros(_TEXT_BYTES, dtype=torch.uint8)
        if rank == self.rank:
            content = own.encode()[:_TEXT_BYTES]
            text[: len(content)] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        with self.connected():
            dist.broadcast(text, rank, group=self._group)
        return rank, int(rows[rank, 3]), bytes(text.tolist()).rstrip(b"\0").decode(errors="replace")


ALONE = Team()
"""The team of a process that trains by itself."""

_joined: Team | None = None


@contextmanager
def joined() -> Iterator[Team]:
    """Join the processes that torchrun started, for the block; `ALONE` where it started one, or none.

    The default device of CUDA is the one with the process's number on its machine. A process group that is there
    already is used and stays. Within the block of another `joined`, that team.

    Raises:
        UserError: there are fewer GPUs than processes; and what `Team.exchange` raises, at the end of the block.
    """
    global _joined
    if _joined is not None or launched() == 1:
        yield _joined or ALONE
        return
    has_cuda = torch.cuda.is_available()
    ours = not dist.is_initialized()
    if ours:
        dist.init_process_group("cpu:gloo,cuda:nccl" if has_cuda else "gloo", timeout=TIMEOUT)
    team = Team(dist.get_rank(), dist.get_world_size(), dist.new_group(backend="gloo", timeout=TIMEOUT))
    try:
        if has_cuda:
            _choose_gpu(int(os.environ["LOCAL_RANK"]))
        _joined = team
        yield team
        team.exchange()  # nobody leaves before all are done
    except BaseException as error:
        team.leave(error)
        raise
    finally:
        _joined = None
        if ours:
            dist.destroy_process_group()


def launched() -> int:
    """How many processes torchrun, or whoever sets the same variables, started; 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if all(name in os.environ for name in _VARIABLES) else 1


def check_alone(what: str) -> None:
    """Refuse to run in several processes of torchrun.

    Raises:
        UserError: in process 0; the others leave silently.
    """
    if launched() == 1:
        return
    if os.environ["RANK"] != "0":
        time.sleep(HEAD_START_S)
        raise SystemExit(2)
    raise UserError(
        f"Only fine-tuning runs under torchrun, but it started {launched()} processes of `{what}`. Start that without "
        "torchrun, then fine-tune: torchrun --nproc-per-node 2 -m autoprune finetune RUN --point best."
    )


def _choose_gpu(local_rank: int) -> None:
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise UserError(
            f"Every process on a machine needs a GPU of its own, but process {local_rank} finds only {count}. Set "
            f"--nproc-per-node {count}."
        )
    torch.cuda.set_device(local_rank)


def _code(error: BaseException) -> int:
    """The exit code of a process that ends with `error`."""
    if isinstance(error, KeyboardInterrupt):
        return 128 + (error.signal if isinstance(error, Stopped) else 2)
    return 2 if isinstance(error, UserError) else 1


def _failure(rank: int, code: int, text: str, world: int) -> BaseException:
    """What ends a process where process `rank` failed."""
    if code > 128:
        return Stopped(code - 128)
    text = f"{text} (process {rank} of {world})"
    return UserError(text) if code == 2 else RuntimeError(text)
