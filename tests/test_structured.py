"""Answers as values of a type: schemas, reading, asking again, batches, and what cannot become a value."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import enum
import gc
import json
import pickle
import sys
from collections import Counter
from collections.abc import Mapping, Sequence  # noqa: TC003 - dataclasses below are resolved at run time
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired, Required, TypedDict

import pydantic
import pytest
from helpers import run_python
from millstream import (
    APIResponseValidationError,
    AsyncClient,
    BadRequestError,
    ConfigurationError,
    ContentFilterFinishReasonError,
    LengthFinishReasonError,
    RefusalError,
    ResponseFormat,
)
from millstream.testing import Answer, MockServer
from millstream.types import ParsedChatCompletion

if TYPE_CHECKING:
    from collections.abc import Callable

    from helpers import Face

    Make = Callable[..., Face]


@dataclasses.dataclass
class City:
    """A place."""

    name: str
    people: int = dataclasses.field(metadata={"description": "Who live there."})


class CityModel(pydantic.BaseModel):
    name: str
    people: int = pydantic.Field(gt=0)


class CityDict(TypedDict):
    name: str
    people: NotRequired[int]


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "people": {"type": "integer"}},
    "required": ["name", "people"],
    "additionalProperties": False,
}

MODELS = [City, CityModel, CityDict, SCHEMA]
TEXT = '{"name": "Graz", "people": 300000}'
VALUES = [
    City("Graz", 300000),
    CityModel(name="Graz", people=300000),
    CityDict(name="Graz", people=300000),
    {"name": "Graz", "people": 300000},
]
EACH = pytest.mark.parametrize(
    ("model", "value"), list(zip(MODELS, VALUES, strict=True)), ids=["dataclass", "pydantic", "TypedDict", "schema"]
)


def bodies(server: MockServer) -> list[dict[str, Any]]:
    return [request.json() for request in server.requests]


def completion(content: str | None = None, *, reason: str = "stop", **message: Any) -> Answer:
    choice = {"index": 0, "finish_reason": reason, "message": {"role": "assistant", "content": content, **message}}
    return Answer(body={"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}})


# --- one question -------------------------------------------------------------------------------------------------


@EACH
def test_complete_returns_a_value_of_the_type(face: Face, mock_server: MockServer, model: Any, value: Any) -> None:
    mock_server.script(Answer(text=TEXT))

    answer = face.complete("hi", response_model=model, temperature=0)

    assert answer == value
    assert type(answer) is type(value)
    (body,) = bodies(mock_server)
    assert body["temperature"] == 0
    assert body["messages"] == [{"role": "user", "content": "hi"}]
    sent = body["response_format"]
    assert (sent["type"], sent["json_schema"]["strict"]) == ("json_schema", True)
    schema = sent["json_schema"]["schema"]
    assert (schema["type"], schema["additionalProperties"]) == ("object", False)
    assert schema["required"] == ["name", "people"]


@EACH
def test_parse_keeps_the_whole_answer(face: Face, mock_server: MockServer, model: Any, value: Any) -> None:
    mock_server.script(completion(TEXT, reasoning_content="hm"))

    answer = face.parse(response_format=model)

    message = answer.choices[0].message
    assert message.parsed == value
    assert (message.role, message.content, message.refusal, message.tool_calls) == ("assistant", TEXT, None, None)
    assert message.reasoning_content == "hm"
    assert (answer.choices[0].index, answer.choices[0].finish_reason) == (0, "stop")
    assert answer.usage is not None
    assert answer.usage.total_tokens == 10
    assert (answer.text, answer.attempts, answer.failed_tries) == (TEXT, 1, ())
    assert answer.to_dict()["choices"][0]["message"]["content"] == TEXT


def test_a_parsed_message_goes_into_the_next_request_as_it_is(face: Face, mock_server: MockServer) -> None:
    mock_server.script(Answer(text=TEXT), Answer(text=TEXT))
    question = {"role": "user", "content": "hi"}
    first = face.parse(messages=[question], response_format=City)

    face.parse(messages=[question, first.choices[0].message, question], response_format=City)

    assert bodies(mock_server)[1]["messages"] == [question, first.choices[0].message.to_dict(), question]


def test_parsed_completions_survive_pickling_and_copying(face: Face, mock_server: MockServer) -> None:
    mock_server.script(Answer(text="no"), Answer(text=TEXT))
    answer = face.parse(response_format=City)

    for other in (pickle.loads(pickle.dumps(answer)), copy.deepcopy(answer)):
        assert other == answer
        assert isinstance(other, ParsedChatCompletion)
        assert other.choices[0].message.parsed == City("Graz", 300000)
        assert [failed.text for failed in other.failed_tries] == ["no"]
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = answer.nothing_like_it


def test_parse_reads_every_choice(face: Face, mock_server: MockServer) -> None:
    choices = [
        {"index": place, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        for place, text in enumerate(['{"name": "a", "people": 1}', '{"name": "b", "people": 2}'])
    ]
    mock_server.script(Answer(body={"choices": choices}))

    answer = face.parse(response_format=City, n=2)

    assert [choice.message.parsed for choice in answer.choices] == [City("a", 1), City("b", 2)]


# --- asking again -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [City, CityModel], ids=["dataclass", "pydantic"])
def test_asks_again_with_the_answer_and_what_is_wrong_with_it(face: Face, mock_server: MockServer, model: Any) -> None:
    wrong = '{"name": 5}'
    mock_server.script(Answer(text=wrong), Answer(text=TEXT))

    assert face.complete("hi", system="s", response_model=model).name == "Graz"

    first, second = bodies(mock_server)
    system, question = {"role": "system", "content": "s"}, {"role": "user", "content": "hi"}
    assert first["messages"] == [system, question]
    assert second["messages"][:3] == [system, question, {"role": "assistant", "content": wrong}]
    fault = second["messages"][3]
    assert fault["role"] == "user"
    # Both faults at once.
    assert "name: " in fault["content"]
    assert "people: " in fault["content"]
    assert second["response_format"] == first["response_format"]


def test_each_try_adds_to_the_conversation(face: Face, mock_server: MockServer) -> None:
    mock_server.script(Answer(text="one"), Answer(text="two"), Answer(text=TEXT))
    messages = [{"role": "user", "content": "hi"}]

    assert face.complete(messages, response_model=City, validation_retries=2) == City("Graz", 300000)

    assert len(messages) == 1, "the caller's list is the caller's"
    last = bodies(mock_server)[2]["messages"]
    assert [message["content"] for message in last if message["role"] == "assistant"] == ["one", "two"]
    assert [message["role"] for message in last] == ["user", "assistant", "user", "assistant", "user"]


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_validation_retries_are_bounded_and_nothing_of_them_is_hidden(
    face: Face, mock_server: MockServer, retries: int
) -> None:
    mock_server.script(Answer(text="not JSON at all", times=0))

    with pytest.raises(APIResponseValidationError) as caught:
        face.complete("hi", response_model=City, validation_retries=retries)

    assert mock_server.stats.requests == retries + 1
    error = caught.value
    assert "City" in str(error)
    assert error.text == "not JSON at all"
    assert error.completion is not None
    assert error.completion.text == error.text
    assert len(error.failed_tries) == error.attempts == retries + 1
    assert all(failed.usage is not None for failed in error.failed_tries)
    assert isinstance(error.__cause__, ValueError)
    assert "JSON" in str(error.__cause__)
    stats = face.client.stats()
    assert stats.requests == retries + 1
    assert stats.completion_tokens == sum(failed.usage.completion_tokens for failed in error.failed_tries)
    restored = pickle.loads(pickle.dumps(error))
    assert (str(restored), restored.text, len(restored.failed_tries)) == (str(error), error.text, retries + 1)


def test_the_cause_is_pydantics_own_error(face: Face, mock_server: MockServer) -> None:
    mock_server.script(Answer(text='{"name": "x", "people": -1}', times=0))

    with pytest.raises(APIResponseValidationError, match="greater than 0") as caught:
        face.complete("hi", response_model=CityModel, validation_retries=0)

    assert isinstance(caught.value.__cause__, ValueError)
    assert isinstance(caught.value.__cause__.__cause__, pydantic.ValidationError)


def test_an_http_error_while_asking_again_is_raised_as_it_is(face: Face, mock_server: MockServer) -> None:
    mock_server.script(Answer(text="no"), Answer(status=400))

    with pytest.raises(BadRequestError):
        face.complete("hi", response_model=City)


# --- no value -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "error"), [("length", LengthFinishReasonError), ("content_filter", ContentFilterFinishReasonError)]
)
def test_an_answer_that_was_cut_is_an_error_of_its_own(
    face: Face, mock_server: MockServer, reason: str, error: type[LengthFinishReasonError]
) -> None:
    # Even if what there is happens to fit, as in openai-python.
    mock_server.script(*[completion(TEXT, reason=reason)] * 3)

    with pytest.raises(error) as caught:
        face.complete("hi", response_model=City)
    assert caught.value.completion.usage.total_tokens == 10
    assert caught.value.failed_tries == ()
    restored = pickle.loads(pickle.dumps(caught.value))
    assert (str(restored), restored.completion) == (str(caught.value), caught.value.completion)

    with pytest.raises(error):
        face.parse(response_format=City)
    (kept,) = face.batch_complete(["hi"], response_model=City, return_exceptions=True)
    assert type(kept) is error
    assert mock_server.stats.requests == 3, "the same limit would cut it again"


def test_a_cut_answer_after_one_that_does_not_fit_names_both(face: Face, mock_server: MockServer) -> None:
    mock_server.script(Answer(text="no"), completion("{", reason="length"))

    with pytest.raises(LengthFinishReasonError) as caught:
        face.complete("hi", response_model=City)

    assert [failed.text for failed in caught.value.failed_tries] == ["no"]
    assert caught.value.completion.text == "{"


def test_a_refusal_is_none_to_parse_and_an_error_to_complete(face: Face, mock_server: MockServer) -> None:
    mock_server.script(*[completion(refusal="I will not.")] * 2)

    message = face.parse(response_format=City).choices[0].message
    assert (message.parsed, message.refusal) == (None, "I will not.")

    with pytest.raises(RefusalError, match="I will not") as caught:
        face.complete("hi", response_model=City)
    assert caught.value.completion.choices[0].message.refusal == "I will not."
    assert mock_server.stats.requests == 2


def test_tool_calls_are_none_to_parse_and_an_error_to_complete(face: Face, mock_server: MockServer) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    mock_server.script(*[completion(tool_calls=[call], reason="tool_calls")] * 2)

    message = face.parse(response_format=City).choices[0].message
    assert message.parsed is None
    assert message.tool_calls[0].function.name == "look"

    with pytest.raises(APIResponseValidationError, match="tools"):
        face.complete("hi", response_model=City)
    assert mock_server.stats.requests == 2


# --- batches ------------------------------------------------------------------------------------------------------


def items(count: int) -> list[str]:
    """Prompts of which none contains another."""
    return [f"<item {number}>" for number in range(count)]


def named(prompt: str) -> str:
    return json.dumps({"name": prompt, "people": 1})


def test_batch_asks_only_those_again_whose_answers_do_not_fit(face: Face, mock_server: MockServer) -> None:
    prompts = items(60)
    wrong = {place for place in range(60) if place % 7 == 0}
    for place, prompt in enumerate(prompts):
        first = [Answer(text="no")] if place in wrong else []
        mock_server.when(prompt, *first, Answer(text=named(prompt)))

    answers = face.batch_complete(prompts, response_model=City, max_concurrent=8)

    assert answers == [City(prompt, 1) for prompt in prompts]
    seen = [body["messages"] for body in bodies(mock_server)]
    assert Counter(messages[0]["content"] for messages in seen) == {
        prompt: 2 if place in wrong else 1 for place, prompt in enumerate(prompts)
    }
    # The first pass is whole before the second begins.
    assert [len(messages) for messages in seen] == [1] * 60 + [3] * len(wrong)
    assert mock_server.stats.max_in_flight <= 8


def test_batch_keeps_each_items_error_in_its_place(face: Face, mock_server: MockServer) -> None:
    prompts = items(6)
    mock_server.when(prompts[0], Answer(text="no"), Answer(text=named(prompts[0])))
    mock_server.when(prompts[1], Answer(status=400, times=0))
    mock_server.when(prompts[2], Answer(text="never", times=0))
    mock_server.when(prompts[3], Answer(text="no"), Answer(status=400))
    mock_server.when(prompts[4], completion(refusal="no"))
    mock_server.when(prompts[5], Answer(text=named(prompts[5])))

    answers = face.batch_complete(prompts, response_model=City, return_exceptions=True, validation_retries=2)

    assert [type(answer) for answer in answers] == [
        City,
        BadRequestError,
        APIResponseValidationError,
        BadRequestError,
        RefusalError,
        City,
    ]
    assert len(answers[2].failed_tries) == 3
    assert answers[2].__traceback__ is None, "it would hold every result of the batch"


def test_batch_without_return_exceptions_raises_the_first_item_that_never_fits(
    face: Face, mock_server: MockServer
) -> None:
    prompts = items(4)
    for prompt in prompts[:2]:
        mock_server.when(prompt, Answer(text=named(prompt)))
    mock_server.when(prompts[2], Answer(text="two", times=0))
    mock_server.when(prompts[3], Answer(text="three", times=0))

    with pytest.raises(APIResponseValidationError) as caught:
        face.batch_complete(prompts, response_model=City)

    assert caught.value.text == "two"


def test_batch_of_no_prompts_is_empty(face: Face, mock_server: MockServer) -> None:
    assert face.batch_complete([], response_model=City) == []
    assert mock_server.stats.requests == 0


@pytest.mark.parametrize("prompts", ["hi", [5]])
def test_batch_refuses_what_is_no_list_of_prompts(face: Face, prompts: Any) -> None:
    with pytest.raises(TypeError, match="prompts"):
        face.batch_complete(prompts, response_model=City)


async def test_a_large_batch_lets_the_loop_turn_while_values_are_made(mock_server: MockServer) -> None:
    mock_server.script(Answer(text=TEXT, times=0))
    reads: list[int] = []
    turns = 0

    class Counted(pydantic.BaseModel):
        name: str

        def model_post_init(self, context: Any) -> None:
            reads.append(turns)

    async with AsyncClient(api_key="k", base_url=mock_server.base_url, model="m") as client:
        batch = asyncio.ensure_future(client.batch_complete(["hi"] * 1500, response_model=Counted))
        while not batch.done():
            turns += 1
            await asyncio.sleep(0)
        assert len(await batch) == 1500

    assert len(reads) == 1500
    assert max(Counter(reads).values()) <= 256


# --- what is sent -------------------------------------------------------------------------------------------------


def test_json_object_mode_puts_the_schema_into_the_last_user_message(face: Face, mock_server: MockServer) -> None:
    mock_server.script(Answer(text=TEXT), Answer(text=TEXT), Answer(text=TEXT))
    form = ResponseFormat(City, mode="json_object")
    parts = [{"type": "text", "text": "hi"}]

    face.complete("hi", response_model=form)
    face.complete(
        [{"role": "user", "content": parts}, {"role": "assistant", "content": "a"}], response_model=form, system="s"
    )
    face.complete([{"role": "system", "content": "only this"}], response_model=form)

    first, second, third = bodies(mock_server)
    assert first["response_format"] == second["response_format"] == {"type": "json_object"}
    (question,) = first["messages"]
    assert question["content"].startswith("hi\n\n")
    assert json.dumps(form.schema) in question["content"]
    assert [message["role"] for message in second["messages"]] == ["system", "user", "assistant"]
    assert second["messages"][1]["content"][0] == parts[0]
    assert json.dumps(form.schema) in second["messages"][1]["content"][1]["text"]
    assert [message["role"] for message in third["messages"]] == ["system", "user"]


def test_prompt_mode_sends_no_response_format_and_reads_fenced_json(face: Face, mock_server: MockServer) -> None:
    mock_server.script(Answer(text=f"Here it is:\n```json\n{TEXT}\n```\nBye."), Answer(text="no"), Answer(text=TEXT))
    form = ResponseFormat(City, mode="prompt")

    assert face.complete("hi", response_model=form) == City("Graz", 300000)
    assert face.batch_complete(["hi"], response_model=form) == [City("Graz", 300000)]

    for body in bodies(mock_server):
        assert "response_format" not in body
        assert body["messages"][0]["content"].count(json.dumps(form.schema)) == 1, "once, also when asked again"


def test_without_strict_only_fields_without_a_default_are_required(face: Face, mock_server: MockServer) -> None:
    mock_server.script(Answer(text='{"name": "x"}'))
    form = ResponseFormat(CityDict, strict=False, name="town")

    assert face.complete("hi", response_model=form) == {"name": "x"}

    sent = bodies(mock_server)[0]["response_format"]["json_schema"]
    assert (sent["name"], sent["strict"], sent["schema"]["required"]) == ("town", False, ["name"])
    assert sent["schema"]["properties"]["people"] == {"type": "integer"}


@pytest.mark.parametrize(
    "sent",
    [
        {"type": "json_object"},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}, "custom": 1}},
    ],
)
def test_openais_own_response_format_is_sent_untouched(
    face: Face, mock_server: MockServer, sent: dict[str, Any]
) -> None:
    mock_server.script(Answer(text='{"a": [1]}'))

    assert face.complete("hi", response_model=sent) == {"a": [1]}
    assert bodies(mock_server)[0]["response_format"] == sent


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"stream": True}, "stream="),
        ({"response_format": {"type": "json_object"}}, "response_format="),
        ({"validation_retries": -1}, "validation_retries"),
        ({"validation_retries": "1"}, "validation_retries"),
    ],
)
def test_refuses_what_does_not_go_with_a_type_before_anything_is_sent(
    face: Face, mock_server: MockServer, arguments: dict[str, Any], named: str
) -> None:
    for ask in (face.complete, lambda prompt, **options: face.batch_complete([prompt], **options)):
        with pytest.raises(ConfigurationError, match=named):
            ask("hi", response_model=City, **arguments)
    assert mock_server.stats.requests == 0


def test_create_says_where_a_type_belongs(face: Face, mock_server: MockServer) -> None:
    with pytest.raises(ConfigurationError, match=r"response_model= .*chat\.completions\.parse\(\)"):
        face.create(response_model=City)
    assert mock_server.stats.requests == 0


def test_complete_refuses_a_prompt_that_is_none_by_its_name(face: Face) -> None:
    with pytest.raises(TypeError, match="prompt must be"):
        face.complete(5, response_model=City)


@pytest.mark.parametrize(("argument", "value"), [("mode", "xml"), ("name", "a name"), ("name", "x" * 65)])
def test_a_format_refuses_a_bad_argument_by_its_name(argument: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=argument):
        ResponseFormat(City, **{argument: value})


# --- types --------------------------------------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Opts(TypedDict, total=False):
    level: Required[int]
    note: str
    nothing: None


@dataclasses.dataclass
class Leaf:
    kind: Literal["leaf"]
    value: float


@dataclasses.dataclass
class Tree:
    kind: Literal["tree"]
    left: Tree | Leaf
    right: Tree | Leaf


@dataclasses.dataclass
class Everything:
    text: str
    whole: int
    number: float
    flag: bool
    anything: Any
    names: list[str]
    pairs: dict[str, int]
    some: Sequence[City]
    others: Mapping[str, City]
    maybe: int | None
    either: int | str | City | CityDict
    choice: Literal["a", "b", 3]
    colour: Colour
    opts: Opts
    described: Annotated[str, "What it is."]
    tree: Tree | Leaf
    left_out: str = "default"
    computed: int = dataclasses.field(init=False, default=5)


LEAF = {"kind": "leaf", "value": 1}
EVERYTHING: dict[str, Any] = {
    "text": "t",
    "whole": 1.0,
    "number": 2,
    "flag": True,
    "anything": {"a": [None]},
    "names": ["a", "b"],
    "pairs": {"a": 1},
    "some": [{"name": "x", "people": 1}],
    "others": {"k": {"name": "y", "people": 2, "unknown": 0}},
    "maybe": None,
    "either": {"name": "z"},
    "choice": 3,
    "colour": "blue",
    "opts": {"level": 1, "note": None, "nothing": None},
    "described": "d",
    "tree": {"kind": "tree", "left": LEAF, "right": {"kind": "tree", "left": LEAF, "right": LEAF}},
}


def test_every_type_of_the_list_is_read_without_a_library() -> None:
    value = ResponseFormat(Everything).read(json.dumps(EVERYTHING))

    leaf = Leaf("leaf", 1.0)
    assert value == Everything(
        text="t",
        whole=1,
        number=2.0,
        flag=True,
        anything={"a": [None]},
        names=["a", "b"],
        pairs={"a": 1},
        some=[City("x", 1)],
        others={"k": City("y", 2)},
        maybe=None,
        either=CityDict(name="z"),
        choice=3,
        colour=Colour.BLUE,
        opts=Opts(level=1, nothing=None),
        described="d",
        tree=Tree("tree", leaf, Tree("tree", leaf, leaf)),
    )
    assert (type(value.whole), type(value.number)) == (int, float)


@pytest.mark.parametrize(
    ("field", "value", "fault"),
    [
        ("text", 1, "text: must be a string, not 1"),
        ("whole", 1.5, "whole: must be a whole number"),
        ("whole", True, "whole: must be a whole number"),
        ("whole", "1", "whole: must be a whole number"),
        ("number", "1", "number: must be a number"),
        ("number", 10**400, "number: must be a number"),
        ("flag", 1, "flag: must be true or false"),
        ("names", "a", "names: must be a list"),
        ("names", ["a", 2], r"names\[1\]: must be a string"),
        ("pairs", {"k": "v"}, "pairs.k: must be a whole number"),
        ("some", [{}], r"some\[0\].name: is missing"),
        ("others", [], "others: must be an object"),
        ("maybe", "x", r"maybe: must be int or None"),
        ("either", [], "either: must be int or str or City or CityDict"),
        ("either", {"people": 1}, "either.name: is missing"),
        ("choice", True, "choice: must be one of 'a', 'b', 3"),
        ("choice", [1], "choice: must be one of"),
        ("colour", "green", "colour: must be one of 'red', 'blue'"),
        ("opts", {"note": "x"}, "opts.level: is missing"),
        ("tree", {"kind": "tree", "left": LEAF}, "tree.right: is missing"),
        ("tree", {"kind": "tree", "left": LEAF, "right": {"kind": "leaf", "value": "x"}}, "tree.right.value: must be"),
    ],
)
def test_what_does_not_fit_is_named_by_its_path(field: str, value: Any, fault: str) -> None:
    with pytest.raises(ValueError, match=f"^{fault}"):
        ResponseFormat(Everything).read(json.dumps({**EVERYTHING, field: value}))


@pytest.mark.parametrize(
    "text", ["", "no", "{", '{"a": 1} and more', '{"name": NaN}', "[" * 100_000, "```\nno\n```", "1" * 5000, "\ud800"]
)
@pytest.mark.parametrize("model", MODELS, ids=["dataclass", "pydantic", "TypedDict", "schema"])
def test_any_text_is_read_or_refused_by_a_value_error(model: Any, text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        ResponseFormat(model).read(text)


def test_a_list_of_a_thousand_faults_is_cut() -> None:
    with pytest.raises(ValueError, match="and 980 more") as caught:
        ResponseFormat(list[int]).read(json.dumps({"result": ["x"] * 1000}))
    assert len(str(caught.value)) < 3000


def test_a_deep_value_of_a_type_that_contains_itself_is_read_in_linear_time() -> None:
    deep: dict[str, Any] = {"kind": "leaf", "value": "wrong"}
    for _ in range(60):
        deep = {"kind": "tree", "left": LEAF, "right": deep}

    # Trying each member of each union would take 2 to the 60.
    with pytest.raises(ValueError, match=r"(right\.){60}value: must be a number"):
        ResponseFormat(Tree).read(json.dumps(deep))


@dataclasses.dataclass
class Even:
    number: int

    def __post_init__(self) -> None:
        if self.number % 2:
            raise ValueError(f"{self.number} is odd")


def test_a_dataclass_may_check_its_fields_itself() -> None:
    assert ResponseFormat(Even).read('{"number": 2}') == Even(2)
    with pytest.raises(ValueError, match="3 is odd"):
        ResponseFormat(Even).read('{"number": 3}')


@pytest.mark.parametrize(
    ("model", "text", "value"),
    [
        (list[City], '[{"name": "a", "people": 1}]', [City("a", 1)]),
        (Literal["yes", "no"], '"yes"', "yes"),
        (City | None, "null", None),
        (Colour, '"red"', Colour.RED),
        (list[CityModel], '[{"name": "a", "people": 1}]', [CityModel(name="a", people=1)]),
    ],
)
def test_what_is_no_object_is_asked_for_in_one(model: Any, text: str, value: Any) -> None:
    form = ResponseFormat(model)

    assert (form.schema["type"], form.schema["required"]) == ("object", ["result"])
    assert form.read(f'{{"result": {text}}}') == value
    with pytest.raises(ValueError, match="result"):
        form.read("{}")


def walk(schema: Any, root: dict[str, Any], seen: set[str]) -> list[dict[str, Any]]:
    """Every schema in a schema, each definition once."""
    if isinstance(schema, list):
        return [found for part in schema for found in walk(part, root, seen)]
    if not isinstance(schema, dict):
        return []
    if "$ref" in schema:
        name = schema["$ref"].removeprefix("#/$defs/")
        if name in seen:
            return [schema]
        seen.add(name)
        return [schema, *walk(root["$defs"][name], root, seen)]
    parts = [*schema.get("properties", {}).values(), schema.get("items"), schema.get("anyOf"), schema.get("allOf")]
    return [schema, *(found for part in parts for found in walk(part, root, seen))]


class Shape(pydantic.BaseModel):
    kind: Literal["circle"] = "circle"
    inner: Shape | None = None
    city: CityModel = pydantic.Field(description="Where it is.")


class Square(pydantic.BaseModel):
    kind: Literal["square"]
    side: float | None = pydantic.Field(default=None, description="How long.")


class Drawing(pydantic.BaseModel):
    shapes: list[Annotated[Shape | Square, pydantic.Field(discriminator="kind")]]


@pytest.mark.parametrize("model", [Tree, Opts, Shape, Square, Drawing, list[Drawing], list[Tree], City, CityDict])
def test_schemas_keep_the_rules_of_strict_mode(model: Any) -> None:
    schema = ResponseFormat(model).schema

    assert schema["type"] == "object"
    assert "$ref" not in schema
    found = walk(schema, schema, set())
    objects = [each for each in found if each.get("type") == "object"]
    assert objects
    for each in objects:
        assert each["additionalProperties"] is False
        assert each["required"] == list(each["properties"])
    for each in found:
        assert "$ref" not in each or each.keys() == {"$ref"}
        assert "oneOf" not in each
        assert each.get("default", "") is not None


def test_descriptions_go_into_the_schema() -> None:
    schema = ResponseFormat(City).schema

    assert schema["description"] == "A place."
    assert schema["properties"]["people"]["description"] == "Who live there."
    assert ResponseFormat(Everything).schema["properties"]["described"]["description"] == "What it is."
    assert "description" not in ResponseFormat(Leaf).schema, "its docstring is its signature"


def test_two_types_of_one_name_do_not_meet() -> None:
    def make(kind: Any) -> Any:
        return dataclasses.make_dataclass("Twin", [("value", kind)])

    one, other = make(int), make(str)
    form = ResponseFormat(dataclasses.make_dataclass("Both", [("one", one), ("other", other)]))

    assert form.schema["$defs"].keys() == {"Twin", "Twin_2"}
    assert form.read('{"one": {"value": 1}, "other": {"value": "x"}}').other == other("x")


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (CityModel, '{"name": "a", "people": 1}', CityModel(name="a", people=1)),
        (tuple[int, str], '[1, "a"]', (1, "a")),
        (Annotated[int, pydantic.Field(gt=0)], "3", 3),
    ],
)
def test_a_field_that_only_pydantic_knows_makes_the_whole_type_pydantics(kind: Any, text: str, value: Any) -> None:
    form = ResponseFormat(dataclasses.make_dataclass("Holder", [("field", kind)]))

    assert form.read(f'{{"field": {text}}}').field == value
    with pytest.raises(ValueError, match="field"):
        form.read('{"field": -1}')


def test_what_nobody_has_a_schema_for_is_a_configuration_error_that_names_the_field() -> None:
    unknown = type("Unknown", (), {})
    with pytest.raises(ConfigurationError, match=r"inner\.field is of type .*Unknown"):
        ResponseFormat(
            dataclasses.make_dataclass("A", [("inner", dataclasses.make_dataclass("B", [("field", unknown)]))])
        )


NO_PYDANTIC = """
import sys
sys.modules["pydantic"] = None
import dataclasses, decimal, typing
import millstream

