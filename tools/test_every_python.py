"""Install one wheel under every other CPython >= 3.11 of this machine and run the fast tests there.

`python tools/test_every_python.py dist/millstream-*.whl`. The tests are copied to a temporary folder
first, so that only the installed wheel can be imported. Tests marked `slow`, `real` (they need the real
server) or `tree` (they read the sources) stay out: they have run once under the main interpreter.
Finding no other CPython is not a failure, and is said.
"""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

# Tests wait more than they compute.
WORKERS = "3"
ROOT = Path(__file__).resolve().parent.parent
PROBE = """
import ensurepip, sys, sysconfig
assert sys.implementation.name == "cpython" and not sysconfig.get_config_var("Py_GIL_DISABLED")
print("%d.%d" % sys.version_info[:2])
"""


def candidates() -> list[str]:
    """Interpreters that may exist, nearest first."""
    names = [f"python3.{minor}" for minor in range(11, 20)]
    pyenv = os.environ.get("PYENV_ROOT") or os.path.expanduser("~/.pyenv")
    return [*names, *sorted(glob.glob(f"{pyenv}/versions/3.*/bin/python"))]


def version_of(python: str) -> tuple[int, int] | None:
    """Version of an interpreter; None if it does not run, has no pip or is free-threaded (no abi3 there)."""
    try:
        probe = subprocess.run([python, "-c", PROBE], capture_output=True, text=True, timeout=60)
    except OSError:
        return None
    if probe.returncode != 0:
        return None
    major, minor = probe.stdout.split(".")
    return int(major), int(minor)


def find_others() -> dict[tuple[int, int], str]:
    """One interpreter for each version from 3.11 on other than ours."""
    found: dict[tuple[int, int], str] = {}
    for python in candidates():
        version = version_of(python)
        if version is not None and version >= (3, 11) and version != sys.version_info[:2]:
            found.setdefault(version, python)
    return dict(sorted(found.items()))


def run(*command: str | Path, cwd: Path) -> None:
    """Run a command, its output to ours; end with its status if it fails."""
    status = subprocess.run([str(part) for part in command], cwd=cwd, stdin=subprocess.DEVNULL).returncode
    if status != 0:
        sys.exit(status)


def test_under(python: str, wheel: Path, requirements: list[str]) -> None:
    """Make a fresh environment, install the wheel and run the copied tests."""
    with tempfile.TemporaryDirectory(prefix="millstream-") as folder:
        place = Path(folder)
        shutil.copytree(ROOT / "tests", place / "tests", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", place)
        run(python, "-m", "venv", "venv", cwd=place)
        inside = place / "venv" / "bin" / "python"
        run(inside, "-m", "pip", "install", "--quiet", wheel, *requirements, cwd=place)
        run(inside, "-m", "pytest", "-q", "-n", WORKERS, "-m", "not slow and not real and not tree", cwd=place)


def main() -> None:
    """Test the wheel named on the command line."""
    wheel = Path(sys.argv[1]).resolve()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    others = find_others()
    if not others:
        print("no other CPython >= 3.11 found")
    for version, python in others.items():
        print(f"\n-- CPython {version[0]}.{version[1]}: {python}", flush=True)
        test_under(python, wheel, project["dependency-groups"]["test"])


if __name__ == "__main__":
    main()
