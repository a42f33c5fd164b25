"""The native module. Names that do not begin with `Native` are public under `millstream` or `millstream.types`."""

import os
from asyncio import Future
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NoReturn, Self, TypeAlias, final, overload

from typing_extensions import disjoint_base

from millstream._config import Timeout
from millstream._settings import CallCache, Hidden
from millstream.exceptions import MillstreamError
from millstream.testing import Answer, Limits, Streaming
from millstream.types import Record

__all__ = [
    "BUILD_PROFILE",
    "VERSION",
    "BatchOutcomes",
    "BatchResult",
    "ChatCompletion",
    "ChatCompletionChunk",
    "ChatMessage",
    "Choice",
    "ChoiceDelta",
    "ChunkChoice",
    "Completion",
    "CreateEmbeddingResponse",
    "CustomCall",
    "CustomCallDelta",
    "Embedding",
    "Embeddings",
    "Endpoint",
    "FunctionCall",
    "FunctionCallDelta",
    "KeyStats",
    "MockServer",
    "MockStats",
    "NativeAdaptiveBatchPolicy",
    "NativeBatch",
    "NativeCache",
    "NativeClient",
    "NativeEmbedding",
    "NativeFileRun",
    "NativeLine",
    "NativeLineReader",
    "NativeLines",
    "NativeManner",
    "NativeRateLimiter",
    "NativeRetryPolicy",
    "NativeStream",
    "NativeTexts",
    "NativeVirtualClock",
    "Pending",
    "Port",
    "RecordedRequest",
    "Reply",
    "Reservation",
    "Response",
    "StreamEvent",
    "ToolCall",
    "ToolCallDelta",
    "Usage",
    "after_fork_in_child",
    "chat_answer",
    "chat_body",
    "check_rules",
    "check_timeout",
    "echo",
    "flush_log",
    "is_secret_header",
    "numbers_as_json",
    "panic",
    "quiesce",
    "refresh_log",
]

VERSION: Final[str]
BUILD_PROFILE: Final[str]

# The model that is asked and its stand-ins, each with dollars per token of prompt and answer where they are known
_Dollars: TypeAlias = list[tuple[str, tuple[float, float] | None]]
# (model, request fields, timeout in a 1-tuple if given, headers, query and key, queue timeout in a 1-tuple if given,
# priority, retries), or the model alone
_Options: TypeAlias = (
    tuple[
        str | None,
        dict[str, Any],
        tuple[float | Timeout | None] | None,
        Hidden | None,
        tuple[float | None] | None,
        int,
        int | None,
        CallCache | None,
    ]
    | str
)

def echo(pending: Pending) -> bool | None: ...
def panic(pending: Pending | None, in_engine: bool) -> bool | None: ...
def flush_log() -> None: ...
def refresh_log() -> None: ...
def quiesce() -> None: ...
def after_fork_in_child() -> None: ...
def is_secret_header(name: str) -> bool: ...
def numbers_as_json(numbers: bytes) -> bytes: ...
def chat_body(provider: str, model: str, messages: list[Any], fields: dict[str, Any]) -> bytes: ...
def chat_answer(provider: str, body: bytes) -> bytes | None: ...
def check_timeout(timeout: float | Timeout | None) -> None: ...

@final
class Port:
    def __new__(cls) -> Port: ...
    def fileno(self) -> int: ...
    def drain(self) -> None: ...
    def flush(self) -> None: ...
    def settle(self) -> None: ...
    def mute(self) -> None: ...
    def abandon(self) -> None: ...
    def stir(self) -> None: ...
    def next_turn(self) -> None: ...
    def __len__(self) -> int: ...

@final
class Pending:
    def __new__(cls, port: Port, future: Future[Any]) -> Pending: ...
    def abort(self) -> None: ...
    def detach(self) -> None: ...

# A prompt alone, or the input, its id, the prompt (or why there is none) and its manner.
_Entry: TypeAlias = str | tuple[Any, str | None, Any, NativeManner | None]

# `max_errors`, `max_error_rate`, whether fatal errors stop it, `deadline`, `budget_tokens`, `budget_usd`.
_Rules: TypeAlias = tuple[int | None, float | None, bool, float | None, int | None, float | None]

def check_rules(rules: _Rules) -> None: ...

@final
class NativeManner:
    """How one kind of a run's items is asked."""

@final
class NativeBatch:
    """A run: the engine's side of `millstream.BatchProcessor`."""

    def manner(self, system: str | None, options: _Options, dollars: _Dollars) -> NativeManner: ...
    def start(self) -> None: ...
    def submit(self, page: list[_Entry]) -> int | None: ...
    def again(self, result: BatchResult, prompt: Any, manner: NativeManner | None) -> bool: ...
    def reject(self) -> None: ...
    def give_up(self, page: list[_Entry]) -> list[BatchResult]: ...
    def close(self) -> None: ...
    def room(self, pending: Pending) -> None: ...
    def ready(self, pending: Pending) -> None: ...
    def take(self, most: int) -> list[BatchResult] | None: ...
    def progress(self) -> tuple[int, int, int, int, int, float, int]: ...
    def stop(self, grace: float) -> None: ...
    def abort(self) -> None: ...
    @property
    def stopped(self) -> str | None: ...

