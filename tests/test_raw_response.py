"""`with_raw_response`: the HTTP answer beside the record."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from helpers import last_request
from millstream import ConfigurationError, NotFoundError
from millstream.testing import Answer
from millstream.types import ChatCompletion, Completion, CreateEmbeddingResponse, Response

if TYPE_CHECKING:
    from helpers import Face
    from millstream.testing import MockServer

CALLS: list[tuple[str, dict[str, Any], type]] = [
    ("chat.completions", {"messages": [{"role": "user", "content": "hi"}]}, ChatCompletion),
    ("responses", {"input": "hi"}, Response),
    ("completions", {"prompt": "hi"}, Completion),
    ("embeddings", {"input": "hi"}, CreateEmbeddingResponse),
]


def resource_of(face: Face, name: str) -> Any:
    found: Any = face.client
    for part in name.split("."):
        found = getattr(found, part)
    return found


@pytest.mark.parametrize(("name", "arguments", "record"), CALLS, ids=lambda each: str(each))
def test_it_has_the_answer_and_parses_to_the_record(
    face: Face, mock_server: MockServer, name: str, arguments: dict[str, Any], record: type
) -> None:
    resource = resource_of(face, name)
    raw = face.run(resource.with_raw_response.create(**arguments, extra_headers={"X-A": "b"}, temperature=0))

    assert last_request(mock_server).header("x-a") == "b"
    assert json.loads(last_request(mock_server).body)["temperature"] == 0
    assert (raw.status_code, raw.headers["content-type"]) == (200, "application/json")
    assert raw.request_id == raw.headers["x-request-id"] == raw.parse().request_id
    assert json.loads(raw.content) == json.loads(raw.text)
    assert (raw.attempts, raw.elapsed > 0) == (1, True)
    assert type(raw.parse()) is record
    assert raw.parse().raw_body == raw.content


def test_errors_are_raised_and_streams_refused(face: Face, mock_server: MockServer) -> None:
    mock_server.script(Answer(status=404))
    with pytest.raises(NotFoundError):
        face.run(face.client.responses.with_raw_response.create(input="hi"))
    with pytest.raises(ConfigurationError, match="whole answers"):
        face.run(face.client.responses.with_raw_response.create(input="hi", stream=True))
