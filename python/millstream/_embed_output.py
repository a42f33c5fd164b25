"""Vectors as a file of their own: Parquet, .npy or JSONL, made some at a time and put in its place whole."""

from __future__ import annotations

import json
import os
import struct
import sys
from array import array
from importlib import import_module
from importlib.util import find_spec
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

from millstream._embed_work import FAILED, ITEM
from millstream.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import BinaryIO

    from millstream._embed_work import State, Work

SUFFIXES = (".parquet", ".npy", ".jsonl", ".ndjson")

_CHUNK_BYTES = 8 << 20
_VECTOR = "embedding"


class Stopped(Exception):
    """Nobody waits for the output any more."""


def kind_of(output: Path, id_name: str | None) -> str:
    """The suffix of an output, if one of that kind can be made.

    Raises:
        ConfigurationError: It cannot.
    """
    suffix = output.suffix.lower()
    if suffix not in SUFFIXES:
        raise ConfigurationError(f"{output}: vectors are written to files that end in one of {', '.join(SUFFIXES)}")
    if suffix == ".parquet" and find_spec("pyarrow") is None:
        raise ConfigurationError(f"{output}: Parquet files are written with pyarrow: pip install pyarrow")
    if suffix == ".npy" and id_name is not None:
        raise ConfigurationError(
            f"{output}: an .npy file holds numbers alone, in the input's order: leave out id_column"
        )
    if suffix == ".parquet" and id_name == _VECTOR:
        raise ConfigurationError(f"id_column must not be {_VECTOR!r}, as the vectors' own column is called")
    return suffix


class Names(Protocol):
    """What rows are called."""

    @property
    def name(self) -> str | None:
        """The column; None if there is none."""

    def arrow_type(self) -> Any:
        """The type of its values, as pyarrow's."""

    def values(self, kind: Any = None) -> Iterator[Any]:
        """Its values, one for each row, as such a type takes them."""


def write(work: Work, suffix: str, names: Names, is_wanted: Callable[[], bool]) -> dict[str, Any]:
    """Make the output and put it in its place; what can be known of it again.

    Raises:
        Stopped: ``is_wanted`` said no; the output is as it was.
        OSError: It cannot be written.
    """
    place, state = work.place, work.state
    writers = {".parquet": _parquet, ".npy": _npy}
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with open(os.open(place.new, flags, 0o600), "wb") as file:
            writers.get(suffix, _jsonl)(file, state, names, _chunks(work, is_wanted))
            file.flush()
            os.fsync(file.fileno())
        os.replace(place.new, place.output)
    except BaseException:
        place.new.unlink(missing_ok=True)
        raise
    _sync_folder(place.output)
    return facts(place.output, names.name)


def facts(output: Path, id_name: str | None) -> dict[str, Any]:
    """What an output is known again by."""
    known = output.stat()
    return {"bytes": known.st_size, "id_column": id_name}


def _sync_folder(path: Path) -> None:
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _chunks(work: Work, is_wanted: Callable[[], bool]) -> Iterator[tuple[int, int, bytearray]]:
    """All rows, some at a time: the first, the one behind the last, and their bytes; those that failed are NaN."""
    state = work.state
    width = state.size * ITEM
    count = max(_CHUNK_BYTES // width, 1) if width else 1 << 16
    nothing = array("f", [float("nan")]).tobytes() * state.size
    for first in range(0, len(state.status), count):
        if not is_wanted():
            raise Stopped
        end = min(first + count, len(state.status))
        some = bytearray().join(work.read(first, end, state.size))
        row = state.status.find(FAILED, first, end)
        while row >= 0:
            some[(row - first) * width : (row - first + 1) * width] = nothing
            row = state.status.find(FAILED, row + 1, end)
        yield first, end, some


def _npy(file: BinaryIO, state: State, _: Names, chunks: Iterator[tuple[int, int, bytearray]]) -> None:
    order = "<" if sys.byteorder == "little" else ">"
    shape = f"({len(state.status)}, {state.size})"
    head = f"{{'descr': '{order}f4', 'fortran_order': False, 'shape': {shape}, }}"
    # The numbers begin at a multiple of 64, behind a newline.
    head = head.ljust((10 + len(head) + 1 + 63) // 64 * 64 - 11) + "\n"
    file.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode("latin-1"))
    for _first, _end, some in chunks:
        file.write(some)


def _jsonl(file: BinaryIO, state: State, names: Names, chunks: Iterator[tuple[int, int, bytearray]]) -> None:
    from millstream._millstream import numbers_as_json

    width = state.size * ITEM
    ids = names.values()
    for first, end, some in chunks:
        numbers = memoryview(some)
        for row in range(first, end):
            line: dict[str, Any] = {"row": row}
            if names.name is not None:
                line["id"] = next(ids)
            if state.status[row] == FAILED:
                code, message = state.failures[row]
                line |= {_VECTOR: None, "error": {"code": code, "message": message}}
                file.write(_json(line) + b"\n")
            else:
                vector = numbers_as_json(bytes(numbers[(row - first) * width : (row - first + 1) * width]))
                file.write(b'%s,"%s":%s}\n' % (_json(line)[:-1], _VECTOR.encode(), vector))


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, default=str).encode(errors="backslashreplace")


def _parquet(file: BinaryIO, state: State, names: Names, chunks: Iterator[tuple[int, int, bytearray]]) -> None:
    arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    number = arrow.float32()
    vector = arrow.list_(number, state.size) if state.size else arrow.list_(number)
    columns = [(_VECTOR, vector)]
    if names.name is not None:
        columns.insert(0, (names.name, names.arrow_type()))
    schema = arrow.schema(columns)
    ids = names.values(schema.types[0])
    # Hardly a number comes twice, so a dictionary of them would only take room.
    with parquet.ParquetWriter(file, schema, use_dictionary=False) as writer:
        for first, end, some in chunks:
            made = []
            if names.name is not None:
                made.append(arrow.array(list(islice(ids, end - first)), type=schema.types[0]))
            made.append(_vectors(arrow, state, first, end, some, vector))
            writer.write_table(arrow.table(made, schema=schema))


def _vectors(arrow: Any, state: State, first: int, end: int, some: bytearray, kind: Any) -> Any:
    if not state.size:
        return arrow.nulls(end - first, type=kind)
    numbers = (end - first) * state.size
    values = arrow.Array.from_buffers(arrow.float32(), numbers, [None, arrow.py_buffer(some)])
    is_missing = [status == FAILED for status in state.status[first:end]]
    mask = arrow.array(is_missing) if any(is_missing) else None
    return arrow.FixedSizeListArray.from_arrays(values, state.size, mask=mask)