@final
class BatchResult:
    """What became of one item of a run. Frozen and picklable."""

    @property
    def index(self) -> int:
        """The item's place among all that were read, from 0."""

    @property
    def custom_id(self) -> str | None:
        """The item's own id, if it has one."""

    @property
    def input(self) -> Any:
        """The item as it was handed in."""

    @property
    def text(self) -> str | None:
        """The first choice's text, empty if it has none; None if the item failed."""

    @property
    def response(self) -> ChatCompletion | None:
        """The whole answer, if there is one."""

    @property
    def error(self) -> MillstreamError | None:
        """Why it failed."""

    @property
    def parsed(self) -> Any:
        """With ``response_model``: the value."""

    @property
    def usage(self) -> Usage | None:
        """The tokens that were paid for its last answer; None for another item's answer."""

    @property
    def attempts(self) -> int:
        """HTTP requests made for it, the first included."""

    @property
    def queue_time(self) -> float:
        """Seconds from its turn to its admission."""

    @property
    def latency(self) -> float:
        """Seconds from its admission to its end, all attempts and the waits between them included."""

    @property
    def cached(self) -> bool:
        """Whether it has the answer of another item, which asked the same; then it took nothing itself."""

    @property
    def key_id(self) -> str | None:
        """The fingerprint of the key that was used, never the key."""

    @property
    def ok(self) -> bool:
        """Whether it was answered."""

    def _judged(self, *, parsed: Any, error: MillstreamError | None, earlier: list[BatchResult]) -> BatchResult: ...
    def _silenced(self) -> BatchResult: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...
    def __reduce__(self) -> tuple[Any, tuple[Any]]: ...
    @staticmethod
    def _restore(parts: Any) -> BatchResult: ...

@final
class NativeAdaptiveBatchPolicy:
    def __new__(cls, rule: str, initial_batch_size: int, max_batch_size: int) -> NativeAdaptiveBatchPolicy: ...
    def record(self, size: int, duration: float, succeeded: int, failed: int) -> int: ...
    def metrics(self) -> list[tuple[int, float, float, float]]: ...
    @property
    def batch_size(self) -> int: ...

# Every call below returns its result if `pending` is None. Otherwise it returns at once (True if `Port.flush` must be
# called), and the result goes to the future of `pending`; it is typed as the result all the same, so that
# `_bridge.wait` can say what the await gives.
@final
class Endpoint:
    """One server and one key of several.

    Give a client ``endpoints=[...]`` and every attempt goes by the readiest of them: the one whose limits, Retry-After
    and breaker let it go soonest, and among those that are ready by weight. An item moves to another when one fails.

    Args:
        base_url: Where the API is, up to and with its ``/v1``. Default: the provider's own server.
        api_key: Its key; never shown. Default: none, or the environment's for the host that it is for.
        provider: The API that it speaks. All endpoints of one client must take the same requests: ``"openai"`` and
            ``"azure"`` do, each other one only with its like.
        auth: The header that carries the key. Default: the provider's usual one.
        api_version: Azure's (default: ``OPENAI_API_VERSION``) or Anthropic's.
        weight: Its share of the traffic while others are ready, too.
        rpm: Requests per minute, if you know; what the server's headers say is kept besides.
        tpm: Tokens per minute, prompt and answer together.
        model_map: Its own names of models, by the names that calls use.

    Raises:
        ConfigurationError: An argument is not valid; its name is in the text.
    """

    def __new__(
        cls,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        provider: Literal["openai", "anthropic", "mistral", "azure"] = "openai",
        auth: Literal["bearer", "x-api-key", "api-key"] | None = None,
        api_version: str | None = None,
        weight: float = 1.0,
        rpm: float | None = None,
        tpm: float | None = None,
        model_map: Mapping[str, str] | None = None,
    ) -> Endpoint: ...
    @property
    def base_url(self) -> str:
        """As given."""
    @property
    def provider(self) -> str:
        """The API that it speaks."""
    @property
    def auth(self) -> str | None:
        """The header that carries the key, if it is not the provider's usual one."""
    @property
    def has_key(self) -> bool:
        """Whether it has a key."""
    @property
    def key_id(self) -> str:
        """The key's fingerprint, as statistics and errors name it; ``none`` without a key."""
    @property
    def weight(self) -> float:
        """Its share of the traffic."""
    @property
    def rpm(self) -> float | None:
        """Requests per minute."""
    @property
    def tpm(self) -> float | None:
        """Tokens per minute."""
    @property
    def model_map(self) -> dict[str, str]:
        """Its own names of models."""
    def _with_key(self, api_key: str, auth: str | None = None) -> Endpoint: ...
    def __reduce__(self) -> NoReturn: ...

@final
class NativeFileRun:
    def prepare(self, pending: Pending | None) -> list[str]: ...
    def run(self, pending: Pending | None, dollars: dict[str, tuple[float, float]]) -> dict[str, Any]: ...
    def stop(self, grace: float) -> None: ...
    def progress(self) -> dict[str, Any]: ...
    def close(self) -> None: ...
    @property
    def is_open(self) -> bool: ...

