from __future__ import annotations

import json
import shutil
import stat
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import autoprune
from autoprune import trust
from autoprune.cli import app
from autoprune.config import SearchConfig
from autoprune.data import load_data
from autoprune.importing import import_function
from autoprune.models import ModelSource
from autoprune.search_spaces.errors import UserError
from autoprune.trust import check_trusted, new_id, remember, risks
from autoprune.workbench import rebuild_workbench
from tests.autoprune.runs import DIGITS, NET, QUICK

PLAIN = SearchConfig(budget=("macs=0.5x",), id=new_id(), model="torchvision:resnet18", data="digits")
OWN = replace(PLAIN, data="my_data:loaders")

COMMANDS = [
    ["resume"],
    ["profile", "--levels", "1", "--samples", "8"],
    ["proxy", "--candidates", "5"],
    ["finetune", "--epochs", "1"],
    ["export"],
]


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another user's state folder, empty."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "autoprune" / "trusted.json"


# -- the rule ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"model": "timm:resnet18.a1_in1k", "model_args": {"num_classes": 10, "drop_rate": 0.1, "act_layer": "relu"}},
        {"model": "autoprune.nets:digits_resnet", "model_args": {"widths": [8, 16]}},
        {"model": None, "data": None, "score": "python"},
        {"score": "kl", "runtimes": ("eager:precision=bf16", "onnxruntime")},
    ],
)
def test_what_runs_no_code_and_stays_in_its_folder_needs_no_trust(settings: dict[str, Any]) -> None:
    assert risks(replace(PLAIN, **settings)) == {}
    check_trusted(replace(PLAIN, **settings, id=None), "runs/x", trust=False)


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("model", "my_nets:make", "my_nets:make()"),
        ("model", "timm:hf-hub:somebody/something", "hf-hub"),
        ("model", "timm:local-dir:/x", "local-dir"),
        ("model", "autoprune.nets:torch.hub.load", "torch.hub.load"),
        ("model_args", {"weights": "DEFAULT"}, 'weights="DEFAULT"'),
        ("model_args", {"pretrained": True}, "pretrained=true"),
        ("model_args", {"norm": {"file": 3}}, "file"),
        ("model_args", {"norm": ["os.system"]}, "os.system"),
        ("weights", "/home/ann/dense.pt", "reads /home/ann/dense.pt"),
        ("data", "my_data:loaders", "calls my_data:loaders()"),
        ("data", "imagefolder:/home/ann", "the images in /home/ann"),
        ("data_root", "/home/ann", "downloads"),
        ("score", "my_scores:f1", "calls my_scores:f1"),
        ("runtimes", ("eager", "phone=command:./time.sh"), 'runs ["phone=command:./time.sh"]'),
        ("device_profile", "/home/ann/.profile", "writes /home/ann/.profile"),
    ],
)
def test_everything_that_runs_code_or_reaches_out_is_a_risk(setting: str, value: Any, said: str) -> None:
    config = replace(PLAIN, **{setting: value})
    with pytest.raises(UserError) as raised:
        check_trusted(config, "runs/x", trust=False)
    message = str(raised.value)
    assert all(words in message for words in ("runs/x", "--trust", "trust=True", said))
    remember(config)
    check_trusted(config, "runs/x", trust=False)
    with pytest.raises(UserError):
        check_trusted(replace(config, id=new_id()), "runs/y", trust=False)


def test_trusting_once_is_enough_until_a_line_changes(elsewhere: Path) -> None:
    with pytest.raises(UserError, match="did not start it here"):
        check_trusted(OWN, "x", trust=False)
    check_trusted(OWN, "x", trust=True)
    check_trusted(OWN, "x", trust=False)
    check_trusted(replace(OWN, trials=7, seed=3), "x", trust=False)
    with pytest.raises(UserError, match="my_data:others"):
        check_trusted(replace(OWN, data="my_data:others"), "x", trust=False)
    with pytest.raises(UserError, match="score: calls my_scores:f1"):
        check_trusted(replace(OWN, score="my_scores:f1"), "x", trust=False)


def test_arguments_are_the_same_after_they_were_stored(elsewhere: Path, tmp_path: Path) -> None:
    config = replace(PLAIN, model="my_nets:make", model_args={"widths": (8, 16), "bias": None, "name": "a b"})
    remember(config)
    config.write(tmp_path)
    check_trusted(SearchConfig.read(tmp_path), "x", trust=False)


