"""A vendor's batches on disk: what was sent, what is known of it, what is still to be sent.

Beside ``OUT`` there are ``OUT.batch.json`` (the state: a few lines for each batch, replaced as a whole),
``OUT.batch.items`` (a line for each item: its id, its metadata, the batch it is in) and, until its batch exists,
``OUT.batch.part-N`` (what is sent). All are their owner's alone to read. The state is written before and after
everything that may cost money, so a process can be killed at any moment.
"""

from __future__ import annotations

import json
import os
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from millstream.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

VERSION = 1

RESTORE = (
    "put it back, or submit the same items with the same output again, which writes it anew and sends nothing twice"
)


@dataclass
class Part:
    """One batch of a job.

    Attributes:
        number: From 1.
        url: What is asked, for all of its items; empty where the vendor has one thing to ask.
        model: Whom, likewise.
        items: How many.
        bytes: How much.
        token: A random name, by which it is found among the vendor's batches.
        file_id: The uploaded file, for vendors that have it so.
        asked: Unix time of the first request to make the batch, which may have arrived.
        batch_id: The batch.
        is_over: No more results will come.
        status: The vendor's word for it.
        completed: Items answered well.
        failed: Items answered otherwise.
        results: Paths of its results.
        errors: Why it could not begin: line, code and message.
        missing: The code of those items that have no result.
        is_fetched: Its results are in the output.
    """

    number: int
    url: str
    model: str
    items: int
    bytes: int
    token: str
    file_id: str | None = None
    asked: float | None = None
    batch_id: str | None = None
    is_over: bool = False
    status: str = "not submitted"
    completed: int = 0
    failed: int = 0
    results: list[str] = field(default_factory=list)
    errors: list[tuple[int | None, str, str]] = field(default_factory=list)
    missing: str = "no_result"
    is_fetched: bool = False


@dataclass
class State:
    """One job.

    Attributes:
        via: The vendor.
        base_url: Its server.
        digest: Of all items, to know them again.
        max_items: The most items of one batch, by which they were cut.
        max_bytes: The most bytes, likewise.
        items: How many there are, bad lines not among them.
        bad_lines: Lines that are no requests.
        parts: The batches.
        written: Bytes of the output that are whole.
        has_bad_lines: The output has the bad lines.
        ok: Lines of the output with an answer.
        failed: Lines without.
        prompt_tokens: What answers used.
        completion_tokens: The same.
    """

    via: str
    base_url: str
    digest: str
    max_items: int
    max_bytes: int
    items: int
    bad_lines: int
    parts: list[Part]
    written: int = 0
    has_bad_lines: bool = False
    ok: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def forget_output(self) -> None:
        """Nothing has been fetched."""
        self.written = self.ok = self.failed = self.prompt_tokens = self.completion_tokens = 0
        self.has_bad_lines = False
        for part in self.parts:
            part.is_fetched = False


class Place:
    """Where a job lives: the paths of its files."""

    def __init__(self, output: str | os.PathLike[str]) -> None:
        self.output = Path(output)
        self.state = self._beside("json")
        self.items = self._beside("items")

    def part(self, number: int) -> Path:
        """What is sent for one batch."""
        return self._beside(f"part-{number}")

    def again(self) -> Place:
        """Where the same is prepared once more."""
        return Place(self.output.with_name(f"{self.output.name}.again"))

    def lacks(self, part: Part) -> bool:
        """Whether a batch is still to be made and what would be sent is gone."""
        return part.batch_id is None and not part.is_over and not self.part(part.number).exists()

    def results(self, number: int, file: int) -> Path:
        """What has come of one batch, while it is read."""
        return self._beside(f"results-{number}-{file}")

    def _beside(self, name: str) -> Path:
        return self.output.with_name(f"{self.output.name}.batch.{name}")

    def load(self) -> State | None:
        """The job, if there is one.

        Raises:
            ConfigurationError: The file is none of ours.
        """
        try:
            text = self.state.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        try:
            facts: dict[str, Any] = json.loads(text)
            if facts.pop("version") != VERSION:
                raise ValueError("it is of another version")
            names = {each.name for each in fields(Part)}
            parts = [Part(**{name: part[name] for name in names & part.keys()}) for part in facts.pop("parts")]
            for part in parts:
                part.errors = [(line, code, message) for line, code, message in part.errors]
            return State(parts=parts, **facts)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigurationError(f"{self.state} is not the state of a batch job: {error}") from error

    def save(self, state: State) -> None:
        """Replace the state as a whole."""
        beside = self.state.with_name(self.state.name + ".new")
        with create(beside) as file:
            file.write(json.dumps({"version": VERSION, **asdict(state)}, indent=1).encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, self.state)

    @contextmanager
    def locked(self, *, create: bool = False) -> Iterator[None]:
        """Hold the job: who else is at work on it is refused. The lock ends with the process.

        Args:
            create: Make the file of items where there is none, for who is going to write it.

        Raises:
            ConfigurationError: Someone else is at work on it, or its file of items is gone.
        """
        import fcntl

        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_CREAT if create else 0)
        try:
            descriptor = os.open(self.items, flags, 0o600)
        except FileNotFoundError:
            # Without a state what is submitted would be another job, and paid for again.
            if not self.state.exists():
                raise ConfigurationError(f"{self.state} and {self.items} are gone: put them back") from None
            raise ConfigurationError(f"{self.items} is gone, by which results find their items: {RESTORE}") from None
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigurationError(f"another process (or task) is at work on {self.state}; let it end") from None
            yield
        finally:
            os.close(descriptor)

    def drop_parts(self) -> None:
        """Remove what was to be sent and what had come, of a process that was killed."""
        for kind in ("part", "results"):
            for path in self.output.parent.glob(f"{_literal(self.output.name)}.batch.{kind}-*"):
                with suppress(FileNotFoundError):
                    path.unlink()


def _literal(name: str) -> str:
    """``name`` for a glob."""
    import glob

    return glob.escape(name)


def create(path: Path, *, keep: bool = False) -> BinaryIO:
    """Open a file to write that its owner alone can read, empty or to ``keep`` what it has; no symbolic link."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | (0 if keep else os.O_TRUNC)
    return open(os.open(path, flags, 0o600), "wb")
