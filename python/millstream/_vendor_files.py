"""From items to what is sent, and from what comes to the output: files in, files out, no network."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections import Counter, UserString
from collections.abc import Mapping
from contextlib import ExitStack
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple

from millstream._millstream import NativeLine
from millstream._vendor_lines import (
    BadLineError,
    Result,
    failed,
    line_of,
    parse,
    read_result,
    request_of,
    to_bytes,
    vendor_line,
)
from millstream._vendor_state import RESTORE, Part, Place, State, create
from millstream.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path
    from threading import Event
    from typing import BinaryIO

    from millstream._millstream import NativeLineReader
    from millstream._vendor_apis import Limits, Vendor

# Batches that are filled at once; items of more kinds than this make smaller ones.
_MOST_OPEN = 64


class StoppedError(Exception):
    """Whoever wanted the work has left."""


class _Item(NamedTuple):
    """One item as the file of items has it. ``part`` is 0 and ``problem`` is set where it is no request."""

    part: int
    line: int
    custom_id: str | None
    vendor_id: str | None
    metadata: Any
    problem: str | None

    def to_line(self) -> bytes:
        # The part goes first, so that the items of others need not be parsed.
        return b"%d %s\n" % (self.part, to_bytes(self[1:]))


def _read_items(place: Place, part: int) -> Iterator[_Item]:
    start = b"%d " % part
    with open(place.items, "rb") as file:
        for line in file:
            if line.startswith(start):
                yield _Item(part, *json.loads(line[len(start) :]))


def _count_items(place: Place) -> Counter[bytes]:
    """Whole lines of the file of items, by part."""
    with open(place.items, "rb") as file:
        return Counter(line.split(b" ", 1)[0] for line in file if line.endswith(b"\n"))


def _items_of(state: State) -> Counter[bytes]:
    return Counter({b"0": state.bad_lines} | {b"%d" % part.number: part.items for part in state.parts})


def has_items(place: Place, state: State) -> bool:
    """Whether the file of items is the job's, and whole."""
    return _count_items(place) == _items_of(state)


def check_items(place: Place, state: State) -> None:
    """Refuse a file of items that was changed: results of what it lacks would be thrown away.

    Raises:
        ConfigurationError: It has other items than the job.
    """
    there, wanted = _count_items(place), _items_of(state)
    if there != wanted:
        raise ConfigurationError(
            f"{place.items} was changed since: it has {there.total():,} items and not the {wanted.total():,} of the "
            f"job in {place.state}. Nothing was fetched; {RESTORE}"
        )


def restore_items(place: Place, again: Place) -> None:
    """Write the file of items as it is in ``again``; in place, since the lock is on it."""
    with open(again.items, "rb") as source, create(place.items) as file:
        shutil.copyfileobj(source, file)
        file.flush()
        os.fsync(file.fileno())


def check_several(items: object) -> None:
    """Refuse one item in place of several: what it is iterated over are no items.

    Raises:
        TypeError: It is one.
    """
    if isinstance(items, (Mapping, bytes, bytearray, memoryview, UserString)):
        raise TypeError(
            f"items must be the path of a JSONL file or an iterable of items, not one {type(items).__name__}: wrap it "
            "in a list, [item]"
        )


class _Filling:
    """A batch that is being filled."""

    def __init__(self, part: Part, file: BinaryIO | None, vendor: Vendor) -> None:
        self.part = part
        self.inputs = 0
        self._file = file
        self._before, self._between, self._after = vendor.frame
        self._put(self._before)

    def _put(self, content: bytes) -> None:
        self.part.bytes += len(content)
        if self._file is not None:
            self._file.write(content)

    def has_room(self, content: bytes, inputs: int, limits: Limits) -> bool:
        size = self.part.bytes + len(self._between) + len(content) + len(self._after)
        enough = limits.inputs is None or self.inputs + inputs <= limits.inputs
        return self.part.items < limits.items and size <= limits.bytes and enough

    def add(self, content: bytes, inputs: int) -> None:
        if self.part.items:
            self._put(self._between)
        self._put(content)
        self.part.items += 1
        self.inputs += inputs

    def close(self) -> None:
        self._put(self._after)
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
        self.give_up()

    def give_up(self) -> None:
        if self._file is not None:
            self._file.close()


