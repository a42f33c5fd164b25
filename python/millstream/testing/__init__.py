"""A real loopback HTTP server that plays an OpenAI-compatible provider, for your tests.

millstream's client is written in Rust, so patching Python's HTTP libraries does not reach it. `MockServer` is
a server on 127.0.0.1, on a thread of its own: point ``base_url`` at it, script its answers and faults, look
at what it saw.

    with MockServer() as server:
        server.script(Answer(status=503), Answer(fault="reset_before"))  # then the default reply
        ...  # a client with base_url=server.base_url
        assert server.stats.requests == 3

With pytest there is a fixture ``mock_server``; a marker configures it:
``@pytest.mark.mock_server(requests_per_minute=60)``. ``python -m millstream.testing`` runs a server in a
process of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from millstream import _millstream
from millstream._millstream import MockStats, RecordedRequest

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence
    from types import TracebackType
    from typing import Self

__all__ = ["Answer", "Fault", "MockServer", "MockStats", "RecordedRequest"]

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One scripted answer.

    With neither ``text`` nor ``body``, status 200 means the server's default reply and any other status an
    error body in the provider's form.

    Attributes:
        status: HTTP status, 200 to 599.
        text: Assistant's content of a chat completion.
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
    body: bytes | str | Mapping[str, Any] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    latency: float | None = None
    fault: Fault | None = None
    drip_interval: float = 0.05
    times: int = 1


class MockServer:
    """A loopback HTTP server that plays an OpenAI-compatible provider.

    It answers ``POST /v1/chat/completions`` and ``GET /v1/models``, and any path for which an answer is
    scripted. The way of one request, in this order: API key (401), limits of ``POST`` requests (429), answers
    of `when`, answers of `script`, the default reply. So a refused request uses up no scripted answer.
    """

    __slots__ = ("_native",)

    def __init__(
        self,
        *,
        reply: Literal["echo", "fixed"] | str = "echo",
        latency: float | tuple[float, float] = 0.0,
        models: Sequence[str] = ("mock-model",),
        api_key: str | None = None,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        max_concurrent: int | None = None,
        record: bool = True,
        tls: tuple[str | os.PathLike[str], str | os.PathLike[str]] | None = None,
        port: int = 0,
        seed: int = 0,
    ) -> None:
        """Make a server; `start` makes it listen.

        Args:
            reply: Default reply of a chat completion. ``"echo"``: ``"echo: "`` and the text of the last user
                message. ``"fixed"``: one realistic body of about 970 bytes, the request is not parsed. Any
                other: that text.
            latency: Seconds before each answer that is not a refusal, or ``(median seconds, sigma)`` of a
                lognormal.
            models: Ids that ``GET /v1/models`` lists. A request may name any model.
            api_key: The key to ask for (``Authorization: Bearer``, ``api-key`` or ``x-api-key``), else 401.
            requests_per_minute: A continuous token bucket: capacity the limit, refill limit / 60 s.
            tokens_per_minute: The same for tokens; a request is charged the larger of ``max_tokens`` and a
                quarter of its messages' bytes.
            max_concurrent: Most requests answered at once, 429 above.
            record: Keep each request. Without it only `stats` are kept.
            tls: Paths of a PEM certificate chain and its private key. The server then speaks HTTPS, and
                HTTP/2 by ALPN.
            port: Port on 127.0.0.1, 0 for any free one. Kept when the server is started again.
            seed: Seed of the drawn latencies.

        Raises:
            ValueError: An argument makes no sense, or a PEM file does not.
        """
        self._native = _millstream.MockServer(
            reply=reply,
            latency=latency,
            models=list(models),
            api_key=api_key,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            max_concurrent=max_concurrent,
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

        Does nothing if stopped already.
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
        been.

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

    def clear(self) -> None:
        """Forget scripts and requests, zero the counters, fill the rate limits. Connections stay open."""
        self._native.clear()

    def __repr__(self) -> str:
        try:
            return f"<MockServer {self.base_url}>"
        except RuntimeError:
            return "<MockServer not started>"
