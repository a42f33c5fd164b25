"""Where a run's items come from: anything that can be read one after another, no further ahead than there is room.

Lists are read in the event loop, where nothing of them can block. Every other iterable (a generator, a file, a column,
a data set) is read by one thread, always the same, so that a slow one never stalls the loop.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import AsyncIterable, Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeAlias

from millstream.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

Items: TypeAlias = Iterable[Any] | AsyncIterable[Any] | asyncio.Queue[Any] | str | os.PathLike[str]
"""What a run reads: an iterable of any kind, a queue that ends with None, or the path of a file."""

# Items that a thread reads ahead of the loop.
# Characters of one cell of a CSV file.
_LONGEST_CELL = 64 * 1024 * 1024

_MOST_READ = 256

_SUFFIXES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".txt")


class Row(dict[str, Any]):
    """A row of a table: its columns are data, and only those that a request has by name are part of one."""


class Source:
    """Items, read in pages.

    Attributes:
        total: How many there are; None while that is not known.
    """

    total: int | None = None

    async def read(self, most: int) -> list[Any]:
        """The next items, at least one and at most so many; none at the end."""
        raise NotImplementedError

    def rest(self) -> list[Any]:
        """What is known to come and was not read, once nothing more is wanted."""
        return []

    def done(self, count: int) -> None:
        """So many items have ended."""

    def close(self) -> None:
        """Nothing more is wanted."""


def source_of(items: Items) -> Source:
    """The source that ``items`` are.

    Raises:
        TypeError: They are one item, or nothing that can be read.
        FileNotFoundError: There is no such file.
        ConfigurationError: A file is of no kind that can be read, or a package is missing for it.
    """
    if isinstance(items, os.PathLike) or (isinstance(items, str) and items.lower().endswith(_SUFFIXES)):
        return _Threaded(_reader_of_file(os.fspath(items)))
    if isinstance(items, (str, bytes, Mapping)):
        raise TypeError(
            f"items must be many, not one {type(items).__name__}; wrap it in a list, or give a path that ends in one "
            f"of {', '.join(_SUFFIXES)}"
        )
    if isinstance(items, (list, tuple)):
        return _Listed(items)
    if isinstance(items, asyncio.Queue):
        return _Queued(items)
    if isinstance(items, AsyncIterable):
        return _Awaited(items)
    if table := _reader_of_table(items):
        return _Threaded(table, _length(items))
    if isinstance(items, Iterable) or hasattr(type(items), "__getitem__"):
        return _Threaded(lambda: items, _length(items))
    raise TypeError(f"items must be an iterable, a queue or the path of a file, not {type(items).__name__}")


def _length(items: object) -> int | None:
    try:
        return len(items)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):
        return None


class _Listed(Source):
    def __init__(self, items: Sequence[Any]) -> None:
        self.total = len(items)
        self._items = items
        self._read = 0

    async def read(self, most: int) -> list[Any]:
        page = list(self._items[self._read : self._read + most])
        self._read += len(page)
        return page

    def rest(self) -> list[Any]:
        rest = list(self._items[self._read :])
        self._read = len(self._items)
        return rest


class _Awaited(Source):
    def __init__(self, items: AsyncIterable[Any]) -> None:
        self._items = aiter(items)

    async def read(self, most: int) -> list[Any]:
        # One at a time: who gives the next only later must not hold up this one.
        async for item in self._items:
            return [item]
        return []


class _Queued(Source):
    def __init__(self, queue: asyncio.Queue[Any]) -> None:
        self._queue = queue
        self._is_over = False

    async def read(self, most: int) -> list[Any]:
        if self._is_over:
            return []
        page = [await self._queue.get()]
        while page[-1] is not None and len(page) < most and not self._queue.empty():
            page.append(self._queue.get_nowait())
        if page[-1] is None:
            self._is_over = True
            self._queue.task_done()
            page.pop()
        return page

    def done(self, count: int) -> None:
        for _ in range(count):
            self._queue.task_done()


class _Threaded(Source):
    """What may block, read by a thread of its own."""

    def __init__(self, open_items: Callable[[], Iterable[Any]], total: int | None = None) -> None:
        self.total = total
        self._open = open_items
        self._changed = threading.Condition()
        self._read: deque[Any] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._thread: threading.Thread | None = None
        self._is_over = False
        self._is_closed = False
        self._fault: BaseException | None = None

    async def read(self, most: int) -> list[Any]:
        loop = asyncio.get_running_loop()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, args=(loop,), name="millstream-source", daemon=True)
            self._thread.start()
        while True:
            with self._changed:
                if self._read:
                    page = [self._read.popleft() for _ in range(min(most, len(self._read)))]
                    self._changed.notify()
                    return page
                if self._is_over:
                    break
                waiter = self._waiter = loop.create_future()
            await waiter
        if self._fault is not None:
            raise self._fault
        return []

    def rest(self) -> list[Any]:
        with self._changed:
            self._is_closed = True
            self._changed.notify()
            rest = list(self._read)
            self._read.clear()
        return rest

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify()

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            for item in self._open():
                with self._changed:
                    # Before the wait: what was read must not be lost where a run ends meanwhile.
                    self._read.append(item)
                    self._wake(loop)
                    while len(self._read) >= _MOST_READ and not self._is_closed:
                        self._changed.wait()
                    if self._is_closed:
                        return
        except BaseException as fault:
            self._fault = fault
        finally:
            with self._changed:
                self._is_over = True
                self._wake(loop)

    def _wake(self, loop: asyncio.AbstractEventLoop) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            try:
                loop.call_soon_threadsafe(_complete, waiter)
            except RuntimeError:
                # The loop was closed, and nobody waits.
                self._is_closed = True


def _complete(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


# ---- files ----


def _reader_of_file(path: str, columns: Sequence[str] | None = None) -> Callable[[], Iterable[Any]]:
    """What reads a file; of a Parquet file only these columns."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in _SUFFIXES:
        raise ConfigurationError(f"{path}: items are read from files that end in one of {', '.join(_SUFFIXES)}")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no file {path}")
    if suffix == ".parquet":
        if find_spec("pyarrow") is None:
            raise ConfigurationError(f"{path}: Parquet files are read with pyarrow: pip install pyarrow")
        return lambda: _parquet(path, columns)
    if suffix in (".csv", ".tsv"):
        return lambda: _csv(path, "\t" if suffix == ".tsv" else ",")
    return lambda: _lines(path) if suffix == ".txt" else _jsonl(path)


