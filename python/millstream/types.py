"""What calls return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from millstream._millstream import ChatCompletion, ChatMessage, Choice, FunctionCall, ToolCall, Usage

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "ChatCompletion",
    "ChatMessage",
    "Choice",
    "ClientStats",
    "FunctionCall",
    "LimitLevel",
    "Model",
    "ModelList",
    "RateLimiterSnapshot",
    "Record",
    "ToolCall",
    "Usage",
]


class Record(dict[str, Any]):
    """A JSON object of a server whose fields can also be read as attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"this answer has no field {name!r} here") from None


@dataclass(frozen=True, slots=True)
class Model:
    """One model that a server offers.

    Attributes:
        id: The name to call it by.
        created: Unix time in seconds; 0 if the server does not say.
        owned_by: Who owns it; empty if the server does not say.
    """

    id: str
    created: int = 0
    owned_by: str = ""


@dataclass(frozen=True, slots=True)
class ModelList:
    """The models that a server offers.

    Attributes:
        data: One entry a model, in the server's order.
    """

    data: list[Model]

    def __iter__(self) -> Iterator[Model]:
        return iter(self.data)

    def __len__(self) -> int:
        return len(self.data)


@dataclass(frozen=True, slots=True)
class ClientStats:
    """What a client and those derived from it have done so far.

    Attributes:
        requests: Calls and batch items that were begun.
        attempts: HTTP requests sent, retries included.
        retries: Attempts after a first one.
        succeeded: Calls and items answered.
        failed: Calls and items that ended in an error; a cancelled one is in neither.
        in_flight: HTTP requests under way now.
        max_in_flight: The most that were under way at once.
        prompt_tokens: Prompt tokens, as the servers counted them.
        completion_tokens: Completion tokens, as the servers counted them.
    """

    requests: int
    attempts: int
    retries: int
    succeeded: int
    failed: int
    in_flight: int
    max_in_flight: int
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class LimitLevel:
    """One limit of a `RateLimiter` and how much of it is left.

    Attributes:
        unit: What is counted: ``requests``, ``tokens``, ``input_tokens`` or ``output_tokens``.
        per: Length of the window in seconds.
        amount: How many per window.
        capacity: How many may go at once.
        level: How many could go now; negative while in debt.
    """

    unit: str
    per: float
    amount: float
    capacity: float
    level: float


@dataclass(frozen=True, slots=True)
class RateLimiterSnapshot:
    """How full a `RateLimiter` is at one moment.

    Attributes:
        limits: Every limit with its level.
        waiting: How many acquisitions wait.
    """

    limits: tuple[LimitLevel, ...]
    waiting: int
