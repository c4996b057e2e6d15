"""The libraries of the zoo, and where their lists of networks are. A list is imported only when it is needed."""

from __future__ import annotations

import importlib

from tests.zoo.case import Case

LIBRARIES = ("torchvision", "timm", "transformers")


def cases(library: str) -> dict[str, Case]:
    """The networks of a library by name: `CASES` of ``tests/zoo/<library>_models.py``."""
    found: list[Case] = importlib.import_module(f"tests.zoo.{library}_models").CASES
    by_name = {case.name: case for case in found}
    assert len(by_name) == len(found), "names must be unique within a library"
    assert all(case.library == library for case in found)
    return dict(sorted(by_name.items()))
