"""What is built in and what is installed beside it: licences, sources, known vulnerabilities.

`python tools/audit.py [--offline] [--require-advisories]`, by cargo-deny (`deny.toml`) and pip-audit. Licences, banned
crates and sources are read from what is on this machine and must pass. The lists of known vulnerabilities are other
people's servers: where they cannot be reached that is said and is no failure, unless `--require-advisories`. A
vulnerability that is found always is one. `--offline` leaves the lists out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
PATIENCE_S = 180
# What either says when it did not come so far as to look. Both end with the same code as for a vulnerability.
UNREACHABLE = (
    "failed to fetch advisory database",
    "unable to fetch",
    "could not resolve host",
    "connection to",
    "connectionerror",
    "max retries exceeded",
    "timed out",
    "temporary failure in name resolution",
)


def run(*command: str) -> tuple[int, str]:
    """A command's code and all that it says; one that hangs has timed out."""
    print(f"-- {Path(command[0]).name} {' '.join(command[1:])}", flush=True)
    try:
        done = subprocess.run(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE_S
        )
    except subprocess.TimeoutExpired:
        return 1, f"timed out after {PATIENCE_S} s"
    return done.returncode, done.stdout + done.stderr


def is_unreachable(said: str) -> bool:
    """Whether a list could not be had, rather than that something stands in it."""
    return any(sign in said.lower() for sign in UNREACHABLE)


def look(known: Sequence[str], require: bool) -> bool:
    """Run a command that asks a list of vulnerabilities; whether all is well."""
    code, said = run(*known)
    is_found = code != 0 and not is_unreachable(said)
    # pip-audit passes over what its list does not know, and is content.
    is_looked_at = code == 0 and "could not be audited" not in said
    if is_looked_at:
        print(said.strip().splitlines()[-1] if said.strip() else "ok")
        return True
    if not is_found and not require:
        print("the list cannot be reached from here: not looked at")
        return True
    print(said)
    return False


def installed_beside() -> str:
    """What `pip install millstream[cli]` would bring along today, pinned."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    asked = [requirement for extra in extras.values() for requirement in extra]
    command = (sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-")
    done = subprocess.run([*command, *asked], capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    found = (item["metadata"] for item in json.loads(done.stdout)["install"])
    return "".join(f"{item['name']}=={item['version']}\n" for item in found)


def main() -> int:
    """Look at all of it; 1 if something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--offline", action="store_true", help="licences, bans and sources alone")
    parser.add_argument("--require-advisories", action="store_true", help="fail if a list cannot be reached")
    given = parser.parse_args()
    deny = str(BIN / "cargo-deny")
    code, said = run(deny, "--locked", "check", "bans", "licenses", "sources")
    print(said if code else said.strip().splitlines()[-1])
    well = code == 0
    if not given.offline:
        well &= look([deny, "--locked", "check", "advisories"], given.require_advisories)
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as pinned:
            pinned.write(installed_beside())
            pinned.flush()
            how = ("--disable-pip", "--no-deps", "--timeout", "10", "--progress-spinner", "off")
            well &= look([str(BIN / "pip-audit"), "-r", pinned.name, *how], given.require_advisories)
    return 0 if well else 1


if __name__ == "__main__":
    raise SystemExit(main())