class Preparation:
    """Sorts items into batches, within the vendor's limits; on disk with a `Place`, else only to know them again.

    Raises:
        ConfigurationError: Two items have one ``custom_id``, there is none at all, or, with ``strict``, one is bad.
    """

    def __init__(
        self,
        place: Place | None,
        vendor: Vendor,
        base_url: str,
        reader: NativeLineReader,
        limits: Limits,
        strict: bool,
        stop: Event,
    ) -> None:
        self._place = place
        self._vendor = vendor
        self._base_url = base_url
        self._reader = reader
        self._limits = limits
        self._strict = strict
        self._stop = stop
        self._digest = sha256()
        # 16 bytes of each id's hash.
        self._lines: dict[bytes, int] = {}
        self._repeats: dict[str, int] = {}
        self._parts: list[Part] = []
        self._open: dict[tuple[str, str], _Filling] = {}
        self._bad_lines = 0

    def run(self, items: str | os.PathLike[str] | Iterable[object]) -> State:
        """Everything that is to be sent, and nothing is yet."""
        with ExitStack() as stack:
            stack.callback(self._give_up)
            index = None if self._place is None else stack.enter_context(create(self._place.items))
            for number, item in self._numbered(items):
                if self._stop.is_set():
                    raise StoppedError
                read = self._take(number, item)
                if index is not None:
                    index.write(read.to_line())
            for filling in self._open.values():
                filling.close()
            if index is not None:
                index.flush()
                os.fsync(index.fileno())
        items_in_all = sum(part.items for part in self._parts)
        if not items_in_all and not self._bad_lines:
            raise ConfigurationError("items are empty: there is nothing to submit")
        return State(
            via=self._vendor.name,
            base_url=self._base_url,
            digest=self._digest.hexdigest(),
            max_items=self._limits.items,
            max_bytes=self._limits.bytes,
            items=items_in_all,
            bad_lines=self._bad_lines,
            parts=self._parts,
        )

    def _give_up(self) -> None:
        for filling in self._open.values():
            filling.give_up()

    def _numbered(self, items: str | os.PathLike[str] | Iterable[object]) -> Iterator[tuple[int, object]]:
        """Every item with the number of its line, from 1."""
        if isinstance(items, (str, os.PathLike)):
            return ((line.number, line) for line in self._reader.file(items))
        return enumerate(items, 1)

    def _take(self, number: int, item: object) -> _Item:
        custom_id: str | None = None
        try:
            line = item if isinstance(item, NativeLine) else self._reader.read(number, line_of(item))
            custom_id = line.custom_id
            request = request_of(line)
            name = custom_id or self._name(request.name)
            asked = vendor_line(self._vendor.name, name, request)
            part = self._add(asked.content, asked.inputs, (asked.url, asked.model))
        except BadLineError as error:
            if self._strict:
                raise ConfigurationError(f"line {number}: {error}; nothing was sent") from None
            self._bad_lines += 1
            if custom_id is None and isinstance(item, Mapping) and isinstance(item.get("custom_id"), str):
                custom_id = item["custom_id"]
            self._digest.update(b"%d bad\n" % number)
            return _Item(0, number, custom_id, None, None, str(error))
        self._refuse_twice(name, number)
        self._digest.update(b"%s\n%s\n" % (to_bytes(name), asked.content))
        return _Item(part.number, number, name, asked.vendor_id, request.metadata, None)

    def _name(self, name: str) -> str:
        count = self._repeats[name] = self._repeats.get(name, 0) + 1
        return name if count == 1 else f"{name}-{count}"

    def _refuse_twice(self, custom_id: str, number: int) -> None:
        first = self._lines.setdefault(sha256(to_bytes(custom_id)).digest()[:16], number)
        if first != number:
            raise ConfigurationError(
                f"custom_id {custom_id!r} is on line {first} and on line {number}: answers are told apart by it, so "
                "name each line differently; nothing was sent"
            )

    def _add(self, content: bytes, inputs: int, kind: tuple[str, str]) -> Part:
        filling = self._open.get(kind)
        if filling is not None and not filling.has_room(content, inputs, self._limits):
            self._refuse_too_large(content, inputs)
            filling.close()
            del self._open[kind]
            filling = None
        if filling is None:
            self._refuse_too_large(content, inputs)
            filling = self._begin(kind)
        filling.add(content, inputs)
        return filling.part

    def _refuse_too_large(self, content: bytes, inputs: int) -> None:
        """An item that does not fit alone must not begin a batch, which would be sent without one."""
        before, _, after = self._vendor.frame
        if len(before) + len(content) + len(after) > self._limits.bytes:
            raise BadLineError(f"too large for a batch, which may have {self._limits.bytes:,} bytes")
        if self._limits.inputs is not None and inputs > self._limits.inputs:
            raise BadLineError(f"too large for a batch, which may have {self._limits.inputs:,} inputs")

    def _begin(self, kind: tuple[str, str]) -> _Filling:
        if len(self._open) == _MOST_OPEN:
            self._open.pop(next(iter(self._open))).close()
        number = len(self._parts) + 1
        part = Part(number, *kind, items=0, bytes=0, token=secrets.token_hex(16))
        file = None if self._place is None else create(self._place.part(number))
        self._parts.append(part)
        filling = self._open[kind] = _Filling(part, file, self._vendor)
        return filling


