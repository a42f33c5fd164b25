"""Answers as values of a type: what is asked of the server, how its text is read, and when it is asked again.

The first pass of a batch is an ordinary batch; only items whose answers do not fit go into another one. pydantic is
imported where a type asks for it and nowhere else, see `_json_types` for what goes without.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, get_args, overload

from millstream._json_types import Unfit, Unsupported, json_type
from millstream._strict_schema import inline_root, strict_schema
from millstream.exceptions import (
    APIResponseValidationError,
    ConfigurationError,
    ContentFilterFinishReasonError,
    LengthFinishReasonError,
    MillstreamError,
    RefusalError,
)
from millstream.types import ParsedChatCompletion, ParsedChoice, ParsedMessage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from millstream._chat import Message
    from millstream._millstream import ChatCompletion, Choice
    from millstream._prompts import Prompt

T = TypeVar("T")
R = TypeVar("R")

Mode = Literal["json_schema", "json_object", "prompt"]

# OpenAI wants an object at the top, so anything else stands in one under this name.
_WRAPPED = "result"

_TOO_DEEP = "the answer: is nested too deeply"
_FENCE = re.compile(r"```[a-zA-Z]*\s*\n(.*?)```", re.DOTALL)

# A model that repeats one fault a thousand times need not read it a thousand times.
_MOST_FAULTS = 20


class ResponseFormat(Generic[T]):
    """The form that answers must have: a type, and how the server is told of it.

    A type alone is enough for servers that know JSON schemas; this is for others, and for a name of your own.

    Args:
        model: The type: a pydantic model, a dataclass, a TypedDict, whatever else pydantic has a schema for, or a JSON
            schema as a mapping, which is sent untouched and whose answers are parsed JSON.
        name: The schema's name, letters, digits, ``_`` and ``-``. Default: the type's.
        mode: How the server is told. ``"json_schema"``: in ``response_format``, which it enforces. ``"json_object"``:
            it enforces that the answer is JSON, and the schema stands at the end of the last user message.
            ``"prompt"``: the schema stands there and ``response_format`` is not sent.
        strict: Ask for OpenAI's strict mode, which has rules of its own: all properties are required and there are no
            others. The schema of a type is made to keep them, except that a ``dict`` with any keys cannot.

    Raises:
        ConfigurationError: The type has no JSON schema; the text names the field.
    """

    __slots__ = ("_instruction", "_mode", "_name", "_read", "_schema", "_sent", "_strict")

    @overload
    def __init__(
        self, model: type[T], *, name: str | None = None, mode: Mode = "json_schema", strict: bool = True
    ) -> None: ...

    @overload
    def __init__(
        self: ResponseFormat[Any],
        model: Any,
        *,
        name: str | None = None,
        mode: Mode = "json_schema",
        strict: bool = True,
    ) -> None: ...

    def __init__(self, model: Any, *, name: str | None = None, mode: Mode = "json_schema", strict: bool = True) -> None:
        if mode not in get_args(Mode):
            raise ConfigurationError(f"mode must be one of {', '.join(get_args(Mode))}, not {mode!r}")
        name = name or _type_name(model)
        if not re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name):
            raise ConfigurationError(f"name must be 1 to 64 letters, digits, '_' or '-', not {name!r}")
        self._name, self._mode, self._strict = name, mode, strict
        self._sent: Mapping[str, Any] | None = None
        if isinstance(model, Mapping):
            self._read: Callable[[str], T] = _json
            if model.get("type") in ("json_schema", "json_object", "text"):
                # Not a schema but the whole `response_format`, as openai-python takes it, too.
                self._schema: dict[str, Any] = dict(model.get("json_schema", {}).get("schema", {}))
                self._sent, self._instruction = model, ""
                return
            self._schema = dict(model)
        else:
            self._schema, self._read = _schema_and_reader(model, strict)
        if mode == "json_schema":
            self._sent = {
                "type": "json_schema",
                "json_schema": {"name": name, "schema": self.schema, "strict": strict},
            }
        elif mode == "json_object":
            self._sent = {"type": "json_object"}
        schema = json.dumps(self.schema, ensure_ascii=False)
        told = f"Answer with JSON that fits this JSON schema, and with nothing else:\n{schema}"
        self._instruction = "" if mode == "json_schema" else told

    @property
    def name(self) -> str:
        """The schema's name."""
        return self._name

    @property
    def mode(self) -> Mode:
        """How the server is told."""
        return self._mode

    @property
    def strict(self) -> bool:
        """Whether OpenAI's strict mode is asked for."""
        return self._strict

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON schema that answers must fit; do not change it."""
        return self._schema

    def read(self, text: str) -> T:
        """The value that a text stands for.

        Args:
            text: JSON, or a text with JSON in a fenced block.

        Raises:
            ValueError: It is not JSON, or not of the type; one line for each fault.
        """
        text = text.strip()
        if text[:1] not in ("{", "["):
            fenced = _FENCE.search(text)
            text = text if fenced is None else fenced[1]
        return self._read(text)

    def _fields(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The request's fields with this format."""
        if params.get("stream"):
            raise ConfigurationError(
                "response_model= and stream= do not go together: a value is whole or it is none; leave stream= out"
            )
        if params.get("response_format") is not None:
            raise ConfigurationError("response_model= and response_format= are two names of one thing; give one")
        return dict(params) if self._sent is None else {**params, "response_format": self._sent}

    def _prompt(self, prompt: Prompt) -> Prompt:
        """The prompt with what the server is not told otherwise."""
        if not self._instruction or not isinstance(prompt, (str, list, tuple)):
            return prompt
        if isinstance(prompt, str):
            return f"{prompt}\n\n{self._instruction}"
        messages = list(prompt)
        for place in reversed(range(len(messages))):
            message = messages[place]
            if isinstance(message, Mapping) and message.get("role") == "user":
                messages[place] = {**message, "content": _with_text(message.get("content"), self._instruction)}
                return messages
        return [*messages, {"role": "user", "content": self._instruction}]

    def __repr__(self) -> str:
        return f"ResponseFormat({self.name!r}, mode={self.mode!r}, strict={self.strict})"


