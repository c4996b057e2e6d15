"""Build the wheel, install it where nothing else of autoprune is, and import it module by module.

    python -m tests.check_wheel

The source distribution is built first and the wheel from it, so both are known to be complete; then the wheel goes
alone into a new virtual environment and is used from another folder. Checked: what the wheel holds, that each module
can be the first one imported, without the packages of the optional extras, and that the command answers.

Not checked: that pip finds the dependencies. They are borrowed from the environment that runs this, so that several
gigabytes are not installed twice.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from tests.layout import FOLDERS, ROOT, import_names, optional, sources


def main() -> None:
    """Run every check in a temporary folder; leave with status 1 and the reason at the first that fails."""
    with tempfile.TemporaryDirectory(prefix="autoprune-wheel-") as folder:
        scratch = Path(folder).resolve()
        wheel = build(scratch / "dist")
        check_contents(wheel)
        python = install(wheel, scratch / "venv")
        script = ROOT / "tests" / "import_each.py"
        blocked = sorted(module for name in optional() for module in import_names(name))
        _run(python, "-I", script, ",".join(modules()), ",".join(blocked), scratch, cwd=scratch)
        print(_run(python.with_name("autoprune"), "--help", cwd=scratch).splitlines()[0])
    print(f"{wheel.name}: {len(modules())} modules imported, each first in its process")


def modules() -> list[str]:
    """Return the names of the modules to import: all but `__main__`, which would start the program."""
    return [name for name in sources() if not name.endswith("__main__")]


def build(target: Path) -> Path:
    """Build the source distribution and, from it, the wheel; return the wheel's path."""
    _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", target, ROOT)
    (wheel,) = target.glob("*.whl")
    return wheel


def check_contents(wheel: Path) -> None:
    """Everything lies under autoprune/, every module of the checkout is there, and the type marker too."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    expected = {"autoprune/py.typed"}
    for package, folder in FOLDERS.items():
        inside = [path for name, path in sources().items() if path.is_relative_to(ROOT / folder)]
        expected |= {f"{package.replace('.', '/')}/{path.relative_to(ROOT / folder).as_posix()}" for path in inside}
    shipped = {name for name in names if ".dist-info/" not in name}
    if shipped != expected:
        sys.exit(
            f"missing from the wheel: {sorted(expected - shipped)}; not expected in it: {sorted(shipped - expected)}"
        )
    if not any(name.endswith(".dist-info/licenses/LICENSE") for name in names):
        sys.exit("the wheel holds no LICENSE")


def install(wheel: Path, venv: Path) -> Path:
    """Make a virtual environment that holds the wheel and reaches this one's packages; return its Python."""
    _run(sys.executable, "-m", "venv", "--without-pip", venv)
    python = venv / "bin" / "python"
    _run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps", wheel)
    paths = _run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    # A path named in a .pth file is searched last, and its own .pth files are not read: the editable autoprune of this
    # environment stays out of sight.
    borrowed = [path for path in sys.path if path.endswith("site-packages")]
    (Path(paths) / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    return python


def _run(*command: object, cwd: Path = ROOT) -> str:
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(str(part) for part in command)[:200]} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
