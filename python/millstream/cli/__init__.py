"""The command ``millstream``: files of requests, single prompts, checks and figures from a shell.

One module a command; what they share begins with an underscore. Needs the extra ``cli`` (click and rich). What ends a
command is its exit code: 0 all done, 1 some failed, 2 bad usage or input, 130 interrupted (143 by SIGTERM).
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_MISSING = "millstream: the command line needs click and rich: pip install 'millstream[cli]'"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: Default: those of the process.

    Returns:
        The exit code.
    """
    try:
        import click
        import rich
    except ImportError:
        print(_MISSING, file=sys.stderr)
        return 2
    del click, rich
    from millstream.cli._app import run

    return run(arguments)
