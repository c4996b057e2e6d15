"""Check every network of the zoo that is not known to pass, and write docs/coverage.md from what is known.

    python -m tests.zoo                          # what is missing or failed
    python -m tests.zoo --library torchvision --only 'resnet|vit' --again

Leaves with status 1 if a chosen network fails whose failure is not a known limit.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is loaded, here and in the processes

from tests.zoo import processes, records, report
from tests.zoo.models import LIBRARIES, cases


def main() -> int:
    """Run from the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.zoo", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--library", choices=LIBRARIES, action="append", help="this library only (may be repeated)")
    parser.add_argument("--only", type=re.compile, default=re.compile(""), metavar="REGEX", help="names that match")
    parser.add_argument("--again", action="store_true", help="also what passed before")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time (2)")
    parser.add_argument("--seconds", type=float, default=processes.SECONDS, help="time limit of a network (300)")
    parser.add_argument("--gigabytes", type=float, default=processes.GIGABYTES, help="its memory limit (6)")
    parser.add_argument("--folder", type=Path, default=records.FOLDER, help="where records are kept (build/zoo)")
    parser.add_argument("--report", type=Path, default=Path("docs") / "coverage.md", help="the page to write")
    options = parser.parse_args()

    every = {library: cases(library) for library in LIBRARIES}
    chosen = [
        case
        for library in options.library or LIBRARIES
        for case in every[library].values()
        if options.only.search(case.name)
    ]
    known = {(c.library, c.name): records.load(options.folder, c.library, c.name) for c in chosen}
    due = [c for c in chosen if options.again or (r := known[c.library, c.name]) is None or not r.passed]
    print(f"{len(chosen)} networks chosen, {len(due)} to check", flush=True)
    for number, record in enumerate(
        processes.run(due, options.folder, options.jobs, options.seconds, options.gigabytes), 1
    ):
        known[record.library, record.name] = record
        print(f"{number:4}/{len(due)} {record.library}/{record.name} {record.total_s:.0f} s: {report.status(record)}",
              flush=True)  # fmt: skip
    options.report.write_text(report.page(every, options.folder), encoding="utf-8")
    limits = {(c.library, c.name) for c in chosen if c.limit}
    failed = [key for key, record in known.items() if key not in limits and (record is None or not record.passed)]
    for library, name in failed:
        print(f"failed: {library}/{name}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
