"""Connections, TLS, proxies and encodings. What is hardly HTTP is in `faults/`."""

from __future__ import annotations

import base64
import gzip
import json
import socket
import socketserver
import ssl
import threading
import zlib
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
from helpers import KEY, chat_body, http_answer, last_request, raw_server, run_python
from millstream import (
    APIConnectionError,
    APIError,
    APIResponseValidationError,
    Client,
    ConfigurationError,
)
from millstream.testing import Answer, MockServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from helpers import Face

    Make = Callable[..., Face]

FINE = chat_body("fine")


# ---- the pool ----


def test_calls_one_after_another_share_a_connection(face: Face, mock_server: MockServer) -> None:
    for _ in range(20):
        face.complete("hi")
    assert (mock_server.stats.requests, mock_server.stats.connections) == (20, 1)


@pytest.mark.mock_server(latency=0.01)
def test_a_batch_opens_no_more_connections_than_are_in_flight(face: Face, mock_server: MockServer) -> None:
    face.batch_complete(["hi"] * 200, max_concurrent=5)
    face.batch_complete(["hi"] * 50, max_concurrent=5)
    assert mock_server.stats.connections == 5


def test_an_error_answer_leaves_its_connection_usable(make: Make, mock_server: MockServer) -> None:
    mock_server.script(Answer(status=400), Answer(status=500), Answer(body={}), Answer(status=204))
    face = make(max_retries=0)
    for _ in range(4):
        with pytest.raises(APIError):
            face.complete("hi")
    face.complete("hi")
    assert mock_server.stats.connections == 1


def test_a_stale_pooled_connection_is_replaced_silently(make: Make) -> None:
    """The server keeps a connection alive for one answer and then closes it without a word."""
    with raw_server(http_answer(FINE, "Connection: keep-alive")) as server:
        face = make(base_url=server.base_url, max_retries=0)
        assert [face.complete("hi") for _ in range(20)] == ["fine"] * 20
        assert len(server.requests) == 20


def test_an_answer_that_says_close_is_the_last_on_its_connection(make: Make) -> None:
    with raw_server(http_answer(FINE, "Connection: close")) as server:
        face = make(base_url=server.base_url, max_retries=0)
        assert [face.complete("hi") for _ in range(5)] == ["fine"] * 5
        assert (server.connections, len(server.requests)) == (5, 5)
        assert face.client.stats().attempts == 5


# ---- what is sent, and what is not ----


def test_cookies_are_not_kept(face: Face, mock_server: MockServer) -> None:
    mock_server.script(Answer(text="a", headers={"set-cookie": "session=1; Path=/"}))
    face.complete("hi")
    face.complete("hi")
    assert [request.header("cookie") for request in mock_server.requests] == [None, None]


def test_nothing_that_a_user_gives_splits_the_head(face: Face, mock_server: MockServer) -> None:
    for name, value in (("X-A", "1\r\nX-Evil: 1"), ("X-A\r\nX-Evil", "1"), ("X-A", "1\nX-Evil: 1"), ("X-A", "\0")):
        with pytest.raises(ConfigurationError):
            face.complete("hi", extra_headers={name: value})
    with pytest.raises(ConfigurationError):
        face.with_options(api_key="sk-1\r\nX-Evil: 1")
    assert mock_server.stats.requests == 0

    face.complete("hi\r\nX-Evil: 1\r\n\r\n", model="m\r\nX-Evil: 1")
    assert last_request(mock_server).header("x-evil") is None
    assert mock_server.stats.requests == 1


# ---- encodings and sizes ----


