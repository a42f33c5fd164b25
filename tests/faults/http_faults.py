"""What can be wrong with HTTP/1.1, by name: what a server does, and what the call must come to.

RFC 9112 is the measure of what is legal. ``ANSWER`` are oddities that an answer may have; all else is broken.
"""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fault_server import Left, chunked, with_length

if TYPE_CHECKING:
    from collections.abc import Callable

    from fault_server import Fault, Wire

    Framed = Callable[[bytes, str], bytes]

Outcome = Literal["answer", "connection", "invalid", "refused", "deadline", "interrupted"]
"""What a call comes to.

- ``answer``: the right text, of one request.
- ``connection``: `APIConnectionError`, worth another attempt.
- ``invalid``: `APIResponseValidationError`, worth another attempt.
- ``refused``: `APIResponseValidationError` that another attempt would not help.
- ``deadline``: `DeadlineExceeded`.
- ``interrupted``: of a stream, `StreamInterruptedError` with the text so far, or an error worth another attempt where
  nothing of it had come.
"""


@dataclass(frozen=True)
class Case:
    """A fault and what it comes to; ``stream`` where that is something else for a stream."""

    act: Fault
    gives: Outcome
    stream: Outcome | None = None
    at: Literal["request", "accept"] = "request"

    @property
    def of_stream(self) -> Outcome:
        return self.stream or self.gives


def sends(data: bytes | Framed, *, then: Literal["finish", "reset", "close"] = "finish") -> Fault:
    """Send these bytes, or what is made of the right body and its content type, and go."""

    def act(wire: Wire) -> None:
        wire.send(data if isinstance(data, bytes) else data(*wire.right_body()))
        if then == "finish":
            wire.finish()
        elif then == "reset":
            wire.reset()

    return act


def head(status_line: bytes = b"HTTP/1.1 200 OK", *lines: bytes) -> Framed:
    """A right body under a head of one's own."""

    def frame(body: bytes, kind: str) -> bytes:
        usual = (b"Content-Type: " + kind.encode(), b"Content-Length: %d" % len(body))
        return b"\r\n".join((status_line, *usual, *lines)) + b"\r\n\r\n" + body

    return frame


def only(*lines: bytes) -> Framed:
    """The same without a content length."""
    return lambda body, kind: (
        b"\r\n".join((b"HTTP/1.1 200 OK", b"Content-Type: " + kind.encode(), *lines)) + b"\r\n\r\n" + body
    )


def chunks(cut: Callable[[bytes], bytes], *lines: str) -> Framed:
    """A right body in chunks of 16 bytes, of which ``cut`` makes something else."""

    def frame(body: bytes, kind: str) -> bytes:
        whole = chunked(*(body[at : at + 16] for at in range(0, len(body), 16)), headers=lines, kind=kind)
        start = whole.index(b"\r\n\r\n") + 4
        return whole[:start] + cut(whole[start:])

    return frame


def encoded(encoding: str, encode: Callable[[bytes], bytes]) -> Framed:
    return lambda body, kind: with_length(encode(body), f"Content-Encoding: {encoding}", kind=kind)


def for_ever(begin: bytes | Framed, again: bytes, interval_s: float = 0.0) -> Fault:
    """The same bytes again and again, until the client has enough."""

    def act(wire: Wire) -> None:
        wire.send(begin if isinstance(begin, bytes) else begin(*wire.right_body()))
        while True:
            wire.send(again)
            if wire.server.stopping.wait(interval_s):
                raise Left

    return act


def silence(begin: bytes | Framed = b"") -> Fault:
    def act(wire: Wire) -> None:
        wire.send(begin if isinstance(begin, bytes) else begin(*wire.right_body()))
        wire.wait_until_left()

    return act


