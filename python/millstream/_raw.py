"""``with_raw_response``: the HTTP answer beside what it is read as, named as in openai-python."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from millstream._settings import hide
from millstream.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class Record(Protocol):
    """What every record has of its HTTP answer."""

    @property
    def status_code(self) -> int: ...
    @property
    def headers(self) -> dict[str, str]: ...
    @property
    def raw_body(self) -> bytes: ...
    @property
    def request_id(self) -> str | None: ...
    @property
    def attempts(self) -> int: ...
    @property
    def elapsed(self) -> float: ...


T = TypeVar("T", bound=Record)


class RawResponse(Generic[T]):
    """An HTTP answer as it came, and what it is read as. It was validated before: an error is raised, as ever."""

    __slots__ = ("_record",)

    def __init__(self, record: T) -> None:
        self._record = record

    @property
    def status_code(self) -> int:
        """The HTTP status: always 2xx."""
        return self._record.status_code

    @property
    def headers(self) -> dict[str, str]:
        """The headers, names in lower case."""
        return self._record.headers

    @property
    def content(self) -> bytes:
        """The body as the server sent it, decompressed."""
        return self._record.raw_body

    @property
    def text(self) -> str:
        """The body as text."""
        return self._record.raw_body.decode(errors="replace")

    @property
    def request_id(self) -> str | None:
        """The server's name for the request, for its support."""
        return self._record.request_id

    @property
    def attempts(self) -> int:
        """HTTP requests made, the first included."""
        return self._record.attempts

    @property
    def elapsed(self) -> float:
        """Seconds from the admission to the end of the answer, over all attempts."""
        return self._record.elapsed

    def parse(self) -> T:
        """The record that ``create`` returns without ``with_raw_response``."""
        return self._record

    def __repr__(self) -> str:
        return f"<RawResponse [{self.status_code}] {type(self._record).__name__}>"


class AsyncWithRawResponse(Generic[T]):
    """The same resource, whose ``create`` returns the HTTP answer."""

    __slots__ = ("_create",)

    def __init__(self, create: Callable[..., Awaitable[Any]]) -> None:
        self._create = create

    async def create(self, **arguments: Any) -> RawResponse[T]:
        """As the resource's own ``create``, whose record `RawResponse.parse` returns. Not for streams.

        Raises:
            ConfigurationError: An argument is not valid; nothing was sent.
            APIError: No answer after every retry.
        """
        _hide(arguments)
        return RawResponse(await self._create(**arguments))


class WithRawResponse(Generic[T]):
    """The same resource, whose ``create`` returns the HTTP answer."""

    __slots__ = ("_create",)

    def __init__(self, create: Callable[..., Any]) -> None:
        self._create = create

    def create(self, **arguments: Any) -> RawResponse[T]:
        """As the resource's own ``create``, whose record `RawResponse.parse` returns. Not for streams.

        Raises:
            ConfigurationError: An argument is not valid; nothing was sent.
            APIError: No answer after every retry.
        """
        _hide(arguments)
        return RawResponse(self._create(**arguments))


def _hide(arguments: dict[str, Any]) -> None:
    """The secrets, since a traceback shows a frame's variables; and what makes no sense here."""
    hidden = hide(arguments.pop("extra_headers", None), arguments.pop("extra_query", None))
    if hidden is not None:
        arguments["extra_headers"] = hidden
    if arguments.get("stream"):
        raise ConfigurationError("with_raw_response is for whole answers; leave stream out, or with_raw_response")
