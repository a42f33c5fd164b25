"""From what a user hands in to what is asked: templates, whole requests, and what is particular to an item."""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from math import isnan
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from millstream._chat import Message
from millstream._not_given import NOT_GIVEN
from millstream._sources import Row
from millstream.exceptions import ConfigurationError

if TYPE_CHECKING:
    from millstream._millstream import NativeBatch, NativeManner, _Dollars, _Entry, _Options
    from millstream._prices import Prices
    from millstream._prompts import Prompt
    from millstream._structured import ResponseFormat

Template: TypeAlias = str | list[Message] | Callable[[Any], Any]
"""What makes a request of an item: a text with ``{fields}``, messages with such texts, or a function."""

# What a row of a table can say of a request; its other columns are data.
_REQUEST_COLUMNS = ("prompt", "messages", "custom_id", "system", "model", "deadline", "priority")

# What a line of OpenAI's batch files has besides the request.
_LINE = ("method", "url", "millstream")


class Ask(NamedTuple):
    """One request."""

    prompt: Prompt
    custom_id: str | None = None
    system: str | None = None
    model: str | None = None
    deadline: float | None = None
    priority: int | None = None
    params: Mapping[str, Any] = {}


def formatter(template: Template | None) -> Callable[[Any], Any] | None:
    """The function that ``template`` is.

    Raises:
        TypeError: It is none.
        ConfigurationError: Its braces do not match.
    """
    if template is None or callable(template):
        return template
    if isinstance(template, str):
        return _text_formatter(template)
    if isinstance(template, (list, tuple)):
        return _messages_formatter(template)
    raise TypeError(f"template must be a str, a list of messages or a function, not {type(template).__name__}")


def _text_formatter(template: str) -> Callable[[Any], str]:
    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(template) if field is not None]
    except ValueError as error:
        raise ConfigurationError(f"template is no format text ({error}); a brace of its own is written twice") from None
    by_place = any(not field or field[0].isdigit() for field in fields)

    def format_item(item: Any) -> str:
        if isinstance(item, Mapping) and not by_place:
            try:
                return template.format_map(item)
            except KeyError as missing:
                has = ", ".join(map(str, item)) or "nothing"
                raise ConfigurationError(f"the template wants {missing}, and the item has {has}") from None
        return template.format(item) if by_place else template.format_map(_Whole(item))

    return format_item


class _Whole(dict[str, Any]):
    """An item that has no fields: it is every field."""

    __slots__ = ("_item",)

    def __init__(self, item: Any) -> None:
        self._item = item

    def __missing__(self, name: str) -> Any:
        return self._item


def _messages_formatter(template: Any) -> Callable[[Any], Any]:
    """Formats every text of messages; what is not text stays as it is."""
    if isinstance(template, str):
        return _text_formatter(template)
    if isinstance(template, (list, tuple)):
        parts = [_messages_formatter(part) for part in template]
        return lambda item: [part(item) for part in parts]
    if isinstance(template, Mapping):
        fields = {
            # A role and a type are words of the API's.
            name: _messages_formatter(value) if name not in ("role", "type") else _constant(value)
            for name, value in template.items()
        }
        return lambda item: {name: field(item) for name, field in fields.items()}
    return _constant(template)


def _constant(value: Any) -> Callable[[Any], Any]:
    return lambda _: value


def ask_of(item: Any, template: Callable[[Any], Any] | None) -> Ask:
    """The request that an item is.

    Raises:
        ConfigurationError: It is none.
    """
    if isinstance(item, Exception):
        raise item
    custom_id = item.get("custom_id") if isinstance(item, Mapping) else None
    if isinstance(item, Row):
        custom_id = _cell("custom_id", custom_id)
    custom_id = None if custom_id is None else str(custom_id)
    request = item if template is None else template(item)
    if isinstance(request, (str, list, tuple)):
        return Ask(request, custom_id)
    if not isinstance(request, Mapping):
        what = "an item" if template is None else "what the template makes of an item"
        raise ConfigurationError(f"{what} must be a str, a list of messages or a request, not {type(request).__name__}")
    fields = dict(request)
    if isinstance(request, Row):
        cells = {name: _cell(name, fields.get(name)) for name in _REQUEST_COLUMNS}
        fields = {name: value for name, value in cells.items() if value is not None}
    if isinstance(body := fields.get("body"), Mapping):
        del fields["body"]
        fields = {name: value for name, value in fields.items() if name not in _LINE} | dict(body)
    own_id = fields.pop("custom_id", None)
    prompts = [fields.pop(name) for name in ("prompt", "messages") if fields.get(name) is not None]
    if len(prompts) != 1:
        has = ", ".join(map(str, request)) or "nothing"
        raise ConfigurationError(
            f"a request has either prompt or messages, and this has {has}; give template= to make one of other fields"
        )
    return Ask(
        prompts[0],
        custom_id if own_id is None else str(own_id),
        fields.pop("system", None),
        fields.pop("model", None),
        fields.pop("deadline", None),
        fields.pop("priority", None),
        fields,
    )


