"""The value of an argument that was left out where ``None`` means something."""

from __future__ import annotations

import enum
from typing import Final


class NotGiven(enum.Enum):
    """The type of `NOT_GIVEN`."""

    NOT_GIVEN = "NOT_GIVEN"

    def __repr__(self) -> str:
        return "NOT_GIVEN"

    def __bool__(self) -> bool:
        return False


NOT_GIVEN: Final = NotGiven.NOT_GIVEN
"""Stands for an argument that was left out where ``None`` means something."""
