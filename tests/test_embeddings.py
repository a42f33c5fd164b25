"""`embeddings.create`, in OpenAI's shape."""

from __future__ import annotations

import base64
import json
import pickle
import struct
from typing import TYPE_CHECKING, Any

import pytest
from helpers import http_answer, last_request, raw_server
from millstream import APIResponseValidationError, ConfigurationError

if TYPE_CHECKING:
    from conftest import Make
    from helpers import Face
    from millstream.testing import MockServer
    from millstream.types import CreateEmbeddingResponse


def embed(face: Face, input: Any, **arguments: Any) -> CreateEmbeddingResponse:  # noqa: A002
    return face.run(face.client.embeddings.create(input=input, **arguments))


def body_of(data: list[dict[str, Any]]) -> bytes:
    usage = {"prompt_tokens": 3, "total_tokens": 3}
    return json.dumps({"object": "list", "model": "e", "data": data, "usage": usage}).encode()


def test_base64_is_asked_and_floats_are_returned(face: Face, mock_server: MockServer) -> None:
    answer = embed(face, ["a", "b"], dimensions=8)

    sent = json.loads(last_request(mock_server).body)
    assert sent == {"model": "m", "input": ["a", "b"], "encoding_format": "base64", "dimensions": 8}
    assert last_request(mock_server).path == "/v1/embeddings"
    assert [each.index for each in answer.data] == [0, 1]
    assert all(len(each.embedding) == 8 and type(each.embedding[0]) is float for each in answer.data)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > 0


def test_both_forms_give_the_same_vectors(face: Face, mock_server: MockServer) -> None:
    dense, plain = (embed(face, "hello", encoding_format=form) for form in ("base64", "float"))

    assert isinstance(json.loads(plain.raw_body)["data"][0]["embedding"], list)
    assert isinstance(json.loads(dense.raw_body)["data"][0]["embedding"], str)
    assert dense.data[0].embedding == pytest.approx(plain.data[0].embedding, rel=1e-6)


def test_what_a_server_sends_counts_not_what_was_asked(make: Make) -> None:
    numbers = [0.1, -2, 3e-9]
    with raw_server(http_answer(body_of([{"index": 0, "embedding": numbers}]))) as server:
        assert embed(make(base_url=server.base_url), "a").data[0].embedding == numbers


def test_vectors_stand_where_their_index_says(make: Make) -> None:
    dense = base64.b64encode(struct.pack("<2f", 0.5, -1)).decode()
    data = [{"index": 1, "embedding": dense, "object": "embedding", "extra": "x"}, {"index": 0, "embedding": [7.0, 8]}]
    with raw_server(http_answer(body_of(data), "X-Request-Id: req_e")) as server:
        answer = embed(make(base_url=server.base_url), ["a", "b"])

    for each in (answer, pickle.loads(pickle.dumps(answer))):
        assert [one.embedding for one in each.data] == [[7.0, 8.0], [0.5, -1.0]]
        assert each.data[1].extra == "x"
        assert [one["embedding"] for one in each.to_dict()["data"]] == [[7.0, 8.0], [0.5, -1.0]]
        assert (each.model, each.object, each.request_id) == ("e", "list", "req_e")
    assert pickle.loads(pickle.dumps(answer.data[1])) == answer.data[1]


@pytest.mark.parametrize(
    ("text", "count"), [("a", 1), (["a"], 1), ([1, 2, 3], 1), ([[1, 2], [3]], 2), (["a", "b", "c"], 3)]
)
def test_every_form_of_input(face: Face, text: Any, count: int) -> None:
    assert len(embed(face, text).data) == count


@pytest.mark.parametrize(
    ("indices", "said"),
    [
        ([0], "1 embeddings for 2 inputs"),
        ([0, 1, 2], "3 embeddings for 2 inputs"),
        ([0, 0], "two embeddings have the index 0"),
        ([0, 2], "the index 2"),
        ([], "0 embeddings for 2 inputs"),
    ],
)
def test_an_answer_that_does_not_fit_its_inputs_is_refused(make: Make, indices: list[int], said: str) -> None:
    with raw_server(http_answer(body_of([{"index": index, "embedding": [1.0]} for index in indices]))) as server:
        face = make(base_url=server.base_url, max_retries=0)
        with pytest.raises(APIResponseValidationError, match=said):
            embed(face, ["a", "b"])


def test_a_misfit_is_asked_again(make: Make, mock_server: MockServer) -> None:
    bad, good = (body_of([{"index": index, "embedding": [1.0]}]) for index in (5, 0))
    with raw_server(http_answer(bad), http_answer(good), close=False) as server:
        assert embed(make(base_url=server.base_url, max_retries=1), "a").attempts == 2


def test_arguments_are_checked(make: Make, mock_server: MockServer) -> None:
    face = make(model=None)
    with pytest.raises(ConfigurationError, match="model is missing"):
        embed(face, "a")
    with pytest.raises(ConfigurationError, match="input is empty"):
        embed(face, [], model="e")
    with pytest.raises(TypeError, match="input must be a str or a list, not int"):
        embed(face, 3, model="e")
    with pytest.raises(TypeError, match="dimensions must be an int"):
        embed(face, "a", model="e", dimensions="8")
    with pytest.raises(ConfigurationError, match="base_url= is not a parameter"):
        embed(face, "a", model="e", base_url="x")
    assert not mock_server.requests
