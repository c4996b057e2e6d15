"""Networks of transformers."""

from __future__ import annotations

from tests.zoo.case import Case

CASES: list[Case] = []
