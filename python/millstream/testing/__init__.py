"""A real loopback HTTP server that plays an LLM provider, for your tests.

millstream's client is written in Rust, so patching Python's HTTP libraries does not reach it. `MockServer` is
a server on 127.0.0.1, on a thread of its own: point ``base_url`` at it, script its answers and faults, look
at what it saw.

    with MockServer() as server:
        server.script(Answer(status=503), Answer(fault="reset_before"))  # then the default reply
        ...  # a client with base_url=server.base_url
        assert server.stats.requests == 3

`VirtualClock` runs client and server on a clock that does not really pass.

With pytest there is a fixture ``mock_server``; a marker configures it:
``@pytest.mark.mock_server(requests_per_minute=60)``. ``python -m millstream.testing`` runs a server in a
process of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from millstream import _arguments, _millstream
from millstream._millstream import KeyStats, MockStats, RecordedRequest
from millstream.testing._clock import VirtualClock

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence
    from types import TracebackType
    from typing import Self

__all__ = [
    "Answer",
    "Dialect",
    "Fault",
    "KeyStats",
    "Limits",
    "MockServer",
    "MockStats",
    "RecordedRequest",
    "StreamFault",
    "Streaming",
    "VirtualClock",
]

Dialect = Literal["openai", "anthropic", "mistral", "groq", "together", "azure", "none"]
"""Whose rate-limit headers and error bodies the answers have.

The form of an answer goes by the path, see `MockServer`; ``mistral`` is also a form of chat completions. Paths of
Anthropic's and Azure's have their own errors whatever the dialect.

- ``openai``: ``x-ratelimit-{limit,remaining,reset}-{requests,tokens}``, resets as Go durations to the *full* refill;
  ``retry-after`` and ``retry-after-ms``.
- ``anthropic``: ``anthropic-ratelimit-*`` with resets in RFC 3339 and tokens rounded to thousands, ``request-id``,
  ``{"type": "error", ...}``; ``retry-after`` in whole seconds.
- ``mistral``: ``x-ratelimit-*-req-minute`` and ``-tokens-minute``, no resets, no ``Retry-After``. A limit of 0 is for
  good: the model is not in the plan.
- ``groq``: OpenAI's names, but ``-requests`` speaks of ``requests_per_day``; requests per minute are counted in
  silence. ``retry-after`` in whole seconds.
- ``together``: ``x-ratelimit-limit`` and ``-limit-tokens`` per *second*; buckets hold a second, not a minute; 429 with
  the type ``credit_limit`` and no ``Retry-After``.
- ``azure``: ``x-ratelimit-remaining-*`` alone; ``retry-after`` and ``retry-after-ms``.
- ``none``: no header speaks of a limit; ``retry-after`` and ``retry-after-ms``.
"""

Fault = Literal["reset_before", "close_before", "reset_in_body", "truncate", "hang_before", "hang_in_body", "drip"]
"""A way to misbehave, at the level of the socket.

- ``reset_before``: TCP reset (RST) instead of an answer.
- ``close_before``: the connection is closed in good order (FIN) instead of an answer.
- ``reset_in_body``: head and half of the body, then a reset.
- ``truncate``: head with the full Content-Length and half of the body, then the connection is closed.
- ``hang_before``: no answer, until the client leaves or the server stops.
- ``hang_in_body``: head and half of the body, then silence.
- ``drip``: the body byte by byte.
"""


StreamFault = Literal[
    "end",
    "end_in_event",
    "end_in_character",
    "close",
    "reset",
    "stall",
    "error",
    "bad_json",
    "endless_line",
    "endless_comments",
    "no_finish",
    "no_done",
    "never_ends",
    "garbage",
    "json",
]
"""What goes wrong with a stream.

Once `Streaming.after` events are out:

- ``end``: the body ends in good order, with no reason why and no end marker.
- ``end_in_event``, ``end_in_character``: the same in the middle of the next event, or of a character of two bytes.
- ``close``: the connection is closed in good order (FIN), the body has no end.
- ``reset``: TCP reset (RST).
- ``stall``: silence, until the client leaves or the server stops.
- ``error``: an error event (`Streaming.error`), and the body ends.
- ``bad_json``: an event whose data is no JSON; the others follow.
- ``endless_line``, ``endless_comments``: one line that never ends, or comments for ever, `Streaming.gap` apart.

