"""The report: one self-contained page with everything about a run."""

from autoprune.report.write import write_report

__all__ = ["write_report"]
