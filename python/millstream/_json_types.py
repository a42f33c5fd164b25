"""Python types as JSON schemas, and JSON back as these types, without a library.

What is taken: ``str``, ``int``, ``float``, ``bool``, ``None``, ``Any``, ``list`` and ``Sequence``, ``dict`` and
``Mapping`` with string keys, ``Optional`` and ``Union``, ``Literal`` and ``Enum`` of JSON's own values, dataclasses,
TypedDicts (``Required``, ``NotRequired``), these in each other to any depth, and ``Annotated[T, "description"]``.
Anything else is `Unsupported`, which names the field; pydantic takes more.

Reading is strict about types (no ``"1"`` for 1), except that a whole number is good for a ``float`` and ``1.0`` for an
``int``. Fields that nobody asked for are left out, as pydantic does. Two objects in a union are told apart by their
``Literal`` and ``Enum`` fields, then by which fields are there, and never by trying each, which would take exponential
time in types that contain themselves. All faults are gathered, since they go back to the model, which may then correct
them at once.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin

Schema = dict[str, Any]
# Where, from the value on, and what. The way to it is added going up, so that good values cost nothing.
Faults = list[tuple[str, str]]
# From the value and the list that faults are added to.
Read = Callable[[Any, Faults], Any]
# How badly an object's own fields fit, not looking into them; smaller is better.
Misfit = Callable[[dict[str, Any]], tuple[float, ...]]

_LISTS = (list, Sequence)
_DICTS = (dict, Mapping)
_UNIONS = (Union, types.UnionType)


class Unsupported(Exception):
    """A type that has no place in the list above."""


class Unfit(Exception):
    """A value that is not of the type.

    Attributes:
        faults: What is wrong, one line each, beginning with where.
    """

    def __init__(self, faults: list[str]) -> None:
        super().__init__(faults)
        self.faults = faults


@dataclasses.dataclass(frozen=True, slots=True)
class JsonType:
    """One type, ready for use.

    Attributes:
        schema: Its JSON schema; named types stand under ``$defs``.
    """

    schema: Schema
    _read: Read

    def read(self, value: Any) -> Any:
        """The value that parsed JSON stands for.

        Raises:
            Unfit: It is of another type.
        """
        faults: Faults = []
        found = self._read(value, faults)
        if faults:
            raise Unfit([f"{path.removeprefix('.') or 'the answer'}: {what}" for path, what in faults])
        return found


def json_type(kind: Any, *, strict: bool) -> JsonType:
    """Look at a type.

    Args:
        kind: A type of the list above.
        strict: Keep OpenAI's rules for strict schemas: every property is required. A ``NotRequired`` one may then be
            null, which is read as absent.

    Raises:
        Unsupported: A type that is not of the list; the text names the field.
    """
    compiler = _Compiler(strict=strict)
    schema, read = compiler.of(kind, "")
    schema = {**schema, **({"$defs": compiler.schemas} if compiler.schemas else {})}
    return JsonType(schema, read)


class _Compiler:
    def __init__(self, *, strict: bool) -> None:
        self.strict = strict
        self.schemas: dict[str, Schema] = {}
        self._names: dict[type, str] = {}
        self._reads: dict[type, Read] = {}
        self._misfits: dict[type, Misfit] = {}

    def of(self, kind: Any, path: str) -> tuple[Schema, Read]:
        if kind is Any:
            return {}, lambda value, faults: value
        if isinstance(kind, type) and not get_args(kind):
            if hasattr(kind, "__pydantic_core_schema__") or hasattr(kind, "__get_pydantic_core_schema__"):
                raise _unsupported(path, f"is pydantic's ({kind.__name__})")
            if kind in _PLAIN:
                return _PLAIN[kind]
            if kind is list or kind is dict:
                return self.of(list[Any] if kind is list else dict[str, Any], path)
            if issubclass(kind, enum.Enum) or is_typed_dict(kind) or dataclasses.is_dataclass(kind):
                return self._named(kind, path)
        origin, arguments = get_origin(kind), get_args(kind)
        if origin is typing.Annotated:
            return self._annotated(arguments, path)
        if origin is Literal:
            return _choice({value: value for value in arguments}, path)
        if origin in _UNIONS:
            return self._union(arguments, path)
        if origin in _LISTS:
            return self._list(arguments[0], path)
        if origin in _DICTS and arguments[0] is str:
            return self._dict(arguments[1], path)
        raise _unsupported(path, f"is of type {_name(kind)}")

    def _annotated(self, arguments: tuple[Any, ...], path: str) -> tuple[Schema, Read]:
        kind, *notes = arguments
        if not all(isinstance(note, str) for note in notes):
            raise _unsupported(path, "is annotated with more than a description")
        schema, read = self.of(kind, path)
        return _described(schema, " ".join(notes)), read

    def _union(self, members: tuple[Any, ...], path: str) -> tuple[Schema, Read]:
        schemas: list[Schema] = []
        objects: list[tuple[type | None, Read]] = []
        lists: list[Read] = []
        others: list[Read] = []
        for member in members:
            schema, read_member = self.of(member, path)
            schemas.append(schema)
            kind = _bare(member)
            if kind is Any or get_origin(kind) in _UNIONS:
                raise _unsupported(path, f"is a union with {_name(kind)}")
            if get_origin(kind) in _DICTS or kind is dict:
                objects.append((None, read_member))
            elif isinstance(kind, type) and (is_typed_dict(kind) or dataclasses.is_dataclass(kind)):
                objects.append((kind, read_member))
            elif get_origin(kind) in _LISTS or kind is list:
                lists.append(read_member)
            else:
                others.append(read_member)
        if len(lists) > 1:
            raise _unsupported(path, "is a union of several lists")
        misfits = self._misfits
        wanted = " or ".join(map(_name, members))

        def misfit(member: tuple[type | None, Read], value: dict[str, Any]) -> tuple[float, ...]:
            kind, _ = member
            # A dict takes any field.
            return (0, 0, math.inf) if kind is None else misfits[kind](value)

        def read(value: Any, faults: Faults) -> Any:
            if isinstance(value, dict) and objects:
                _, read_best = min(objects, key=lambda member: misfit(member, value))
                return read_best(value, faults)
            if isinstance(value, list) and lists:
                return lists[0](value, faults)
            before = len(faults)
            for read_other in others:
                found = read_other(value, faults)
                if len(faults) == before:
                    return found
                del faults[before:]
            return _fault(faults, wanted, value)

        return {"anyOf": schemas}, read

    def _list(self, item: Any, path: str) -> tuple[Schema, Read]:
        schema, read_item = self.of(item, f"{path}[]")

        def read(value: Any, faults: Faults) -> Any:
            if not isinstance(value, list):
                return _fault(faults, "a list", value)
            before = len(faults)
            found = []
            for place, item in enumerate(value):
                found.append(read_item(item, faults))
                if len(faults) > before:
                    before = _inside(f"[{place}]", faults, before)
            return found

        return {"type": "array", "items": schema}, read

    def _dict(self, item: Any, path: str) -> tuple[Schema, Read]:
        schema, read_item = self.of(item, f"{path}{{}}")

        def read(value: Any, faults: Faults) -> Any:
            if not isinstance(value, dict):
                return _fault(faults, "an object", value)
            before = len(faults)
            found = {}
            for key, item in value.items():
                found[key] = read_item(item, faults)
                if len(faults) > before:
                    before = _inside(f".{key}", faults, before)
            return found

        return {"type": "object", "additionalProperties": schema or True}, read

    def _named(self, kind: type, path: str) -> tuple[Schema, Read]:
        """A type with a name: once under ``$defs``, so that it may contain itself."""
        if kind not in self._names:
            self._names[kind] = name = self._free_name(kind)
            # Its place is taken before it is made.
            self.schemas[name] = {}
            if issubclass(kind, enum.Enum):
                schema, read = _choice({member.value: member for member in kind}, path)
            else:
                schema, read = self._object(kind, path)
            self.schemas[name] = _described(schema, _doc(kind))
            self._reads[kind] = read
        reads = self._reads
        return {"$ref": f"#/$defs/{self._names[kind]}"}, lambda value, faults: reads[kind](value, faults)

    def _free_name(self, kind: type) -> str:
        base = re.sub(r"[^a-zA-Z0-9_-]", "_", kind.__name__)
        taken, count, name = self.schemas, 1, base
        while name in taken:
            count += 1
            name = f"{base}_{count}"
        return name

    def _object(self, kind: type, path: str) -> tuple[Schema, Read]:
        fields = _fields(kind, path)
        properties: dict[str, Schema] = {}
        reads: dict[str, Read] = {}
        for field in fields:
            schema, reads[field.name] = self.of(field.kind, _under(path, field.name))
            if self.strict and field.omissible and not _takes_none(field.kind):
                schema = {"anyOf": [schema, {"type": "null"}]}
            properties[field.name] = _described(schema, field.description)
        required = [field.name for field in fields if self.strict or field.required]
        mandatory = frozenset(field.name for field in fields if field.required)
        # Null stands for what is left out, unless it is a value of its own.
        absent = frozenset(field.name for field in fields if field.omissible and not _takes_none(field.kind))
        choices = {field.name: reads[field.name] for field in fields if _is_choice(field.kind)}

        def misfit(value: dict[str, Any]) -> tuple[float, ...]:
            wrong: Faults = []
            for name, read_choice in choices.items():
                if name in value and not (value[name] is None and name in absent):
                    read_choice(value[name], wrong)
            return len(wrong), len(mandatory - value.keys()), len(value.keys() - reads.keys())

        def read(value: Any, faults: Faults) -> Any:
            if not isinstance(value, dict):
                return _fault(faults, "an object", value)
            before = so_far = len(faults)
            known = {}
            for name, read_field in reads.items():
                if name in value:
                    item = value[name]
                    if item is None and name in absent:
                        continue
                    known[name] = read_field(item, faults)
                    if len(faults) > so_far:
                        so_far = _inside(f".{name}", faults, so_far)
                elif name in mandatory:
                    faults.append((f".{name}", "is missing"))
                    so_far += 1
            if so_far > before:
                return None
            try:
                return kind(**known)
            except (TypeError, ValueError) as refusal:
                # A dataclass may check its fields itself.
                faults.append(("", str(refusal)))
                return None

        self._misfits[kind] = misfit
        schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
        return schema, read


@dataclasses.dataclass(frozen=True, slots=True)
class _Field:
    name: str
    kind: Any
    # Must be in the JSON.
    required: bool
    # May be absent from the value, too.
    omissible: bool = False
    description: str = ""


def _fields(kind: type, path: str) -> list[_Field]:
    try:
        hints = typing.get_type_hints(kind, include_extras=True)
    except (NameError, TypeError, AttributeError, SyntaxError) as error:
        why = f"has annotations that cannot be resolved ({error}): define {kind.__name__} at the top of a module"
        raise _unsupported(path, why) from None
    if is_typed_dict(kind):
        return [_typed_dict_field(kind, name, hint) for name, hint in hints.items()]
    if any(isinstance(hint, dataclasses.InitVar) for hint in hints.values()):
        raise _unsupported(path, f"is a dataclass with an InitVar ({kind.__name__})")
    return [
        _Field(
            field.name,
            hints[field.name],
            required=field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING,
            description=str(field.metadata.get("description", "")),
        )
        for field in dataclasses.fields(kind)
        if field.init
    ]


def _typed_dict_field(kind: Any, name: str, hint: Any) -> _Field:
    required = name in kind.__required_keys__
    # With annotations as strings the class does not know these marks of its own fields.
    while getattr(marker := get_origin(hint), "_name", None) in ("Required", "NotRequired", "ReadOnly"):
        required = {"Required": True, "NotRequired": False}.get(marker._name, required)
        (hint,) = get_args(hint)
    return _Field(name, hint, required=required, omissible=not required)


def is_typed_dict(kind: Any) -> bool:
    """Whether it is one, of ``typing`` or of ``typing_extensions``."""
    return isinstance(kind, type) and issubclass(kind, dict) and hasattr(kind, "__required_keys__")


def _choice(members: dict[Any, Any], path: str) -> tuple[Schema, Read]:
    """One of several values, by the value that stands for it in JSON."""
    if not all(value is None or type(value) in (str, int, bool) for value in members):
        raise _unsupported(path, "has a choice that is neither a string nor a whole number, true, false or null")
    # True == 1, but not in JSON.
    by_kind = {(type(value), value): member for value, member in members.items()}
    wanted = f"one of {', '.join(map(repr, members))}"

    def read(value: Any, faults: Faults) -> Any:
        try:
            return by_kind[type(value), value]
        except (KeyError, TypeError):
            return _fault(faults, wanted, value)

    kinds = {_KINDS[type(value)] for value in members}
    return {**({"type": kinds.pop()} if len(kinds) == 1 else {}), "enum": list(members)}, read


_KINDS = {str: "string", int: "integer", bool: "boolean", type(None): "null"}


def _plain(kind: type, name: str, wanted: str, convert: Callable[[Any], Any] | None = None) -> tuple[Schema, Read]:
    """A type of JSON's own; ``convert`` gives None for what cannot be it either."""

    def read(value: Any, faults: Faults) -> Any:
        if type(value) is kind:
            return value
        found = None if convert is None else convert(value)
        return _fault(faults, wanted, value) if found is None else found

    return {"type": name}, read


