"""`python -m autoprune` is `autoprune`."""

from __future__ import annotations

from autoprune.cli import main

main()
