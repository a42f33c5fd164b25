"""What a command ends with."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from millstream.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator

DONE = 0
FAILED = 1
REFUSED = 2
INTERRUPTED = 130


class Refused(click.ClickException):
    """Bad input: nothing was sent."""

    exit_code = REFUSED


# A value as it stands behind a name in an error's text; `Timeout(...)` and its like have no option.
_VALUE = r"""(?:True|None|\{[^}]*\}|"[^"]*"|(?![A-Z])[\w.]+|(?=[\s,;:.)]|$))"""


def in_options(text: str, command: click.Command) -> str:
    """An error's text with the options of a command where it names the arguments that are behind them.

    ``retry_failed=True`` is ``--retry-failed``, and ``budget_usd`` is ``--budget-usd``; a common word such as ``model``
    is an argument only with its ``=``.
    """
    for option in command.params:
        if isinstance(option, click.Option) and option.name:
            long = max(option.opts, key=len)
            for off in option.secondary_opts:
                text = re.sub(rf"(?<![\w.\"'-]){option.name}=False\b", off, text)
            text = re.sub(rf"(?<![\w.\"'-]){option.name}={_VALUE}", long, text)
            if "_" in option.name:
                text = re.sub(rf"(?<![\w.\"'-]){option.name}(?![\w=\"'])", long, text)
    return text


@contextmanager
def refusing(*kinds: type[Exception]) -> Iterator[None]:
    """Errors of these kinds in here are faults of what the user gave.

    Args:
        *kinds: Default: all that the checks of arguments and the reading of small files raise.
    """
    refused = kinds or (ConfigurationError, TypeError, OSError)
    try:
        yield
    except refused as error:
        context = click.get_current_context(silent=True)
        raise Refused(str(error) if context is None else in_options(str(error), context.command)) from error