@final
class NativeLineReader:
    def __new__(cls, model: str | None, system: str | None, fields: dict[str, Any]) -> NativeLineReader: ...
    def read(self, number: int, line: bytes) -> NativeLine: ...
    def file(self, path: str | os.PathLike[str]) -> NativeLines: ...

@final
class NativeLines:
    def __iter__(self) -> NativeLines: ...
    def __next__(self) -> NativeLine: ...

@final
class NativeLine:
    @property
    def number(self) -> int: ...
    @property
    def custom_id(self) -> str | None: ...
    @property
    def name(self) -> str: ...
    @property
    def url(self) -> str: ...
    @property
    def body(self) -> str: ...
    @property
    def metadata(self) -> str | None: ...
    @property
    def problem(self) -> str | None: ...

@final
class NativeClient:
    def __new__(
        cls,
        *,
        parent: NativeClient | None,
        provider: str,
        auth: str | None,
        api_version: str | None,
        base_url: str,
        endpoints: list[Endpoint] | None,
        api_keys: list[str] | None,
        inherit_key: bool,
        headers: Mapping[str, str] | None,
        usual_headers: list[tuple[str, str]],
        query: Mapping[str, object] | None,
        timeout: float | Timeout | None,
        connect_timeout: float | None,
        queue_timeout: float | None,
        retry: NativeRetryPolicy | None,
        max_retries: int | None,
        idempotency_key: bool,
        max_concurrency: int | Literal["auto"] | None,
        rate_limiter: NativeRateLimiter | None,
        hedge_after: float | Literal["p95"] | None,
        fallback_models: list[str],
        cache: NativeCache | None,
        http2: bool,
        allow_http: bool,
    ) -> NativeClient: ...
    @overload
    def chat(
        self, pending: Pending | None, prompt: Any, system: str | None, options: _Options, *, text_only: Literal[True]
    ) -> str: ...
    @overload
    def chat(
        self, pending: Pending | None, prompt: Any, system: str | None, options: _Options, *, text_only: Literal[False]
    ) -> ChatCompletion: ...
    def batch_chat(
        self,
        pending: Pending | None,
        prompts: list[Any],
        system: str | None,
        options: _Options,
        *,
        max_concurrent: int | None,
        stop_on_error: bool,
        text_only: bool,
    ) -> BatchOutcomes: ...
    def file_run(
        self,
        system: str | None,
        options: _Options,
        paths: tuple[str, str, str | None],
        *,
        max_concurrent: int | None,
        switches: tuple[bool, bool, bool, bool, bool],
        rules: tuple[int | None, float | None, bool, float | None, int | None, float | None],
    ) -> NativeFileRun: ...
    def bulk(
        self,
        system: str | None,
        options: _Options,
        *,
        max_concurrent: int | None,
        rules: _Rules,
        dollars: _Dollars,
        dedupe: bool | None,
        prefix: bool,
    ) -> NativeBatch: ...
    def chat_stream(
        self, prompt: Any, system: str | None, options: _Options, *, text_only: bool, with_usage: bool
    ) -> NativeStream: ...
    def stream_many(
        self,
        prompts: list[Any],
        system: str | None,
        options: _Options,
        *,
        max_concurrent: int | None,
        stop_on_error: bool,
    ) -> NativeStream: ...
    @overload
    def post(
        self, pending: Pending | None, path: str, options: _Options, kind: Literal["Reply"], once: bool = False
    ) -> Reply: ...
    @overload
    def post(
        self, pending: Pending | None, path: str, options: _Options, kind: Literal["Response"], once: bool = False
    ) -> Response: ...
    @overload
    def post(
        self, pending: Pending | None, path: str, options: _Options, kind: Literal["Completion"], once: bool = False
    ) -> Completion: ...
    def get(self, pending: Pending | None, path: str, options: _Options) -> Reply: ...
    def download(self, pending: Pending | None, path: str, options: _Options, file: str | os.PathLike[str]) -> None: ...
    def upload(
        self,
        pending: Pending | None,
        path: str,
        options: _Options,
        file: str | os.PathLike[str],
        form: tuple[list[tuple[str, str]], str, str, str] | None,
        once: bool,
    ) -> Reply: ...
    def post_stream(self, path: str, options: _Options, kind: Literal["Response", "Completion"]) -> NativeStream: ...
    def embeddings(self, pending: Pending | None, options: _Options, inputs: int) -> CreateEmbeddingResponse: ...
    def embed(
        self, pending: Pending | None, texts: NativeTexts, options: _Options, rules: _EmbedRules
    ) -> Embeddings: ...
    def embed_page(self, texts: NativeTexts, options: _Options, rules: _EmbedRules) -> NativeEmbedding: ...
    def embed_limits(self, sizes: tuple[int | None, int | None, int | None]) -> tuple[int, int | None, int]: ...
    def models(self, pending: Pending | None, options: _Options) -> list[tuple[str, int, str, Record]]: ...
    def stats(self) -> dict[str, Any]: ...
    def close(self) -> None: ...
    @property
    def base_url(self) -> str: ...
    @property
    def closed(self) -> bool: ...

