"""What calls return."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Generic, TypedDict, TypeVar

from millstream._millstream import (
    ChatCompletion,
    ChatMessage,
    Choice,
    Completion,
    CreateEmbeddingResponse,
    CustomCall,
    Embedding,
    FunctionCall,
    Reply,
    Response,
    StreamEvent,
    ToolCall,
    Usage,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path
    from typing import Self

__all__ = [
    "BatchJobResult",
    "BatchJobStatus",
    "BatchMetrics",
    "BatchPartStatus",
    "CauseStats",
    "ChatCompletion",
    "ChatMessage",
    "Choice",
    "ClientStats",
    "Completion",
    "ConcurrencyStats",
    "CreateEmbeddingResponse",
    "CustomCall",
    "Embedding",
    "FunctionCall",
    "LaneStats",
    "LimitLevel",
    "Model",
    "ModelList",
    "ParsedChatCompletion",
    "ParsedChoice",
    "ParsedMessage",
    "RateLimiterSnapshot",
    "Record",
    "Reply",
    "Response",
    "RunSummary",
    "StreamEvent",
    "TimingStats",
    "ToolCall",
    "Usage",
    "WaitStats",
]


T = TypeVar("T")


class BatchMetrics(TypedDict):
    """How one batch went.

    Attributes:
        batch_size: Items in it.
        duration: What it took, in seconds.
        success_rate: Share of the items that were answered, 0 to 1.
        items_per_second: Items, failed ones included, over the duration; infinite if it took no time.
    """

    batch_size: int
    duration: float
    success_rate: float
    items_per_second: float


@dataclass(frozen=True, slots=True)
class BatchPartStatus:
    """How far one batch of a vendor's is.

    Attributes:
        batch_id: The vendor's name for it; None before it exists.
        status: The vendor's own word, or ``"not submitted"``, ``"submitted"`` or ``"cancelled"``.
        items: How many it has.
        completed: Answered well. (Anthropic counts only at the end.)
        failed: Answered otherwise, expired or cancelled.
        done: No more results will come.
    """

    batch_id: str | None
    status: str
    items: int
    completed: int
    failed: int
    done: bool


@dataclass(frozen=True, slots=True)
class BatchJobStatus:
    """How far a job of a vendor's batch API is.

    Attributes:
        via: The vendor.
        items: Items in all batches together.
        bad_lines: Lines that are no requests, and in no batch.
        parts: The batches.
    """

    via: str
    items: int
    bad_lines: int
    parts: list[BatchPartStatus]

    @property
    def completed(self) -> int:
        """Items answered well."""
        return sum(part.completed for part in self.parts)

    @property
    def failed(self) -> int:
        """Items answered otherwise, expired or cancelled."""
        return sum(part.failed for part in self.parts)

    @property
    def done(self) -> bool:
        """Whether all batches have ended."""
        return all(part.done for part in self.parts)


@dataclass(frozen=True, slots=True)
class BatchJobResult:
    """What has been fetched of a job of a vendor's batch API.

    Attributes:
        output: The file.
        total: Items and bad lines.
        ok: Lines with an answer.
        failed: Lines with an error, bad lines among them.
        pending: Items without a line, whose batches have not ended.
        bad_lines: Lines that are no requests.
        prompt_tokens: What answers used.
        completion_tokens: The same.
        problems: Results that belong to no item, which the output does not have.
    """

    output: Path
    total: int
    ok: int
    failed: int
    pending: int
    bad_lines: int
    prompt_tokens: int
    completion_tokens: int
    problems: list[str]


class Record(dict[str, Any]):
    """A JSON object of a server whose fields can also be read as attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"this answer has no field {name!r} here") from None


@dataclass(frozen=True, slots=True)
class Model:
    """One model that a server offers. Fields of the server that are not listed here are read by their names.

    Attributes:
        id: The name to call it by.
        created: Unix time in seconds; 0 if the server does not say.
        owned_by: Who owns it; empty if the server does not say.
    """

    id: str
    created: int = 0
    owned_by: str = ""
    _sent: Record = field(default_factory=Record, repr=False, hash=False)

    def __getattr__(self, name: str) -> Any:
        # Python asks for names with underscores on its own, also before `_sent` is there.
        if name.startswith("_") or name not in self._sent:
            raise AttributeError(f"Model has no field {name!r} in this answer")
        return self._sent[name]

    def to_dict(self) -> dict[str, Any]:
        """The model as the server sent it."""
        known = {"id": self.id, "created": self.created, "owned_by": self.owned_by}
        return {name: _plain(value) for name, value in (known | self._sent).items()}