def first_half(body: bytes, kind: str) -> bytes:
    whole = head()(body, kind)
    return whole[: len(whole) - len(body) // 2]


def dripping(framed: Framed) -> Fault:
    def act(wire: Wire) -> None:
        wire.drip(framed(*wire.right_body()), 0.05)
        wire.finish()

    return act


def many_headers(count: int) -> Framed:
    return head(b"HTTP/1.1 200 OK", *(b"X-%d: 1" % number for number in range(count)))


def long_head(size: int) -> Framed:
    return head(b"HTTP/1.1 200 OK", b"X-Long: " + b"a" * size)


def informational(*lines: bytes) -> Framed:
    interim = b"".join(line + b"\r\n\r\n" for line in lines)
    return lambda body, kind: interim + head()(body, kind)


def raw_deflate(body: bytes) -> bytes:
    coder = zlib.compressobj(wbits=-15)
    return coder.compress(body) + coder.flush()


def before_reading(wire: Wire) -> None:
    """Goes without a look at the request."""


def in_the_request(wire: Wire) -> None:
    wire.read_head()
    wire.reset()


STATUS_LINES: dict[str, Case] = {
    "garbage": Case(sends(b"\x00\x01\x02 garbage \xff\r\n\r\n"), "connection"),
    "another protocol": Case(sends(b"SSH-2.0-OpenSSH_9.6\r\n"), "connection"),
    "a TLS alert": Case(sends(b"\x15\x03\x01\x00\x02\x02\x46"), "connection"),
    "HTTP/0.9": Case(sends(lambda body, kind: body), "connection"),
    "HTTP/3": Case(sends(head(b"HTTP/3.0 200 OK")), "connection"),
    "ICY": Case(sends(head(b"ICY 200 OK")), "connection"),
    "a status of four digits": Case(sends(head(b"HTTP/1.1 2000 OK")), "connection"),
    "a status of two digits": Case(sends(head(b"HTTP/1.1 20 OK")), "connection"),
    "a status that is no number": Case(sends(head(b"HTTP/1.1 OK OK")), "connection"),
    "a negative status": Case(sends(head(b"HTTP/1.1 -20 OK")), "connection"),
    "status 000": Case(sends(head(b"HTTP/1.1 000 OK")), "connection"),
    "an endless status line": Case(for_ever(b"HTTP/1.1 200 O", b"K" * 65536), "connection"),
    "no reason": Case(sends(head(b"HTTP/1.1 200 ")), "answer"),
    "no reason and no blank": Case(sends(head(b"HTTP/1.1 200")), "answer"),
    "a reason that is no ASCII": Case(sends(head(b"HTTP/1.1 200 \xc3\xa7a va \xff")), "answer"),
    "HTTP/1.0": Case(sends(head(b"HTTP/1.0 200 OK")), "answer"),
    "HTTP/1.0 without a length": Case(
        sends(lambda body, kind: b"HTTP/1.0 200 OK\r\nContent-Type: %b\r\n\r\n%b" % (kind.encode(), body)), "answer"
    ),
    "an empty line before it": Case(sends(lambda body, kind: b"\r\n" + head()(body, kind)), "answer"),
}

HEADS: dict[str, Case] = {
    "no colon": Case(sends(head(b"HTTP/1.1 200 OK", b"nonsense")), "connection"),
    "no name": Case(sends(head(b"HTTP/1.1 200 OK", b": value")), "connection"),
    "a name with a blank": Case(sends(head(b"HTTP/1.1 200 OK", b"X A: 1")), "connection"),
    "a NUL in a value": Case(sends(head(b"HTTP/1.1 200 OK", b"X-A: a\x00b")), "connection"),
    "a bare CR in a value": Case(sends(head(b"HTTP/1.1 200 OK", b"X-A: a\rb")), "connection"),
    "a value that is no ASCII": Case(sends(head(b"HTTP/1.1 200 OK", b"X-A: \xc3\xa7a \xff")), "answer"),
    "an empty value": Case(sends(head(b"HTTP/1.1 200 OK", b"X-A:")), "answer"),
    "lines that end with LF": Case(
        sends(lambda body, kind: b"HTTP/1.1 200 OK\nContent-Length: %d\n\n%b" % (len(body), body)), "answer"
    ),
    "two content lengths that differ": Case(sends(head(b"HTTP/1.1 200 OK", b"Content-Length: 3")), "connection"),
    "a content length that is no number": Case(sends(only(b"Content-Length: many")), "connection"),
    "a negative content length": Case(sends(only(b"Content-Length: -5")), "connection"),
    "a content length beyond 64 bits": Case(sends(only(b"Content-Length: 99999999999999999999999")), "connection"),
    "a content length of 100 GB": Case(sends(only(b"Content-Length: 100000000000")), "refused", "answer"),
    "chunked, and a content length": Case(sends(chunks(bytes, "Content-Length: 7")), "answer"),
    "a transfer encoding that nobody knows": Case(sends(only(b"Transfer-Encoding: rot13")), "answer"),
    "a body until the end": Case(sends(only()), "answer"),
    "an upgrade": Case(
        sends(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"), "connection"
    ),
    "200 headers": Case(sends(many_headers(200)), "answer"),
    "1,000 headers": Case(sends(many_headers(1000)), "connection"),
    "a head of 50 KiB": Case(sends(long_head(50 << 10)), "answer"),
    "a head of 2 MiB": Case(sends(long_head(2 << 20)), "connection"),
    "an endless head": Case(for_ever(b"HTTP/1.1 200 OK\r\n", b"X-A: 1\r\n" * 1000), "connection"),
    "100 Continue": Case(sends(informational(b"HTTP/1.1 100 Continue")), "answer"),
    "early hints": Case(sends(informational(b"HTTP/1.1 103 Early Hints\r\nLink: </x>")), "answer"),
    "fifty of them": Case(sends(informational(*[b"HTTP/1.1 102 Processing"] * 50)), "answer"),
}

CHUNKS: dict[str, Case] = {
    "a size that is no number": Case(sends(chunks(lambda body: b"zz" + body)), "connection"),
    "a negative size": Case(sends(chunks(lambda body: b"-" + body)), "connection"),
    "a size beyond 64 bits": Case(sends(chunks(lambda body: b"F" * 17 + body)), "connection"),
    "no size": Case(sends(chunks(lambda body: body[2:])), "connection"),
    "data longer than its size": Case(
        sends(chunks(lambda body: body.replace(b"10\r\n", b"8\r\n", 1))), "connection", "interrupted"
    ),
    "cut in a size": Case(sends(chunks(lambda body: body[:1])), "connection"),
    "cut in the data": Case(sends(chunks(lambda body: body[:30])), "connection", "interrupted"),
    "cut after a chunk": Case(sends(chunks(lambda body: body[:22])), "connection", "interrupted"),
    "reset after a chunk": Case(sends(chunks(lambda body: body[:22]), then="reset"), "connection", "interrupted"),
    # Whoever has read all of the answer need not wait for the rest of its frame.
    "cut before its end": Case(sends(chunks(lambda body: body[:-5])), "connection", "answer"),
    "an endless extension": Case(for_ever(chunks(lambda body: b"10;"), b"a" * 65536), "connection"),
    "endless trailers": Case(for_ever(chunks(lambda body: body[:-2]), b"X-A: 1\r\n" * 1000), "connection", "answer"),
    "an extension": Case(sends(chunks(lambda body: body.replace(b"10\r\n", b'10;a="b"\r\n'))), "answer"),
    "trailers": Case(sends(chunks(lambda body: body[:-2] + b"X-A: 1\r\n\r\n")), "answer"),
    "sizes with zeros in front": Case(sends(chunks(lambda body: body.replace(b"10\r\n", b"0010\r\n"))), "answer"),
}

MOMENTS: dict[str, Case] = {
    "closed before a word": Case(before_reading, "connection", at="accept"),
    "reset before a word": Case(lambda wire: wire.reset(), "connection", at="accept"),
    "reset in the request": Case(in_the_request, "connection", at="accept"),
    "closed before the status": Case(sends(b""), "connection"),
    "reset before the status": Case(sends(b"", then="reset"), "connection"),
    "closed in the status": Case(sends(b"HTTP/1.1 20"), "connection"),
    "reset in the status": Case(sends(b"HTTP/1.1 20", then="reset"), "connection"),
    "closed in the head": Case(sends(b"HTTP/1.1 200 OK\r\nContent-Le"), "connection"),
    "reset in the head": Case(sends(b"HTTP/1.1 200 OK\r\nContent-Le", then="reset"), "connection"),
    "closed after the head": Case(sends(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"), "connection", "interrupted"),
    "closed in the body": Case(sends(first_half), "connection", "interrupted"),
    "reset in the body": Case(sends(first_half, then="reset"), "connection", "interrupted"),
    "closed after the body": Case(sends(head()), "answer"),
    "closed after it, as announced": Case(sends(head(b"HTTP/1.1 200 OK", b"Connection: close")), "answer"),
    "garbage after the body": Case(sends(lambda body, kind: head()(body, kind) + b"garbage\r\n" * 100), "answer"),
    "another answer after the body": Case(
        sends(lambda body, kind: head()(body, kind) + with_length(b'{"choices":[]}'), then="finish"), "answer"
    ),
}

ENCODINGS: dict[str, Case] = {
    "gzip that is none": Case(sends(encoded("gzip", bytes)), "invalid"),
    "gzip that is cut": Case(sends(encoded("gzip", lambda body: gzip.compress(body)[:40])), "invalid", "interrupted"),
    "gzip with a wrong sum": Case(
        sends(encoded("gzip", lambda body: gzip.compress(body)[:-8] + b"\x00" * 8)), "invalid", "answer"
    ),
    "an unknown encoding": Case(sends(encoded("br", bytes)), "invalid"),
    "two encodings": Case(sends(encoded("gzip, gzip", lambda body: gzip.compress(gzip.compress(body)))), "invalid"),
    "deflate that is none": Case(sends(encoded("deflate", lambda body: b"\x78\x9c" + body)), "invalid"),
    "an empty body, compressed": Case(sends(encoded("gzip", lambda body: b"")), "invalid"),
    "a bomb": Case(sends(encoded("gzip", lambda body: gzip.compress(b" " * (32 << 20)))), "refused"),
    "gzip": Case(sends(encoded("gzip", gzip.compress)), "answer"),
    "deflate without its wrapper": Case(sends(encoded("deflate", raw_deflate)), "answer"),
    "an encoding of no name": Case(sends(encoded("", bytes)), "answer"),
}

SLOW: dict[str, Case] = {
    "silence before a word": Case(lambda wire: wire.wait_until_left(), "deadline", at="accept"),
    "silence before the status": Case(silence(), "deadline"),
    "silence in the status": Case(silence(b"HTTP/1.1 20"), "deadline"),
    "silence in the head": Case(silence(b"HTTP/1.1 200 OK\r\n"), "deadline"),
    "silence in the body": Case(silence(first_half), "deadline"),
    "a head that drips": Case(dripping(many_headers(50)), "deadline"),
    "a body that drips": Case(dripping(lambda body, kind: head()(body + b" " * 1000, kind)), "deadline"),
    "a header an hour": Case(for_ever(b"HTTP/1.1 200 OK\r\n", b"X-A: 1\r\n", 0.05), "deadline"),
    "1xx for ever": Case(for_ever(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 10, 0.002), "deadline"),
}

CASES: dict[str, Case] = {
    f"{group}: {name}": case
    for group, cases in {
        "status line": STATUS_LINES,
        "head": HEADS,
        "chunks": CHUNKS,
        "connection": MOMENTS,
        "encoding": ENCODINGS,
        "slow": SLOW,
    }.items()
    for name, case in cases.items()
}