# Texts, tokens of one, tokens of all; requests in flight; number of the first text; form; what becomes of one that is
# too long, and of one that failed; numbers asked for and kept, and whether to normalize; whether equal texts go once.
_EmbedRules: TypeAlias = tuple[
    tuple[int | None, int | None, int | None],
    int | None,
    int,
    str | None,
    str,
    str,
    tuple[int | None, int | None, bool],
    bool,
]

@final
class NativeTexts:
    def __new__(cls) -> Self: ...
    def extend(self, texts: list[str]) -> None: ...
    def add(self, part: str, tokens: int, row: int) -> None: ...
    def __len__(self) -> int: ...

@final
class NativeEmbedding:
    def result(self, pending: Pending | None) -> Embeddings: ...
    def stop(self, grace: float) -> None: ...
    def abort(self) -> None: ...

@final
class Embeddings:
    """Rows of float32, one for each text, in one block.

    numpy (``numpy.asarray(embeddings)``), torch, pyarrow and `memoryview` read it where it lies, without a copy. It is
    read-only and lives as long as any view of it.
    """

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, and numbers of a row: ``(N, D)``. D is 0 if no answer came and ``dimensions=`` was not given."""

    @property
    def start(self) -> int:
        """The number of the first text: 0, but for a later page of `embed_stream`."""

    @property
    def model(self) -> str:
        """The model that answered."""

    @property
    def usage(self) -> Usage | None:
        """Tokens of all that was asked, if the server counts them. What a cache had is not in it."""

    @property
    def requests(self) -> int:
        """Packs that were sent, those that were refused among them."""

    @property
    def cached(self) -> int:
        """Rows that the cache had; equal texts each count."""

    @property
    def errors(self) -> dict[int, MillstreamError]:
        """The rows that have no vector, and why. They are NaN."""

    def raise_first(self) -> None:
        """Raise the first of `errors`, if there is one."""

    def tolist(self) -> list[list[float]]:
        """The rows as lists of floats."""

    def to_numpy(self) -> Any:
        """A ``numpy.ndarray`` over the same memory."""

    def to_torch(self) -> Any:
        """A ``torch.Tensor`` over the same memory, which must not be written: ``clone()`` it for that."""

    def to_arrow(self) -> Any:
        """A ``pyarrow.FixedSizeListArray`` over the same memory, null where a text failed."""

    def __len__(self) -> int: ...
    @overload
    def __getitem__(self, key: int, /) -> memoryview[float]:
        """A row, where it lies."""

    @overload
    def __getitem__(self, key: slice, /) -> memoryview[float]:
        """Several rows, where they lie."""

    def __buffer__(self, flags: int, /) -> memoryview: ...
    def __eq__(self, other: object, /) -> bool: ...
    @staticmethod
    def _restore(
        numbers: bytes,
        shape: tuple[int, int],
        start: int,
        model: str,
        usage: tuple[int, int] | None,
        counts: tuple[int, int],
        errors: dict[int, MillstreamError],
    ) -> Embeddings: ...

@final
class BatchOutcomes:
    # Of `str` with `text_only`, else of `ChatCompletion`; and errors.
    def take(self, count: int) -> list[Any]: ...
    def __len__(self) -> int: ...

# Requests, tokens, input tokens, output tokens.
_Amounts: TypeAlias = tuple[float, float, float, float]
# What is counted, how many, in how many seconds, and how many at once.
_Rule: TypeAlias = tuple[str, float, float, float | None]

_CacheRow: TypeAlias = tuple[bytes, float | None, float | None, int, str | None, tuple[int, int] | None, bytes]

@final
class NativeCache:
    def __new__(
        cls,
        place: tuple[str, str],
        *,
        ttl: float | None,
        max_bytes: int,
        memory_bytes: int,
        shared: bool,
        any_temperature: bool,
        also_keep: list[str],
        namespace: str | None,
        single_flight: bool,
    ) -> NativeCache: ...
    @property
    def place(self) -> str: ...
    def stats(self, pending: Pending | None) -> dict[str, Any]: ...
    def page(self, pending: Pending | None, start: bytes | None) -> tuple[list[_CacheRow], int, bytes | None]: ...
    def remove(self, pending: Pending | None, keys: list[bytes]) -> None: ...
    def clear(self, pending: Pending | None) -> None: ...
    def flush(self, pending: Pending | None) -> None: ...

@final
class NativeRateLimiter:
    def __new__(cls, rules: list[_Rule], sliding: bool) -> NativeRateLimiter: ...
    def acquire(
        self, pending: Pending | None, amounts: _Amounts, priority: int, max_wait: float | None, held: bool
    ) -> Reservation: ...
    def try_acquire(self, amounts: _Amounts) -> Reservation | None: ...
    def estimated_wait(self, amounts: _Amounts) -> float: ...
    def set_limits(self, rules: list[_Rule], sliding: bool) -> None: ...
    def snapshot(self) -> tuple[list[tuple[str, float, float, float, float]], int]: ...

@final
class NativeRetryPolicy:
    def __new__(
        cls,
        *,
        max_retries: int,
        max_rate_limit_retries: int | None,
        statuses: list[int] | None,
        base_delay: float,
        max_delay: float,
        exponential_base: float,
        jitter: str,
        respect_retry_after: bool,
        longest_retry_after: float,
        connection_faults: bool,
        invalid_responses: bool,
    ) -> NativeRetryPolicy: ...
    def wait(self, retry: int, retry_after: float | None) -> float | None: ...

@final
class Reservation:
    """What was taken of a `RateLimiter`.

    One that `RateLimiter.acquire` gave stays taken; one of `RateLimiter.reserve` is given back when it is dropped,
    unless it was committed or settled.
    """

    @property
    def requests(self) -> float:
        """Requests taken."""

    @property
    def tokens(self) -> float:
        """Tokens taken, as estimated."""

    @property
    def input_tokens(self) -> float:
        """Tokens of the prompt taken, as estimated."""

    @property
    def output_tokens(self) -> float:
        """Tokens of the answer taken, as estimated."""

    def settle(
        self, tokens: int | None = None, *, input_tokens: int | None = None, output_tokens: int | None = None
    ) -> None:
        """Correct what was taken to what was truly used; what is not given stays as estimated.

        Only the first call counts.
        """

    def commit(self) -> None:
        """Keep what was taken, whatever happens: the request goes out now. It can still be settled."""

    def release(self) -> None:
        """Give back what was taken, unless it was committed or settled."""

@final
class ChatCompletion:
    """One answer of a chat model, with OpenAI's field names. Frozen and picklable.

    Fields of the server that are not listed here are read by their names, or from `to_dict()`.
    """

    @property
    def id(self) -> str:
        """The server's id of the answer."""

    @property
    def object(self) -> str:
        """Always ``chat.completion``."""

    @property
    def created(self) -> int:
        """Unix time in seconds."""

    @property
    def model(self) -> str:
        """The model that answered."""

    @property
    def choices(self) -> list[Choice]:
        """The ``n`` answers, at least one."""

    @property
    def usage(self) -> Usage | None:
        """Tokens, if the server counts them."""

    @property
    def text(self) -> str:
        """The first choice's text; empty if the model refused or called tools instead."""

    @property
    def request_id(self) -> str | None:
        """The server's name for the request, for its support."""

    @property
    def headers(self) -> dict[str, str]:
        """The response's headers, names in lower case."""

    @property
    def status_code(self) -> int:
        """The answer's HTTP status: always 2xx."""

    @property
    def attempts(self) -> int:
        """HTTP requests made, the first included."""

    @property
    def cached(self) -> bool:
        """Whether it was not asked for: it was kept, or another call asked the same at the same time."""
    @property
    def queue_time(self) -> float:
        """Seconds from the call to its admission: the wait for a place in flight and for the rate limit.

        In a batch the waits for a limit between two attempts, too.
        """

    @property
    def elapsed(self) -> float:
        """Seconds from the admission to the end of the answer, over all attempts."""
    @property
    def raw_body(self) -> bytes:
        """The body as the provider sent it: not OpenAI's format where the provider has another."""

    def to_dict(self) -> dict[str, Any]:
        """The whole body in OpenAI's format, which is what most servers send; see `raw_body`."""

    def __getattribute__(self, name: str, /) -> Any: ...
    def __eq__(self, other: Any, /) -> bool: ...
    def __hash__(self) -> int: ...
    @staticmethod
    def _restore(
        body: bytes,
        status: int,
        headers: list[tuple[str, str]],
        attempts: int,
        queue_time: float,
        elapsed: float,
        raw: bytes | None,
        cached: bool,
    ) -> ChatCompletion: ...