def zlib_bare(body: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(body) + compressor.flush()


@pytest.mark.parametrize(
    ("encoding", "encode"),
    [
        ("gzip", gzip.compress),
        ("x-gzip", gzip.compress),
        ("GZIP", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", zlib_bare),
        ("identity", bytes),
        ("gzip", lambda body: gzip.compress(body[:50]) + gzip.compress(body[50:])),
    ],
)
def test_compressed_answers_are_read(
    face: Face, mock_server: MockServer, encoding: str, encode: Callable[[bytes], bytes]
) -> None:
    body = chat_body("x" * 5000)
    mock_server.script(Answer(body=encode(body), headers={"content-encoding": encoding}, times=2))
    assert face.complete("hi") == "x" * 5000
    assert face.create().to_dict() == json.loads(body)


def test_a_compressed_error_is_read(face: Face, mock_server: MockServer) -> None:
    body = gzip.compress(b'{"error":{"message":"too long","code":"c"}}')
    mock_server.script(Answer(status=400, body=body, headers={"content-encoding": "gzip"}))
    with pytest.raises(APIError, match="too long") as caught:
        face.complete("hi")
    assert caught.value.code == "c"


def test_a_chunked_answer_is_read(make: Make) -> None:
    chunks = b"".join(b"%x\r\n%s\r\n" % (1, FINE[place : place + 1]) for place in range(len(FINE)))
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
    with raw_server(answer) as server:
        assert make(base_url=server.base_url).complete("hi") == "fine"


MEMORY_CODE = """
import resource, sys
from millstream import APIError, Client
client = Client(api_key="k", base_url=sys.argv[1], model="m", max_retries=2)
client.models.list()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    client.complete("hi")
except APIError as error:
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(type(error).__name__, error.attempts, "larger than" in str(error), grown // 1024)
"""


def memory_of(server: MockServer) -> tuple[list[str], int]:
    """What a fresh interpreter says of the error, and by how many MiB its peak grew."""
    done = run_python(MEMORY_CODE, server.base_url)
    assert done.stderr == ""
    *words, grown = done.stdout.split()
    return words, int(grown)


def test_a_gzip_bomb_is_refused_once_and_with_little_memory(mock_server: MockServer) -> None:
    bomb = gzip.compress(b" " * (300 << 20), 9)
    assert len(bomb) < 1 << 20
    mock_server.when('"hi"', Answer(body=bomb, headers={"content-encoding": "gzip"}, times=0))
    words, grown_mib = memory_of(mock_server)

    assert words == ["APIResponseValidationError", "1", "True"]
    assert grown_mib < 150
    assert mock_server.stats.requests == 2


def test_a_body_that_announces_too_much_is_refused_at_once(make: Make) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 100000000000\r\n\r\n"
    with raw_server(head + b"x" * 1000, close=False) as server:
        with pytest.raises(APIResponseValidationError, match="larger than 64 MiB") as caught:
            make(base_url=server.base_url).complete("hi")
        assert caught.value.attempts == len(server.requests) == 1


def test_a_body_that_grows_too_large_is_refused(mock_server: MockServer) -> None:
    mock_server.when('"hi"', Answer(body=b" " * (65 << 20), times=0))
    words, grown_mib = memory_of(mock_server)

    assert words == ["APIResponseValidationError", "1", "True"]
    assert grown_mib < 150
    assert mock_server.stats.requests == 2


def test_an_endless_chunked_body_is_refused(make: Make) -> None:
    chunk = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
    with raw_server(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk * 70, close=False) as server:
        with pytest.raises(APIResponseValidationError, match="larger than 64 MiB") as caught:
            make(base_url=server.base_url).complete("hi")
        assert caught.value.attempts == 1


# ---- TLS ----


TLS_CODE = """
import sys
from millstream import APIError, Client
try:
    with Client(api_key="sk-test-0123", base_url=sys.argv[1], model="m", http2=sys.argv[2] == "2") as client:
        client.complete("hi")
        print("answers", *sorted(set(client.batch_complete(["hi"] * 10))))
except APIError as error:
    print("error", type(error).__name__, error.attempts, error)
"""


class Authority:
    """A CA of our own, and a mock server with a certificate of it."""

    def __init__(self, folder: Path) -> None:
        trustme = pytest.importorskip("trustme")
        self.folder = folder
        self.ca = trustme.CA()
        self.bundle = folder / "ca.pem"
        self.ca.cert_pem.write_to_path(str(self.bundle))

    def server(self, *names: str) -> MockServer:
        certificate = self.ca.issue_cert(*names)
        chain, key = self.folder / "chain.pem", self.folder / "key.pem"
        chain.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
        key.write_bytes(certificate.private_key_pem.bytes())
        return MockServer(tls=(chain, key), latency=0.02)

    def ask(self, server: MockServer, *, http2: bool = False, trusted: bool = True) -> str:
        environment = {"SSL_CERT_FILE": str(self.bundle)} if trusted else {}
        done = run_python(TLS_CODE, server.base_url, "2" if http2 else "1", **environment)
        assert done.stderr == ""
        return done.stdout


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def test_a_trusted_certificate_works(authority: Authority) -> None:
    with authority.server("127.0.0.1") as server:
        assert authority.ask(server) == "answers echo: hi\n"
        # HTTP/1.1 carries one request at a time on a connection and names the host in a header.
        assert 2 <= server.stats.connections <= 10
        assert server.requests[0].header("host") == f"127.0.0.1:{server.port}"
        assert server.requests[0].header("authorization") == "Bearer sk-test-0123"


def test_http2_carries_many_requests_on_one_connection(authority: Authority) -> None:
    with authority.server("127.0.0.1") as server:
        assert authority.ask(server, http2=True) == "answers echo: hi\n"
        # HTTP/2 has no Host header, and its one connection carries all at once, once it is there.
        assert server.requests[0].header("host") is None
        assert server.stats.connections == 1
        assert server.stats.max_in_flight == 10
        assert server.requests[0].header("authorization") == "Bearer sk-test-0123"


def test_http2_falls_back_where_the_server_has_none(authority: Authority) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate = authority.ca.issue_cert("127.0.0.1")
    certificate.configure_cert(context)
    context.set_alpn_protocols(["http/1.1"])
    with https_server(context) as base_url:
        done = run_python(TLS_CODE, base_url, "2", SSL_CERT_FILE=str(authority.bundle))
    assert (done.stdout, done.stderr) == ("answers fine\n", "")


@pytest.mark.parametrize("http2", [False, True])
def test_an_unknown_certificate_is_an_error_that_is_not_retried(authority: Authority, http2: bool) -> None:
    with authority.server("127.0.0.1") as server:
        said = authority.ask(server, http2=http2, trusted=False)
        assert server.stats.requests == 0
    assert said.startswith("error APIConnectionError 1 127.0.0.1 is not trusted: ")
    assert "SSL_CERT_FILE" in said


def test_a_certificate_of_another_name_is_an_error_that_is_not_retried(authority: Authority) -> None:
    with authority.server("api.other.test") as server:
        said = authority.ask(server)
        assert server.stats.requests == 0
    assert said.startswith("error APIConnectionError 1 127.0.0.1 is not trusted: ")


def test_plain_http_to_a_tls_port_is_our_own_error(make: Make, authority: Authority) -> None:
    with authority.server("127.0.0.1") as server, pytest.raises(APIConnectionError):
        make(base_url=server.base_url.replace("https", "http"), max_retries=0).complete("hi")


def test_tls_to_a_plain_port_is_our_own_error(make: Make, mock_server: MockServer) -> None:
    with pytest.raises(APIConnectionError):
        make(base_url=mock_server.base_url.replace("http", "https"), max_retries=0).complete("hi")
    assert mock_server.stats.requests == 0


def https_server(context: ssl.SSLContext) -> Any:
    """An HTTP/1.1 server of the standard library that answers any POST."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.wfile.write(http_answer(FINE))

        def log_message(self, *_: object) -> None: ...

    @contextmanager
    def run() -> Iterator[str]:
        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            server.socket = context.wrap_socket(server.socket, server_side=True)
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            yield f"https://127.0.0.1:{server.server_port}/v1"
            server.shutdown()
            thread.join()

    return run()


# ---- proxies ----


PROXY_CODE = """
import sys
from millstream import Client
with Client(api_key="sk-test-0123", base_url=sys.argv[1], model="m", allow_http=True) as client:
    print(client.complete("hi"))
"""


def test_a_proxy_is_used_for_another_machine(mock_server: MockServer) -> None:
    mock_server.script(Answer(text="through the proxy"))
    done = run_python(PROXY_CODE, "http://api.example.test/v1", HTTP_PROXY=mock_server.root_url)

    assert (done.stdout, done.stderr) == ("through the proxy\n", "")
    assert last_request(mock_server).path == "http://api.example.test/v1/chat/completions"
    assert last_request(mock_server).header("host") == "api.example.test"


def test_no_proxy_is_honoured(mock_server: MockServer) -> None:
    done = run_python(
        PROXY_CODE, "http://api.example.invalid/v1", HTTP_PROXY=mock_server.root_url, NO_PROXY="example.invalid"
    )
    assert "APIConnectionError" in done.stderr
    assert mock_server.stats.requests == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_this_machine_is_never_reached_through_a_proxy(mock_server: MockServer, host: str) -> None:
    with MockServer() as proxy:
        base_url = mock_server.base_url.replace("127.0.0.1", host)
        proxies = dict.fromkeys(("HTTP_PROXY", "http_proxy", "ALL_PROXY", "HTTPS_PROXY"), proxy.root_url)
        done = run_python(PROXY_CODE, base_url, **proxies)
        assert (done.stdout, done.stderr) == ("echo: hi\n", "")
        assert proxy.stats.connections == 0
    assert last_request(mock_server).path == "/v1/chat/completions"


def test_https_goes_through_a_tunnel_that_hides_the_key(make: Make) -> None:
    with raw_server(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n") as proxy:
        done = run_python(PROXY_CODE, "https://api.example.test/v1", HTTPS_PROXY=proxy.base_url.removesuffix("/v1"))
        assert "APIConnectionError" in done.stderr
        assert proxy.requests
        for request in proxy.requests:
            assert request.startswith(b"CONNECT api.example.test:443 HTTP/1.1\r\n")
            assert b"sk-test-0123" not in request


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_gets_the_password_of_its_url(scheme: str) -> None:
    with raw_server(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n") as proxy:
        url = proxy.base_url.removesuffix("/v1").replace("://", "://user:open%21sesame@")
        done = run_python(PROXY_CODE, f"{scheme}://api.example.test/v1", HTTP_PROXY=url, HTTPS_PROXY=url)
        assert "millstream" in done.stderr
        assert "sesame" not in done.stderr
        expected = b"basic " + base64.b64encode(b"user:open!sesame")
        assert proxy.requests
        for request in proxy.requests:
            head = dict(line.lower().split(b": ", 1) for line in request.split(b"\r\n\r\n")[0].split(b"\r\n")[1:])
            assert head[b"proxy-authorization"] == expected.lower()


def test_the_tls_in_a_tunnel_is_the_servers(authority: Authority) -> None:
    with authority.server("api.example.test") as server, tunnel_to(server.port) as proxy:
        done = run_python(
            TLS_CODE, "https://api.example.test/v1", "1", SSL_CERT_FILE=str(authority.bundle), HTTPS_PROXY=proxy
        )
        assert (done.stdout, done.stderr) == ("answers echo: hi\n", "")
        assert last_request(server).path == "/v1/chat/completions"
        assert last_request(server).header("host") == "api.example.test"


@contextmanager
def tunnel_to(port: int) -> Iterator[str]:
    """A proxy that connects whoever asks with this port."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while self.rfile.readline().strip():
                pass
            with socket.create_connection(("127.0.0.1", port)) as server:
                self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                back = threading.Thread(target=pump, args=(server, self.connection))
                back.start()
                pump(self.connection, server)
                back.join()

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as proxy:
        thread = threading.Thread(target=proxy.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{proxy.server_address[1]}"
        proxy.shutdown()
        thread.join()


def pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


# ---- many clients ----


def test_a_hundred_clients_work_side_by_side(mock_server: MockServer) -> None:
    clients = [Client(api_key=KEY, base_url=mock_server.base_url, model="m") for _ in range(100)]
    assert {client.complete("hi") for client in clients} == {"echo: hi"}
    for client in clients:
        client.close()
    assert mock_server.stats.connections == 100
