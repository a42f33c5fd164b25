"""What a command ends with."""

from __future__ import annotations

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
        raise Refused(str(error)) from error
