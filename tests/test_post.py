"""`client.post`: any path below the base URL, by the same way as every other call."""

from __future__ import annotations

import json
import pickle
from typing import TYPE_CHECKING

import pytest
from helpers import KEY, http_answer, last_request, raw_server
from millstream import APIResponseValidationError, ConfigurationError, NotFoundError
from millstream.testing import Answer

if TYPE_CHECKING:
    from conftest import Make
    from helpers import Face
    from millstream.testing import MockServer


def test_it_posts_the_body_to_the_path_with_the_key(face: Face, mock_server: MockServer) -> None:
    body = {"query": "q", "documents": ["a", "é"], "model": "ranker"}

    reply = face.run(face.client.post("rerank", body))

    request = last_request(mock_server)
    assert (request.method, request.path) == ("POST", "/v1/rerank")
    assert json.loads(request.body) == body
    assert request.header("authorization") == f"Bearer {KEY}"
    assert request.header("content-type") == "application/json"
    assert reply.json.model == "ranker"
    assert (reply.status_code, reply.attempts) == (200, 1)


@pytest.mark.parametrize(
    ("path", "expected"),
    [("/rerank", "/v1/rerank"), ("v1/rerank", "/v1/rerank"), ("a/b/c", "/v1/a/b/c")],
)
def test_paths_are_below_the_base_url(face: Face, mock_server: MockServer, path: str, expected: str) -> None:
    face.run(face.client.post(path))

    assert last_request(mock_server).path == expected


def test_a_path_may_have_a_query(face: Face, mock_server: MockServer) -> None:
    face.run(face.client.post("a?b=c%20d"))

    assert last_request(mock_server).path == "/v1/a?b=c%20d"


@pytest.mark.parametrize("path", ["", "/", "https://evil.test/v1/x", "//evil.test/x", "x#y"])
def test_a_path_that_is_none_is_refused(face: Face, mock_server: MockServer, path: str) -> None:
    with pytest.raises(ConfigurationError, match="path must be below base_url"):
        face.run(face.client.post(path, {}))
    assert not mock_server.requests


def test_arguments_are_checked(face: Face, mock_server: MockServer) -> None:
    with pytest.raises(TypeError, match="json must be a dict"):
        face.run(face.client.post("x", ["a"]))  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="leave stream out"):
        face.run(face.client.post("x", {"stream": True}))
    assert not mock_server.requests


def test_the_client_adds_nothing_to_the_body(make: Make, mock_server: MockServer) -> None:
    face = make(model="usual")

    face.run(face.client.post("x", {"base_url": 1, "timeout": 2}))
    assert json.loads(last_request(mock_server).body) == {"base_url": 1, "timeout": 2}
    face.run(face.client.post("x"))
    assert json.loads(last_request(mock_server).body) == {}


def test_it_is_retried_and_counted_as_other_calls_are(make: Make, mock_server: MockServer) -> None:
    face = make(max_retries=1)
    mock_server.script(Answer(status=503, headers={"retry-after-ms": "1"}), Answer(text="ok"))

    reply = face.run(face.client.post("x", {"model": "ranker"}))

    assert (reply.attempts, len(mock_server.requests)) == (2, 2)
    assert len({request.header("idempotency-key") for request in mock_server.requests}) == 1
    (lane,) = face.client.stats().lanes
    assert (lane.model, lane.attempts) == ("ranker", 2)


def test_a_refusal_is_the_error_of_its_status(make: Make, mock_server: MockServer) -> None:
    mock_server.script(Answer(status=404))
    face = make()

    with pytest.raises(NotFoundError):
        face.run(face.client.post("nowhere", {}))


@pytest.mark.parametrize("body", [b"[1]", b"<html>", b'{"a":', b'{"error":{"message":"boom"}}'])
def test_what_is_no_object_is_no_answer(make: Make, body: bytes) -> None:
    with raw_server(http_answer(body)) as server:
        face = make(base_url=server.base_url, max_retries=0)
        with pytest.raises(APIResponseValidationError):
            face.run(face.client.post("x", {}))


def test_the_record_has_every_field_and_survives_a_pickle(make: Make) -> None:
    body = b'{"results":[{"index":1,"score":0.5}],"meta":{"units":2},"null":null,"class":"c"}'
    with raw_server(http_answer(body, "X-Request-Id: req_1")) as server:
        face = make(base_url=server.base_url)
        reply = face.run(face.client.post("x", {}))

    again = pickle.loads(pickle.dumps(reply))
    for each in (reply, again):
        assert each.results[0].score == 0.5
        assert each.meta["units"] == 2
        assert each.null is None
        assert each.to_dict() == json.loads(body)
        assert each.raw_body == body
        assert each.request_id == "req_1"
        assert each.headers["content-type"] == "application/json"
        assert each.attempts == 1
        assert not hasattr(each, "missing")
        assert type(each).__name__ == "Reply"
    assert again == reply
    assert hash(again) == hash(reply)
    with pytest.raises(AttributeError):
        reply.results = []  # type: ignore[misc]
