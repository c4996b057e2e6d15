"""What was learnt about devices, in one JSON file: channel steps, latencies of whole networks.

A file holds an entry for every machine, runtime and settings that were measured, so that it may lie on a shared disk
or in a repository. An entry is used only where its fingerprint is that of this machine, the runtime's release and its
settings. It is a cache: everything in it can be measured again.

Times are milliseconds at the speed that the machine had then. A network is kept with its dense latency, so that
`Entry.stale` can tell whether that speed still holds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from autoprune.documents import Damaged, parsing, read_document, usable, write_document
from autoprune.files import set_aside
from autoprune.lock import locked
from autoprune.measure.device import NOT_IN_FINGERPRINT, device_fingerprint, device_info
from autoprune.measure.robust import Estimate, changed
from autoprune.progress import NO_PROGRESS, Progress
from autoprune.runtimes import Runtime
from autoprune.search_spaces import Candidate
from autoprune.search_spaces.errors import UserError

FORMAT = 1
"""Version of the file's format; a reader refuses higher ones."""


def now() -> str:
    """This second in UTC: ``2026-05-01T12:00:00+00:00``. Such texts sort by time."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


class KeptSample(NamedTuple):
    """A subnet that was measured: milliseconds and their standard error."""

    candidate: Candidate
    ms: float
    se: float

    def scaled(self, factor: float) -> KeptSample:
        """The same subnet on a machine that takes `factor` times as long."""
        return KeptSample(self.candidate, self.ms * factor, self.se * factor)


@dataclass
class Network:
    """One network at one batch size: its dense latency then, and subnets at the speed that the machine had then."""

    measured: str
    dense: Estimate
    samples: dict[Candidate, KeptSample] = field(default_factory=dict)

    def merged(self, other: Network) -> Network:
        """Both at this one's speed, which goes first where both hold a candidate; where the machine changed between
        them, the later.
        """
        if changed(other.dense, self.dense) is not None:
            return max(other, self, key=lambda network: network.measured)
        scale = self.dense.value / other.dense.value
        theirs = {candidate: sample.scaled(scale) for candidate, sample in other.samples.items()}
        return Network(self.measured, self.dense, {**theirs, **self.samples})


class Entry:
    """One machine, runtime and settings; changes reach the file with `DeviceProfile.save`."""

    def __init__(self, device: Mapping[str, Any], runtime: str, clock: Callable[[], str] = now) -> None:
        self.device, self.runtime = dict(device), runtime
        self.steps: dict[str, int] = {}
        """Channel step by kind of op."""
        self._networks: dict[str, Network] = {}
        self._forgotten: set[tuple[str, str]] = set()
        self._clock = clock

    def network(self, space: str, batch: int) -> Network | None:
        """What is kept of the network whose search space has this fingerprint, at this batch size."""
        return self._networks.get(f"{space}/{batch}")

    def keep(self, space: str, batch: int, dense: Estimate, samples: Iterable[KeptSample]) -> None:
        """Add subnets measured beside a dense network that takes `dense`; they are kept at the speed of the first
        ones, until `forget`.
        """
        network = self._networks.setdefault(f"{space}/{batch}", Network(self._clock(), dense))
        scale = network.dense.value / dense.value
        network.samples.update({sample.candidate: sample.scaled(scale) for sample in samples})

    def stale(self, space: str, batch: int, dense: Estimate) -> str | None:
        """Say so where the dense network's latency, measured now, is not the kept one: by more than both intervals
        and the factor `autoprune.measure.robust.DRIFT`. None where it holds or nothing is kept.
        """
        network = self.network(space, batch)
        if network is None or changed(network.dense, dense) is None:
            return None
        return (
            f"The device profile was measured on {network.measured[:10]}, when the dense network took "
            f"{network.dense.value:.3g} ms; it takes {dense.value:.3g} ms now: measuring again."
        )

    def forget(self, space: str, batch: int) -> None:
        """Drop a network, in the file too."""
        network = self._networks.pop(f"{space}/{batch}", None)
        if network is not None:
            self._forgotten.add((f"{space}/{batch}", network.measured))

    def merge(self, stored: Entry) -> None:
        """Take over what another process stored meanwhile; what this one measured goes before it."""
        self.steps = {**stored.steps, **self.steps}
        for key, theirs in stored._networks.items():
            if (key, theirs.measured) not in self._forgotten:
                ours = self._networks.get(key)
                self._networks[key] = theirs if ours is None else ours.merged(theirs)
        self._forgotten.clear()

    def to_dict(self) -> dict[str, Any]:
        """The values for JSON."""
        networks = {
            key: {
                "measured": network.measured,
                "dense_ms": [network.dense.value, network.dense.low, network.dense.high],
                "samples": [[list(candidate), ms, se] for candidate, ms, se in network.samples.values()],
            }
            for key, network in self._networks.items()
        }
        return {
            "device": self.device,
            "runtime": self.runtime,
            "steps": self.steps,
            "networks": networks,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], clock: Callable[[], str] = now) -> Entry:
        """Undo `to_dict`.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: the values are not what it wrote.
        """
        entry = cls(values["device"], str(values["runtime"]), clock)
        entry.steps = {str(kind): int(step) for kind, step in values["steps"].items()}
        for key, kept in values["networks"].items():
            value, low, high = map(float, kept["dense_ms"])
            network = Network(str(kept["measured"]), Estimate(value, low, high))
            for levels, ms, se in kept["samples"]:
                candidate = tuple(map(int, levels))
                network.samples[candidate] = KeptSample(candidate, float(ms), float(se))
            entry._networks[key] = network
        return entry


class DeviceProfile:
    """The file. Reading it and `save` are all that touch the disk.

    What cannot be read is moved to ``NAME.damaged`` when there is something to write in its place: it may be another
    file, named by mistake.

    Raises:
        UserError: the file is of a newer format, or a folder.
    """

    def __init__(self, path: str | Path, *, clock: Callable[[], str] = now, progress: Progress = NO_PROGRESS) -> None:
        self.path, self._clock = Path(path), clock
        self._entries = usable(self._read, progress, "what it held is measured again") or {}

    def entry(self, runtime: Runtime) -> Entry:
        """That of this machine with `runtime` and its settings; an empty one where there is none yet."""
        key = fingerprint(runtime)
        if key not in self._entries:
            device = {name: value for name, value in device_info().items() if name not in NOT_IN_FINGERPRINT}
            self._entries[key] = Entry(device, runtime.describe(), self._clock)
        return self._entries[key]

    def save(self) -> None:
        """Write the file, whole or not at all, together with what other processes stored since it was read."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with locked(self.path):
            try:
                theirs = self._read()
            except Damaged:
                theirs = {}
                if self.path.exists():
                    set_aside(self.path)
            for key, stored in theirs.items():
                if key in self._entries:
                    self._entries[key].merge(stored)
                else:
                    self._entries[key] = stored
            entries = {key: entry.to_dict() for key, entry in sorted(self._entries.items())}
            write_document(self.path, FORMAT, {"entries": entries})

    def _read(self) -> dict[str, Entry]:
        if self.path.is_dir():
            raise UserError(f"The device profile {self.path} is a folder. Give a file.")
        return read_entries(self.path, self._clock)


def read_entries(path: Path, clock: Callable[[], str] = now) -> dict[str, Entry]:
    """The content of a device profile, by fingerprint.

    Raises:
        Damaged: there is none, or it cannot be read.
        Newer: it is of a format to come.
    """
    content = read_document(path, FORMAT)
    with parsing(path):
        return {key: Entry.from_dict(values, clock) for key, values in content["entries"].items()}


def fingerprint(runtime: Runtime) -> str:
    """A digest of this machine, the runtime's release and its settings: times hold only where it is the same."""
    text = f"{device_fingerprint()} {runtime.describe()} {runtime.device or ''} {runtime.clock}"
    return hashlib.sha256(text.encode()).hexdigest()[:12]