@final
class Choice:
    """One of the answers of a completion."""

    @property
    def index(self) -> int:
        """Its place among the ``n``."""

    @property
    def finish_reason(self) -> str | None:
        """Why it ended: ``stop``, ``length``, ``tool_calls``, ``content_filter``."""

    @property
    def message(self) -> ChatMessage:
        """What the model said."""

    def to_dict(self) -> dict[str, Any]:
        """The choice as the server sent it."""

    def __getattribute__(self, name: str, /) -> Any: ...
    def __eq__(self, other: Any, /) -> bool: ...
    __hash__: None  # type: ignore[assignment]
    @staticmethod
    def _restore(completion: ChatCompletion, index: int) -> Choice: ...

@final
class ChatMessage:
    """What the model said. May stand in the ``messages`` of the next request as it is."""

    @property
    def role(self) -> str:
        """``assistant``."""

    @property
    def content(self) -> str | None:
        """The text; None if the model called tools or refused."""

    @property
    def refusal(self) -> str | None:
        """Why it refused, if it did."""

    @property
    def tool_calls(self) -> list[ToolCall] | None:
        """The tools it wants called."""

    def to_dict(self) -> dict[str, Any]:
        """The message as the server sent it."""

    def __getattribute__(self, name: str, /) -> Any: ...
    def __eq__(self, other: Any, /) -> bool: ...
    __hash__: None  # type: ignore[assignment]
    @staticmethod
    def _restore(completion: ChatCompletion, index: int) -> ChatMessage: ...

