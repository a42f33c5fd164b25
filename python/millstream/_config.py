"""What a call can be told besides its prompt."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from millstream._arguments import check, spelt_class
from millstream._millstream import check_timeout
from millstream._not_given import NOT_GIVEN, NotGiven

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@spelt_class
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


@spelt_class
@dataclass(frozen=True, slots=True)
class Timeout:
    """How long the phases of a call may take, in seconds; ``None`` is no limit.

    Where one is taken, a plain number means ``total`` and leaves the other phases as the client has them.

    Attributes:
        total: From the admission (the wait for a place in flight and for the rate limit is before it) to the end of
            the answer, over all attempts and the waits between them.
        connect: To make a connection, in place of the client's ``connect_timeout``. Connections belong to the client,
            so it is given to the client or to ``with_options``; for one call it can only be left out.
        first_byte: From the start of an attempt, a new connection included, to the head of its answer.
        idle: From one piece of an answer's body to the next.

    Raises:
        ConfigurationError: A number is not positive; its name is in the text.
    """

    total: float | None = 600.0
    connect: float | NotGiven | None = field(default=NOT_GIVEN, kw_only=True)
    first_byte: float | None = field(default=None, kw_only=True)
    idle: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        phases = {"total": self.total, "connect": self.connect, "first_byte": self.first_byte, "idle": self.idle}
        check({f"timeout.{phase}": seconds for phase, seconds in phases.items()})
        check_timeout(self)

    @property
    def _phases(self) -> tuple[float | None, tuple[float | None] | None, float | None, float | None]:
        """As the native module reads it."""
        connect = None if isinstance(self.connect, NotGiven) else (self.connect,)
        return self.total, connect, self.first_byte, self.idle