def _int(value: Any) -> int | None:
    return int(value) if type(value) is float and value.is_integer() else None


def _float(value: Any) -> float | None:
    try:
        return float(value) if type(value) is int else None
    except OverflowError:
        return None


_PLAIN: Mapping[Any, tuple[Schema, Read]] = {
    str: _plain(str, "string", "a string"),
    int: _plain(int, "integer", "a whole number", _int),
    float: _plain(float, "number", "a number", _float),
    bool: _plain(bool, "boolean", "true or false"),
    type(None): _plain(type(None), "null", "null"),
}


def _described(schema: Schema, description: str) -> Schema:
    if not description:
        return schema
    # OpenAI takes nothing beside a `$ref`.
    return (
        {"anyOf": [schema], "description": description} if "$ref" in schema else {**schema, "description": description}
    )


def _doc(kind: type) -> str:
    doc = vars(kind).get("__doc__") or ""
    # A dataclass without one gets its signature for a docstring; an Enum of Python 3.11 gets a fixed text.
    made = doc.startswith(f"{kind.__name__}(") or (issubclass(kind, enum.Enum) and doc == "An enumeration.")
    return "" if made else inspect.cleandoc(doc)


def _fault(faults: Faults, wanted: str, value: Any) -> None:
    shown = repr(value)
    shown = shown if len(shown) <= 100 else f"{shown[:100]}..."
    faults.append(("", f"must be {wanted}, not {shown}"))


def _inside(step: str, faults: Faults, before: int) -> int:
    """Add a step to the way of the faults since ``before``; how many there are now."""
    faults[before:] = [(step + path, what) for path, what in faults[before:]]
    return len(faults)


def _bare(kind: Any) -> Any:
    """Without a description."""
    return get_args(kind)[0] if get_origin(kind) is typing.Annotated else kind


def _is_choice(kind: Any) -> bool:
    kind = _bare(kind)
    return get_origin(kind) is Literal or (isinstance(kind, type) and issubclass(kind, enum.Enum))


def _takes_none(kind: Any) -> bool:
    kind = _bare(kind)
    if get_origin(kind) in _UNIONS:
        return any(_takes_none(member) for member in get_args(kind))
    return kind is type(None) or kind is Any or (get_origin(kind) is Literal and None in get_args(kind))


def _under(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _name(kind: Any) -> str:
    return kind.__qualname__ if isinstance(kind, type) and not get_args(kind) else str(kind).replace("typing.", "")


def _unsupported(path: str, why: str) -> Unsupported:
    return Unsupported(f"{path or 'it'} {why}")
