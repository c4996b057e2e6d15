"""`profile/proxy.json`: what was measured of each candidate, whole after every one of them.

Correlations and verdict are not in it: they are computed from it whenever it is read, see `proxy_report`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from autoprune.documents import parsing, read_document, write_document

FILE = Path("profile") / "proxy.json"
FORMAT = 1

FINETUNE = "finetune"
"""The truth: its name among the proxies, which no proxy may have."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """What was measured of one candidate.

    Attributes:
        number: from 0; with the seed of the study it gives the candidate and all that is random in its fine-tuning.
        candidate: level per group.
        scores: by proxy; None where it failed.
        truth: score on the search split after fine-tuning; None where that failed.
        improved: whether fine-tuning ended no worse than it began, in accuracy.
        seconds: by proxy, and `FINETUNE`.
        message: why fine-tuning failed.
    """

    number: int
    candidate: tuple[int, ...]
    scores: dict[str, float | None]
    truth: float | None = None
    improved: bool = True
    seconds: dict[str, float] = field(default_factory=dict)
    message: str | None = None


@dataclass(kw_only=True)
class Measured:
    """The content of the file.

    Attributes:
        settings: what the figures depend on; records under others cannot be compared with these.
        fingerprints: of weights, space and data.
        planned: candidates asked for.
        num_samples: of the search split.
        own: name of the proxy that the study scores with.
        proxies: name -> what it is, in words, and the option of a search that selects it, or nothing.
        records: in number order, without gaps.
    """

    settings: dict[str, Any]
    fingerprints: dict[str, str]
    planned: int
    num_samples: int
    own: str
    proxies: dict[str, tuple[str, str]]
    records: list[Record] = field(default_factory=list)

    def write(self, run: Path) -> None:
        """Store atomically."""
        write_document(run / FILE, FORMAT, asdict(self))

    @classmethod
    def read(cls, run: Path) -> Measured:
        """Read the file of a run.

        Raises:
            Damaged: there is none, or it cannot be read.
            Newer: it is of a format to come.
        """
        values = read_document(run / FILE, FORMAT)
        with parsing(run / FILE):
            records = [Record(**{**r, "candidate": tuple(r["candidate"])}) for r in values.pop("records")]
            proxies = {name: (label, option) for name, (label, option) in values.pop("proxies").items()}
            return cls(**values, proxies=proxies, records=records)