def _plain(value: Any) -> Any:
    """With dicts in place of records."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list) else value


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


class _Parsed:
    """A record of an answer with something added; what it does not have itself is the answer's."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        # While it is being copied or unpickled it has no answer yet.
        if name == "_answer" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._answer, name)

    def to_dict(self) -> dict[str, Any]:
        """As the server sent it, without what was parsed."""
        return self._answer.to_dict()  # type: ignore[no-any-return]


@dataclass(frozen=True)
class ParsedMessage(_Parsed, Generic[T]):
    """What the model said, and the value that this stands for. May go into the next request's ``messages`` as it is.

    Attributes:
        parsed: The value; None if the model refused or called tools instead.
    """

    _answer: ChatMessage = field(repr=False)
    parsed: T | None

    @property
    def role(self) -> str:
        """``assistant``."""
        return self._answer.role

    @property
    def content(self) -> str | None:
        """The text that was parsed."""
        return self._answer.content

    @property
    def refusal(self) -> str | None:
        """Why it refused, if it did."""
        return self._answer.refusal

    @property
    def tool_calls(self) -> list[ToolCall] | None:
        """The functions it wants called."""
        return self._answer.tool_calls


@dataclass(frozen=True)
class ParsedChoice(_Parsed, Generic[T]):
    """One of the answers of a parsed completion.

    Attributes:
        message: What the model said, with its value.
    """

    _answer: Choice = field(repr=False)
    message: ParsedMessage[T]

    @property
    def index(self) -> int:
        """Its place among the ``n``."""
        return self._answer.index

    @property
    def finish_reason(self) -> str | None:
        """Why it ended: ``stop`` or ``tool_calls``."""
        return self._answer.finish_reason


@dataclass(frozen=True)
class ParsedChatCompletion(_Parsed, Generic[T]):
    """A `ChatCompletion` whose choices have been read as values of a type.

    It has every field of the completion, too.

    Attributes:
        choices: The ``n`` answers, each with ``message.parsed``.
        failed_tries: Answers before this one that were not of the type; each has its ``usage``.
    """

    _answer: ChatCompletion = field(repr=False)
    choices: list[ParsedChoice[T]]
    failed_tries: tuple[ChatCompletion, ...] = ()

    @property
    def completion(self) -> ChatCompletion:
        """The answer itself."""
        return self._answer

    @property
    def id(self) -> str:
        """The server's id of the answer."""
        return self._answer.id

    @property
    def model(self) -> str:
        """The model that answered."""
        return self._answer.model

    @property
    def usage(self) -> Usage | None:
        """Tokens of this answer, if the server counts them."""
        return self._answer.usage

    @property
    def text(self) -> str:
        """The first choice's text."""
        return self._answer.text

    @property
    def request_id(self) -> str | None:
        """The server's name for the request, for its support."""
        return self._answer.request_id


class _Stats:
    """What all statistics have in common."""

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """The same as plain dicts, for JSON or a metrics system."""
        return asdict(self)  # type: ignore[call-overload,no-any-return]


def _said(stats: _Stats) -> Iterator[str]:
    """``name=value`` of every field that says something."""
    for each in fields(stats):  # type: ignore[arg-type]
        value = getattr(stats, each.name)
        if value and each.name != "lanes":
            yield f"{each.name}={value!r}"


def _on_lines(stats: _Stats, more: list[str]) -> str:
    """Names and counters on a line, everything else on one of its own."""
    said = list(_said(stats))
    short = [each for each in said if not each.endswith(">")]
    lines = [", ".join(short), *(each for each in said if each not in short), *more]
    return "\n".join([f"{type(stats).__name__}(", *(f"    {line}" for line in filter(None, lines)), ")"])


@dataclass(frozen=True, slots=True)
class RunSummary:
    """How a run over a file ended. Every line of the input is one of ok, failed, skipped and bad, or was not reached.

    Attributes:
        total: Lines of the input that are not blank.
        ok: Answered by this run.
        failed: Failed for good in this run.
        skipped: Done by an earlier run.
        failed_before: Of those that an earlier run has done, the ones that failed for good (``retry_failed`` asks them
            again) and bad lines.
        bad_lines: Lines that are no requests.
        prompt_tokens: Tokens of the prompts that were answered, as far as servers count them.
        completion_tokens: Tokens of the answers.
        cost: Dollars for the answers whose price is known; None if it is of none.
        unpriced: Answers whose price is not known.
        elapsed: Seconds from the start until everything was on the disk.
        stopped: What ended the run before its lines did: ``"interrupted"``, ``"deadline"``, ``"budget"``,
            ``"max_errors"``, ``"error_rate"`` or ``"fatal"``; None if nothing did.
        problems: What was wrong with lines: of each the file, the line from 1, and the reason. The first thousand.
    """

    total: int
    ok: int
    failed: int
    skipped: int
    failed_before: int
    bad_lines: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None
    unpriced: int
    elapsed: float
    stopped: str | None
    problems: list[tuple[str, int, str]]


