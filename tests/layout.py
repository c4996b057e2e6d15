"""What the repository says about itself: folders, packages, requirements, and who imports whom.

Shared by `test_packaging.py`, which looks at the checkout, and `check_wheel.py`, which looks at what is shipped.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
FOLDERS = {"autoprune": "autoprune", "autoprune.agents": "agents", "autoprune.search_spaces": "search_spaces"}
"""Package -> its folder, from the repository's root. Subpackages lie inside."""


def pyproject() -> dict[str, Any]:
    """Return the parsed pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def requirement_name(requirement: str) -> str:
    """``"Tomli_W>=1.1; python_version < '3.11'"`` -> ``tomli-w``."""
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match, requirement
    return re.sub(r"[._]+", "-", match[0].lower())


def required() -> set[str]:
    """Return the distributions that every install brings."""
    return {requirement_name(text) for text in pyproject()["project"]["dependencies"]}


def optional() -> set[str]:
    """Return the distributions that only an extra brings, the tools of the test extra left out."""
    extras = pyproject()["project"]["optional-dependencies"]
    names = {requirement_name(text) for extra, texts in extras.items() if extra != "test" for text in texts}
    return names - required() - {"autoprune"}


def import_names(name: str) -> set[str]:
    """Return what a distribution is imported as, ``scikit-learn`` -> ``{"sklearn"}``; a guess where it is missing."""
    try:
        files = distribution(name).files or []
    except PackageNotFoundError:
        return {name.replace("-", "_")}
    packages = {file.parts[0] for file in files if len(file.parts) == 2 and file.name == "__init__.py"}
    return packages | {file.stem for file in files if len(file.parts) == 1 and file.suffix == ".py"}


def sources() -> dict[str, Path]:
    """Return module name -> file for every module of the three packages, links not followed."""
    found = {}
    for package, folder in FOLDERS.items():
        base = ROOT / folder
        for path in sorted(base.rglob("*.py")):
            parts = path.relative_to(base).with_suffix("").parts
            if not any((base / Path(*parts[:depth])).is_symlink() for depth in range(1, len(parts))):
                name = ".".join([package, *parts])
                found[name.removesuffix(".__init__")] = path
    return found


@dataclass(frozen=True)
class Import:
    """One imported module, and whether importing the importer needs it at once."""

    target: str
    line: int
    eager: bool


def imports(path: Path, module: str) -> list[Import]:
    """Return every import in a file, those inside functions and under TYPE_CHECKING as not eager."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return list(_imports(ast.parse(path.read_text()), package, eager=True))


def _imports(node: ast.AST, package: str, *, eager: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        yield from (Import(alias.name, node.lineno, eager) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        source = ".".join([*base, *([node.module] if node.module else [])])
        # `from autoprune import agents` imports autoprune.agents: name the member too
        yield Import(source, node.lineno, eager)
        yield from (Import(f"{source}.{alias.name}", node.lineno, eager) for alias in node.names)
    typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    lazy = typing_only or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
    for child in ast.iter_child_nodes(node):
        yield from _imports(child, package, eager=eager and not lazy)
