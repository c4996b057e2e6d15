"""What a run folder holds beside its settings and its study, and how each file is read without the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from autoprune import gauges, importance, proxy_file
from autoprune.bounds import ORDER, load_order
from autoprune.checkpoint import check_checkpoint
from autoprune.documents import parsing, read_document
from autoprune.finish import read_recipe
from autoprune.finished import FILE as FRONT
from autoprune.finished import Finished
from autoprune.kl_table import KLTable
from autoprune.latency.model import FORMAT as LATENCY_FORMAT
from autoprune.measure.device_profile import read_entries
from autoprune.preparing import DEVICE
from autoprune.prior import PRIOR
from autoprune.profiling import TABLE
from autoprune.races import LOSSES, read_losses
from autoprune.verifying import VERIFIED, read_verified


@dataclass(frozen=True, kw_only=True)
class Artefact:
    """One kind of file.

    Attributes:
        pattern: where it lies in a run folder, as `Path.glob` takes it.
        read: reads it without the model; raises a `UserError` where it cannot be used.
        cache: whether it is made again, when it is needed, where it is damaged or gone.
        but: name of a file that the pattern finds too, and that is another kind.
    """

    pattern: str
    read: Callable[[Path], object]
    cache: bool = True
    but: str = ""

    def files(self, run: Path) -> list[Path]:
        """Those that a run folder holds."""
        return sorted(path for path in run.glob(self.pattern) if path.name != self.but)


def _importance(path: Path) -> None:
    content = read_document(path, importance.FORMAT)
    with parsing(path):
        for scores in content["scores"].values():
            list(map(float, scores))


def _latency(path: Path) -> None:
    content = read_document(path, LATENCY_FORMAT, oldest=LATENCY_FORMAT)
    with parsing(path):
        float(content["dense_ms"])
        for sample in content["samples"]:
            list(map(int, sample["candidate"]))
            float(sample["ms"])


def _watts(path: Path) -> None:
    content = read_document(path, gauges.FORMAT)
    with parsing(path):
        list(map(float, content.values()))


ARTEFACTS = (
    Artefact(pattern=str(importance.SCORES_FILE), read=_importance),
    Artefact(pattern=f"{gauges.FOLDER}/*.json", read=_latency, but=gauges.WATTS),
    Artefact(pattern=f"{gauges.FOLDER}/{gauges.WATTS}", read=_watts),
    Artefact(pattern=str(DEVICE), read=read_entries),
    Artefact(pattern=str(ORDER), read=lambda path: load_order(path.parents[1])),
    Artefact(pattern=str(PRIOR), read=KLTable.load),
    Artefact(pattern=f"{LOSSES}/*.npz", read=read_losses),
    Artefact(pattern=str(TABLE), read=KLTable.load),
    Artefact(
        pattern=str(proxy_file.FILE),
        read=lambda path: proxy_file.Measured.read(path.parents[1]),
    ),
    Artefact(pattern=str(VERIFIED), read=read_verified),
    Artefact(pattern="finetune/*/*.checkpoint", read=check_checkpoint),
    Artefact(pattern="finetune/*/recipe.json", read=read_recipe, cache=False),
    Artefact(pattern=FRONT, read=lambda path: Finished.read(path.parent)),
)