@final
class ToolCall:
    """One tool call that the model asks for, of a function or of a custom tool."""

    @property
    def id(self) -> str:
        """Names the call in the message that answers it."""

    @property
    def type(self) -> str:
        """``function`` or ``custom``."""

    @property
    def function(self) -> FunctionCall | None:
        """The function to call; None if it is another kind of tool."""

    @property
    def custom(self) -> CustomCall | None:
        """The custom tool to call; None if it is another kind of tool."""

    def to_dict(self) -> dict[str, Any]:
        """The call as the server sent it."""

    def __getattribute__(self, name: str, /) -> Any: ...
    def __eq__(self, other: Any, /) -> bool: ...
    __hash__: None  # type: ignore[assignment]
    @staticmethod
    def _restore(completion: ChatCompletion, choice: int, index: int) -> ToolCall: ...

@final
class FunctionCall:
    """Name and arguments of a function call."""

    @property
    def name(self) -> str:
        """Name of the function."""

    @property
    def arguments(self) -> str:
        """Its arguments: a JSON text, which a model may get wrong."""

    def to_dict(self) -> dict[str, Any]:
        """The function as the server sent it."""
    def __eq__(self, other: Any, /) -> bool: ...
    __hash__: None  # type: ignore[assignment]
    @staticmethod
    def _restore(completion: ChatCompletion, choice: int, index: int) -> FunctionCall: ...

@final
class CustomCall:
    """Name and input of a call of a custom tool."""

    @property
    def name(self) -> str:
        """Name of the tool."""

    @property
    def input(self) -> str:
        """Its input: any text."""

    def to_dict(self) -> dict[str, Any]:
        """The tool and its input as the server sent them."""
    def __eq__(self, other: Any, /) -> bool: ...
    __hash__: None  # type: ignore[assignment]
    @staticmethod
    def _restore(completion: ChatCompletion, choice: int, index: int) -> CustomCall: ...

@final
class NativeStream:
    """A stream, or several merged: the engine's side of `millstream.AsyncStream` and its like."""

    def take(self) -> list[Any] | None: ...
    def next(self, pending: Pending | None) -> list[Any]: ...
    def listen(self, port: Port, future: Future[list[Any]]) -> None: ...
    def opened(self, pending: Pending | None) -> None: ...
    def answer(self) -> Any: ...
    def text(self) -> str: ...
    def time_to_first_token(self) -> float | None: ...
    def duration(self) -> float | None: ...
    def close(self) -> None: ...
    @property
    def closed(self) -> bool: ...

@final
class ChatCompletionChunk:
    """One chunk of a streamed answer. Fields that are not listed are those of the server's chunk."""

    @property
    def id(self) -> str:
        """The server's id of the answer, the same in all its chunks."""

    @property
    def object(self) -> Literal["chat.completion.chunk"]:
        """What it is."""

    @property
    def created(self) -> int:
        """Unix time in seconds."""

    @property
    def model(self) -> str:
        """The model that answers."""

    @property
    def choices(self) -> list[ChunkChoice]:
        """What is new of each of the ``n`` answers; none in a chunk that only counts tokens."""

    @property
    def usage(self) -> Usage | None:
        """Tokens, usually in the last chunk alone."""

    @property
    def text(self) -> str:
        """The new text of the first choice, empty if there is none."""

    def to_dict(self) -> dict[str, Any]:
        """The chunk as the server sent it."""

    def __getattribute__(self, name: str, /) -> Any: ...
    def __eq__(self, other: Any, /) -> bool: ...
    def __hash__(self, /) -> int: ...
    @staticmethod
    def _restore(body: bytes) -> ChatCompletionChunk: ...

@final
class ChunkChoice:
    """What is new of one of the ``n`` answers."""

    @property
    def index(self) -> int:
        """Its place among the ``n``."""

    @property
    def delta(self) -> ChoiceDelta:
        """What is new."""

    @property
    def finish_reason(self) -> str | None:
        """``stop``, ``length``, ``tool_calls``, ``content_filter``, ...; None until the end."""

    def to_dict(self) -> dict[str, Any]:
        """The choice as the server sent it."""

    def __getattribute__(self, name: str, /) -> Any: ...
    def __eq__(self, other: Any, /) -> bool: ...
    __hash__: None  # type: ignore[assignment]
    @staticmethod
    def _restore(chunk: ChatCompletionChunk, place: int) -> ChunkChoice: ...

@final
class ChoiceDelta:
    """What the model said since the last chunk."""

    @property
    def role(self) -> str | None:
        """``assistant``, in the first."""

    @property
    def content(self) -> str | None:
        """A piece of the text."""

    @property
    def refusal(self) -> str | None:
        """A piece of why it refuses."""

    @property
    def tool_calls(self) -> list[ToolCallDelta] | None:
        """Pieces of the functions it wants called."""

    def to_dict(self) -> dict[str, Any]:
        """The delta as the server sent it."""

    def __getattribute__(self, name: str, /) -> Any: ...
    def __eq__(self, other: Any, /) -> bool: ...
    __hash__: None  # type: ignore[assignment]
    @staticmethod
    def _restore(chunk: ChatCompletionChunk, place: int) -> ChoiceDelta: ...