def _decoded(path: str) -> Iterator[tuple[int, str | ConfigurationError]]:
    """Lines that are not blank, with their numbers; one that is not UTF-8 is an item that fails alone."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                yield number, ConfigurationError(f"{path}, line {number}: is not UTF-8 ({error.reason})")
            else:
                if text:
                    yield number, text


def _lines(path: str) -> Iterator[str | ConfigurationError]:
    return (text for _, text in _decoded(path))


def _jsonl(path: str) -> Iterator[Any]:
    from json import loads

    for number, text in _decoded(path):
        item: Any = text
        if isinstance(text, str):
            try:
                item = loads(text)
            except (ValueError, RecursionError) as error:
                item = ConfigurationError(f"{path}, line {number}: is not JSON ({error})")
        yield item


def _csv(path: str, delimiter: str) -> Iterator[Row | ConfigurationError]:
    import csv

    # The module's own limit of 131,072 characters is one for all of the process; a document is longer.
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_CELL))
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        rows = csv.DictReader(file, delimiter=delimiter)
        for row in rows:
            cells = " ".join(cell for cell in row.values() if isinstance(cell, str))
            if cells.isascii() or not _has_surrogate(cells):
                yield Row(row)
            else:
                yield ConfigurationError(f"{path}, line {rows.line_num}: is not UTF-8")


def _has_surrogate(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _parquet(path: str, columns: Sequence[str] | None = None) -> Iterator[Row]:
    from importlib import import_module

    with import_module("pyarrow.parquet").ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=_MOST_READ, columns=columns):
            yield from map(Row, batch.to_pylist())


# ---- tables and columns, known by where their classes come from, so that nothing is imported for them ----


def _reader_of_table(items: Any) -> Callable[[], Iterable[Any]] | None:
    package, kind = type(items).__module__.partition(".")[0], type(items).__name__
    if package == "pandas" and kind == "DataFrame":
        return lambda: _slices(len(items), lambda start, end: map(Row, items.iloc[start:end].to_dict("records")))
    if package == "polars" and kind == "DataFrame":
        return lambda: map(Row, items.iter_rows(named=True))
    if package == "pyarrow" and kind in ("Table", "RecordBatch"):
        return lambda: _slices(items.num_rows, lambda start, end: map(Row, items.slice(start, end - start).to_pylist()))
    if package == "pyarrow" and hasattr(items, "to_pylist"):
        return lambda: _slices(len(items), lambda start, end: items.slice(start, end - start).to_pylist())
    if package == "datasets" and hasattr(items, "column_names"):
        return lambda: map(Row, items)
    return None


def _slices(count: int, read: Callable[[int, int], Iterable[Any]]) -> Iterator[Any]:
    for start in range(0, count, _MOST_READ):
        yield from read(start, min(start + _MOST_READ, count))