@dataclass(frozen=True, slots=True)
class TimingStats(_Stats):
    """Durations in seconds; all 0 if there were none.

    Count, total, mean and maximum are exact, quantiles within 1 %.

    Attributes:
        count: How many.
        total: Their sum.
        mean: The average.
        p50: Half of them were not longer.
        p90: 90 % were not longer.
        p95: 95 % were not longer.
        p99: 99 % were not longer.
        max: The longest.
    """

    count: int
    total: float
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float

    def __bool__(self) -> bool:
        return self.count > 0

    def __repr__(self) -> str:
        return f"<{self.count}: p50 {self.p50:.3g} s, p95 {self.p95:.3g} s, max {self.max:.3g} s>"


@dataclass(frozen=True, slots=True)
class CauseStats(_Stats):
    """How often, for each reason why attempts fail.

    Attributes:
        rate_limit: 429, or traffic that grew too fast.
        overload: 503 or 529, the server has more to do than it can.
        connection: No complete answer: refused, reset, cut.
        timeout: Not in time: the connection, the call, or 408.
        server_error: Another status from 500 on.
        invalid_response: A 2xx that is not an answer.
        other: Anything else.
    """

    rate_limit: int
    overload: int
    connection: int
    timeout: int
    server_error: int
    invalid_response: int
    other: int

    def __bool__(self) -> bool:
        return any(getattr(self, each.name) for each in fields(self))

    def __repr__(self) -> str:
        return f"<{', '.join(_said(self))}>"


@dataclass(frozen=True, slots=True)
class WaitStats(_Stats):
    """The time that requests spent waiting. What went on at once is not counted.

    Attributes:
        window: For a place in flight.
        rate_limit: For requests or tokens per minute.
        gate: For the end of a wait that a server asked for.
        backoff: For another attempt after a failed one.
    """

    window: TimingStats
    rate_limit: TimingStats
    gate: TimingStats
    backoff: TimingStats

    def __bool__(self) -> bool:
        return any(getattr(self, each.name) for each in fields(self))

    def __repr__(self) -> str:
        return f"<{', '.join(_said(self))}>"


@dataclass(frozen=True, slots=True)
class ConcurrencyStats(_Stats):
    """The window of requests in flight.

    Attributes:
        limit: The most that may be in flight now.
        in_flight: Places taken.
        waiting: Requests that wait for a place.
    """

    limit: int
    in_flight: int
    waiting: int

    def __repr__(self) -> str:
        return f"<{self.in_flight} of {self.limit} in flight, {self.waiting} waiting>"


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

    def __repr__(self) -> str:
        unit = self.unit.replace("_", " ")
        window = _WINDOWS.get(self.per, f"{self.per:g} s")
        amount, capacity, level = (
            f"{figure:,.1f}".removesuffix(".0") for figure in (self.amount, self.capacity, self.level)
        )
        burst = "" if capacity == amount else f", {capacity} at once"
        return f"<{amount} {unit} per {window}{burst}, {level} left>"


_WINDOWS = {1.0: "second", 60.0: "minute", 3600.0: "hour", 86400.0: "day"}


@dataclass(frozen=True, slots=True)
class RateLimiterSnapshot:
    """How full a `RateLimiter` is at one moment.

    Attributes:
        limits: Every limit with its level.
        waiting: How many acquisitions wait.
    """

    limits: tuple[LimitLevel, ...]
    waiting: int

    def __repr__(self) -> str:
        return f"<{', '.join([*map(repr, self.limits), f'{self.waiting} waiting'])}>"

    @classmethod
    def _of(cls, limits: Iterable[tuple[str, float, float, float, float]], waiting: int) -> Self:
        """From the native module's tuples."""
        return cls(tuple(LimitLevel(*level) for level in limits), waiting)


