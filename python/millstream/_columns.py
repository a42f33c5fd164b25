"""The column of a file that holds texts, read in blocks that can be known again, and made into packs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

from millstream._sources import _reader_of_file
from millstream.exceptions import ConfigurationError, MillstreamError

if TYPE_CHECKING:
    from collections.abc import Iterable

_BLOCK_ROWS = 1024
_BLOCK_BYTES = 4 << 20

_INT64 = 1 << 63


class Unusable(NamedTuple):
    """Why a row has no text."""

    reason: str


@dataclass(slots=True)
class Block:
    """Rows that follow each other. Where one ends is decided by what it holds, so that every reading has the same.

    Attributes:
        start: The number of the first, from 0.
        texts: Of each row its text.
        sizes: Of each row the bytes of its text.
        ids: Of each row what names it, if a column for that was given.
        digest: A hash of the texts.
    """

    start: int
    texts: list[str | Unusable] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    ids: list[Any] = field(default_factory=list)
    digest: bytes = b""


class Column:
    """A column of a file: JSONL, CSV, TSV, Parquet, or plain text with a text a line.

    Args:
        path: The file.
        name: The column. Lines that are texts themselves need none.
        id_name: The column whose values name the rows.

    Raises:
        ConfigurationError: The file is of no kind that can be read, or a package is missing for it.
        FileNotFoundError: There is no such file.
    """

    def __init__(self, path: str, name: str, id_name: str | None = None) -> None:
        self.path = path
        self.name = name
        self.id_name = id_name
        self._is_parquet = path.lower().endswith(".parquet")
        wanted = list(dict.fromkeys(each for each in (name, id_name) if each is not None))
        self._read = _reader_of_file(path, wanted)
        if self._is_parquet:
            names = self._schema().names
            for each in wanted:
                if each not in names:
                    raise self._lacks(each, names)

    def _schema(self) -> Any:
        from importlib import import_module

        return import_module("pyarrow.parquet").read_schema(self.path)

    def id_type(self) -> Any:
        """The type of the ids in a Parquet file; None in any other."""
        return self._schema().field(self.id_name).type if self._is_parquet and self.id_name is not None else None

    def _lacks(self, name: str, names: Iterable[str]) -> ConfigurationError:
        there = ", ".join(map(repr, names)) or "none"
        return ConfigurationError(f"{self.path} has no column {name!r}; its columns are {there}")

    def blocks(self) -> Iterator[Block]:
        """Read the file from its beginning.

        Raises:
            ConfigurationError: No row has the column.
            OSError: The file cannot be read.
        """
        row, size, content = 0, 0, blake2b(digest_size=16)
        block = Block(0)
        lacking = {name for name in (self.name, self.id_name) if name is not None}
        names: dict[str, None] = {}
        for item in self._read():
            if lacking and isinstance(item, Mapping):
                lacking.difference_update(item)
                names = names or dict.fromkeys(map(str, item))
            elif isinstance(item, str):
                lacking.discard(self.name)
            text = _text_of(item, self.name)
            encoded = b"" if isinstance(text, Unusable) else text.encode(errors="surrogatepass")
            content.update(len(encoded).to_bytes(8, "little"))
            content.update(encoded)
            block.texts.append(text)
            block.sizes.append(len(encoded))
            if self.id_name is not None:
                block.ids.append(item.get(self.id_name) if isinstance(item, Mapping) else None)
            row, size = row + 1, size + len(encoded)
            if len(block.texts) == _BLOCK_ROWS or size >= _BLOCK_BYTES:
                block.digest = content.digest()
                yield block
                block, size, content = Block(row), 0, blake2b(digest_size=16)
        if row and lacking:
            raise self._lacks(sorted(lacking)[0], names)
        if block.texts:
            block.digest = content.digest()
            yield block


def _text_of(item: Any, name: str) -> str | Unusable:
    if isinstance(item, ConfigurationError):
        return Unusable(item.message)
    text = item.get(name) if isinstance(item, Mapping) else item
    if isinstance(text, str):
        return text or Unusable("its text is empty")
    if text is None:
        return Unusable(f"it has no {name!r}")
    return Unusable(f"its text is of the type {type(text).__name__}")


@dataclass(slots=True)
class Survey:
    """What a first reading has found.

    Attributes:
        rows: How many there are.
        unusable: Of them those without a text.
        problems: The first of those, and why.
        digests: Of each block.
        has_whole_ids: Every id that is there is a whole number of at most 64 bits.
    """

    rows: int = 0
    unusable: int = 0
    problems: list[tuple[int, str]] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    has_whole_ids: bool = True

    @property
    def digest(self) -> str:
        """Of all texts together."""
        return blake2b(b"".join(self.digests), digest_size=16).hexdigest()

    def take(self, block: Block, most_problems: int) -> None:
        """Take in a block."""
        self.rows += len(block.texts)
        self.digests.append(block.digest)
        self.has_whole_ids = self.has_whole_ids and all(map(_is_whole, block.ids))
        for row, text in enumerate(block.texts, block.start):
            if isinstance(text, Unusable):
                self.unusable += 1
                if len(self.problems) < most_problems:
                    self.problems.append((row, text.reason))


def _is_whole(value: Any) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and -_INT64 <= value < _INT64)


def checked(column: Column, survey: Survey) -> Iterator[Block]:
    """Read again, and see to it that nothing has changed.

    Raises:
        MillstreamError: Something has.
    """
    number = 0
    for number, block in enumerate(column.blocks(), 1):
        if number > len(survey.digests) or survey.digests[number - 1] != block.digest:
            raise _changed(column, block.start)
        yield block
    if number != len(survey.digests):
        raise _changed(column, survey.rows)


def _changed(column: Column, row: int) -> MillstreamError:
    return MillstreamError(
        f"{column.path} was changed while it was read: row {row} or one soon after it is another now; run again"
    )


class Pack(NamedTuple):
    """Texts of one request."""

    rows: list[int]
    texts: list[str]


def packs(rows: Iterable[tuple[int, str, int]], most: int, most_bytes: float) -> Iterator[Pack]:
    """Rows (their number, text and bytes) in packs of at most so many texts and, together, bytes."""
    pack, size = Pack([], []), 0
    for row, text, length in rows:
        if pack.rows and (len(pack.rows) >= most or size + length > most_bytes):
            yield pack
            pack, size = Pack([], []), 0
        pack.rows.append(row)
        pack.texts.append(text)
        size += length
    if pack.rows:
        yield pack