ResponseModel = type[T] | ResponseFormat[T]
"""What a value of ``T`` is asked for with."""


def response_format(model: Any) -> ResponseFormat[Any]:
    """The format of a type, made once for each."""
    if isinstance(model, ResponseFormat):
        return model
    if isinstance(model, Mapping):
        return ResponseFormat(model)
    try:
        hash(model)
    except TypeError:
        # Such as a type with a description in a dict.
        return ResponseFormat(model)
    return _format_of_type(model)


_format_of_type: Callable[[Any], ResponseFormat[Any]] = functools.lru_cache(maxsize=128)(ResponseFormat)


def _type_name(model: Any) -> str:
    title = model.get("title") if isinstance(model, Mapping) else getattr(model, "__name__", None)
    return re.sub(r"[^a-zA-Z0-9_-]", "_", title)[:64] if isinstance(title, str) and title else "answer"


def _with_text(content: Any, text: str) -> Any:
    if isinstance(content, (list, tuple)):
        return [*content, {"type": "text", "text": text}]
    return f"{content or ''}\n\n{text}"


def _schema_and_reader(model: Any, strict: bool) -> tuple[dict[str, Any], Callable[[str], Any]]:
    try:
        own = json_type(model, strict=strict)
    except Unsupported as reason:
        schema, read_json = _of_pydantic(model, strict, reason)
    else:

        def read_json(text: str) -> Any:
            try:
                return own.read(_json(text))
            except Unfit as unfit:
                raise _invalid(unfit.faults) from None
            except RecursionError:
                raise ValueError(_TOO_DEEP) from None

        schema = own.schema
    schema = inline_root(schema)
    if schema.get("type") == "object":
        return schema, read_json
    return _wrapped(schema), functools.partial(_unwrapped, read_json)


def _of_pydantic(model: Any, strict: bool, reason: Unsupported) -> tuple[dict[str, Any], Callable[[str], Any]]:
    try:
        import pydantic
    except ImportError:
        raise ConfigurationError(
            f"response_model {model!r}: {reason}, for which pydantic is needed: pip install pydantic"
        ) from None
    try:
        adapter: Any = pydantic.TypeAdapter(model)
        schema = adapter.json_schema()
    except (pydantic.errors.PydanticUserError, pydantic.errors.PydanticUndefinedAnnotation) as error:
        raise ConfigurationError(f"response_model {model!r}: {reason}, and pydantic says: {error}") from error

    def read_json(text: str) -> Any:
        try:
            return adapter.validate_json(text)
        except pydantic.ValidationError as error:
            faults = error.errors(include_url=False, include_context=False, include_input=False)
            lines = [f"{_place(fault['loc'])}: {fault['msg']}" for fault in faults]
            raise _invalid(lines) from error

    return strict_schema(schema) if strict else schema, read_json


