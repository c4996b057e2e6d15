"""What a runtime is: something that runs a network on a device and says how long that took.

A `Runtime` opens a `Session` for one dense network and its inputs; the session loads the network and subnets of it;
what it loads is a `Runnable`, called once per measurement. Sessions may keep what all subnets of a network share (an
exported graph, a warmed-up compiler), which makes the second subnet much cheaper than the first.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import TracebackType
from typing import Any, ClassVar, NamedTuple, Protocol

from torch import nn

from autoprune.search_spaces.errors import UserError


class MeasuringFailed(UserError):
    """A device did not measure this time; what it measured before counts."""


class Times(NamedTuple):
    """Milliseconds of one run of the whole batch.

    `cpu` is the processor time: of the calling thread where one thread works, else of the process. It is None where
    nobody can tell: on a graphics processor, or in another process.
    """

    wall: float
    cpu: float | None


class Runnable(Protocol):
    """A network that is ready to run."""

    def __call__(self) -> Times:
        """Run once."""
        ...

    def layers(self) -> dict[str, float] | None:
        """Milliseconds of each module path in one run, as the runtime sees them; None where it cannot tell."""
        ...


class Session(ABC):
    """One dense network on one runtime; close it, or use it as a context manager."""

    @abstractmethod
    def load(self, model: nn.Module) -> Runnable:
        """Make the dense network or a subnet of it ready to run on the session's inputs.

        Raises:
            UserError: the runtime cannot run it.
        """

    def close(self) -> None:  # noqa: B027  (most have nothing to free)
        """Free what the session holds: files, threads, memory of a device. By default nothing."""

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Runtime(ABC):
    """Runs networks in one way, on one device.

    Attributes:
        name: as in ``latency@onnxruntime=8ms``.
        threads: that work on one run.
        precision: in which it computes: ``fp32``, ``bf16``, ``fp16``, or ``model``, that of the weights.
        clock: what times mean: ``cpu`` (processor time, where one thread works), ``wall``, ``cuda events``, or
            ``reported`` (by a command).
    """

    name: ClassVar[str]
    threads: int
    precision: str
    clock: str

    @property
    @abstractmethod
    def version(self) -> str:
        """Release of the library that runs the network."""

    @property
    @abstractmethod
    def settings(self) -> Mapping[str, str]:
        """All further settings that change the times: layout, provider, mode, the command."""

    @property
    def device(self) -> str | None:
        """What it runs on, for people; None for the processor of this machine."""
        return None

    @abstractmethod
    def open(self, dense: nn.Module, inputs: Any) -> Session:
        """Prepare for a dense network.

        Args:
            dense: where subnets come from; not changed.
            inputs: a tensor, a tuple of positional or a dict of keyword arguments, or a pair (tuple, dict) of both, at
                the batch size that is measured.

        Raises:
            UserError: the runtime is not installed, or cannot run this network.
        """

    def describe(self) -> str:
        """``onnxruntime 1.31.1 model, 1 thread, provider CPU``."""
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        settings = "".join(f", {name} {value}" for name, value in self.settings.items())
        return f"{self.name} {self.version} {self.precision}, {threads}{settings}"
