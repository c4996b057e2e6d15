"""The command line: one file for each group of commands."""

from autoprune.cli.app import app, main

__all__ = ["app", "main"]