@final
class ToolCallDelta:
    """A piece of one tool call. The first brings id and name, the others more of the arguments or the input."""

    @property
    def index(self) -> int:
        """The call it belongs to."""

    @property
    def id(self) -> str | None:
        """Names the call in the message that answers it."""

    @property
    def type(self) -> str | None:
        """``function`` or ``custom``."""

    @property
    def function(self) -> FunctionCallDelta:
        """A piece of its name and arguments; empty in a custom tool's."""

    @property
    def custom(self) -> CustomCallDelta | None:
        """A piece of a custom tool's name and input; None in a function's."""

    def __eq__(self, other: Any, /) -> bool: ...
    __hash__: None  # type: ignore[assignment]
    @staticmethod
    def _restore(call: tuple[int, str | None, str | None, str | None, str | None, bool]) -> ToolCallDelta: ...

@final
class FunctionCallDelta:
    """A piece of a function call's name and arguments."""

    @property
    def name(self) -> str | None:
        """Name of the function."""

    @property
    def arguments(self) -> str | None:
        """A piece of the JSON text of its arguments."""

    def __eq__(self, other: Any, /) -> bool: ...
    __hash__: None  # type: ignore[assignment]
    @staticmethod
    def _restore(call: tuple[int, str | None, str | None, str | None, str | None, bool]) -> FunctionCallDelta: ...

@final
class CustomCallDelta:
    """A piece of a custom tool's name and input."""

    @property
    def name(self) -> str | None:
        """Name of the tool."""

    @property
    def input(self) -> str | None:
        """A piece of its input, which is any text."""

    def __eq__(self, other: Any, /) -> bool: ...
    __hash__: None  # type: ignore[assignment]
    @staticmethod
    def _restore(call: tuple[int, str | None, str | None, str | None, str | None, bool]) -> CustomCallDelta: ...

@final
class Usage:
    """Tokens of one answer, as the server counted them."""

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt."""

    @property
    def completion_tokens(self) -> int:
        """Tokens of the answer."""

    @property
    def total_tokens(self) -> int:
        """Both."""

    def to_dict(self) -> dict[str, Any]:
        """The usage as the server sent it."""

    def __getattribute__(self, name: str, /) -> Any: ...
    def __eq__(self, other: Any, /) -> bool: ...
    __hash__: None  # type: ignore[assignment]
    @staticmethod
    def _restore(body: bytes) -> Usage: ...

@disjoint_base
class Reply:
    """The answer of any path: every field of its body is an attribute. Frozen and picklable."""

    @property
    def request_id(self) -> str | None:
        """The server's name for the request, for its support."""

    @property
    def headers(self) -> dict[str, str]:
        """The response's headers, names in lower case."""

    @property
    def status_code(self) -> int:
        """The answer's HTTP status: always 2xx."""

    @property
    def attempts(self) -> int:
        """HTTP requests made, the first included."""

    @property
    def cached(self) -> bool:
        """Whether it was not asked for: it was kept, or another call asked the same at the same time."""
    @property
    def queue_time(self) -> float:
        """Seconds from the call to its admission: the wait for a place in flight and for the rate limit.

        In a batch the waits for a limit between two attempts, too.
        """

    @property
    def elapsed(self) -> float:
        """Seconds from the admission to the end of the answer, over all attempts."""

    @property
    def raw_body(self) -> bytes:
        """The body as the server sent it."""

    def to_dict(self) -> dict[str, Any]:
        """The whole body."""

    def __getattribute__(self, name: str, /) -> Any: ...
    def __eq__(self, other: Any, /) -> bool: ...
    def __hash__(self) -> int: ...
    @staticmethod
    def _restore(
        name: str,
        parts: tuple[bytes, int, list[tuple[str, str]], int, float, float, bytes | None],
    ) -> Reply: ...

@final
class Response(Reply):
    """An answer of `responses.create`, with OpenAI's field names."""

    @property
    def id(self) -> str:
        """The server's id of the answer."""

    @property
    def created_at(self) -> float | None:
        """Unix time in seconds."""

    @property
    def model(self) -> str:
        """The model that answered."""

    @property
    def status(self) -> str | None:
        """``completed``, or ``incomplete``: `incomplete_details` says why."""

    @property
    def output(self) -> list[Record]:
        """The items of the answer: messages, calls of functions, reasoning."""

    @property
    def output_text(self) -> str:
        """The texts of all messages, joined; empty if there is none."""

    @property
    def usage(self) -> Record | None:
        """Tokens, if the server counts them: ``input_tokens``, ``output_tokens``, ``total_tokens``."""

    @property
    def incomplete_details(self) -> Record | None:
        """Why the answer was cut short, if it was."""

@final
class Completion(Reply):
    """An answer of `completions.create`, with OpenAI's field names."""

    @property
    def id(self) -> str:
        """The server's id of the answer."""

    @property
    def created(self) -> int | None:
        """Unix time in seconds."""

    @property
    def model(self) -> str:
        """The model that answered."""

    @property
    def choices(self) -> list[Record]:
        """The texts, each with ``text``, ``index`` and ``finish_reason``."""

    @property
    def text(self) -> str:
        """The first choice's text."""

    @property
    def usage(self) -> Usage | None:
        """Tokens, if the server counts them."""

