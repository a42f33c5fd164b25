"""Values of options: numbers and times as people write them, request fields as JSON."""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

    _ParamType = click.ParamType[Any]
else:
    _ParamType = click.ParamType  # whether it is generic at run time depends on the version

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}
_SECONDS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class Count(_ParamType):
    """``500``, ``200_000``, ``200k`` or ``1.5M``: more than nothing."""

    name = "number"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        """The number."""
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            number: float = value
        else:
            found = re.fullmatch(r"(\d[\d_,]*(?:\.\d+)?)\s*([kMG]?)", str(value))
            if not found:
                self.fail(f"{value!r} is no number such as 500, 200k or 1.5M", parameter, context)
            number = float(re.sub("[_,]", "", found[1])) * _UNITS[found[2]]
        if not number > 0:
            self.fail("it must be above 0", parameter, context)
        return int(number) if number == int(number) else number


class Seconds(_ParamType):
    """``90``, ``90s``, ``5m``, ``2h`` or ``1.5d``, in seconds."""

    name = "seconds"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        """The seconds."""
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|[smhd]?)", str(value))
        if not found:
            self.fail(f"{value!r} is no time such as 90, 90s, 5m or 2h", parameter, context)
        return float(found[1]) * _SECONDS[found[2]]


class CountOrAuto(_ParamType):
    """A whole number, or ``auto``."""

    name = "number|auto"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        """The number or ``"auto"``."""
        if value == "auto":
            return value
        if not re.fullmatch(r"[1-9]\d{0,8}", str(value)):
            self.fail(f'{value!r} is neither a whole number above 0 nor "auto"', parameter, context)
        return int(value)


class NamedFile(click.Path):
    """A file by its name. ``-`` is none: what is read twice, or gone on with later, cannot be a stream."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        """The path."""
        if value == "-":
            self.fail("- is no file: a stream cannot be read twice, nor gone on with", parameter, context)
        return super().convert(value, parameter, context)


class CachePlace(click.Path):
    """Where answers are kept: a folder, ``disk`` for the usual one, or a URL."""

    name = "path"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        """What `Cache` takes; a name alone is a folder's here."""
        text = str(value)
        return text if text == "disk" or "://" in text else os.path.join(".", text)


FIELDS = "millstream.fields"
"""Where the context keeps the configuration file's request fields."""

COUNT = Count()
SECONDS = Seconds()
COUNT_OR_AUTO = CountOrAuto()
INPUT = NamedFile(exists=True, dir_okay=False)
OUTPUT = NamedFile(dir_okay=False)
CACHE = CachePlace()


def fields_of(context: click.Context, parameter: click.Parameter, given: Sequence[str]) -> dict[str, Any]:
    """``--param name=value`` as request fields, over those of the configuration file."""
    fields: dict[str, Any] = dict(context.meta.get(FIELDS, {}))
    for each in given:
        name, equals, text = each.partition("=")
        if not equals or not name.strip():
            raise click.BadParameter(f"{each!r} is not of the form name=value", context, parameter)
        try:
            fields[name.strip()] = json.loads(text)
        except ValueError:
            fields[name.strip()] = text
    return fields
