"""An HTTP/2 server over TLS that breaks what is above frames: refused streams, GOAWAY, resets, floods."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import h2.config
import h2.connection
import h2.events
from fault_server import chat_body, echo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import trustme

    Fault = Callable[["Http2Connection", int], None]

PATIENCE_S = 20.0


class Http2Connection:
    """One connection; a fault gets it with the stream of a request that has come in whole."""

    def __init__(self, raw: ssl.SSLSocket, server: Http2Server) -> None:
        self.raw, self.server = raw, server
        self.h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=False, validate_outbound_headers=False)
        )
        self.bodies: dict[int, bytes] = {}
        self.is_over = False

    def flush(self) -> None:
        self.raw.sendall(self.h2.data_to_send())

    def head(self, stream: int, *more: tuple[str, str]) -> None:
        self.h2.send_headers(stream, [(":status", "200"), ("content-type", "application/json"), *more])

    def body(self, stream: int) -> bytes:
        return chat_body(echo(json.loads(self.bodies[stream])["messages"][-1]["content"]))

    def end(self) -> None:
        """End as servers do: a close with bytes unread would reset the connection, and the last frames may be lost."""
        self.is_over = True
        self.raw.shutdown(socket.SHUT_WR)
        while self.raw.recv(65536):
            pass

    def answer(self, stream: int) -> None:
        self.head(stream)
        self.h2.send_data(stream, self.body(stream), end_stream=True)
        self.flush()

    def serve(self) -> None:
        self.h2.initiate_connection()
        self.flush()
        while not self.is_over:
            data = self.raw.recv(65536)
            if not data:
                return
            for event in self.h2.receive_data(data):
                if isinstance(event, h2.events.DataReceived):
                    assert event.data is not None
                    self.bodies[event.stream_id] = self.bodies.get(event.stream_id, b"") + event.data
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                elif isinstance(event, h2.events.StreamEnded) and not self.is_over:
                    self.server.meet(self, event.stream_id)
            with suppress(OSError):
                self.flush()


class Http2Server:
    """Does ``fault`` to ``times`` requests after the first ``well``, and answers the others well."""

    def __init__(self, authority: trustme.CA, fault: Fault, times: int | None, well: int) -> None:
        self.fault, self.times, self.well = fault, times, well
        self.requests = self.answered = self.connections = 0
        self._lock = threading.Lock()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(self._context)
        self._context.set_alpn_protocols(["h2"])
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.base_url = f"https://127.0.0.1:{self._listener.getsockname()[1]}/v1"
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def meet(self, connection: Http2Connection, stream: int) -> None:
        with self._lock:
            self.requests += 1
            met = self.requests - self.well
            is_faulty = met > 0 and (self.times is None or met <= self.times)
            self.answered += not is_faulty
        (self.fault if is_faulty else Http2Connection.answer)(connection, stream)

    def _accept(self) -> None:
        while True:
            try:
                raw, _ = self._listener.accept()
            except OSError:
                return
            raw.settimeout(PATIENCE_S)
            self._sockets.append(raw)
            self.connections += 1
            thread = threading.Thread(target=self._serve, args=(raw,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, raw: socket.socket) -> None:
        with suppress(OSError), self._context.wrap_socket(raw, server_side=True) as wrapped:
            self._sockets.append(wrapped)
            Http2Connection(wrapped, self).serve()

    def stop(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for each in list(self._sockets):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE_S)


@contextmanager
def http2_server(
    authority: trustme.CA, fault: Fault, times: int | None = None, *, well: int = 0
) -> Iterator[Http2Server]:
    server = Http2Server(authority, fault, times, well)
    try:
        yield server
    finally:
        server.stop()
