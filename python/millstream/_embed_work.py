"""Vectors on their way into a file: what has come is on disk at once, and is never asked for again.

Beside ``OUT`` there are ``OUT.embed.vectors`` (32-bit floats, row i at its place, so that they may come in any order)
and ``OUT.embed.journal`` (a line for each pack that has come: which rows, a checksum of their vectors, the rows that
have none and why). A line is written after its vectors, and carries a checksum of its own: a process can be killed at
any moment, and a machine too, since what a line says is believed only if the vectors are what it says they are. Both
are their owner's alone to read, and hold neither texts nor keys.
"""

from __future__ import annotations

import errno
import json
import os
import re
import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any
from zlib import crc32

from millstream.exceptions import ConfigurationError, JournalError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from millstream._millstream import Embeddings

VERSION = 1
ITEM = 4
"""Bytes of a number."""

TODO, DONE, FAILED = range(3)
"""How a row stands."""

_SYNC_INTERVAL_S = 1.0
_CHUNK_BYTES = 8 << 20
_LONGEST_MESSAGE = 500
_LONGEST_HEAD = 1 << 16
_BEGIN = b'{"sum":"'
_SUM = re.compile(rb'\{"sum":"([0-9a-f]{8})",')

Failure = tuple[int, str, str]
"""A row that has no vector, a code and a message."""

Runs = list[tuple[int, int]]
"""Rows, each run of them as the first and the one behind the last."""


@dataclass
class State:
    """What a journal says.

    Attributes:
        job: Of which job it is: the texts, the model, what vectors are asked for.
        status: Of each row how it stands.
        size: Numbers of a vector; 0 before the first.
        failures: Of the rows that failed the code and the message.
        tokens: What was used, as far as servers count it.
        uncounted: Rows whose tokens no server counted.
        requests: Packs that were sent.
        end: What is known of the output, once that is written.
        problems: What could not be believed: of each the file, the line and the reason.
    """

    job: dict[str, Any]
    status: bytearray
    size: int = 0
    failures: dict[int, tuple[str, str]] = field(default_factory=dict)
    tokens: int = 0
    uncounted: int = 0
    requests: int = 0
    end: dict[str, Any] | None = None
    problems: list[tuple[str, int, str]] = field(default_factory=list)

    @property
    def done(self) -> int:
        """Rows with a vector."""
        return self.status.count(DONE)

    @property
    def failed(self) -> int:
        """Rows that failed."""
        return self.status.count(FAILED)

    @property
    def todo(self) -> int:
        """Rows that are still to be asked for."""
        return self.status.count(TODO)

    def take(self, entry: Mapping[str, Any]) -> None:
        """Take in what a line says."""
        for first, end in entry["rows"]:
            self.status[first:end] = bytes([DONE]) * (end - first)
            if self.failures:
                for row in range(first, end):
                    self.failures.pop(row, None)
        for row, code, message in entry["failed"]:
            self.status[row] = FAILED
            self.failures[row] = (sys.intern(code), sys.intern(message))
        self.size = entry["size"] or self.size
        self.requests += entry["requests"]
        self.tokens += entry["tokens"] or 0
        if entry["tokens"] is None:
            self.uncounted += sum(end - first for first, end in entry["rows"])


class Place:
    """The files of a job."""

    def __init__(self, output: str | os.PathLike[str]) -> None:
        self.output = Path(output)
        self.journal = self._beside("journal")
        self.vectors = self._beside("vectors")
        self.new = self._beside("new")

    def _beside(self, name: str) -> Path:
        return self.output.with_name(f"{self.output.name}.embed.{name}")

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> Place:
        """The job of an output, or of one of the files beside it."""
        path = Path(path)
        name = re.sub(r"\.embed\.(journal|vectors)$", "", path.name)
        return cls(path.with_name(name))


def look(place: Place) -> State | None:
    """What the journal says, taken at its word; None if there is none.

    Raises:
        ConfigurationError: It is none of ours.
    """
    try:
        with open(place.journal, "rb") as file:
            return _read(place, file, lambda *_: None)
    except FileNotFoundError:
        return None