def test_a_run_without_an_id_is_trusted_each_time(elsewhere: Path) -> None:
    old = replace(OWN, id=None)
    with pytest.raises(UserError, match="older release"):
        check_trusted(old, "x", trust=False)
    check_trusted(old, "x", trust=True)
    with pytest.raises(UserError, match="older release"):
        check_trusted(old, "x", trust=False)


def test_a_module_of_autoprune_does_not_open_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    import_function("autoprune.nets:digits_resnet", "model")
    assert str(tmp_path) not in sys.path  # or a plotly.py beside a run from elsewhere would be imported next


# -- the file ---------------------------------------------------------------------------------------------------------


def test_the_file_is_for_its_user_only_and_does_not_grow_for_ever(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trust, "MOST", 3)
    configs = [replace(OWN, id=new_id()) for _ in range(5)]
    for config in configs:
        remember(config)
        remember(config)
    assert stat.S_IMODE(elsewhere.stat().st_mode) == 0o600
    assert len(json.loads(elsewhere.read_text())["trusted"]) == 3
    check_trusted(configs[-1], "x", trust=False)
    with pytest.raises(UserError):
        check_trusted(configs[0], "x", trust=False)


def test_nothing_is_written_where_there_is_nothing_to_trust(elsewhere: Path) -> None:
    remember(PLAIN)
    check_trusted(PLAIN, "x", trust=True)
    assert not elsewhere.parent.exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff", b'{"format": 2, "trusted": []}', b'{"format": 1, "trusted": [1, null]}', b"[" * 10**5],
)
def test_a_damaged_file_trusts_nobody_and_is_written_anew(elsewhere: Path, content: bytes) -> None:
    elsewhere.parent.mkdir(parents=True)
    elsewhere.write_bytes(content)
    with pytest.raises(UserError):
        check_trusted(OWN, "x", trust=False)
    check_trusted(OWN, "x", trust=True)
    check_trusted(OWN, "x", trust=False)


def test_where_nothing_can_be_written_it_warns_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="needs --trust"):
        remember(OWN)
    with pytest.warns(UserWarning, match="cannot be written"):
        check_trusted(OWN, "x", trust=True)
    with pytest.raises(UserError):
        check_trusted(OWN, "x", trust=False)


def test_a_user_without_a_home_is_asked_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(cls: type[Path]) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setattr(Path, "home", classmethod(nowhere))
    with pytest.warns(UserWarning, match="needs --trust"):
        remember(OWN)
    with pytest.raises(UserError, match="did not start it here"):
        check_trusted(OWN, "x", trust=False)


def test_a_relative_state_folder_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    remember(OWN)
    assert (tmp_path / "home" / ".local" / "state" / "autoprune" / "trusted.json").is_file()


def test_nobody_is_forgotten_where_many_write_at_once(elsewhere: Path) -> None:
    configs = [replace(OWN, id=new_id()) for _ in range(40)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(remember, configs))
    for config in configs:
        check_trusted(config, "x", trust=False)


# -- whole runs -------------------------------------------------------------------------------------------------------

MODULE = """
from pathlib import Path
Path({marker!r}).touch()
from autoprune.data import load_data
from autoprune.nets import small_resnet
def loaders():
    return load_data("digits")
def net():
    return small_resnet(widths=(8, 16), blocks=(1, 1))
def score(model, batches):
    return 0.5
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that names nothing but what is built in."""
    run = tmp_path_factory.mktemp("trust") / "r"
    result = call(
        "search", *NET, *DIGITS, *QUICK, "--budget", "macs=0.5x", "--trials", "2", "--points", "1", "--run", run
    )
    assert result.exit_code == 0, result.output
    return run


