"""`responses.create`, whole and streamed."""

from __future__ import annotations

import json
import pickle
from typing import TYPE_CHECKING, Any

import pytest
from helpers import http_answer, last_request, raw_server
from millstream import (
    APIResponseValidationError,
    ConfigurationError,
    InternalServerError,
    StreamInterruptedError,
)
from millstream.testing import Answer, Streaming
from millstream.types import Response, StreamEvent

if TYPE_CHECKING:
    from conftest import Make
    from helpers import Face
    from millstream.testing import MockServer


def ask(face: Face, **arguments: Any) -> Any:
    return face.run(face.client.responses.create(**{"input": "hi", **arguments}))


def test_the_text_of_an_answer_is_its_output_text(face: Face, mock_server: MockServer) -> None:
    response = ask(face, instructions="be brief", max_output_tokens=9)

    assert (last_request(mock_server).method, last_request(mock_server).path) == ("POST", "/v1/responses")
    sent = {"model": "m", "input": "hi", "instructions": "be brief", "max_output_tokens": 9}
    assert json.loads(last_request(mock_server).body) == sent
    for each in (response, pickle.loads(pickle.dumps(response))):
        assert type(each) is Response
        assert each.output_text == "echo: hi"
        assert (each.status, each.model, each.object) == ("completed", "m", "response")
        assert each.output[0].content[0].text == "echo: hi"
        assert each.usage.input_tokens > 0
        assert each.incomplete_details is None
        assert each.id.startswith("resp_")
        assert each.created_at > 0


def test_calls_of_functions_are_items_of_the_output(face: Face, mock_server: MockServer) -> None:
    mock_server.script(Answer(reasoning="so", tool_calls=[("weather", {"city": "Paris"})]))

    response = ask(face)

    assert response.output_text == ""
    assert [item.type for item in response.output] == ["reasoning", "function_call"]
    assert json.loads(response.output[1].arguments) == {"city": "Paris"}


def test_a_stream_hands_out_typed_events_and_has_the_whole_at_its_end(face: Face, mock_server: MockServer) -> None:
    mock_server.script(Answer(text="one two three"))

    stream = ask(face, stream=True)
    events, error = face.read(stream)

    assert error is None
    assert json.loads(last_request(mock_server).body)["stream"] is True
    assert last_request(mock_server).header("accept") == "text/event-stream"
    assert all(type(event) is StreamEvent for event in events)
    kinds = [event.type for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert "".join(event.delta for event in deltas) == stream.text == "one two three"
    assert "".join(event.text for event in events) == stream.text
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert type(stream.response) is Response
    assert stream.response.output_text == "one two three"
    assert stream.response.usage.output_tokens > 0
    assert stream.time_to_first_token > 0
    assert pickle.loads(pickle.dumps(events[0])) == events[0]
    assert events[0].to_dict()["response"]["status"] == "in_progress"


def test_get_final_reads_to_the_end(face: Face) -> None:
    assert face.run(ask(face, stream=True).get_final()).output_text == "echo: hi"


def test_a_cut_answer_is_complete(face: Face, mock_server: MockServer) -> None:
    mock_server.script(Answer(text="one two", finish_reason="length"))

    stream = ask(face, stream=True)
    events, error = face.read(stream)

    assert (events[-1].type, error) == ("response.incomplete", None)
    assert stream.response.incomplete_details.reason == "max_output_tokens"


def test_without_its_last_event_a_stream_was_interrupted(face: Face, mock_server: MockServer) -> None:
    mock_server.script(Answer(text="one two three", stream=Streaming(fault="end", after=6)))

    events, error = face.read(ask(face, stream=True))

    assert isinstance(error, StreamInterruptedError)
    assert error.partial == "".join(event.text for event in events) != ""


def test_an_error_event_is_the_error_that_it_names(face: Face, mock_server: MockServer) -> None:
    mock_server.script(Answer(text="one two three", stream=Streaming(fault="error", after=6)))

    events, error = face.read(ask(face, stream=True))

    assert len(events) == 6
    assert isinstance(error, InternalServerError)
    assert error.partial == "".join(event.text for event in events)


def test_what_breaks_before_the_answer_is_asked_again(make: Make, mock_server: MockServer) -> None:
    mock_server.script(Answer(stream=Streaming(fault="end", after=2)), Answer(text="fine"))
    face = make(max_retries=1)

    stream = ask(face, stream=True)
    events, error = face.read(stream)

    assert error is None
    assert [event.type for event in events].count("response.created") == 1
    assert (stream.response.output_text, stream.response.attempts) == ("fine", 2)


def sse(*events: dict[str, Any]) -> bytes:
    body = "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events).encode()
    return http_answer(body).replace(b"application/json", b"text/event-stream")


def test_a_failed_response_is_an_error(make: Make) -> None:
    failed = {"error": {"code": "server_error", "message": "boom"}, "status": "failed"}
    delta = {"type": "response.output_text.delta", "delta": "so far"}
    with raw_server(sse(delta, {"type": "response.failed", "response": failed})) as server:
        events, error = make(base_url=server.base_url).read(ask(make(base_url=server.base_url), stream=True))

    assert [event.text for event in events] == ["so far"]
    assert isinstance(error, InternalServerError)
    assert error.partial == "so far"
    assert "boom" in str(error)


def test_a_last_event_without_an_answer_is_refused(make: Make) -> None:
    with raw_server(sse({"type": "response.completed"})) as server:
        face = make(base_url=server.base_url, max_retries=0)
        with pytest.raises(APIResponseValidationError):
            ask(face, stream=True)


def test_a_whole_answer_in_place_of_a_stream_is_its_only_event(make: Make) -> None:
    with raw_server(http_answer(b'{"id":"r","output":[]}')) as server:
        face = make(base_url=server.base_url)
        stream = ask(face, stream=True)
        events, error = face.read(stream)

    assert ([event.type for event in events], error) == (["response.completed"], None)
    assert stream.response.id == "r"


def test_streams_in_a_row_use_one_connection(face: Face, mock_server: MockServer) -> None:
    for _ in range(5):
        assert face.run(ask(face, stream=True).get_final()).output_text == "echo: hi"

    assert len({request.connection for request in mock_server.requests}) == 1


def test_arguments_are_checked(make: Make, mock_server: MockServer) -> None:
    with pytest.raises(ConfigurationError, match="model is missing"):
        ask(make(model=None))
    with pytest.raises(ConfigurationError, match="endpoints= is not a parameter"):
        ask(make(), endpoints=[])
    assert not mock_server.requests
