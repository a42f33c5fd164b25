"""What a call can be told besides its prompt."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class NotGiven(enum.Enum):
    """The type of `NOT_GIVEN`."""

    NOT_GIVEN = "NOT_GIVEN"

    def __repr__(self) -> str:
        return "NOT_GIVEN"

    def __bool__(self) -> bool:
        return False


NOT_GIVEN: Final = NotGiven.NOT_GIVEN
"""Stands for an argument that was left out where ``None`` means something."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CompletionConfig:
    """Request fields to use for many calls. A field left at ``None`` is not sent: the server's own default holds.

    Attributes:
        model: Provider's model name, sent as is.
        temperature: Sampling temperature, usually 0 to 2.
        max_tokens: Most tokens of an answer.
        max_completion_tokens: The same under the name that OpenAI's reasoning models want.
        top_p: Nucleus sampling, 0 to 1.
        stop: Text or texts at which the answer ends.
        seed: For answers that can be repeated, where the server can.
        extra: Any other request field, sent untouched.
    """

    model: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    top_p: float | None = None
    stop: str | Sequence[str] | None = None
    seed: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The request fields that are set."""
        names = (each.name for each in fields(self) if each.name != "extra")
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        return {**given, **self.extra}