@dataclasses.dataclass
class City:
    name: str
    people: int

class Price(typing.TypedDict):
    amount: decimal.Decimal

assert millstream.ResponseFormat(City).read('{"name": "a", "people": 1}') == City("a", 1)
try:
    millstream.ResponseFormat(list[Price])
except millstream.ConfigurationError as error:
    assert "[].amount is of type Decimal" in str(error), error
    assert "pip install pydantic" in str(error), error
else:
    raise AssertionError
"""

UNUSED_PYDANTIC = """
import sys
import dataclasses
import millstream

@dataclasses.dataclass
class City:
    name: str

assert "millstream._structured" not in sys.modules
millstream.ResponseFormat(City).read('{"name": "a"}')
assert "pydantic" not in sys.modules
"""


@pytest.mark.parametrize("code", [NO_PYDANTIC, UNUSED_PYDANTIC], ids=["absent", "unused"])
def test_pydantic_is_needed_by_nothing_that_does_without(code: str) -> None:
    warning = "import warnings; warnings.simplefilter('ignore', RuntimeWarning)\n"
    done = run_python(warning + code)

    assert (done.returncode, done.stderr) == (0, "")


def test_the_schema_of_a_type_is_made_once(face: Face, mock_server: MockServer) -> None:
    mock_server.script(Answer(text=TEXT, times=0))
    made = 0

    class Counted(pydantic.BaseModel):
        name: str

        @classmethod
        def __get_pydantic_json_schema__(cls, core: Any, handler: Any) -> Any:
            nonlocal made
            made += 1
            return handler(core)

    for _ in range(3):
        face.complete("hi", response_model=Counted)

    assert made == 1


def test_a_completed_call_leaves_nothing_behind(face: Face, mock_server: MockServer) -> None:
    mock_server.script(Answer(text="no"), Answer(text=TEXT), Answer(text="no", times=0))
    face.complete("hi", response_model=City)
    face.batch_complete(["hi"] * 3, response_model=City, return_exceptions=True)
    gc.collect()

    left = [each for each in gc.get_objects() if type(each).__module__ == "millstream._structured"]
    assert {type(each).__name__ for each in left} <= {"ResponseFormat"}, sys.getsizeof(left)
