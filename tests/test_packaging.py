"""The layout that packaging depends on: links, guards, the package list, and who may import whom."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.layout import (
    FOLDERS,
    ROOT,
    import_names,
    imports,
    optional,
    pyproject,
    required,
    requirement_name,
    sources,
)

MAY_IMPORT = {
    "autoprune.search_spaces": ("autoprune.search_spaces",),
    "autoprune.agents": ("autoprune.agents", "autoprune.search_spaces"),
}
"""Package -> what it may import of autoprune; the engine may import everything."""


@pytest.mark.parametrize("name", ["agents", "search_spaces"])
def test_links_are_relative_and_lead_to_the_folders(name: str) -> None:
    link = ROOT / "autoprune" / name
    assert link.is_symlink(), f"autoprune/{name} must be a link to ../{name}; on Windows: git config core.symlinks true"
    assert os.readlink(link) == f"../{name}"
    assert link.resolve() == ROOT / name


def test_every_package_is_named_for_the_wheel() -> None:
    """A forgotten one would work from the checkout and be missing from the wheel."""
    found = {name for name, path in sources().items() if path.name == "__init__.py"}
    assert set(pyproject()["tool"]["setuptools"]["packages"]) == found


def test_every_source_lies_in_a_package() -> None:
    """A folder without an __init__.py would be left out of the wheel."""
    alone = [path for path in sources().values() if not (path.parent / "__init__.py").exists()]
    assert not alone


def test_every_test_folder_is_a_package() -> None:
    """Otherwise two test files of one name in two folders get in each other's way."""
    folders = {path.parent for path in (ROOT / "tests").rglob("*.py")}
    assert not [folder for folder in folders if not (folder / "__init__.py").exists()]


def test_package_dir_matches_the_folders() -> None:
    assert pyproject()["tool"]["setuptools"]["package-dir"] == FOLDERS


@pytest.mark.parametrize("name", ["agents", "search_spaces"])
def test_guard_refuses_the_folder_as_a_top_level_package(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("ImportError: ")
    assert f"autoprune.{name}" in message


@pytest.mark.parametrize("module", [name for name in sources() if not name.endswith("__main__")])
def test_module_can_be_imported(module: str) -> None:
    path = importlib.import_module(module).__file__
    assert path is not None
    assert Path(path).resolve() == sources()[module]


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_go_one_way(package: str) -> None:
    allowed = MAY_IMPORT[package]
    wrong = [
        f"{path.relative_to(ROOT)}:{found.line} imports {found.target}"
        for module, path in sources().items()
        if _within(module, package)
        for found in imports(path, module)
        if found.target.startswith("autoprune.") and not any(_within(found.target, name) for name in allowed)
    ]
    assert not wrong, "\n".join(wrong)


def test_nothing_imports_the_folders_by_their_bare_names() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{found.line} imports {found.target}"
        for module, path in sources().items()
        for found in imports(path, module)
        if found.target.split(".")[0] in {"agents", "search_spaces", "tests"}
    ]
    assert not wrong, "\n".join(wrong)


def test_imported_distributions_are_required() -> None:
    """What a module needs at once comes with every install; what a function loads may come with an extra."""
    at_once = {module for name in required() for module in import_names(name)}
    at_once |= {"autoprune", "tomllib", *sys.stdlib_module_names}
    later = at_once | {module for name in optional() for module in import_names(name)}
    wrong = [
        f"{path.relative_to(ROOT)}:{found.line} imports {found.target}"
        for module, path in sources().items()
        for found in imports(path, module)
        if found.target.split(".")[0] not in (at_once if found.eager else later)
    ]
    assert not wrong, "\n".join(wrong)


def test_install_lines_name_extras_that_exist() -> None:
    extras = set(pyproject()["project"]["optional-dependencies"])
    files = [*sources().values(), *ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "Makefile"]
    named = {(path.name, extra) for path in files for extra in re.findall(r"autoprune\[([\w-]+)\]", path.read_text())}
    assert not {(name, extra) for name, extra in named if extra not in extras}


def test_constraints_pin_every_direct_dependency_once_per_python() -> None:
    project = pyproject()["project"]
    texts = [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]
    direct = {requirement_name(text) for text in texts} - {"autoprune"}
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all("==" in line for line in lines)
    assert {requirement_name(line) for line in lines} == direct
    keys = [(requirement_name(line), line.partition(";")[2]) for line in lines]
    assert len(keys) == len(set(keys))


def test_import_reader_sees_members_relative_and_lazy_imports(tmp_path: Path) -> None:
    """The checks above stand on this reader."""
    file = tmp_path / "module.py"
    file.write_text(
        "from autoprune import agents\n"
        "from ..engine import study\n"
        "def load() -> None:\n"
        "    import timm.models\n"
        "if TYPE_CHECKING:\n"
        "    import onnx\n"
    )
    found = {(item.target, item.eager) for item in imports(file, "autoprune.search_spaces.module")}
    assert ("autoprune.agents", True) in found
    assert ("autoprune.engine.study", True) in found
    assert ("timm.models", False) in found
    assert ("onnx", False) in found


def _within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")
