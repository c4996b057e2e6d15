"""`config.toml`: everything a search needs to go on, readable and written by people.

Objects that cannot be written down (a module, data loaders, a scoring function handed over in Python) leave their
fingerprint here instead; `resume` asks for them again and compares.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import tomli_w

from autoprune.bounds import BOUNDS
from autoprune.files import atomic_write, check_links
from autoprune.search_spaces.errors import UserError, unknown
from autoprune.statistical import AUDIT, ERROR

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FORMAT = 1
"""Format of the run folder; a run of another format is refused, never guessed at."""

FILE = "config.toml"

PRIORS = ("kl", "off")

FROM_PYTHON = "python"
"""Stands for a scoring function that was handed over in Python."""

AIMS = ("score", "front")

MEASURE_TRIALS = ("auto", "on", "off")

# How the file is laid out: table -> fields of SearchConfig. Fields that are None are left out of the file.
_TABLES: dict[str, tuple[str, ...]] = {
    "run": ("format", "id", "prepared", "storage", "study", "versions", "fingerprints"),
    "model": ("model", "model_args", "weights", "device"),
    "data": ("data", "data_root", "search_size", "batch_size"),
    "search": ("budget", "align", "agent", "agent_options", "prior", "trials", "seed", "aim", "sweep"),
    "score": (
        "score",
        "importance",
        "importance_samples",
        "importance_loss",
        "recovery",
        "calibration_samples",
        "precision",
        "bounds",
        "tolerance",
        "heuristic",
        "error_rate",
        "audit",
    ),
    "latency": (
        "runtimes",
        "latency_batch",
        "throughput_batch",
        "latency_threads",
        "latency_repeats",
        "latency_accuracy",
        "latency_subnets",
        "latency_confidence",
        "measure_trials",
        "readings_from",
        "device_profile",
    ),
    "result": ("points", "finetune", "formats"),
}

# Whoever reads these may rely on their type: a file from elsewhere may hold anything.
_TEXTS = (
    *("id", "model", "weights", "device", "data", "data_root", "agent", "prior", "aim", "score", "importance"),
    *("recovery", "precision", "bounds", "measure_trials", "device_profile", "storage", "study"),
)
_LISTS = ("budget", "runtimes", "formats")

# Stored as lists of NAME=VALUE with the value in JSON, as typed on the command line: TOML has no word for None.
_ARGUMENTS = {"model_args", "agent_options", "finetune"}


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig:
    """The settings of one search.

    Attributes:
        budget: limits as typed, for example ``("macs=0.5x", "latency=8ms")``.
        align: levels are multiples of this, a power of two; ``auto`` is decided before the first trial, and what it
            came to is written down.
        model: ``torchvision:NAME``, ``timm:NAME`` or ``package.module:function``; None for a module from Python.
        weights: file of the dense weights; None where the model brings its own.
        device: ``cpu`` or ``cuda``: where the model runs and latency is measured.
        data: name of a data set or ``package.module:function``; None for loaders from Python.
        search_size: samples (int) or share (float) of the training data that make the search split; None: default.
        agent: name of the agent; `agent_options` are its own settings.
        prior: ``kl``, a table measured before the first trial for agents that take one, or ``off``.
        trials: planned number of trials, those already done included.
        aim: ``score``, the best score within the budget, or ``front``, also what is smaller and scores less.
        sweep: shares of the budget that trials are made for in turn; ``(1.0, 0.8)`` gives a front of several sizes.
        score: ``accuracy``, ``top5``, ``kl``, ``package.module:function``, or `FROM_PYTHON` for a function.
        importance: criterion that ranks the units.
        importance_samples: training samples that it reads, where it reads data.
        importance_loss: `FROM_PYTHON` where a function was handed over for it; None for cross entropy.
        recovery: what is done to a cut network before it is scored, see `recovery.ladder.RUNGS`.
        calibration_samples: training samples that recovery reads.
        bounds: ``exact`` stops candidates that cannot join the front any more, ``statistical`` also those that very
            likely cannot, ``off`` evaluates all in full.
        tolerance: by what share costs may be larger and still count as no more, for bounds: see `bounds.Staircase`.
        heuristic: whether candidates are skipped whose loss by the prior is far above the incumbent's.
        error_rate: of a statistical bound: the chance, at most, that a candidate is cut which should not be.
        audit: share of the cuts without proof that are evaluated all the same, to see how many are wrong.
        runtimes: ``onnxruntime``, or with a name ``phone=command:./time.sh``; a limit that names none means the first.
        latency_batch, throughput_batch: samples a batch.
        latency_threads: threads of a runtime on a processor.
        latency_repeats: rounds at least of the last measurement of each front point.
        latency_accuracy: wanted half width of the 95 % interval of a latency, as a share of the dense one.
        latency_subnets: measured before the first trial, to learn predicting.
        latency_confidence: with which a predicted cost is below the value that is used for it.
        measure_trials: whether candidates are measured before they are scored: ``on``, ``off``, or ``auto``, which a
            new search settles: on where measuring one takes less time than scoring it.
        readings_from: first trial whose measurements the models learn: earlier ones are of another device.
        device_profile: file of what was learnt about devices, for other searches on them; None keeps none.
        points: front points that are fine-tuned and exported.
        finetune: settings of `FineTune`; None for none.
        formats: what each point is exported to beside the folder itself.
        storage: URL of the server that holds the trials, without password; None: ``study.db`` in the run folder.
        study: name of the study there.
        prepared: whether all that comes before the first trial is done: what ``auto`` stood for is settled, and
            ``profile/`` holds what was measured.
        fingerprints: digests of ``space``, ``weights`` and ``data``; resuming with others is refused. Of scores that
            an importance found in data, ``importance``: found again, they must be the same.
        versions: of autoprune and torch when the run was made.
        format: of the run folder.
        id: random name of the run, by which its user is remembered (see `trust`); None in runs of older releases.
    """

    budget: tuple[str, ...]
    model: str | None = None
    model_args: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    device: str = "cpu"
    data: str | None = None
    data_root: str | None = None
    search_size: int | float | None = None
    batch_size: int = 128
    align: int | str = "auto"
    agent: str = "auto"
    agent_options: dict[str, Any] = field(default_factory=dict)
    prior: str = "kl"
    trials: int = 100
    seed: int = 0
    aim: str = "score"
    sweep: tuple[float, ...] = (1.0,)
    score: str = "accuracy"
    importance: str = "l2"
    importance_samples: int = 1024
    importance_loss: str | None = None
    recovery: str = "compensate"
    calibration_samples: int = 2000
    precision: str = "auto"
    bounds: str = "exact"
    tolerance: float = 0.0
    heuristic: bool = False
    error_rate: float = ERROR
    audit: float = AUDIT
    runtimes: tuple[str, ...] = ("eager",)
    latency_batch: int = 1
    throughput_batch: int = 32
    latency_threads: int = 1
    latency_repeats: int = 30
    latency_accuracy: float = 0.02
    latency_subnets: int = 24
    latency_confidence: float = 0.9
    measure_trials: str = "off"
    readings_from: int = 0
    device_profile: str | None = None
    points: int = 4
    finetune: dict[str, Any] | None = None
    formats: tuple[str, ...] = ()
    storage: str | None = None
    study: str | None = None
    prepared: bool = True
    fingerprints: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT
    id: str | None = None

    def __post_init__(self) -> None:
        for name in (*_TEXTS, *_LISTS):
            value = getattr(self, name)
            if name in _LISTS:
                if not (isinstance(value, tuple | list) and all(isinstance(text, str) for text in value)):
                    raise UserError(f"`{name}` must be a list of texts, but got {value!r}.")
            elif not (value is None or isinstance(value, str)):
                raise UserError(f"`{name}` must be a text, but got {value!r}.")
        for name, least in (
            ("trials", 1),
            ("points", 1),
            ("batch_size", 1),
            ("latency_batch", 1),
            ("latency_threads", 1),
            ("latency_repeats", 1),
            ("latency_subnets", 4),
            ("throughput_batch", 1),
            ("importance_samples", 1),
            ("seed", 0),
            ("calibration_samples", 0),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise UserError(f"`{name}` must be a whole number of at least {least}, but got {value!r}.")
        if self.align != "auto" and not _is_power_of_two(self.align):
            raise UserError(f"`align` must be a power of two or 'auto', but got {self.align!r}. Choose 1, 8 or 16.")
        if self.prior not in PRIORS:
            raise unknown("prior", self.prior, PRIORS)
        if self.aim not in AIMS:
            raise unknown("aim", self.aim, AIMS)
        if self.bounds not in BOUNDS:
            raise unknown("bounds", self.bounds, BOUNDS)
        if self.measure_trials not in MEASURE_TRIALS:
            raise unknown("measure_trials", self.measure_trials, MEASURE_TRIALS)
        if not self.runtimes:
            raise UserError("`runtimes` must name at least one runtime, for example eager.")
        if not self.latency_accuracy > 0:
            raise UserError(f"`latency_accuracy > 0` must hold, but got {self.latency_accuracy!r}. Write 2 % as 0.02.")
        if not 0.5 <= self.latency_confidence < 1:
            raise UserError(
                f"`0.5 <= latency_confidence < 1` must hold, but got {self.latency_confidence!r}. Write 90 % as 0.9."
            )
        if not self.tolerance >= 0:
            raise UserError(f"`tolerance >= 0` must hold, but got {self.tolerance!r}. Write 1 % as 0.01.")
        if not 0 < self.error_rate < 1:
            raise UserError(f"`0 < error_rate < 1` must hold, but got {self.error_rate!r}. Write 5 % as 0.05.")
        if not 0 <= self.audit <= 1:
            raise UserError(f"`0 <= audit <= 1` must hold, but got {self.audit!r}. Write 10 % as 0.1.")
        if not self.sweep or not all(isinstance(share, int | float) and 0 < share <= 1 for share in self.sweep):
            raise UserError(f"`sweep` must hold shares of the budget above 0 and at most 1, but got {self.sweep!r}.")

    def describe_recovery(self) -> str:
        """``compensate, 2,000 training samples``."""
        read = self.recovery != "slice" and self.calibration_samples
        return f"{self.recovery}, {self.calibration_samples:,} training samples" if read else "none"

    def write(self, folder: Path) -> None:
        """Write `config.toml` into `folder`, atomically."""
        values = {name: value for name, value in asdict(self).items() if value not in (None, {}, ())}
        for name in _ARGUMENTS & values.keys():
            values[name] = [f"{key}={json.dumps(value)}" for key, value in values[name].items()]
        tables = {table: {name: values[name] for name in names if name in values} for table, names in _TABLES.items()}
        text = "# Written by autoprune; `autoprune resume` reads it. Delete the folder to start afresh.\n\n"
        atomic_write(folder / FILE, text + tomli_w.dumps(tables))

    @classmethod
    def read(cls, folder: Path) -> SearchConfig:
        """Read the configuration of a run folder.

        Raises:
            UserError: `folder` is not a run folder, was made by another format, its file cannot be read, or a link in
                it leads elsewhere.
        """
        path = folder / FILE
        try:
            tables = tomllib.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(_not_a_run(folder)) from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{path} is damaged: {error}. Mend that line, or restore the file.") from None
        except RecursionError:
            raise UserError(f"{path} is damaged: it is nested too deeply. Restore the file.") from None
        check_links(folder)
        found = tables["run"].get("format") if isinstance(tables.get("run"), dict) else None
        if found is None:
            raise UserError(f"{path} is damaged: it names no run format. Restore the file, or start a new run.")
        if isinstance(found, int) and found > FORMAT:
            raise UserError(
                f"{folder} was written by a newer autoprune (run format {found}, this one reads {FORMAT}). Install "
                "that autoprune to go on with it."
            )
        if found != FORMAT:
            raise UserError(
                f"{folder} was made by another version of autoprune (run format {found!r}, this one reads {FORMAT}). "
                f"Install that version to go on with it, or start a new run."
            )
        return cls._from_tables(tables, path)

    @classmethod
    def _from_tables(cls, tables: Mapping[str, Any], path: Path) -> SearchConfig:
        values: dict[str, Any] = {}
        for table, entries in tables.items():
            if table not in _TABLES or not isinstance(entries, dict):
                raise unknown(f"table in {path}:", table, _TABLES)
            for name, value in entries.items():
                if name not in _TABLES[table]:
                    raise unknown(f"setting in table [{table}] of {path}:", name, _TABLES[table])
                values[name] = tuple(value) if isinstance(value, list) else value
        for name in _ARGUMENTS & values.keys():
            values[name] = _read_arguments(values[name], path)
        required = {item.name for item in fields(cls) if item.default is MISSING and item.default_factory is MISSING}
        for name in sorted(required - values.keys()):
            raise UserError(f"{path} lacks the setting {name!r}. Restore the file.")
        values.setdefault("prior", "off")  # studies made before there was one began without
        values.setdefault("align", 8)  # and before it was an option, with this
        try:
            return cls(**values)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        except TypeError as error:
            raise UserError(f"{path} is damaged: {error}. Mend that setting, or restore the file.") from None


def _read_arguments(texts: tuple[str, ...], path: Path) -> dict[str, Any]:
    try:
        pairs = [text.partition("=") for text in texts]
        return {name: json.loads(value) for name, _, value in pairs}
    except (AttributeError, ValueError, RecursionError):
        raise UserError(f"{path} must hold NAME=VALUE texts, VALUE in JSON, but got {list(texts)!r}.") from None


def _is_power_of_two(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0 and value & (value - 1) == 0


def _not_a_run(folder: Path) -> str:
    if not folder.exists():
        return f"There is no run folder {folder}. Start one with `autoprune search ... --run {folder}`."
    return f"{folder} is not a run folder (no {FILE} in it). Give a folder that `autoprune search --run` made."
