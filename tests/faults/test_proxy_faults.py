"""A proxy that fails: refusals of a tunnel, silence, garbage. The key does not leave in any of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from fault_server import Wire, fault_server
from helpers import KEY
from millstream import APIConnectionError, APIError, APIStatusError, APITimeoutError, Client, RetryPolicy

if TYPE_CHECKING:
    from fault_server import Fault

ELSEWHERE = "https://api.example.test/v1"


def says(answer: bytes) -> Fault:
    def act(wire: Wire) -> None:
        wire.server.saw(wire.read_head())
        wire.send(answer)
        wire.finish()

    return act


def hangs(wire: Wire) -> None:
    wire.server.saw(wire.read_head())
    wire.wait_until_left()


TUNNELS = {
    "a bad gateway": says(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"),
    "a wish for a password": says(
        b'HTTP/1.1 407 No\r\nProxy-Authenticate: Basic realm="x"\r\nContent-Length: 0\r\n\r\n'
    ),
    "a page": says(b"HTTP/1.1 503 No\r\nContent-Length: 13\r\n\r\n<html></html>"),
    "a redirect": says(b"HTTP/1.1 302 No\r\nLocation: http://evil.test/\r\nContent-Length: 0\r\n\r\n"),
    "an end": says(b""),
    "garbage": says(b"\x00\xff\r\n\r\n"),
    "an endless head": says(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 1_000_000),
    "a tunnel to nowhere": says(b"HTTP/1.1 200 Connection established\r\n\r\n"),
    "a tunnel to what is no TLS": says(b"HTTP/1.1 200 Connection established\r\n\r\nhello, world"),
}


def client_through(proxy: str, monkeypatch: pytest.MonkeyPatch, base_url: str = ELSEWHERE, **options: object) -> Client:
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    monkeypatch.setenv("HTTP_PROXY", proxy)
    policy = RetryPolicy(max_retries=1, base_delay=0.001)
    defaults = {"timeout": 15.0, "connect_timeout": 10.0, "retry": policy, "allow_http": True}
    return Client(base_url=base_url, api_key=KEY, model="m", **{**defaults, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", TUNNELS)
def test_a_tunnel_that_fails_is_a_connection_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with fault_server(TUNNELS[name], at="accept") as proxy:
        with client_through(proxy.base_url.removesuffix("/v1"), monkeypatch) as client:
            with pytest.raises(APIError) as caught:
                client.complete("hi")
        assert type(caught.value) is APIConnectionError, repr(caught.value)
        assert caught.value.attempts == len(proxy.requests) == 2
        assert "api.example.test" in str(caught.value)
        assert str(caught.value).isprintable()
        for request in proxy.requests:
            assert request.startswith(b"CONNECT api.example.test:443 ")
            assert KEY.encode() not in request


def test_a_proxy_that_hangs_is_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        fault_server(hangs, at="accept") as proxy,
        client_through(proxy.base_url.removesuffix("/v1"), monkeypatch, connect_timeout=0.3) as client,
    ):
        with pytest.raises(APITimeoutError, match="connect_timeout"):
            client.complete("hi")


def test_a_proxy_that_is_not_there_is_a_connection_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with fault_server(hangs) as gone:
        port = gone.port
    with client_through(f"http://127.0.0.1:{port}", monkeypatch) as client, pytest.raises(APIConnectionError) as caught:
        client.complete("hi")
    assert caught.value.attempts == 2


@pytest.mark.parametrize(("status", "attempts"), [(407, 1), (502, 2)])
def test_the_refusal_of_a_plain_proxy_is_a_status(status: int, attempts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = f"HTTP/1.1 {status} No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()

    def act(wire: Wire) -> None:
        wire.read_request()
        wire.send(answer)
        wire.finish()

    with (
        fault_server(act, at="accept") as proxy,
        client_through(proxy.base_url.removesuffix("/v1"), monkeypatch, "http://api.example.test/v1") as client,
    ):
        with pytest.raises(APIStatusError) as caught:
            client.complete("hi")
        assert (caught.value.status_code, caught.value.attempts, len(proxy.requests)) == (status, attempts, attempts)
