"""Look a run folder over: what is wrong with it, and what can be done. Nothing in it is changed, but by `mend`."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import torch

import autoprune
from autoprune.architecture import Architecture
from autoprune.artefacts import ARTEFACTS
from autoprune.config import FILE as CONFIG
from autoprune.config import SearchConfig
from autoprune.documents import Damaged, Newer
from autoprune.files import check_links, leftovers, remove_leftovers, set_aside
from autoprune.finish import REPORT
from autoprune.finished import FILE as FRONT
from autoprune.finished import FOLDER, Finished
from autoprune.gauges import FOLDER as LATENCY
from autoprune.importance import SCORES_FILE, reads_data
from autoprune.journal import check_journal
from autoprune.loading import WEIGHTS, read_tensors
from autoprune.lock import FolderLock, used_by
from autoprune.measure.device_profile import read_entries
from autoprune.search_spaces.budget import Budget
from autoprune.search_spaces.errors import UserError
from autoprune.search_spaces.quantities import is_measured
from autoprune.storage.presence import present
from autoprune.study import FILE as STUDY
from autoprune.study import Study
from autoprune.trust import is_trusted

LITTLE = 2**30
"""Bytes: with less room left on the disk, it is said."""

RESTORE = "Restore it from a copy, or start a new run."

BAD = ("damaged", "newer", "missing")
"""Verdicts that something has to be done about; the others are ``ok``, ``remark`` and ``mended``."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        verdict: ``ok``, ``remark``, or one of `BAD`; ``mended`` of what `mend` did.
        what: the file, by its path in the run folder, or what else was looked at.
        why: what is to say about it.
        do: what to do, mostly a command; "" where nothing is.
        cache: whether `mend` may move it aside.
    """

    verdict: str
    what: str
    why: str = ""
    do: str = ""
    cache: bool = False

    def __str__(self) -> str:
        return f"{self.verdict:8}" + ": ".join(filter(None, [self.what, ". ".join(filter(None, [self.why, self.do]))]))


def doctor(run: str | Path) -> list[Finding]:
    """Check everything in a run folder; whatever is damaged in it is a finding, never an error.

    Raises:
        UserError: `run` is not a run folder, or a link in it leads elsewhere.
    """
    path = Path(run)
    if not any((path / name).exists() for name in (CONFIG, STUDY)):
        SearchConfig.read(path)
        raise UserError(f"{path} is not a run folder (no {CONFIG} and no {STUDY} in it).")
    check_links(path)
    patient = _Patient(path)
    found: list[Finding] = []
    for check in (
        patient.settings, patient.study, patient.artefacts, patient.points, patient.promises, patient.surroundings
    ):  # fmt: skip
        try:
            found += check()
        except Exception as error:  # a kind of damage that nobody thought of is damage, too
            what = check.__name__
            found.append(Finding("damaged", what, f"looking at it failed ({type(error).__name__}: {_line(error)})"))
    return found


def is_well(findings: list[Finding]) -> bool:
    """Whether nothing has to be done."""
    return not any(finding.verdict in BAD for finding in findings)


def mend(run: str | Path) -> list[Finding]:
    """Remove what killed processes left, and move damaged files that can be made again to ``NAME.damaged``.

    Settings and study are never touched.

    Returns:
        What was done.

    Raises:
        UserError: `run` is not a run folder, or another process works on it.
    """
    path = Path(run)
    found = doctor(path)
    with FolderLock(path):
        if workers := present(path):
            raise UserError(f"{path} is in use by worker {workers[0]}. Wait until it ends, or end that process.")
        left = leftovers(path)
        remove_leftovers(path)
        done = [Finding("mended", _name(path, file), "a leftover of a killed process was removed") for file in left]
        for finding in found:
            if finding.verdict == "damaged" and finding.cache:
                target = set_aside(path / finding.what)
                why = f"was damaged and is now called {target.name}; it is made again when it is needed"
                done.append(Finding("mended", finding.what, why))
    return done


@dataclass
class _Patient:
    """A run folder that is looked over; what one check could read helps the next."""

    run: Path
    config: SearchConfig | None = None
    trials: dict[int, str] | None = None
    finished: Finished | None = None
    in_use: str | None = field(init=False)

    def __post_init__(self) -> None:
        process = used_by(self.run)
        self.in_use = next(iter(present(self.run)), None) if process is None else process

    def settings(self) -> Iterator[Finding]:
        """config.toml"""
        try:
            self.config = SearchConfig.read(self.run)
        except (UserError, OSError) as error:
            verdict = "newer" if "newer autoprune" in str(error) else "damaged"
            yield Finding(verdict, CONFIG, _line(error), "" if isinstance(error, UserError) else RESTORE)
            return
        yield Finding("ok", CONFIG)
        made = self.config.versions
        now = {"autoprune": autoprune.__version__, "torch": str(torch.__version__)}
        for name, version in now.items():
            if made.get(name, version) != version:
                yield Finding("remark", "versions", f"the run was made with {name} {made[name]}, here is {version}")
        if not self.config.prepared:
            yield Finding("remark", CONFIG, "the search was stopped before its first trial", self._resume)

    def study(self) -> Iterator[Finding]:
        """study.db"""
        if self._server is not None or self.in_use is not None:  # the copy of one in use might be torn
            yield from self._database(self.run)
            return
        # Reading a database in place may write: what a killed process began is taken back.
        with tempfile.TemporaryDirectory() as folder:
            for file in self.run.glob(f"{STUDY}*"):
                if file.is_file() and not file.name.endswith("-shm"):
                    shutil.copyfile(file, Path(folder) / file.name)
            if self.config is not None:
                shutil.copyfile(self.run / CONFIG, Path(folder) / CONFIG)
            yield from self._database(Path(folder))

    def _database(self, folder: Path) -> Iterator[Finding]:
        file, name = folder / STUDY, self._server or STUDY
        verdict = "damaged" if file.exists() else "missing"
        try:
            if file.exists():
                check_journal(file)
                mode = "ro" if folder == self.run else "rw"
                with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode={mode}", uri=True)) as connection:
                    (found,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
                if found != "ok":
                    yield Finding(verdict, name, _line(found), RESTORE)
                    return
            if self.config is None:
                yield Finding("ok", name) if file.exists() else Finding(verdict, name, do=RESTORE)
                return
            trials = Study.read(folder).trials
        except Exception as error:  # sqlite3, SQLAlchemy and Optuna raise many types
            why = _line(str(error).replace(str(folder), str(self.run)))
            yield Finding(verdict, name, why, "" if isinstance(error, UserError) else RESTORE)
            return
        self.trials = {trial.number: trial.state for trial in trials}
        unscored = [t.number for t in trials if t.state == "complete" and t.score is None]
        gaps = sorted(set(range(len(trials))) - self.trials.keys())
        if len(self.trials) < len(trials):
            yield Finding("damaged", name, f"only {len(self.trials)} of its {len(trials)} trials differ", RESTORE)
        elif unscored:
            yield Finding("damaged", name, f"trial {unscored[0]} is complete, but has no score", RESTORE)
        else:
            yield Finding("ok", name, f"{len(trials)} of {self.config.trials} trials")
            if gaps and self.in_use is None:  # of several workers, one was killed that others had overtaken
                yield Finding("remark", name, f"trial {gaps[0]} was begun, and is not stored", self._resume)

    def artefacts(self) -> Iterator[Finding]:
        """profile, finetune and front.json"""
        for kind in ARTEFACTS:
            files = kind.files(self.run)
            bad = [finding for file in files if (finding := self._read(file, kind.read, kind.cache)) is not None]
            yield from bad
            if files and not bad:
                yield Finding("ok", kind.pattern if "*" in kind.pattern else _name(self.run, files[0]), _count(files))
        if self.config is not None and self.config.device_profile is not None and is_trusted(self.config):
            file = Path(self.config.device_profile)
            if file.exists():
                yield self._read(file, read_entries, cache=False) or Finding("ok", str(file))

    def _read(self, file: Path, read: Callable[[Path], object], cache: bool) -> Finding | None:
        """What is wrong with a file; None where nothing is."""
        name = _name(self.run, file)
        if file == self.run / SCORES_FILE and not self._can_score_again():
            cache, do = False, RESTORE
        else:
            do = self._mend if cache else "Restore it from a copy, or delete it."
        try:
            read(file)
            return None
        except Newer as error:
            return Finding("newer", name, error.why, error.remedy)
        except Damaged as error:
            why = error.cause
        except OSError as error:
            cache, why, do = False, f"cannot be read: {error.strerror or error}", "Look at its rights and its disk."
        except Exception as error:
            why = _line(error)
        return Finding("damaged", name, why, do, cache)

    def points(self) -> Iterator[Finding]:
        """front/"""
        trials = self.trials
        for folder in sorted((self.run / "finetune").glob("*")):
            if trials is not None and not (folder.name.isdecimal() and int(folder.name) in trials):
                yield Finding("remark", _name(self.run, folder), "belongs to no trial of the study", "Delete it.")
        if not (self.run / FRONT).exists():
            return
        try:
            self.finished = Finished.read(self.run)
        except UserError:
            return  # said above
        assert self.finished is not None
        damage = self.finished.damage(self.run)
        for file, why in damage.items():
            yield Finding(why.removeprefix("is "), _name(self.run, file), "", self._resume)
        for index, point in enumerate(self.finished.points):
            folder = self.run / FOLDER / str(index)
            name = _name(self.run, folder)
            if trials is not None and trials.get(point.trial) != "complete":
                why = f"point {index} is of trial {point.trial}, which is not complete in the study"
                yield Finding("damaged", FRONT, why, RESTORE)
            if any(file == folder or folder in file.parents for file in damage):
                continue
            try:
                read_tensors(folder / WEIGHTS, Architecture.read(folder))
            except Exception as error:
                newer = "newer autoprune" in str(error)
                do = "" if newer else f"Delete the folder, then: {self._resume}"
                yield Finding("newer" if newer else "damaged", name, _line(error), do)
            else:
                yield Finding("ok", name)
        if not (self.run / REPORT).is_file():
            yield Finding("missing", REPORT, do=self._resume)

    def promises(self) -> Iterator[Finding]:
        """What should be there"""
        config = self.config
        if config is None or not config.prepared:
            return
        if reads_data(config.importance) and not (self.run / SCORES_FILE).exists():
            if self._can_score_again():
                yield Finding("remark", str(SCORES_FILE), "is missing: it is made again", self._resume)
            else:
                yield Finding("missing", str(SCORES_FILE), "the scores that units are ranked by are gone", RESTORE)
        if any(map(is_measured, Budget.parse(config.budget).costs)) and not any((self.run / LATENCY).glob("*-*.json")):
            yield Finding("remark", str(LATENCY), "is empty: the devices are measured again", self._resume)
        if self.trials is not None and self.finished is None and not (self.run / FRONT).exists():
            yield Finding("remark", FRONT, "the run is not finished", self._resume)

    def surroundings(self) -> Iterator[Finding]:
        """The folder"""
        if self.in_use is not None:
            yield Finding("remark", "lock", f"process {self.in_use} works on the run")
        for path in leftovers(self.run):
            yield Finding("remark", _name(self.run, path), "a killed process left it", self._mend)
        for path in sorted(self.run.rglob("*.damaged*")):
            yield Finding("remark", _name(self.run, path), "was moved aside because it is damaged", "Delete it.")
        places = [self.run, *(path for path in self.run.rglob("*") if path.is_dir())]
        for path in places:
            if not os.access(path, os.W_OK | os.X_OK):
                yield Finding("remark", _name(self.run, path), "cannot be written to: the run can only be looked at")
        free = shutil.disk_usage(self.run).free
        if free < LITTLE:
            yield Finding("remark", "disk", f"only {free / 2**20:.0f} MiB are free", "Make room before you go on.")

    def _can_score_again(self) -> bool:
        return self.config is None or not self.config.prepared or "importance" in self.config.fingerprints

    @property
    def _server(self) -> str | None:
        """Where the trials are, if not in the run folder."""
        return None if self.config is None else self.config.storage

    @property
    def _resume(self) -> str:
        return f"autoprune resume {self.run}"

    @property
    def _mend(self) -> str:
        return f"autoprune doctor {self.run} --mend"


def _name(run: Path, path: Path) -> str:
    return path.relative_to(run).as_posix() if path.is_relative_to(run) else str(path)


def _count(files: list[Path]) -> str:
    return f"{len(files)} files" if len(files) > 1 else ""


def _line(error: object) -> str:
    """A message as part of a line."""
    return re.sub(r"\s+", " ", str(error)).strip().rstrip(".") or type(error).__name__
