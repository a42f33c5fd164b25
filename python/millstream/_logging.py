"""The engine's records as those of ``logging.getLogger("millstream")``.

The engine makes a record only if somebody listens: if the logger, or one above it, has a handler and its level lets
the record through. That is looked at when a client is made and a few times a second while calls are made, never for
each record.
"""

from __future__ import annotations

import atexit
import os
import sys
from typing import TYPE_CHECKING, Any

from millstream._millstream import flush_log, refresh_log
from millstream.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable

NAME = "millstream"

TRACE = 5
"""A level below ``logging.DEBUG``, named ``trace`` in ``MILLSTREAM_LOG``."""

_LEVELS = {"trace": TRACE, "debug": 10, "info": 20, "warning": 30}
_VARIABLE = "MILLSTREAM_LOG"
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

_was_read: str | None = None


def prepare() -> None:
    """Look who listens, for a client that is made; ``MILLSTREAM_LOG`` makes stderr listen.

    Raises:
        ConfigurationError: ``MILLSTREAM_LOG`` is no level.
    """
    global _was_read
    wanted = os.environ.get(_VARIABLE, "").strip().lower()
    if wanted and wanted != _was_read:
        if wanted not in _LEVELS:
            raise ConfigurationError(f"{_VARIABLE} must be one of {', '.join(_LEVELS)}, not {wanted[:20]!r}")
        import logging

        logger = logging.getLogger(NAME)
        logger.setLevel(_LEVELS[wanted])
        if not logger.hasHandlers():
            handler = logging.StreamHandler()
            handler.setFormatter(logging.Formatter(_FORMAT))
            logger.addHandler(handler)
        _was_read = wanted
    refresh_log()


def level() -> int | None:
    """The least level that somebody listens to; None if nobody does."""
    # Whoever has not imported it has no handler.
    if "logging" not in sys.modules:
        return None
    import logging

    logger = logging.getLogger(NAME)
    if logger.disabled or not logger.hasHandlers():
        return None
    # Levels of the engine's records end at 30, and 254 is as deaf as anything above it.
    return min(max(logger.getEffectiveLevel(), logger.manager.disable + 1, 1), 254)


def hand_over(records: Iterable[tuple[float, int, str, dict[str, Any]]], lost: int) -> None:
    """Give records to the logger as if they had been made where it happened, when it happened."""
    import logging

    logger = logging.getLogger(NAME)
    for created, levelno, event, known in records:
        if not logger.isEnabledFor(levelno):
            continue
        name = logging.getLevelName(levelno) if levelno != TRACE else "TRACE"
        facts = {"levelno": levelno, "levelname": name, "event": event, **known}
        record = logger.makeRecord(NAME, levelno, "(millstream's engine)", 0, _message(event, known), (), None)
        record.__dict__.update(facts, created=created, msecs=created % 1 * 1000)
        logger.handle(record)
    if lost:
        logger.warning("%d records of millstream were lost: too many at once", lost)


_SHOWN = {
    "wait": "again in {:.2f} s",
    "retry_after": "asked to wait {:.2f} s",
    "elapsed": "after {:.2f} s",
    "queued": "after {:.2f} s in the line",
}


def _message(event: str, known: dict[str, Any]) -> str:
    """``call 3: retry: attempt 2, status 429, again in 1.20 s``, without anything that formatting would touch."""
    said = [
        _SHOWN[name].format(value) if name in _SHOWN else f"{name} {value}"
        for name, value in known.items()
        if name != "call"
    ]
    call = f"call {known['call']}: " if "call" in known else ""
    return f"{call}{event}: {', '.join(said)}"


atexit.register(flush_log)