class _Output:
    """The output, whole up to the state's mark; what follows it is of a process that was killed."""

    def __init__(self, place: Place, state: State) -> None:
        self._file = create(place.output, keep=True)
        try:
            size = os.fstat(self._file.fileno()).st_size
            if size < state.written:
                raise ConfigurationError(
                    f"{place.output} has {size} bytes and had {state.written}: it was changed since. Put it back, or "
                    "remove it to have everything fetched again"
                )
            self._file.truncate(state.written)
            self._file.seek(state.written)
        except BaseException:
            self._file.close()
            raise
        self._state = state

    def put(self, result: Result, line: bytes) -> None:
        self._file.write(line)
        state = self._state
        state.ok += result.ok
        state.failed += not result.ok
        state.prompt_tokens += result.prompt_tokens
        state.completion_tokens += result.completion_tokens

    def close(self) -> None:
        with self._file:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._state.written = self._file.tell()

    def give_up(self) -> None:
        self._file.close()


def _line(item: _Item, result: Result, own: Mapping[str, object]) -> bytes:
    """A line of the output."""
    line = dict(result.line)
    if item.metadata not in (None, {}):
        line["metadata"] = item.metadata
    line["millstream"] = {"line": item.line, **own}
    return to_bytes(line) + b"\n"


def append_bad_lines(place: Place, state: State, stop: Event) -> None:
    """Write the lines that were no requests to the output."""
    output = _Output(place, state)
    try:
        for item in _read_items(place, 0):
            _go_on(stop)
            result = failed(f"line-{item.line}", item.custom_id, "invalid_request_line", item.problem or "")
            output.put(result, _line(item, result, {}))
    except BaseException:
        output.give_up()
        raise
    output.close()
    state.has_bad_lines = True


def append_results(place: Place, state: State, part: Part, files: list[Path], stop: Event) -> list[str]:
    """Write the results of a batch to the output, and a line for each item that has none.

    Returns:
        What is wrong with the results.

    Raises:
        ConfigurationError: They are those of another batch.
    """
    pending = {item.vendor_id: item for item in _read_items(place, part.number)}
    places = {item.vendor_id: number for number, item in enumerate(pending.values(), 1)} if part.errors else {}
    problems: list[str] = []
    batch_id = part.batch_id or ""
    own = {"via": state.via, "batch_id": part.batch_id}
    output = _Output(place, state)
    try:
        for file in files:
            for number, result in _read_results(file):
                _go_on(stop)
                vendor_id = result.get("custom_id")
                item = pending.pop(vendor_id, None) if isinstance(vendor_id, str) else None
                if item is None:
                    problems.append(
                        f"{batch_id}: result {number} is of no item that is still open: {result.get('custom_id')!r}"
                    )
                    continue
                try:
                    read = read_result(state.via, batch_id, item.custom_id or "", part.url, result)
                    line = _line(item, read, own)
                except (ValueError, RecursionError) as error:
                    # Python reads NaN, which JSON has not. One such result must not keep the others from us.
                    reason = f"The result cannot be written as JSON ({error}). The vendor's file has it, in {batch_id}."
                    read = failed(f"{batch_id}-{item.custom_id}", item.custom_id, "invalid_response", reason)
                    line = _line(item, read, own)
                output.put(read, line)
        if problems and len(pending) == part.items:
            raise ConfigurationError(
                f"batch {batch_id} has results of other requests and none of this job's: it is another one. Set "
                f"batch_id and asked of part {part.number} to null in {place.state} and submit the same items again"
            )
        reasons = {line: (code, message) for line, code, message in part.errors}
        usual = part.missing, _why(part)
        for item in pending.values():
            _go_on(stop)
            code, message = reasons.get(places.get(item.vendor_id), usual)
            none = failed(f"{batch_id}-{item.custom_id}", item.custom_id, code, message)
            output.put(none, _line(item, none, own))
    except BaseException:
        output.give_up()
        raise
    output.close()
    part.is_fetched = True
    return problems


def _why(part: Part) -> str:
    reason = f"The batch ended as {part.status!r} and has no result of this request."
    return reason if not part.errors else f"{reason} The vendor says: {part.errors[0][2]}"


def _read_results(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with open(file, "rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                result = parse(line)
            except BadLineError:
                result = {}
            if result is not None:
                yield number, result if isinstance(result, dict) else {}


def read_output(place: Place) -> list[dict[str, Any]]:
    """The lines of the output, in the order of the items."""
    with open(place.output, "rb") as file:
        lines = [json.loads(line) for line in file]
    return sorted(lines, key=lambda line: int(line["millstream"]["line"]))


def _go_on(stop: Event) -> None:
    if stop.is_set():
        raise StoppedError