def _read(place: Place, file: Iterable[bytes], found: Callable[[int, bytes, dict[str, Any] | None], None]) -> State:
    """The state that lines tell; each is handed on, with what it says, or None if that cannot be believed."""
    state: State | None = None
    for number, line in enumerate(file, 1):
        entry = _entry(line)
        if state is None:
            if entry is None or entry.get("embed") != VERSION:
                raise ConfigurationError(
                    f"{place.journal}: its first line is not that of a journal of embeddings, or is damaged; put it "
                    f"back, name another output, or begin anew with fresh=True"
                )
            state = State(entry["job"], bytearray(entry["job"]["rows"]))
        elif entry is not None and "end" in entry:
            state.end = entry["end"]
        elif entry is not None:
            state.end = None
            state.take(entry)
        found(number, line, entry)
    if state is None:
        raise ConfigurationError(f"{place.journal} is empty; begin anew with fresh=True")
    return state


def _entry(line: bytes) -> dict[str, Any] | None:
    """What a line says, if it is whole and nobody has changed it."""
    head = _SUM.match(line)
    if head is None or not line.endswith(b"\n"):
        return None
    rest = line[head.end() : -1]
    if f"{crc32(rest):08x}".encode() != head[1]:
        return None
    try:
        entry: dict[str, Any] = json.loads(b"{" + rest)
    except ValueError:
        return None
    return entry


def _line(entry: Mapping[str, Any]) -> bytes:
    rest = json.dumps(entry, separators=(",", ":"))[1:].encode()
    return b'{"sum":"%08x",%s\n' % (crc32(rest), rest)