@final
class CreateEmbeddingResponse(Reply):
    """Embeddings, one for each input and in the order of the inputs."""

    @property
    def data(self) -> list[Embedding]:
        """One for each input."""

    @property
    def model(self) -> str:
        """The model that made them."""

    @property
    def usage(self) -> Usage | None:
        """Tokens, if the server counts them."""

    def to_dict(self) -> dict[str, Any]:
        """The whole body, with the vectors as lists and in the order of the inputs; see `raw_body`."""

@final
class StreamEvent:
    """One event of a streamed answer of `responses.create` or `completions.create`: its fields are attributes."""

    @property
    def type(self) -> str:
        """``response.output_text.delta`` and the like; of a text completion ``text_completion``."""

    @property
    def text(self) -> str:
        """The new text; empty if there is none."""

    def to_dict(self) -> dict[str, Any]:
        """The whole event."""

    def __getattribute__(self, name: str, /) -> Any: ...
    def __eq__(self, other: Any, /) -> bool: ...
    def __hash__(self) -> int: ...
    @staticmethod
    def _restore(kind: str, text: str, body: bytes) -> StreamEvent: ...

@final
class Embedding:
    """The embedding of one input."""

    @property
    def index(self) -> int:
        """Which input it is of."""

    @property
    def object(self) -> str:
        """Always ``embedding``."""

    @property
    def embedding(self) -> list[float]:
        """The vector; each reading makes a new list."""

    def to_dict(self) -> dict[str, Any]:
        """The embedding's part of the body, with its vector as a list."""

    def __getattribute__(self, name: str, /) -> Any: ...
    def __eq__(self, other: Any, /) -> bool: ...
    __hash__: None  # type: ignore[assignment]
    @staticmethod
    def _restore(of: CreateEmbeddingResponse, index: int) -> Embedding: ...

@final
class NativeVirtualClock:
    def __new__(cls, seed: int) -> NativeVirtualClock: ...
    def enter(self) -> None: ...
    def leave(self) -> None: ...
    def now(self) -> float: ...
    def sleep(self, pending: Pending | None, seconds: float) -> None: ...

@final
class MockServer:
    def __new__(
        cls,
        *,
        reply: str,
        stream: Streaming,
        embeddings: tuple[bool, int, int, int | None, str],
        latency: float | tuple[float, float],
        models: Sequence[str],
        api_key: str | None,
        keys: Sequence[tuple[str, Limits]],
        limits: Limits,
        dialect: str,
        max_concurrent: int | None,
        slots: int | None,
        record: bool,
        tls: tuple[str | os.PathLike[str], str | os.PathLike[str]] | None,
        port: int,
        seed: int,
    ) -> MockServer: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...
    @property
    def port(self) -> int: ...
    @property
    def root_url(self) -> str: ...
    @property
    def base_url(self) -> str: ...
    def script(self, answers: Sequence[Answer]) -> None: ...
    def when(self, text: str, answers: Sequence[Answer]) -> None: ...
    @property
    def requests(self) -> list[RecordedRequest]: ...
    @property
    def stats(self) -> MockStats: ...
    @property
    def key_stats(self) -> dict[str, KeyStats]: ...
    def set_limits(self, key: str | None, limits: Limits) -> None: ...
    def set_max_concurrent(self, max_concurrent: int | None) -> None: ...
    def set_slots(self, slots: int | None) -> None: ...
    def set_batches(self, delay: float, expire_after: float) -> None: ...
    def outage(self, status: int, lasting: float | None) -> None: ...
    def recover(self) -> None: ...
    def clear(self) -> None: ...

@final
class RecordedRequest:
    @property
    def index(self) -> int: ...
    @property
    def method(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def headers(self) -> list[tuple[str, str]]: ...
    def header(self, name: str) -> str | None: ...
    @property
    def body(self) -> bytes: ...
    def json(self) -> Any: ...
    @property
    def connection(self) -> int: ...
    @property
    def key(self) -> str | None: ...
    @property
    def deployment(self) -> str | None: ...
    @property
    def arrived(self) -> float: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def status(self) -> int | None: ...
    @property
    def answered(self) -> float | None: ...
    @property
    def retry_after(self) -> float | None: ...
    @property
    def query(self) -> list[tuple[str, str]]: ...
    @property
    def written(self) -> int: ...
    @property
    def events(self) -> int: ...
    @property
    def completed(self) -> bool: ...
    @property
    def aborted(self) -> bool: ...

@final
class MockStats:
    __hash__: None  # type: ignore[assignment]
    def __eq__(self, other: object, /) -> bool: ...
    def __ne__(self, other: object, /) -> bool: ...
    @property
    def requests(self) -> int: ...
    @property
    def answered(self) -> int: ...
    @property
    def aborted(self) -> int: ...
    @property
    def faulted(self) -> int: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def max_in_flight(self) -> int: ...
    @property
    def connections(self) -> int: ...
    @property
    def open_connections(self) -> int: ...
    @property
    def rejected_429(self) -> int: ...
    @property
    def failed_in_outage(self) -> int: ...
    @property
    def queued(self) -> int: ...

@final
class KeyStats:
    __hash__: None  # type: ignore[assignment]
    def __eq__(self, other: object, /) -> bool: ...
    def __ne__(self, other: object, /) -> bool: ...
    @property
    def requests(self) -> int: ...
    @property
    def rejected_429(self) -> int: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def max_in_flight(self) -> int: ...
