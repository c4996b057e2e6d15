"""The documentation says what the program does: what it shows is run, what it names exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from autoprune.cli import app

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
GUIDE = ROOT / "docs" / "guide.md"
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def blocks(page: Path, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands_in(page: Path) -> list[list[str]]:
    """Every ``autoprune ...`` line of a page's code, continued lines joined, without comments."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    fenced = re.findall(r"^```.*?\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    indented = re.findall(r"^ {4}.*$", text, re.MULTILINE)
    code = "\n".join([*fenced, *indented])
    lines = re.findall(r"^(?: {4}|\$ )?(?:OMP_NUM_THREADS=\d+ )?autoprune (\w[^\n`]*)$", code, re.MULTILINE)
    inline = re.findall(r"`autoprune (\w[^`\n]*)`", text)
    return [shlex.split(line, comments=True) for line in lines + inline]


def test_guide_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for block in blocks(GUIDE, "console"):
        for line in block.splitlines():
            assert line.startswith("autoprune ")
            result = CliRunner().invoke(app, shlex.split(line)[1:])
            assert result.exit_code == 0, f"{line}\n{result.output}"
    namespace: dict[str, object] = {}
    for block in blocks(GUIDE, "python"):
        exec(compile(block, str(GUIDE), "exec"), namespace)
    assert (tmp_path / "small.onnx").is_file()


def test_examples_of_the_agents_run() -> None:
    (example,) = blocks(ROOT / "docs" / "agents.md", "python")
    namespace: dict[str, Any] = {}
    exec(compile(example, "agents.md", "exec"), namespace)
    space, found = namespace["space"], namespace["info"]
    dense = space.costs(space.dense).macs
    assert found["costs"]["macs"] == space.costs(found["candidate"]).macs <= 0.25 * dense  # the budget that was chosen
    assert namespace["reward"] == pytest.approx(namespace["score"](found["candidate"]))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_exist(page: Path) -> None:
    for name, *arguments in commands_in(page):
        assert name in COMMANDS, f"there is no command {name}"
        known = {option for parameter in COMMANDS[name].params for option in parameter.opts} | {"--help", "-h"}
        used = {argument.split("=")[0] for argument in arguments if re.match(r"--?[a-z]", argument)}
        assert used <= known, f"autoprune {name} has no {used - known}"


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_is_in_the_guide(name: str) -> None:
    assert any(command[0] == name for command in commands_in(GUIDE))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert re.match(r"https?:", target) or (page.parent / target).exists(), f"{page.name} links to {target}"
