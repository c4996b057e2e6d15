"""`Stopwatch`: networks of one family timed again and again against the dense one, as accurately as is wanted."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from autoprune.measure.energy import EnergyMeter
from autoprune.measure.measured import Latency
from autoprune.measure.race import LEAST_MS, race
from autoprune.measure.robust import Estimate, drift, estimate
from autoprune.progress import Progress
from autoprune.runtimes import Runtime
from autoprune.search_spaces.errors import UserError

DENSE = "dense"
"""Name of the reference in every result of a `Stopwatch`."""

_DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64"}


class Stopwatch:
    """Times networks against one dense network on one runtime.

    It holds a session of the runtime and the loaded dense network until `close`, or as a context manager.

    Args:
        runtime: what runs the networks.
        dense: the reference.
        inputs: as for `Runtime.open`, at the batch size that is measured.
        accuracy: wanted half width of the 95 % interval of each ratio, relative: 0.02 = ±2 %. Less is rarely worth its
            rounds: from minute to minute the ratio itself moves that much (docs/measuring.md).
        min_rounds, max_rounds: least and most rounds of one `measure`; more than the most as long as a network has not
            run for `least_ms` in all.
        energy: where to read the energy of a run; None not to measure it.
    """

    def __init__(
        self,
        runtime: Runtime,
        dense: nn.Module,
        inputs: Any,
        *,
        accuracy: float = 0.02,
        min_rounds: int = 10,
        max_rounds: int = 200,
        least_ms: float = LEAST_MS,
        energy: EnergyMeter | None = None,
    ) -> None:
        check_rounds(accuracy, min_rounds, max_rounds)
        self.runtime = runtime
        self._dense_model = dense
        self._accuracy, self._min_rounds, self._max_rounds = accuracy, min_rounds, max_rounds
        self._least_ms = least_ms
        self.batch, self._energy = batch_size(inputs), energy
        self._dense_samples: list[float] = []
        self._stack = ExitStack()
        try:
            self._session = self._stack.enter_context(runtime.open(dense, inputs))
            self._dense = self._session.load(dense)
        except BaseException:
            self._stack.close()
            raise

    def measure(
        self,
        models: Mapping[str, nn.Module],
        *,
        accuracy: float | None = None,
        min_rounds: int | None = None,
        progress: Progress | None = None,
    ) -> dict[str, Latency]:
        """Time `models` and the dense network, which is "dense" in the result and the reference of all ratios.

        Without models, rounds are run until the dense network's own time is known to the accuracy. A network that is
        known well enough leaves the rounds.

        Raises:
            UserError: the runtime cannot run one of them.
            TooNoisy: the machine is too noisy for the accuracy.
        """
        if models.get(DENSE, self._dense_model) is not self._dense_model:
            raise ValueError(f"{DENSE!r} names the stopwatch's own network; give another one another name.")
        runs = {DENSE: self._dense}
        for name, model in models.items():
            if name != DENSE:
                runs[name] = self._session.load(model)
        result = race(
            runs,
            self.runtime,
            batch=self.batch,
            precision=precision_of(self.runtime, self._dense_model),
            reference=DENSE,
            accuracy=self._accuracy if accuracy is None else accuracy,
            min_rounds=self._min_rounds if min_rounds is None else min_rounds,
            max_rounds=max(self._max_rounds, min_rounds or 0),
            least_ms=self._least_ms,
            energy=self._energy,
            progress=progress,
        )
        self._dense_samples.extend(result[DENSE].samples_ms)
        return result

    @property
    def dense(self) -> Estimate:
        """The dense network's milliseconds over all that was measured so far; measured now where nothing was."""
        if not self._dense_samples:
            self.measure({})
        return estimate(self._dense_samples)

    @property
    def dense_ms(self) -> float:
        """The value of `dense`."""
        return self.dense.value

    @property
    def drift(self) -> float | None:
        """The dense network's late over early time in all that was measured, see `autoprune.measure.robust.drift`."""
        return drift(self._dense_samples)

    def layers(self) -> dict[str, float] | None:
        """Milliseconds of each module path of the dense network, as the runtime sees them; None where it cannot."""
        return self._dense.layers()

    def close(self) -> None:
        """Close the session."""
        self._stack.close()

    def __enter__(self) -> Stopwatch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_rounds(accuracy: float, min_rounds: int, max_rounds: int) -> None:
    """Refuse what cannot be meant.

    Raises:
        UserError: a number out of range.
    """
    if not accuracy > 0:
        raise UserError(f"`accuracy > 0` must hold, but got {accuracy!r}. Write ±2 % as 0.02.")
    for name, value, least in (("min_rounds", min_rounds, 1), ("max_rounds", max_rounds, min_rounds)):
        if not isinstance(value, int) or value < least:
            raise UserError(f"`{name}` must be a whole number of at least {least}, but got {value!r}.")


def batch_size(inputs: Any) -> int:
    """First dimension of the first tensor in `inputs`, however nested; 0 where there is none."""
    if isinstance(inputs, Tensor):
        return inputs.shape[0] if inputs.dim() else 0
    parts = inputs.values() if isinstance(inputs, dict) else inputs if isinstance(inputs, tuple | list) else ()
    return next(filter(None, map(batch_size, parts)), 0)


def precision_of(runtime: Runtime, model: nn.Module) -> str:
    """In which the runtime computes; where it takes the weights as they are, theirs."""
    if runtime.precision != "model":
        return runtime.precision
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    return _DTYPES.get(dtype, str(dtype).removeprefix("torch."))