@pytest.fixture
def evil(tmp_path: Path, finished: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder as it may come by mail, unpacked where the user stands, with a module that leaves a marker."""
    run = tmp_path / "mail" / "r"
    shutil.copytree(finished, run)
    (run.parent / "evil_module.py").write_text(MODULE.format(marker=str(tmp_path / "marker")))
    script = run.parent / "evil.sh"
    script.write_text(f"#!/bin/sh\ntouch {tmp_path / 'marker'}\necho 1.5\n")
    script.chmod(0o755)
    monkeypatch.chdir(run.parent)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "evil_module", raising=False)
    return run


def forged(run: Path, **settings: Any) -> SearchConfig:
    config = replace(SearchConfig.read(run), **settings)
    config.write(run)
    return config


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
@pytest.mark.parametrize(
    "settings",
    [
        {"model": "evil_module:net", "model_args": {}},
        {"data": "evil_module:loaders"},
        {"score": "evil_module:score"},
        {"runtimes": ("phone=command:./evil.sh",)},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_no_command_runs_what_a_foreign_run_names(
    evil: Path, tmp_path: Path, command: list[str], settings: dict[str, Any]
) -> None:
    forged(evil, **settings)
    if command[0] == "export":  # which builds the model only, as the exported folder names it
        path = evil / "front" / "0" / "architecture.json"
        content = json.loads(path.read_text())
        content["source"] = {"spec": "evil_module:net", "kwargs": {}, "weights": None}
        path.write_text(json.dumps(content))
    result = call(command[0], evil, *command[1:])
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert all(word in line for word in ("evil", "--trust"))
    assert not (tmp_path / "marker").exists()
    assert "evil_module" not in sys.modules


def test_show_reads_a_foreign_run(evil: Path, tmp_path: Path) -> None:
    forged(evil, model="evil_module:net", data="evil_module:loaders")
    assert call("show", evil, "--trials").exit_code == 0
    assert call("show", evil, "--json").exit_code == 0
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_with_trust_the_commands_run_and_need_it_once(evil: Path, tmp_path: Path, command: list[str]) -> None:
    # the model that the module makes is the very one that the run was made with
    forged(evil, model="evil_module:net", model_args={})
    path = evil / "front" / "0" / "architecture.json"
    content = json.loads(path.read_text())
    content["source"] = {"spec": "evil_module:net", "kwargs": {}, "weights": None}
    path.write_text(json.dumps(content))
    more = ["--out", str(tmp_path / "first")] if command[0] == "export" else []
    result = call(command[0], evil, *command[1:], *more, "--trust")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "marker").exists()
    if command[0] == "export":
        more = ["--out", str(tmp_path / "second")]
    assert call(command[0], evil, *command[1:], *more).exit_code == 0


def test_own_runs_need_nothing_and_other_users_are_asked(
    tmp_path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_module.py").write_text(MODULE.format(marker=str(tmp_path / "marker")))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    own = ["--model", "own_module:net", "--data", "own_module:loaders", "--calibration-samples", "100"]
    result = call("search", *own, *QUICK, "--budget", "macs=0.5x", "--trials", "1", "--points", "1", "--run", "r")
    assert result.exit_code == 0, result.output
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert autoprune.resume("r", trials=1).trials[1].state == "complete"
    assert call("export", "r", "--out", tmp_path / "first").exit_code == 0

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "theirs"))
    for function in (autoprune.resume, autoprune.profile):
        with pytest.raises(UserError, match="own_module:loaders"):
            function("r")
    assert call("export", "r", "--out", tmp_path / "second").exit_code == 2
    assert len(autoprune.resume("r", trust=True).trials) == 2
    assert call("resume", "r").exit_code == 0
    assert call("export", "r", "--out", tmp_path / "second").exit_code == 0


def test_objects_from_python_take_the_place_of_what_is_named(evil: Path, tmp_path: Path) -> None:
    before = SearchConfig.read(evil)
    config = forged(evil, model="evil_module:net", data="evil_module:loaders", score="evil_module:score")
    made = ModelSource(str(before.model), before.model_args).build()
    rebuild_workbench(config, evil, model=made, data=load_data("digits"), score=lambda model, batches: 0.5)
    with pytest.raises(UserError, match="score: calls evil_module:score"):
        rebuild_workbench(config, evil, model=made, data=load_data("digits"))
    with pytest.raises(UserError, match="data: calls evil_module:loaders"):
        rebuild_workbench(config, evil, model=made, data="digits", score=lambda model, batches: 0.5)
    assert not (tmp_path / "marker").exists()


def test_a_foreign_run_connects_nowhere_before_its_storage_is_named(
    evil: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even to a file: a folder from elsewhere could open, and empty, another run's study."""
    shutil.copy(evil / "study.db", tmp_path / "mine.db")
    before = (tmp_path / "mine.db").read_bytes()
    url = f"sqlite:///{tmp_path / 'mine.db'}"
    config = replace(SearchConfig.read(evil), id=new_id(), storage=url, study=evil.name)
    config.write(evil)
    commands: list[list[str | Path]] = [["show", evil], ["resume", evil, "--trust"]]
    for command in commands:
        result = call(*command)
        assert result.exit_code == 2
        assert "keeps its trials at" in result.stderr
        assert "--storage" in result.stderr
    assert (tmp_path / "mine.db").read_bytes() == before
    remember(config, ["storage"])
    assert "keeps its trials at" not in call("show", evil).stderr