@dataclass(frozen=True, slots=True)
class LaneStats(_Stats):
    """One key with one model, which is what providers limit.

    Attributes:
        key_id: The key's fingerprint, 8 hex digits; ``none`` without a key.
        model: The model's name; empty for calls that name none. After 256 models the rest share one lane.
        attempts: HTTP requests sent.
        succeeded: Attempts that brought an answer.
        retries: Attempts that follow a failed one of this lane.
        in_flight: HTTP requests under way now.
        max_in_flight: The most that were under way at once.
        prompt_tokens: Prompt tokens, as the server counted them.
        completion_tokens: Completion tokens, as the server counted them.
        queued: Requests bound for this lane that wait now.
        retry_causes: Retries, by what the attempt before failed with.
        failure_causes: Failed attempts. One that was cut short (deadline, cancellation) is none.
        latency: From the sending of an attempt to the end of its answer, where it brought one.
        first_byte: From the sending of an attempt to the head of its answer, where it brought one.
        waits: Waits of requests that were bound for this lane.
        limiter: Limits that were learnt from the server, if any.
    """

    key_id: str
    model: str
    attempts: int
    succeeded: int
    retries: int
    in_flight: int
    max_in_flight: int
    prompt_tokens: int
    completion_tokens: int
    queued: int
    retry_causes: CauseStats
    failure_causes: CauseStats
    latency: TimingStats
    first_byte: TimingStats
    waits: WaitStats
    limiter: RateLimiterSnapshot | None = None

    def __repr__(self) -> str:
        # What is 0 or empty is left out, so that it fits on a line.
        return f"LaneStats({', '.join(_said(self))})"

    def __str__(self) -> str:
        """Several lines; what is 0 or empty is left out."""
        return _on_lines(self, [])


@dataclass(frozen=True, slots=True)
class ClientStats(_Stats):
    """What a client and those derived from it have done so far.

    Attributes:
        requests: Calls and batch items that were begun.
        attempts: HTTP requests sent, retries included.
        retries: Attempts after a first one.
        succeeded: Calls and items answered.
        failed: Calls and items that ended in an error; a cancelled one is in neither.
        cache_hits: Calls, items, and texts of ``embed`` that were not asked for, since the cache had the answer or
            another call asked the same at the same time.
        in_flight: HTTP requests under way now.
        max_in_flight: The most that were under way at once.
        prompt_tokens: Prompt tokens, as the servers counted them.
        completion_tokens: Completion tokens, as the servers counted them.
        queued: Requests that wait now, for whatever it is. Items of a batch that were not begun are not in it.
        retry_causes: Retries, by what the attempt before failed with.
        failure_causes: Failed attempts, retried or not. One that was cut short (deadline, cancellation) is none.
        latency: From the sending of an attempt to the end of its answer, where it brought one.
        first_byte: From the sending of an attempt to the head of its answer, where it brought one.
        waits: What requests waited for, and how long.
        lanes: The same for each key with each model, in the order of their first use.
        concurrency: The window of requests in flight.
        limiter: The client's `RateLimiter`, if it has one.
    """

    requests: int
    attempts: int
    retries: int
    succeeded: int
    failed: int
    cache_hits: int
    in_flight: int
    max_in_flight: int
    prompt_tokens: int
    completion_tokens: int
    queued: int
    retry_causes: CauseStats
    failure_causes: CauseStats
    latency: TimingStats
    first_byte: TimingStats
    waits: WaitStats
    lanes: tuple[LaneStats, ...]
    concurrency: ConcurrencyStats
    limiter: RateLimiterSnapshot | None = None

    def __repr__(self) -> str:
        """Several lines, one for each lane; what is 0 or empty is left out."""
        lanes = ["lanes=(", *(f"    {lane!r}," for lane in self.lanes), ")"] if self.lanes else []
        return _on_lines(self, lanes)

    @classmethod
    def _of(cls, fields: dict[str, Any]) -> Self:
        """From the native module's plain dict."""
        lanes = tuple(LaneStats(**_typed(lane)) for lane in fields["lanes"])
        concurrency = ConcurrencyStats(*fields["concurrency"])
        return cls(**{**_typed(fields), "lanes": lanes, "concurrency": concurrency})


def _typed(fields: dict[str, Any]) -> dict[str, Any]:
    """The parts that clients and lanes have in common, as records."""
    return {
        **fields,
        "retry_causes": CauseStats(**fields["retry_causes"]),
        "failure_causes": CauseStats(**fields["failure_causes"]),
        "latency": TimingStats(**fields["latency"]),
        "first_byte": TimingStats(**fields["first_byte"]),
        "waits": WaitStats(**{cause: TimingStats(**timing) for cause, timing in fields["waits"].items()}),
        "limiter": None if fields["limiter"] is None else RateLimiterSnapshot._of(*fields["limiter"]),
    }
