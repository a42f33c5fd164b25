"""Run a cargo command that links to libpython: `with_libpython.py cargo test`.

A wheel leaves Python's symbols to the interpreter that loads it. A test binary has no interpreter around
it, so it is linked to libpython, which is often not where the linker or the loader look:

- the library's folder is unknown to the loader (pyenv): it goes onto `LD_LIBRARY_PATH`;
- only `libpython3.X.so.1.0` is there, without the plain `.so` name of the -dev package (Debian): a link in
  `target/libpython` gives the linker that name;
- there is no libpython at all (some static builds): nothing can be linked, and the command becomes
  `cargo check --all-targets`, said aloud. The tests of the engine do not need Python and have run before.

`LIBRARY_PATH` rather than `RUSTFLAGS`, since cargo compiles every dependency again when the latter changes.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def libpython() -> Path | None:
    """Path of this interpreter's libpython, shared or static, or None."""
    folders = [sysconfig.get_config_var(name) for name in ("LIBDIR", "LIBPL")]
    names = [sysconfig.get_config_var(name) for name in ("INSTSONAME", "LDLIBRARY", "LIBRARY")]
    candidates = (Path(folder) / name for name in names if name for folder in folders if folder)
    return next((path for path in candidates if path.is_file()), None)


def prepend(variable: str, folder: Path) -> None:
    """Put a folder at the front of a path-like environment variable."""
    os.environ[variable] = os.pathsep.join(filter(None, [str(folder), os.environ.get(variable)]))


def main(command: list[str]) -> None:
    """Replace this process by the command, with libpython within reach."""
    library = libpython()
    if library is None:
        print(f"no libpython beside {sys.executable}: compiling the tests without linking them", flush=True)
        command = ["cargo", "check", "--all-targets", "--locked"]
    else:
        version = sysconfig.get_config_var("LDVERSION") or sysconfig.get_python_version()
        suffix = ".a" if library.suffix == ".a" else ".so"
        link = ROOT / "target" / "libpython" / f"libpython{version}{suffix}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(library)
        prepend("LIBRARY_PATH", link.parent)
        prepend("LD_LIBRARY_PATH", library.parent)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