def _place(location: tuple[int | str, ...]) -> str:
    return ".".join(map(str, location)) or "the answer"


def _wrapped(schema: dict[str, Any]) -> dict[str, Any]:
    definitions = {name: schema[name] for name in ("$defs",) if name in schema}
    inner = {name: value for name, value in schema.items() if name not in definitions}
    return {
        "type": "object",
        "properties": {_WRAPPED: inner},
        "required": [_WRAPPED],
        "additionalProperties": False,
        **definitions,
    }


def _unwrapped(read: Callable[[str], T], text: str) -> T:
    value = _json(text)
    if not isinstance(value, dict) or _WRAPPED not in value:
        raise ValueError(f"the answer: must be an object with the field {_WRAPPED!r}")
    return read(json.dumps(value[_WRAPPED]))


def _json(text: str) -> Any:
    try:
        return _DECODER.decode(text)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    except ValueError as error:
        raise ValueError(f"the answer: is not JSON ({error})") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


# `json.loads` would make one for each text.
_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def _invalid(faults: Sequence[str]) -> ValueError:
    more = len(faults) - _MOST_FAULTS
    return ValueError("\n".join([*faults[:_MOST_FAULTS], *([f"and {more} more"] if more > 0 else [])]))


class _Unfit(Exception):
    """An answer whose text is not of the type."""

    def __init__(self, text: str, fault: ValueError, *, again: bool = True) -> None:
        super().__init__(text)
        self.text = text
        self.fault = fault
        # Whether asking again makes sense.
        self.again = again


def value_of(format: ResponseFormat[T], completion: ChatCompletion) -> T:  # noqa: A002
    """The first choice as a value."""
    choice = completion.choices[0]
    _check_finish(choice, completion)
    message = choice.message
    if message.refusal:
        raise RefusalError(f"the model refused: {message.refusal}", completion)
    if not message.content and message.tool_calls:
        called = ValueError("the model called tools instead; chat.completions.parse() shows them")
        raise _Unfit("", called, again=False)
    return _read(format, message.content or "")


def parsed_of(format: ResponseFormat[T], completion: ChatCompletion) -> ParsedChatCompletion[T]:  # noqa: A002
    """Every choice with its value; None where the model refused or called tools, as in openai-python."""
    for choice in completion.choices:
        _check_finish(choice, completion)
    choices = []
    for choice in completion.choices:
        message = choice.message
        parsed = _read(format, message.content) if message.content and not message.refusal else None
        choices.append(ParsedChoice(choice, ParsedMessage(message, parsed)))
    return ParsedChatCompletion(completion, choices)


def _read(format: ResponseFormat[T], text: str) -> T:  # noqa: A002
    try:
        return format.read(text)
    except ValueError as fault:
        raise _Unfit(text, fault) from None


def _check_finish(choice: Choice, completion: ChatCompletion) -> None:
    if choice.finish_reason == "length":
        used = f" after {completion.usage.completion_tokens} tokens" if completion.usage else ""
        raise LengthFinishReasonError(
            f"the answer was cut at the length limit{used}, so it is not whole; raise max_tokens", completion
        )
    if choice.finish_reason == "content_filter":
        raise ContentFilterFinishReasonError("the server's content filter cut the answer", completion)


def _checked_retries(validation_retries: int) -> int:
    if not isinstance(validation_retries, int) or validation_retries < 0:
        raise ConfigurationError(f"validation_retries must be a whole number from 0 on, not {validation_retries!r}")
    return validation_retries