class Work:
    """The files of a job, held by one process.

    Args:
        place: Where they are.
        fresh: Throw away what they hold.

    Raises:
        ConfigurationError: They cannot be opened, or are symbolic links.
        JournalError: Another process has them.
    """

    def __init__(self, place: Place, *, fresh: bool) -> None:
        import fcntl

        self.place = place
        self.state = State({}, bytearray())
        self._journal = _open(place.journal)
        self._vectors = -1
        self._length = 0
        self._is_dirty = False
        self._synced = monotonic()
        try:
            fcntl.flock(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._journal)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise JournalError(
                    f"{place.output} is being made by another run; wait for it to end, or name another output"
                ) from None
            raise
        try:
            with suppress(FileNotFoundError):
                place.new.unlink()
            if fresh:
                os.ftruncate(self._journal, 0)
                with suppress(FileNotFoundError):
                    place.vectors.unlink()
            self._length = os.fstat(self._journal).st_size
            head = os.pread(self._journal, _LONGEST_HEAD, 0)
            if head and b"\n" not in head and head.startswith(_BEGIN[: len(head)]):
                # Killed in the midst of its first line.
                os.ftruncate(self._journal, 0)
                self._length = 0
        except BaseException:
            self.close()
            raise

    @property
    def is_new(self) -> bool:
        """Nothing was ever done."""
        return self._length == 0

    def begin(self, job: dict[str, Any]) -> None:
        """Write the first line."""
        self.state = State(job, bytearray(job["rows"]))
        self._append({"embed": VERSION, "job": job})

    def take_up(self, check: Callable[[State], None], is_wanted: Callable[[], bool]) -> None:
        """Read what there is and repair it: a torn end is cut off, and what cannot be believed is asked for again.

        Args:
            check: Raises if it is not to be gone on with; then nothing was changed.
            is_wanted: False once nobody waits for it any more.

        Raises:
            ConfigurationError: The journal is none of ours, or the vectors are gone.
            JournalError: A file cannot be read or written.
        """
        with self._telling(self.place.journal, "read"), open(self._journal, "rb", closefd=False) as file:
            file.seek(0)
            end, torn, bad = 0, False, []
            lines: list[tuple[int, int, int, dict[str, Any]]] = []

            def found(number: int, line: bytes, entry: dict[str, Any] | None) -> None:
                nonlocal end, torn
                if not line.endswith(b"\n"):
                    torn = True
                    return
                if entry is None and line.strip():
                    bad.append((number, end, len(line)))
                elif entry is not None and "rows" in entry:
                    lines.append((number, end, len(line), entry))
                end += len(line)

            state = _read(self.place, file, found)
        check(state)
        if state.end is None and state.done and not self.place.vectors.exists():
            raise ConfigurationError(
                f"{self.place.vectors} is gone, which held the vectors of {state.done:,} rows: put it back, or begin "
                f"anew with fresh=True"
            )
        for number, start, length in bad:
            self._blank(start, length)
            problem = (str(self.place.journal), number, "damaged; the rows that it spoke of are asked for again")
            state.problems.append(problem)
        if torn:
            with self._telling(self.place.journal, "written"):
                os.ftruncate(self._journal, end)
        self._length = end
        self.state = state
        if state.end is None or self.place.vectors.exists():
            self._verify(lines, is_wanted)

    def _verify(self, lines: list[tuple[int, int, int, dict[str, Any]]], is_wanted: Callable[[], bool]) -> None:
        """Compare the vectors with what the journal says of them."""
        sound, size = [], self.state.size
        for number, start, length, entry in lines:
            if not is_wanted():
                return
            if entry["rows"] and self._sum(entry["rows"], entry["size"]) != entry["crc"]:
                self._blank(start, length)
                rows = sum(end - first for first, end in entry["rows"])
                reason = f"the vectors of {rows:,} rows are damaged; they are asked for again"
                self.state.problems.append((str(self.place.journal), number, reason))
            else:
                sound.append(entry)
        if len(sound) < len(lines):
            old = self.state
            self.state = State(old.job, bytearray(old.job["rows"]), size=size, problems=old.problems)
            for entry in sound:
                self.state.take(entry)

    def _sum(self, runs: Iterable[Sequence[int]], size: int) -> int:
        total = 0
        for first, end in runs:
            for some in self.read(first, end, size):
                total = crc32(some, total)
        return total

    def read(self, first: int, end: int, size: int) -> Iterator[bytes]:
        """The bytes of rows, some at a time; those that were never written are 0."""
        place, until = first * size * ITEM, end * size * ITEM
        while place < until:
            wanted = min(_CHUNK_BYTES, until - place)
            with self._telling(self.place.vectors, "read"):
                some = os.pread(self._vector_file(), wanted, place)
            yield some or bytes(wanted)
            place += len(some) or wanted

    def write(self, rows: Sequence[int], page: Embeddings, *, keep_errors: bool) -> int:
        """Keep what came for rows; how many of them have a vector.

        Args:
            rows: Their numbers.
            page: What came.
            keep_errors: Keep the errors of those that have none, too, so that they are not asked for again.

        Raises:
            JournalError: It cannot be kept.
        """
        count, size = page.shape
        errors = page.errors
        failed = [_failure(rows[place], error) for place, error in errors.items()] if keep_errors else []
        runs: Runs = []
        total = 0
        if size and len(errors) < count:
            numbers = memoryview(page).cast("B")
            width = size * ITEM
            for first, end in _together(rows, errors):
                some = numbers[first * width : end * width]
                self._put(some, rows[first] * width)
                total = crc32(some, total)
                runs.append((rows[first], rows[first] + end - first))
        tokens = tokens_of(page)
        self._keep(runs, size if runs else 0, total, failed, tokens, page.requests)
        return sum(end - first for first, end in runs)

    def fail(self, failures: Iterable[Failure]) -> None:
        """Keep that rows have no vector, which were not asked for."""
        self._keep([], 0, 0, list(failures), 0, 0)

    def _keep(
        self, runs: Runs, size: int, total: int, failed: list[Failure], tokens: int | None, requests: int
    ) -> None:
        if size and self.state.size and size != self.state.size:
            raise JournalError(
                f"vectors of {size} numbers came where {self.place.vectors} has some of {self.state.size}; check that "
                f"the server still has the same model, or begin anew with fresh=True"
            )
        entry = {"rows": runs, "size": size, "crc": total, "failed": failed, "tokens": tokens, "requests": requests}
        self._append(entry)
        self.state.take(entry)
        self.state.end = None
        if monotonic() - self._synced >= _SYNC_INTERVAL_S:
            self.sync()

    def sync(self) -> None:
        """Bring everything to the disk, and look whether the files are still those that their names lead to.

        Raises:
            JournalError: They are not.
        """
        self._synced = monotonic()
        if not self._is_dirty:
            return
        for descriptor, path in ((self._vectors, self.place.vectors), (self._journal, self.place.journal)):
            if descriptor < 0:
                continue
            with self._telling(path, "brought to the disk"):
                os.fsync(descriptor)
                if not _is_at(descriptor, path):
                    raise JournalError(f"{path} was deleted, moved or replaced while the run wrote to it")
        self._is_dirty = False

    def end(self, facts: dict[str, Any]) -> None:
        """Say that the output is written. The vectors are needed no more, unless failed rows may be asked again."""
        self._append({"end": facts})
        self.state.end = facts
        self.sync()
        if not self.state.failed:
            with suppress(FileNotFoundError):
                self.place.vectors.unlink()

    def close(self) -> None:
        """Let others have them."""
        if self._journal >= 0 and self._length == 0:
            with suppress(OSError):
                self.place.journal.unlink()
        for descriptor in (self._vectors, self._journal):
            if descriptor >= 0:
                os.close(descriptor)
        self._vectors = self._journal = -1

    def _vector_file(self) -> int:
        if self._vectors < 0:
            self._vectors = _open(self.place.vectors)
        return self._vectors

    def _put(self, some: memoryview, place: int) -> None:
        with self._telling(self.place.vectors, "written"):
            while some:
                count = os.pwrite(self._vector_file(), some, place)
                some, place = some[count:], place + count
        self._is_dirty = True

    def _append(self, entry: Mapping[str, Any]) -> None:
        line, written = _line(entry), 0
        try:
            while written < len(line):
                written += os.pwrite(self._journal, line[written:], self._length + written)
        except OSError as error:
            # Of a line that does not fit no part is left.
            with suppress(OSError):
                os.ftruncate(self._journal, self._length)
            raise _journal_error(self.place.journal, "written", error) from error
        self._length += len(line)
        self._is_dirty = True

    def _blank(self, start: int, length: int) -> None:
        with self._telling(self.place.journal, "written"):
            os.pwrite(self._journal, b" " * (length - 1), start)
        self._is_dirty = True

    @contextmanager
    def _telling(self, path: Path, what: str) -> Iterator[None]:
        try:
            yield
        except JournalError:
            raise
        except OSError as error:
            raise _journal_error(path, what, error) from error