def _cell(column: str, value: Any) -> Any:
    """What a table says in a column of a request; None where it says nothing."""
    if value is None or (isinstance(value, str) and not value) or (isinstance(value, float) and isnan(value)):
        return None
    if column not in ("deadline", "priority") or not isinstance(value, str):
        return value
    try:
        return float(value) if column == "deadline" else int(value)
    except ValueError:
        raise ConfigurationError(f"column {column}: {value!r} is no number") from None


class Asker:
    """Makes what the engine takes of items; each kind of request is made ready once."""

    def __init__(
        self,
        template: Callable[[Any], Any] | None,
        form: ResponseFormat[Any] | None,
        options: Callable[[Ask], tuple[str | None, _Options]],
        prices: Prices,
        needs_price: bool,
        fallback_models: Sequence[str],
    ) -> None:
        self._template = template
        self._form = form
        self._options = options
        self._prices = prices
        self._needs_price = needs_price
        self._fallback_models = fallback_models
        self._last: tuple[Ask, NativeManner] | None = None

    def entries(self, items: list[Any], native: NativeBatch) -> list[_Entry]:
        """What the engine takes."""
        if self._template is None and (self._form is None or not self._form._instruction):
            return [item if type(item) is str else self._entry(item, native) for item in items]
        return [self._entry(item, native) for item in items]

    def _entry(self, item: Any, native: NativeBatch) -> _Entry:
        custom_id = None
        try:
            ask = ask_of(item, self._template)
            custom_id = ask.custom_id
            return (item, custom_id, self._prompt(ask), self._manner(ask, native))
        except Exception as error:
            # One bad item does not end a run.
            return (str(item) if item is error else item, custom_id, _plain(error), None)

    def _prompt(self, ask: Ask) -> Prompt:
        return ask.prompt if self._form is None else self._form._prompt(ask.prompt)

    def again(self, item: Any, native: NativeBatch) -> tuple[Prompt, NativeManner | None]:
        """The prompt of an item that was asked, without what a format adds, and how it is asked.

        Raises:
            ConfigurationError: The template makes no request of it any more.
        """
        try:
            ask = ask_of(item, self._template)
            return ask.prompt, self._manner(ask, native)
        except Exception as error:
            # A template of the user's need not do the same twice.
            raise _plain(error) from error

    def _manner(self, ask: Ask, native: NativeBatch) -> NativeManner | None:
        kind = ask._replace(prompt="", custom_id=None)
        if kind == _USUAL:
            return None
        if self._last is None or self._last[0] != kind:
            system, options = self._options(kind)
            self._last = (kind, native.manner(system, options, self.dollars(options)))
        return self._last[1]

    def dollars(self, options: _Options) -> _Dollars:
        """What a token of the prompt and one of the answer cost, of the model that is asked and of its stand-ins.

        Raises:
            ConfigurationError: A budget in dollars needs the price, and it is not known.
        """
        model = options if isinstance(options, str) else options[0]
        models = dict.fromkeys((model or "", *self._fallback_models))
        return [(each, self._prices._per_token(each, for_budget=self._needs_price)) for each in models]


_USUAL = Ask("")


def _plain(error: Exception) -> ConfigurationError:
    if isinstance(error, ConfigurationError):
        return error
    return ConfigurationError(f"the item cannot be asked: {type(error).__name__}: {error}")


def timeout_of(ask: Ask) -> Any:
    """The timeout of a request with a deadline of its own."""
    return NOT_GIVEN if ask.deadline is None else ask.deadline
