"""`completions.create`, the text completions, whole and streamed."""

from __future__ import annotations

import json
import pickle
from typing import TYPE_CHECKING, Any

import pytest
from helpers import last_request
from millstream import InternalServerError, StreamInterruptedError
from millstream.testing import Answer, Streaming
from millstream.types import Completion

if TYPE_CHECKING:
    from helpers import Face
    from millstream.testing import MockServer


def ask(face: Face, **arguments: Any) -> Any:
    return face.run(face.client.completions.create(**{"prompt": "once", **arguments}))


def test_a_completion_has_texts_and_usage(face: Face, mock_server: MockServer) -> None:
    completion = ask(face, n=2, max_tokens=5, temperature=0)

    assert last_request(mock_server).path == "/v1/completions"
    sent = {"model": "m", "prompt": "once", "n": 2, "max_tokens": 5, "temperature": 0}
    assert json.loads(last_request(mock_server).body) == sent
    for each in (completion, pickle.loads(pickle.dumps(completion))):
        assert type(each) is Completion
        assert each.text == each.choices[0].text == "echo: once"
        assert [choice.index for choice in each.choices] == [0, 1]
        assert each.choices[0].finish_reason == "stop"
        assert each.usage.total_tokens == each.usage.prompt_tokens + each.usage.completion_tokens > 0
        assert (each.model, each.object) == ("m", "text_completion")


def test_a_stream_is_joined_to_the_same_completion(face: Face, mock_server: MockServer) -> None:
    mock_server.script(Answer(text="one two three", times=2))
    whole = ask(face, n=2)

    stream = ask(face, n=2, stream=True, stream_options={"include_usage": True})
    events, error = face.read(stream)

    assert error is None
    assert stream.text == "one two three" == "".join(event.text for event in events)
    assert events[0].choices[0].text == "one"
    assert stream.response.choices == whole.choices
    assert stream.response.usage == whole.usage
    assert stream.response.model == "m"


def test_without_a_finish_reason_it_was_interrupted(face: Face, mock_server: MockServer) -> None:
    mock_server.script(Answer(text="one two three", stream=Streaming(fault="end", after=2)))

    events, error = face.read(ask(face, stream=True))

    assert isinstance(error, StreamInterruptedError)
    assert error.partial == "one two"
    assert len(events) == 2


def test_an_error_in_the_stream_is_its_class(face: Face, mock_server: MockServer) -> None:
    mock_server.script(Answer(text="one two three", stream=Streaming(fault="error", after=2)))

    _, error = face.read(ask(face, stream=True))

    assert isinstance(error, InternalServerError)


@pytest.mark.parametrize("prompt", [["a", "b"], [1, 2], [[1], [2]]])
def test_every_form_of_prompt_goes_as_it_is(face: Face, mock_server: MockServer, prompt: Any) -> None:
    ask(face, prompt=prompt)

    assert json.loads(last_request(mock_server).body)["prompt"] == prompt
