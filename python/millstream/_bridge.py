"""From the engine's thread to the running event loop: one port a loop, one future a call.

The native ``Port`` says how results travel. Here is what belongs to asyncio: which loop, which future, and what a
cancelled or abandoned ``await`` means for the call.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from millstream import _millstream
from millstream._millstream import Pending, Port

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Future
    from collections.abc import Callable

    from millstream._gather import Gathered

P = ParamSpec("P")
T = TypeVar("T")

# A port is its loop's, which watches it. A strong one here would keep a forgotten loop alive: futures know theirs.
_ports: weakref.WeakKeyDictionary[AbstractEventLoop, weakref.ref[Port]] = weakref.WeakKeyDictionary()
# Those of loops that cannot watch them.
_watched_ports: weakref.WeakKeyDictionary[AbstractEventLoop, Port] = weakref.WeakKeyDictionary()
_ports_lock = threading.Lock()

# How often a thread that watches for a loop asks whether that was closed instead of taking its results.
_CLOSED_INTERVAL_S = 1.0


class _Here(threading.local):
    """The port that this thread used last: a thread runs one loop at a time, and the dictionary is 5 times slower."""

    loop: Callable[[], AbstractEventLoop | None] = staticmethod(lambda: None)
    port: Callable[[], Port | None] = staticmethod(lambda: None)


_here = _Here()


def _port_of(loop: AbstractEventLoop) -> Port:
    if _here.loop() is loop and (port := _here.port()) is not None:
        return port
    known = _ports.get(loop)
    port = (known and known()) or _open_port(loop)
    _here.loop, _here.port = weakref.ref(loop), weakref.ref(port)
    return port


def _running_loop() -> AbstractEventLoop:
    """`asyncio.get_running_loop`, which takes this function's place once it is needed.

    Who awaits has asyncio loaded already. At the top it would be three quarters of what importing millstream takes,
    and an import statement in a function costs each call.
    """
    global _running_loop
    from asyncio import get_running_loop as _running_loop

    return _running_loop()


async def wait(start: Callable[Concatenate[Pending, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Start a native call in the running loop and await its result.

    However the ``await`` ends early (cancelled, timed out, closed, garbage-collected), the call is aborted: its
    connection is closed and its permits are given back.
    """
    loop = _running_loop()
    future: Future[Any] = loop.create_future()
    port = _port_of(loop)
    pending = Pending(port, future)
    try:
        if start(pending, *args, **kwargs) is True:
            loop.call_soon(port.flush)
        return await future  # type: ignore[no-any-return]
    except BaseException:
        pending.abort()
        raise
    finally:
        # An exception holds this frame, and the future holds the exception.
        del future, pending


def promised(listen: Callable[[Port, Future[Any]], object], /) -> Future[Any]:
    """A future of the running loop that ``listen`` has completed; whoever leaves it ends what it waits for himself."""
    loop = _running_loop()
    future: Future[Any] = loop.create_future()
    listen(_port_of(loop), future)
    return future


class _Thread(threading.local):
    """The call of a blocking `gather` that this thread makes, if it does."""

    gathered: Gathered | None = None


this_thread = _Thread()


def block(start: Callable[Concatenate[Pending | None, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Make a native call and wait for its result, blocking."""
    gathered = this_thread.gathered
    if gathered is None:
        return start(None, *args, **kwargs)
    return gathered.block(start, *args, **kwargs)


def probe() -> Future[None]:
    """One bridge future that the engine completes at once: what the bridge itself costs, for the benchmark."""
    loop = _running_loop()
    future: Future[None] = loop.create_future()
    port = _port_of(loop)
    pending = Pending(port, future)
    if _millstream.echo(pending):
        loop.call_soon(port.flush)
    pending.detach()
    return future


def _open_port(loop: AbstractEventLoop) -> Port:
    with _ports_lock:
        for other, known in list(_ports.items()):
            if other.is_closed():
                # Somebody holds it, or it is still to be collected: its calls need not wait for that.
                del _ports[other]
                _watched_ports.pop(other, None)
                if (old := known()) is not None:
                    old.abandon()
        port = Port()
        try:
            loop.add_reader(port.fileno(), port.drain)
        except NotImplementedError:
            _watched_ports[loop] = port
            _watch_from_a_thread(loop, port)
        _ports[loop] = weakref.ref(port)
        return port


def _watch_from_a_thread(loop: AbstractEventLoop, port: Port) -> None:
    """Watch ``port`` for a loop that cannot watch sockets itself (Windows' Proactor loop)."""
    import socket

    loop_reference = weakref.ref(loop)
    bell = socket.socket(fileno=os.dup(port.fileno()))
    bell.setblocking(True)

    def watch() -> None:
        # Nothing here holds the loop or the port, so `recv` ends with them. Peeking leaves the byte for `drain`, so it
        # cannot be lost between the two.
        with bell:
            while bell.recv(1, socket.MSG_PEEK):
                drained = threading.Event()
                if not _drain_soon(loop_reference, drained):
                    return
                while not drained.wait(_CLOSED_INTERVAL_S):
                    if _is_gone(loop_reference):
                        return

    threading.Thread(target=watch, name="millstream-port", daemon=True).start()


def _drain_soon(loop_reference: weakref.ref[AbstractEventLoop], drained: threading.Event) -> bool:
    loop = loop_reference()
    port = None if loop is None else _watched_ports.get(loop)
    if loop is None or port is None:
        return False
    try:
        loop.call_soon_threadsafe(_drain, port, drained)
    except RuntimeError:
        # Closed, and only then.
        return False
    return True


def _is_gone(loop_reference: weakref.ref[AbstractEventLoop]) -> bool:
    loop = loop_reference()
    return loop is None or loop.is_closed()


def _drain(port: Port, drained: threading.Event) -> None:
    try:
        port.drain()
    finally:
        drained.set()


def _after_fork_in_child() -> None:
    """Leave the parent's ports alone: their sockets are the parent's, and so are the tasks that wait on them."""
    global _here, _ports, _watched_ports, _ports_lock, this_thread
    _millstream.after_fork_in_child()
    _inherited.append((_here, _ports, _watched_ports, this_thread))
    _here = _Here()
    this_thread = _Thread()
    _ports = weakref.WeakKeyDictionary()
    _watched_ports = weakref.WeakKeyDictionary()
    _ports_lock = threading.Lock()


_inherited: list[object] = []


def _quiesce() -> None:
    """Leave the loops alone that daemon threads run: no other runs while the interpreter ends."""
    _millstream.quiesce()
    for loop, known in list(_ports.items()):
        if loop.is_running() and (port := known()) is not None:
            port.mute()


atexit.register(_quiesce)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