Whatever `Streaming.after` is:

- ``no_finish``: the event that says why the answer ends is left out.
- ``no_done``: the end marker (``[DONE]``, ``message_stop``) is left out.
- ``never_ends``: silence after the end marker.
- ``garbage``: bytes that are no event after the end marker.
- ``json``: the whole answer as JSON, as if it had not been asked to stream.

An HTTP error instead of a stream is ``Answer(status=503)``, a wrong content type ``Answer(headers={"content-type":
"text/html"})``. Of the faults of `Answer`, those in the body strike after half of the events.
"""


@_arguments.spelt_class
@dataclass(frozen=True, slots=True, kw_only=True)
class Streaming:
    """How an answer is streamed to a client that asks for that.

    Attributes:
        chunks: Pieces of each text: its words over and over until there are so many, or the first so many of them.
            Default: each word once.
        first: Seconds between the head and the first event.
        gap: Seconds between two events; or those of each gap in turn, the last of them for all that follow.
        write: What goes to the socket in one write. ``"ready"``: each event is a chunk of the HTTP body, and where
            there is no gap between them several share a write. ``"event"``: each event on its own. A number: so many
            bytes, wherever that cuts an event, a line or a character. ``"all"``: all events up to the next gap, up to a
            megabyte.
        line_end: What ends a line.
        keep_alive: A comment (in Anthropic's API a ``ping``) after so many seconds of silence; 0: before every event.
        comment: The comment's text.
        fault: What goes wrong. Default: nothing.
        after: Events that go out before ``fault``.
        error: Data of the event of the fault ``error``; a mapping is sent as JSON. Default: an error of the server's in
            the API's form.
    """

    chunks: int | None = None
    first: float = 0.0
    gap: float | Sequence[float] = 0.0
    write: Literal["ready", "event", "all"] | int = "ready"
    line_end: Literal["\n", "\r\n", "\r"] = "\n"
    keep_alive: float | None = None
    comment: str = "keep-alive"
    fault: StreamFault | None = None
    after: int = 1
    error: str | Mapping[str, Any] | None = None


@_arguments.spelt_class
@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One scripted answer.

    With neither ``body`` nor anything to say (``text``, ``reasoning``, ``tool_calls``, ``finish_reason``), status 200
    means the server's default reply and any other status an error body in the provider's form.

    Attributes:
        status: HTTP status, 200 to 599.
        text: Assistant's content, in the form of the API that is asked.
        reasoning: What the model thought before it.
        tool_calls: Functions to call, ``[("weather", {"city": "Paris"})]``; a string is sent as it
            is. Without ``text`` there is then no content.
        finish_reason: Why the answer ends, in OpenAI's words; Anthropic's and Responses' APIs say it in theirs.
            Default: ``"stop"``, or ``"tool_calls"``.
        content_list: The content as a list of text parts, as Mistral may send it, in place of a string.
        stream: How it is streamed if the request asks for that. A raw ``body`` is streamed without being asked.
            Default: the server's.
        body: Raw body in place of ``text``; a mapping is sent as JSON. Its ``content-type`` is
            ``application/json`` unless ``headers`` say otherwise.
        headers: Added to the answer's headers or put in place of them. ``content-length`` is the server's.
        latency: Seconds between the end of the request and the head of the answer. Default: the server's.
        fault: How to misbehave. Default: not at all.
        drip_interval: Seconds between two bytes of the fault ``drip``.
        times: How many requests this answer serves, 0 for any number.
    """

    status: int = 200
    text: str | None = None
    reasoning: str | None = None
    tool_calls: Sequence[tuple[str, str | Mapping[str, Any]]] = ()
    finish_reason: str | None = None
    content_list: bool = False
    stream: Streaming | None = None
    body: bytes | str | Mapping[str, Any] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    latency: float | None = None
    fault: Fault | None = None
    drip_interval: float = 0.05
    times: int = 1


class Limits(TypedDict, total=False):
    """Limits of a server or of one key: continuous token buckets that start full. What is not named is not limited.

    Attributes:
        requests_per_minute: Requests per minute.
        requests_per_day: Requests per day.
        tokens_per_minute: Tokens per minute; a request is charged the larger of ``max_tokens`` and a quarter of its
            messages' bytes.
        input_tokens_per_minute: Tokens of the prompts per minute.
        output_tokens_per_minute: Tokens of the answers per minute, charged by ``max_tokens`` on arrival.
    """

    requests_per_minute: int | None
    requests_per_day: int | None
    tokens_per_minute: int | None
    input_tokens_per_minute: int | None
    output_tokens_per_minute: int | None


_KINDS = {
    "embedding_dimensions": _arguments.COUNT._replace(optional=False),
    "embeddings_per_request": _arguments.COUNT._replace(optional=False),
    "tokens_per_embedding": _arguments.COUNT,
    "max_concurrent": _arguments.COUNT,
    "slots": _arguments.COUNT,
    "port": _arguments.COUNT._replace(optional=False, most=2**16 - 1),
    "seed": _arguments.COUNT._replace(optional=False, most=2**64 - 1),
}


def _limits(limits: Limits) -> Limits:
    """``limits`` with every name of them, as the native module takes them."""
    if unknown := limits.keys() - Limits.__annotations__.keys():
        raise ValueError(f"no such limit: {sorted(unknown)}")
    _arguments.check(limits, {}, _arguments.COUNT)
    return {
        "requests_per_minute": limits.get("requests_per_minute"),
        "requests_per_day": limits.get("requests_per_day"),
        "tokens_per_minute": limits.get("tokens_per_minute"),
        "input_tokens_per_minute": limits.get("input_tokens_per_minute"),
        "output_tokens_per_minute": limits.get("output_tokens_per_minute"),
    }


class MockServer:
    """A loopback HTTP server that plays a provider: OpenAI's API, Anthropic's, Mistral's or Azure's.

    It answers, whole and with ``"stream": true`` as events:

    - ``/v1/chat/completions``; with ``dialect="mistral"`` as Mistral does, which refuses ``stream_options``, ``seed``
      and ``max_completion_tokens`` with 422;
    - ``/v1/completions`` and ``/v1/responses``;
    - ``/v1/messages`` in Anthropic's form whatever the dialect, 400 without ``max_tokens`` or ``anthropic-version``;
    - ``/openai/deployments/NAME/chat/completions?api-version=...`` as Azure does, 401 without a key, 404 without a
      version;

    and ``/v1/messages/count_tokens``, ``/v1/embeddings`` (vectors of 8 numbers or ``dimensions``, the same for the same
    input), ``GET /v1/models``, and any path for which an answer is scripted. A ``POST`` to another path below ``/v1/``
    gets back what it sent: ``{"method", "path", "query", "json"}``.

    Batches of three vendors: ``/v1/files`` with ``/v1/batches`` (OpenAI's) or ``/v1/batch/jobs`` (Mistral's), and
    ``/v1/messages/batches`` (Anthropic's), to make, list, get, cancel and read the results of. Each request of a batch
    is answered as one of its own would be, by `when`, `script` or the default reply; `set_batches` says when.

    The way of one request, in this order: `outage`, API key (401), limits of ``POST`` requests (429),
    answers of `when`, answers of `script` or the default reply, a slot, the latency. So a refused request uses up no
    scripted answer.

    What tests of limits ask, on the server's own clock: ``server.requests`` with ``arrived``, ``answered``, ``status``,
    ``retry_after`` and ``key`` of each.
    """

    __slots__ = ("_native",)

    @_arguments.spelt
    def __init__(
        self,
        *,
        reply: Literal["echo", "fixed"] | str = "echo",
        stream: Streaming | None = None,
        shuffle_embeddings: bool = False,
        embedding_dimensions: int = 8,
        embeddings_per_request: int = 2048,
        tokens_per_embedding: int | None = None,
        base64_embeddings: Literal["given", "ignored", "refused"] = "given",
        latency: float | tuple[float, float] = 0.0,
        models: Sequence[str] = ("mock-model",),
        api_key: str | None = None,
        keys: Mapping[str, Limits] | None = None,
        requests_per_minute: int | None = None,
        requests_per_day: int | None = None,
        tokens_per_minute: int | None = None,
        input_tokens_per_minute: int | None = None,
        output_tokens_per_minute: int | None = None,
        dialect: Dialect = "openai",
        max_concurrent: int | None = None,
        slots: int | None = None,
        record: bool = True,
        tls: tuple[str | os.PathLike[str], str | os.PathLike[str]] | None = None,
        port: int = 0,
        seed: int = 0,
    ) -> None:
        """Make a server; `start` makes it listen.

        Args:
            reply: Default reply. ``"echo"``: ``"echo: "`` and the text of the last user
                message. ``"fixed"``: one realistic body of about 970 bytes, the request is not parsed. Any
                other: that text.
            stream: How an answer is streamed to a client that asks for that. Default: a word to an event, at once.
            shuffle_embeddings: Send embeddings in an order of chance, as they may come: their place is their ``index``.
            embedding_dimensions: Numbers of a vector, if the request does not say.
            embeddings_per_request: Inputs of one request for embeddings, 400 above.
            tokens_per_embedding: Tokens of one input, 400 for the whole request above. Default: any number.
            base64_embeddings: What becomes of ``encoding_format="base64"``: vectors come in it, or as lists all the
                same, or a 400.
            latency: Seconds before each answer that is not a refusal, or ``(median seconds, sigma)`` of a
                lognormal.
            models: Ids that ``GET /v1/models`` lists. A request may name any model.
            api_key: The key to ask for (``Authorization: Bearer``, ``api-key`` or ``x-api-key``), else 401.
            keys: Further keys to accept, each with buckets of its own: ``{"sk-a": {"requests_per_minute": 60}}``.
                Limits that a key does not name are the server's, but counted for this key alone.
            requests_per_minute: A continuous token bucket: capacity the limit, refill limit / 60 s.
            requests_per_day: The same, refilled in a day.
            tokens_per_minute: The same for tokens; a request is charged the larger of ``max_tokens`` and a
                quarter of its messages' bytes.
            input_tokens_per_minute: The same for the prompt's tokens alone.
            output_tokens_per_minute: The same for the answer's, charged by ``max_tokens`` on arrival.
            dialect: Whose rate-limit headers and errors the answers have, see `Dialect`.
            max_concurrent: Most requests answered at once, 429 above.
            slots: Requests worked at (for ``latency``) at once; the others queue, first come first served, and none
                is refused. The throughput has its knee there: ``slots / latency``. Default: any number.
            record: Keep each request. Without it only `stats` are kept.
            tls: Paths of a PEM certificate chain and its private key. The server then speaks HTTPS, and
                HTTP/2 by ALPN.
            port: Port on 127.0.0.1, 0 for any free one. Kept when the server is started again.
            seed: Seed of the drawn latencies.

        Raises:
            ValueError: An argument makes no sense, or a PEM file does not.
        """
        _arguments.check(
            {
                "embedding_dimensions": embedding_dimensions,
                "embeddings_per_request": embeddings_per_request,
                "tokens_per_embedding": tokens_per_embedding,
                "max_concurrent": max_concurrent,
                "slots": slots,
                "port": port,
                "seed": seed,
            },
            _KINDS,
        )
        self._native = _millstream.MockServer(
            reply=reply,
            stream=stream or Streaming(),
            embeddings=(
                shuffle_embeddings,
                embedding_dimensions,
                embeddings_per_request,
                tokens_per_embedding,
                base64_embeddings,
            ),
            latency=latency,
            models=list(models),
            api_key=api_key,
            keys=[(key, _limits(limits)) for key, limits in (keys or {}).items()],
            limits=_limits(
                {
                    "requests_per_minute": requests_per_minute,
                    "requests_per_day": requests_per_day,
                    "tokens_per_minute": tokens_per_minute,
                    "input_tokens_per_minute": input_tokens_per_minute,
                    "output_tokens_per_minute": output_tokens_per_minute,
                }
            ),
            dialect=dialect,
            max_concurrent=max_concurrent,
            slots=slots,
            record=record,
            tls=tls,
            port=port,
            seed=seed,
        )

    def start(self) -> Self:
        """Listen; after `stop` again on the same port. Does nothing if it listens.

        Raises:
            OSError: The port is taken.
        """
        self._native.start()
        return self

    def stop(self) -> None:
        """Close the listener and all connections, and wait until that is done.

        Does nothing if stopped already, nor in a process that was forked from the server's.
        """
        self._native.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        return self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def port(self) -> int:
        """Port on 127.0.0.1. A ``RuntimeError`` if it is not known before `start`."""
        return self._native.port

    @property
    def root_url(self) -> str:
        """``http://127.0.0.1:PORT``, with TLS ``https://``."""
        return self._native.root_url

    @property
    def base_url(self) -> str:
        """`root_url` with ``/v1``: what a client takes as ``base_url``."""
        return self._native.base_url

    def script(self, *answers: Answer) -> None:
        """Add answers for the next requests, in order of their arrival; after them the default reply.

        Raises:
            ValueError: An answer makes no sense.
        """
        self._native.script(answers)

    def when(self, text: str, *answers: Answer) -> None:
        """Add answers for requests whose body contains ``text``.

        They are used in order and come before those of `script`; once used up, the rule is as if it had never
        been. Requests about files and batches are looked for by method and path (``"POST /v1/batches"``), since their
        bodies are other requests, which have answers of their own.

        Args:
            text: Looked for in the body as sent, UTF-8, so JSON escapes count.
            answers: ``times=0`` on one makes it serve for ever.

        Raises:
            ValueError: An answer makes no sense.
        """
        self._native.when(text, answers)

    @property
    def requests(self) -> list[RecordedRequest]:
        """The requests seen, in order of arrival. Empty with ``record=False``."""
        return self._native.requests

    @property
    def stats(self) -> MockStats:
        """The counters, since the making of the server or the last `clear`."""
        return self._native.stats

    @property
    def key_stats(self) -> dict[str, KeyStats]:
        """The counters of each of ``keys``."""
        return self._native.key_stats

    def set_limits(
        self,
        key: str | None = None,
        *,
        requests_per_minute: int | None = None,
        requests_per_day: int | None = None,
        tokens_per_minute: int | None = None,
        input_tokens_per_minute: int | None = None,
        output_tokens_per_minute: int | None = None,
    ) -> None:
        """Replace the limits while the server runs: from now on these and no others.

        What is left of a limit is left, as far as the new one holds it; a limit that was not there starts full.

        Args:
            key: One of ``keys``. Default: everyone and every key.
            requests_per_minute: As in the constructor, like the others.
            requests_per_day: Requests per day.
            tokens_per_minute: Tokens per minute.
            input_tokens_per_minute: Tokens of the prompts per minute.
            output_tokens_per_minute: Tokens of the answers per minute.

        Raises:
            ValueError: No such key, or a limit that nothing could pass.
        """
        self._native.set_limits(
            key,
            _limits(
                {
                    "requests_per_minute": requests_per_minute,
                    "requests_per_day": requests_per_day,
                    "tokens_per_minute": tokens_per_minute,
                    "input_tokens_per_minute": input_tokens_per_minute,
                    "output_tokens_per_minute": output_tokens_per_minute,
                }
            ),
        )

    def set_max_concurrent(self, max_concurrent: int | None) -> None:
        """Answer so many requests at once from now on, 429 above; ``None`` for any number."""
        _arguments.check({"max_concurrent": max_concurrent}, _KINDS)
        self._native.set_max_concurrent(max_concurrent)

    def set_slots(self, slots: int | None) -> None:
        """Work at so many requests at once from now on, the others queue; ``None`` for any number.

        Requests at work are not stopped, so fewer slots take effect as they get done.
        """
        _arguments.check({"slots": slots}, _KINDS)
        self._native.set_slots(slots)

    def set_batches(self, *, delay: float = 0.0, expire_after: float = 86400.0) -> None:
        """Say how long batches take that are made from now on.

        Args:
            delay: Seconds from a batch's creation to its first answer; each request of it comes the ``latency`` of its
                `Answer` later.
            expire_after: Seconds from its creation to the end of its window, when what has no answer expires. A request
                whose `Answer` has the fault ``hang_before`` never has one.

        Raises:
            ValueError: An argument makes no sense.
        """
        self._native.set_batches(delay, expire_after)

    def outage(self, status: int = 503, seconds: float | None = None) -> None:
        """Answer every request with an error from now on, at once and before anything else is looked at.

        Args:
            status: HTTP status, 200 to 599.
            seconds: How long. Default: until `recover`.

        Raises:
            ValueError: An argument makes no sense.
        """
        self._native.outage(status, seconds)

    def recover(self) -> None:
        """End the outage."""
        self._native.recover()

    def clear(self) -> None:
        """Make it as new: forget scripts, requests and outages, zero the counters, limits as at first and full.

        Connections stay open.
        """
        self._native.clear()

    def __repr__(self) -> str:
        try:
            return f"<MockServer {self.base_url}>"
        except RuntimeError:
            return "<MockServer not started>"