def _journal_error(path: Path, what: str, error: OSError) -> JournalError:
    return JournalError(f"{path} cannot be {what}: {error.strerror or error}")


def _together(rows: Sequence[int], errors: Mapping[int, object]) -> Iterator[tuple[int, int]]:
    """Places in ``rows`` of rows that follow each other and have a vector: of each run the first and the end."""
    first = 0
    for place in range(1, len(rows) + 1):
        if place < len(rows) and rows[place] == rows[place - 1] + 1 and (place in errors) == (place - 1 in errors):
            continue
        if first not in errors:
            yield first, place
        first = place


def tokens_of(page: Embeddings) -> int | None:
    """Tokens that a page took; None if the server did not count them."""
    if page.usage is not None:
        return page.usage.prompt_tokens
    # All of it was in a cache.
    return None if page.requests else 0


def _failure(row: int, error: Exception) -> Failure:
    status, code = getattr(error, "status_code", None), getattr(error, "code", None)
    words = [str(word) for word in (status, code) if word is not None]
    return row, " ".join(words) or type(error).__name__, said(error)[:_LONGEST_MESSAGE]


def said(error: Exception) -> str:
    """An error's text without the number of its text, which is that in its pack."""
    return re.sub(r"^texts\[\d+\]: ", "", str(error))


def _open(path: Path) -> int:
    """Open a file for its owner alone, not through a link."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        if path.is_symlink():
            raise ConfigurationError(f"{path} is a symbolic link, and nothing is written through one") from error
        raise ConfigurationError(f"{path} cannot be opened for writing: {error.strerror}") from error
    return descriptor


def _is_at(descriptor: int, path: Path) -> bool:
    here = os.fstat(descriptor)
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)
