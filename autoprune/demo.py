"""`python -m autoprune.demo`: from a dense network to exported subnets on real images, in a minute or two.

It runs the commands that it prints, in this process. Everything goes to ``runs/demo``, which it makes anew each time.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

import typer

from autoprune.cli import app

FOLDER = Path("runs") / "demo"
MARK = ".made-by-autoprune-demo"
MODEL = ["--model", "autoprune.nets:digits_resnet", "--data", "digits", "--search-size", "0.2"]


def commands(folder: Path) -> list[list[str]]:
    """The commands of the demo, without ``autoprune`` in front."""
    weights, run = str(folder / "dense.safetensors"), str(folder / "search")
    return [
        ["train", *MODEL, "--epochs", "15", "--out", weights],
        [
            *["search", *MODEL, "--weights", weights],
            *["--budget", "macs=0.4x", "--budget", "latency=0.95x", "--sweep", "1", "--sweep", "0.85"],
            *["--trials", "60", "--seed", "0"],
            *["--finetune-epochs", "8", "--finetune-arg", "lr=0.05", "--format", "onnx", "--run", run],
        ],
    ]


def main(folder: Path = FOLDER) -> int:
    """Run the demo in `folder`; return the exit code of the first command that fails, else 0."""
    if folder.exists() and not (folder / MARK).exists():
        print(f"error: {folder} exists and was not made by the demo. Move it away.", file=sys.stderr)
        return 2
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch is not loaded yet; so small a network is fastest on one
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / MARK).touch()
    for command in commands(folder):
        print(f"$ OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']} autoprune {shlex.join(command)}", flush=True)
        code = run(command)
        if code:
            return code
        print(flush=True)
    return 0


def run(command: list[str]) -> int:
    """Run one command of the command line in this process; return its exit code."""
    result = typer.main.get_command(app).main(command, prog_name="autoprune", standalone_mode=False)
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    sys.exit(main())