class Tries(Generic[R]):
    """One question until its answer fits.

    Attributes:
        prompt: What to ask next.
        open: Whether to ask.
        failed: Answers that did not fit.
        result: What came of it, once it is not open.
    """

    __slots__ = ("_format", "_left", "_read", "failed", "open", "prompt", "result")

    result: R

    def __init__(
        self,
        read: Callable[[ResponseFormat[Any], ChatCompletion], R],
        format: ResponseFormat[Any],  # noqa: A002
        prompt: Prompt,
        validation_retries: int,
    ) -> None:
        self._read = read
        self._format = format
        self._left = _checked_retries(validation_retries)
        self.failed: tuple[ChatCompletion, ...] = ()
        self.prompt = format._prompt(prompt)
        self.open = True

    def take(self, completion: ChatCompletion) -> None:
        """Read an answer to `prompt`.

        Raises:
            MillstreamError: It does not fit, and there is no try left or no sense in another.
        """
        try:
            self.result = self._read(self._format, completion)
        except _Unfit as unfit:
            self.failed += (completion,)
            if self._left <= 0 or not unfit.again:
                raise self._error(unfit) from unfit.fault
            self._left -= 1
            self.prompt = self._conversation(unfit)
        except (LengthFinishReasonError, ContentFilterFinishReasonError, RefusalError) as error:
            error.failed_tries = self.failed
            raise
        else:
            self.open = False

    def _conversation(self, unfit: _Unfit) -> Sequence[Message]:
        asked: Sequence[Message] = (
            [{"role": "user", "content": self.prompt}] if isinstance(self.prompt, str) else self.prompt
        )
        return [
            *asked,
            {"role": "assistant", "content": unfit.text},
            {
                "role": "user",
                "content": f"That does not fit:\n{unfit.fault}\nAnswer again with the corrected JSON and nothing else.",
            },
        ]

    def _error(self, unfit: _Unfit) -> APIResponseValidationError:
        asked = len(self.failed)
        which = f"none of {asked} answers is" if asked > 1 else "the answer is not"
        error = APIResponseValidationError(f"{which} of the form {self._format.name}: {unfit.fault}")
        last = self.failed[-1]
        error.completion = last
        error.failed_tries = self.failed
        error.text = error.body = unfit.text
        error.request_id = last.request_id
        error.attempts = sum(completion.attempts for completion in self.failed)
        error.elapsed = sum(completion.elapsed for completion in self.failed)
        return error


def with_failed_tries(tries: Tries[ParsedChatCompletion[T]]) -> ParsedChatCompletion[T]:
    """What came of it, and what it took."""
    return replace(tries.result, failed_tries=tries.failed) if tries.failed else tries.result


class BatchTries(Generic[T]):
    """Many questions until their answers fit: all of them, then those that did not, as long as tries are left.

    Attributes:
        results: At the end a value for each prompt, or its error.
    """

    __slots__ = ("_asked", "_format", "_heard", "_keep_errors", "_open", "_originals", "_retries", "results")

    def __init__(
        self,
        format: ResponseFormat[T],  # noqa: A002
        prompts: list[Prompt],
        validation_retries: int,
        *,
        keep_errors: bool,
    ) -> None:
        self._format = format
        self._originals = prompts
        self._retries = _checked_retries(validation_retries)
        self._keep_errors = keep_errors
        # Of the items whose answers did not fit; the others need nothing kept.
        self._open: dict[int, Tries[T]] = {}
        self._asked: Sequence[int] = range(len(prompts))
        self._heard = 0
        self.results: list[T | MillstreamError | None] = [None] * len(prompts)

    def rounds(self) -> Iterator[list[Prompt]]:
        """The prompts of each batch; `take` all its outcomes before the next."""
        told = self._format._instruction
        yield [self._format._prompt(prompt) for prompt in self._originals] if told else self._originals
        while self._open:
            self._asked = sorted(self._open)
            self._heard = 0
            yield [self._open[place].prompt for place in self._asked]

    def take(self, outcomes: list[ChatCompletion | MillstreamError]) -> None:
        """Read the next outcomes of the batch that was asked.

        Raises:
            MillstreamError: An item's, unless they are kept.
        """
        for outcome in outcomes:
            place = self._asked[self._heard]
            self._heard += 1
            try:
                self.results[place] = self._result(place, outcome)
            except MillstreamError as error:
                if not self._keep_errors:
                    raise
                # Its traceback would hold all results.
                self.results[place] = error.with_traceback(None)

    def _result(self, place: int, outcome: ChatCompletion | MillstreamError) -> T | None:
        tries = self._open.pop(place, None)
        if isinstance(outcome, MillstreamError):
            raise outcome
        if tries is None:
            tries = Tries(value_of, self._format, self._originals[place], self._retries)
        tries.take(outcome)
        if tries.open:
            self._open[place] = tries
            return None
        return tries.result
