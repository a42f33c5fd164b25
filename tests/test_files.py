"""`client.get`, `upload` and `download`: files and any path, by the same way as every other call."""

from __future__ import annotations

import json
import os
import stat
from typing import TYPE_CHECKING

import pytest
from helpers import KEY, http_answer, last_request, raw_server
from millstream import APIConnectionError, ConfigurationError, NotFoundError, RateLimiter
from millstream.testing import Answer

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Make
    from helpers import Face
    from millstream.testing import MockServer


def upload(face: Face, path: Path, **arguments: object) -> str:
    reply = face.run(face.client.upload("files", path, fields={"purpose": "batch"}, **arguments))  # type: ignore[arg-type]
    return str(reply.id)


def test_get_asks_for_the_path_with_the_key(face: Face, mock_server: MockServer) -> None:
    reply = face.run(face.client.get("batches?limit=2", extra_query={"a": 1}))

    request = last_request(mock_server)
    assert (request.method, request.path) == ("GET", "/v1/batches?limit=2&a=1")
    assert request.header("authorization") == f"Bearer {KEY}"
    assert request.header("idempotency-key") is None
    assert reply.data == []


def test_a_file_arrives_as_it_is_in_a_form(face: Face, mock_server: MockServer, tmp_path: Path) -> None:
    content = b'{"a": "\xc3\xa9"}\r\n--not-a-boundary--\r\n' * 3
    (tmp_path / "in.jsonl").write_bytes(content)
    reply = face.run(face.client.upload("files", tmp_path / "in.jsonl", fields={"purpose": "batch"}))

    request = last_request(mock_server)
    assert (request.method, request.path) == ("POST", "/v1/files")
    kind = request.header("content-type") or ""
    assert kind.startswith("multipart/form-data; boundary=")
    assert request.body.count(kind.partition("boundary=")[2].encode()) == 3
    assert b'name="purpose"\r\n\r\nbatch\r\n' in request.body
    assert (reply.bytes, reply.filename) == (len(content), "in.jsonl")
    face.run(face.client.download(f"files/{reply.id}/content", tmp_path / "out"))
    assert (tmp_path / "out").read_bytes() == content


def test_every_attempt_of_an_upload_carries_the_same_name_and_bytes(
    face: Face, mock_server: MockServer, tmp_path: Path
) -> None:
    (tmp_path / "f").write_bytes(b"x" * 100_000)
    mock_server.when("POST /v1/files", Answer(fault="reset_before"), Answer(status=503, headers={"retry-after": "0"}))

    assert upload(face, tmp_path / "f")

    attempts = mock_server.requests
    assert len(attempts) == 3
    assert len({attempt.header("idempotency-key") for attempt in attempts}) == 1
    assert attempts[0].header("idempotency-key")
    assert len({attempt.body for attempt in attempts}) == 1


def test_a_file_costs_no_tokens(make: Make, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x" * 100_000)
    face = make(rate_limiter=RateLimiter(tokens_per_minute=1000))

    assert upload(face, tmp_path / "f")


def test_a_file_that_is_not_there_is_said_before_anything_is_sent(
    face: Face, mock_server: MockServer, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match="file cannot be read: No such file"):
        upload(face, tmp_path / "none")
    assert not mock_server.requests


def test_a_download_that_breaks_off_begins_anew(face: Face, mock_server: MockServer, tmp_path: Path) -> None:
    # More than one write.
    content = os.urandom(3_000_000)
    (tmp_path / "f").write_bytes(content)
    path = f"/v1/files/{upload(face, tmp_path / 'f')}/content"
    mock_server.when(f"GET {path}", Answer(fault="truncate"), Answer(fault="reset_in_body"))

    face.run(face.client.download(path, tmp_path / "out"))

    assert (tmp_path / "out").read_bytes() == content
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o600
    assert [request.path for request in mock_server.requests].count(path) == 3


def test_a_download_may_be_larger_than_an_answer_that_is_read_whole(face: Face, tmp_path: Path) -> None:
    megabyte = b"0" * 2**20
    body = megabyte * 70
    with raw_server(http_answer(body)) as server:
        face.run(face.with_options(base_url=server.base_url).client.download("x", tmp_path / "out"))

    assert (tmp_path / "out").stat().st_size == len(body)


def test_a_failed_download_leaves_the_file_that_was_there(make: Make, mock_server: MockServer, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("before")
    face = make(max_retries=0)
    with pytest.raises(NotFoundError):
        face.run(face.client.download("files/none/content", tmp_path / "out"))
    mock_server.when("GET /v1/files/none/content", Answer(body="x" * 1000, fault="truncate"))
    with pytest.raises(APIConnectionError):
        face.run(face.client.download("files/none/content", tmp_path / "out"))

    assert (tmp_path / "out").read_text() == "before"
    assert os.listdir(tmp_path) == ["out"]


def test_get_refuses_a_path_that_is_none(face: Face, mock_server: MockServer) -> None:
    with pytest.raises(ConfigurationError, match="path must be below base_url"):
        face.run(face.client.get("https://evil.test/v1/x"))
    assert not mock_server.requests


def test_the_mock_answers_a_batch_in_the_way_of_its_requests(
    face: Face, mock_server: MockServer, tmp_path: Path
) -> None:
    lines = [
        {"custom_id": f"c{n}", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m", "messages": m}}
        for n in range(3)
        for m in [[{"role": "user", "content": f"item {n}"}]]
    ]
    (tmp_path / "in").write_text("".join(json.dumps(line) + "\n" for line in lines))
    mock_server.when("item 1", Answer(status=400))
    mock_server.when("item 2", Answer(text="two"))
    order = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
    batch = face.run(face.client.post("batches", {**order, "input_file_id": upload(face, tmp_path / "in")}))

    assert batch.status == "completed"
    assert batch.request_counts == {"total": 3, "completed": 2, "failed": 1}
    face.run(face.client.download(f"files/{batch.output_file_id}/content", tmp_path / "out"))
    face.run(face.client.download(f"files/{batch.error_file_id}/content", tmp_path / "errors"))
    results = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    texts = {line["custom_id"]: line["response"]["body"]["choices"][0]["message"]["content"] for line in results}
    assert texts == {"c0": "echo: item 0", "c2": "two"}
    (failed,) = [json.loads(line) for line in (tmp_path / "errors").read_text().splitlines()]
    assert (failed["custom_id"], failed["response"]["status_code"]) == ("c1", 400)
