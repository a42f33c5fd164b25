"""Streams: pieces as they come, an end only when told so, and connections that close or are used again."""

from __future__ import annotations

import asyncio
import gc
import json
import pickle
import zlib
from typing import TYPE_CHECKING, Any

import pytest
from helpers import KEY, http_answer, raw_server, until, until_async
from millstream import (
    APIResponseValidationError,
    APITimeoutError,
    AsyncClient,
    BadRequestError,
    Client,
    ClientClosedError,
    ConfigurationError,
    DeadlineExceeded,
    InternalServerError,
    MillstreamError,
    OverloadedError,
    RateLimiter,
    RateLimitError,
    StreamInterruptedError,
    Timeout,
)
from millstream.testing import Answer, Streaming

if TYPE_CHECKING:
    from collections.abc import Callable

    from helpers import Face
    from millstream.testing import MockServer

    Make = Callable[..., Face]

MESSAGES = [{"role": "user", "content": "hi"}]
TEXT = "one two three four five"
WORDS = ["one", " two", " three", " four", " five"]


def create(face: Face, **arguments: Any) -> Any:
    return face.run(face.client.chat.completions.create(messages=MESSAGES, stream=True, **arguments))


def answer(server: MockServer, text: str = TEXT, **streaming: Any) -> None:
    server.script(Answer(text=text, stream=Streaming(**streaming)))


# ---- pieces ----


def test_texts_come_in_order_and_the_whole_answer_is_there_afterwards(face: Face, mock_server: MockServer) -> None:
    answer(mock_server)
    stream = face.client.stream_complete("hi", system="be brief", temperature=0)
    assert mock_server.requests == []
    with pytest.raises(MillstreamError, match="not ended"):
        _ = stream.response
    assert face.read(stream) == (WORDS, None)
    sent = mock_server.requests[0].json()
    assert sent["messages"][0] == {"role": "system", "content": "be brief"}
    assert (sent["stream"], sent["temperature"]) == (True, 0)
    assert stream.text == stream.response.text == TEXT
    assert stream.response.choices[0].finish_reason == "stop"
    answer(mock_server)
    whole = face.create(temperature=0)
    assert stream.usage is not None
    assert whole.usage is not None
    assert stream.usage.completion_tokens == whole.usage.completion_tokens
    assert stream.response.request_id
    assert stream.response.attempts == 1
    assert stream.time_to_first_token is not None
    assert 0 < stream.time_to_first_token < 10
    assert face.read(stream) == ([], None)


def test_chunks_are_openais_and_pickle(face: Face, mock_server: MockServer) -> None:
    answer(mock_server)
    stream = create(face)
    chunks, error = face.read(stream)
    assert error is None
    assert [chunk.object for chunk in chunks] == ["chat.completion.chunk"] * len(chunks)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == TEXT
    assert "".join(chunk.text for chunk in chunks) == TEXT
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].system_fingerprint == chunks[0].to_dict()["system_fingerprint"]
    for chunk in chunks:
        again = pickle.loads(pickle.dumps(chunk))
        assert again == chunk
        assert pickle.loads(pickle.dumps(chunk.choices[0].delta)) == chunk.choices[0].delta
    assert stream.response.text == TEXT


def test_a_chunk_says_the_same_however_it_was_read(face: Face, mock_server: MockServer) -> None:
    answer(mock_server, text='a "b"\n c d é f')
    chunks, _ = face.read(create(face))
    for chunk in chunks:
        (choice,), (sent,) = chunk.choices, chunk.to_dict()["choices"]
        delta = sent["delta"]
        assert (chunk.id, chunk.model, chunk.created) == tuple(map(chunk.to_dict().get, ("id", "model", "created")))
        assert (choice.index, choice.finish_reason) == (0, sent["finish_reason"])
        assert (choice.delta.content, choice.delta.role) == (delta.get("content"), delta.get("role"))
        assert (choice.delta.refusal, choice.delta.tool_calls, chunk.usage) == (None, None, None)
        assert chunk.text == (delta.get("content") or "")
        again = pickle.loads(pickle.dumps(choice))
        assert (again, again.delta, repr(again)) == (choice, choice.delta, repr(choice))
        assert repr(pickle.loads(pickle.dumps(chunk))) == repr(chunk)
        assert choice.to_dict() == sent


def test_the_chunk_that_counts_tokens_is_seen_by_who_asked_for_it(face: Face) -> None:
    chunks, _ = face.read(create(face))
    assert all(chunk.choices for chunk in chunks)
    chunks, _ = face.read(create(face, stream_options={"include_usage": True}))
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens > 0
    chunks, _ = face.read(stream := create(face, stream_options={"include_usage": False}))
    assert all(chunk.choices for chunk in chunks)
    assert stream.usage is None


def test_a_server_that_refuses_to_count_tokens_is_asked_without(face: Face, mock_server: MockServer) -> None:
    refusal = {"error": {"message": "Unrecognized request argument supplied: stream_options"}}
    mock_server.script(Answer(status=400, body=refusal))
    stream = face.client.stream_complete("hi", top_k=1)
    assert face.read(stream) == (["echo:", " hi"], None)
    assert face.read(face.client.stream_complete("again"))[1] is None
    bodies = [request.json() for request in mock_server.requests]
    assert ["stream_options" in body for body in bodies] == [True, False, False]
    assert (bodies[1]["stream"], bodies[1]["top_k"]) == (True, 1)
    # What the user asks for himself is his to hear of.
    mock_server.script(Answer(status=400, body=refusal, times=2))
    with pytest.raises(BadRequestError, match="stream_options"):
        create(face, stream_options={"include_usage": True, "include_obfuscation": False})


def test_pieces_of_tool_calls_are_joined(face: Face, mock_server: MockServer) -> None:
    calls = [("weather", {"city": "Paris", "days": 3}), ("time", {"zone": "CET"})]
    mock_server.script(Answer(tool_calls=calls))
    chunks, error = face.read(stream := create(face))
    assert error is None
    deltas = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    assert {delta.index for delta in deltas} == {0, 1}
    assert len(deltas) > 2
    joined = stream.response.choices[0].message.tool_calls
    assert [call.function.name for call in joined] == ["weather", "time"]
    assert joined[0].function.arguments == "".join(
        delta.function.arguments or "" for delta in deltas if delta.index == 0
    )
    assert stream.response.choices[0].finish_reason == "tool_calls"
    assert pickle.loads(pickle.dumps(deltas[0])) == deltas[0]


def test_thoughts_of_a_local_server_are_kept(face: Face, mock_server: MockServer) -> None:
    mock_server.script(Answer(text="yes", reasoning="well then"))
    chunks, _ = face.read(stream := create(face))
    thoughts = [getattr(chunk.choices[0].delta, "reasoning_content", None) for chunk in chunks]
    assert "".join(thought or "" for thought in thoughts) == "well then"
    assert stream.response.choices[0].message.reasoning_content == "well then"


def test_several_choices_are_told_apart(face: Face) -> None:
    chunks, _ = face.read(stream := create(face, n=3))
    assert {choice.index for chunk in chunks for choice in chunk.choices} == {0, 1, 2}
    assert [choice.index for choice in stream.response.choices] == [0, 1, 2]
    assert stream.text == stream.response.choices[0].message.content


@pytest.mark.parametrize("write", ["ready", "event", "all", 1, 7])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_no_cut_of_the_bytes_changes_anything(face: Face, mock_server: MockServer, write: Any, line_end: Any) -> None:
    answer(mock_server, "zwölf € 😀 words \u2028 here", write=write, line_end=line_end, keep_alive=0)
    pieces, error = face.read(face.client.stream_complete("hi"))
    assert ("".join(pieces), error) == ("zwölf € 😀 words \u2028 here", None)


def test_a_piece_is_handed_out_before_the_next_is_sent(face: Face, mock_server: MockServer) -> None:
    answer(mock_server, fault="stall", after=3)
    stream = face.client.stream_complete("hi")
    assert face.read(stream, most=2) == (WORDS[:2], None)
    assert stream.text == "one two"
    face.run(stream.close())
    assert stream.closed


def test_get_final_is_for_who_wants_only_the_end(face: Face, mock_server: MockServer) -> None:
    answer(mock_server)
    assert face.run(face.client.stream_complete("hi").get_final()).text == TEXT


# ---- many at once ----


def test_many_streams_are_merged_and_none_loses_a_piece(face: Face, mock_server: MockServer) -> None:
    prompts = [f"prompt number {number}" for number in range(40)]
    mock_server.when("prompt", *[Answer(stream=Streaming(gap=0.01))] * 40)
    pieces, error = face.read(face.client.stream_many(prompts, max_concurrent=7))
    assert error is None
    texts = [""] * len(prompts)
    for index, piece in pieces:
        texts[index] += piece
    assert texts == [f"echo: {prompt}" for prompt in prompts]
    assert mock_server.stats.max_in_flight == 7


def test_a_failed_stream_among_many_does_not_disturb_the_others(face: Face, mock_server: MockServer) -> None:
    mock_server.when("bad", Answer(status=400))
    pieces, error = face.read(face.client.stream_many(["a", "bad", "c"], return_exceptions=True))
    assert error is None
    failed = [(index, piece) for index, piece in pieces if isinstance(piece, Exception)]
    assert [(index, type(piece)) for index, piece in failed] == [(1, BadRequestError)]
    assert "".join(piece for index, piece in pieces if index == 2) == "echo: c"


def test_a_failed_stream_among_many_ends_them_unless_told_otherwise(face: Face, mock_server: MockServer) -> None:
    mock_server.when("bad", Answer(status=400))
    mock_server.when("slow", Answer(stream=Streaming(fault="stall", after=2)))
    _, error = face.read(face.client.stream_many(["bad", "slow"]))
    assert isinstance(error, BadRequestError)
    until(lambda: mock_server.stats.in_flight == 0)


def test_streams_gathered_by_hand_go_on_together(mock_server: MockServer) -> None:
    async def main() -> list[str]:
        async with AsyncClient(base_url=mock_server.base_url, api_key=KEY, model="m") as client:

            async def one(number: int) -> str:
                return "".join([piece async for piece in client.stream_complete(f"number {number}")])

            return await asyncio.gather(*map(one, range(200)))

    assert asyncio.run(main()) == [f"echo: number {number}" for number in range(200)]


# ---- faults ----


@pytest.mark.parametrize("fault", ["end", "end_in_event", "end_in_character", "close", "reset"])
def test_a_stream_that_ends_too_soon_is_an_error_with_the_text_so_far(
    face: Face, mock_server: MockServer, fault: Any
) -> None:
    answer(mock_server, fault=fault, after=4)
    pieces, error = face.read(stream := face.client.stream_complete("hi"))
    assert isinstance(error, StreamInterruptedError)
    assert error.partial == "".join(pieces) == "one two three"
    assert (error.attempts, error.retryable) == (1, True)
    assert "partial" in str(error)
    assert pickle.loads(pickle.dumps(error)).partial == error.partial
    assert stream.text == error.partial
    assert len(mock_server.requests) == 1


@pytest.mark.parametrize("fault", ["no_finish", "no_done", "never_ends", "garbage"])
def test_a_stream_that_was_told_to_be_complete_is(face: Face, mock_server: MockServer, fault: Any) -> None:
    answer(mock_server, fault=fault)
    stream = face.client.stream_complete("hi")
    assert face.read(stream) == (WORDS, None)
    assert stream.response.text == TEXT


def test_a_whole_answer_in_place_of_a_stream_is_one_piece(face: Face, mock_server: MockServer) -> None:
    answer(mock_server, fault="json")
    stream = face.client.stream_complete("hi")
    assert face.read(stream) == ([TEXT], None)
    assert stream.response.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("fault", ["end", "close", "reset", "error"])
def test_what_fails_before_its_first_piece_is_asked_again(face: Face, mock_server: MockServer, fault: Any) -> None:
    # After the role alone, which is not handed out before there is something to say.
    answer(mock_server, fault=fault, after=1)
    answer(mock_server)
    stream = face.client.stream_complete("hi")
    assert face.read(stream) == (WORDS, None)
    assert stream.response.attempts == 2


def test_a_refusal_is_asked_again_and_raised_in_the_end(make: Make, mock_server: MockServer) -> None:
    mock_server.script(Answer(status=503), Answer(text="yes"))
    face = make(max_retries=1)
    assert face.read(face.client.stream_complete("hi")) == (["yes"], None)
    mock_server.script(Answer(status=429, headers={"retry-after": "0.01"}), Answer(status=429))
    _, error = face.read(face.client.stream_complete("hi"))
    assert isinstance(error, RateLimitError)
    assert error.attempts == 2
    assert error.partial is None


def test_a_refusal_is_raised_where_the_stream_is_made(face: Face, mock_server: MockServer) -> None:
    mock_server.script(Answer(status=400))
    with pytest.raises(BadRequestError):
        create(face)


@pytest.mark.parametrize(
    ("told", "kind"),
    [
        ({"error": {"message": "m", "type": "overloaded_error"}}, OverloadedError),
        ({"error": {"message": "m", "type": "server_error"}}, InternalServerError),
        ({"error": {"message": "m", "type": "rate_limit_error"}}, RateLimitError),
        ({"error": {"message": "m", "type": "invalid_request_error"}}, BadRequestError),
    ],
)
def test_an_error_in_the_middle_has_the_class_of_its_type(
    face: Face, mock_server: MockServer, told: Any, kind: type[Exception]
) -> None:
    answer(mock_server, fault="error", after=3, error=told)
    pieces, error = face.read(face.client.stream_complete("hi"))
    assert type(error) is kind
    assert (pieces, error.partial) == (WORDS[:2], "one two")
    assert error.type == told["error"]["type"]


def test_what_is_no_json_in_the_middle_is_an_error_of_ours(face: Face, mock_server: MockServer) -> None:
    answer(mock_server, fault="bad_json", after=3)
    pieces, error = face.read(face.client.stream_complete("hi"))
    assert isinstance(error, APIResponseValidationError)
    assert (pieces, error.partial) == (WORDS[:2], "one two")


@pytest.mark.parametrize("fault", ["stall", "endless_comments"])
def test_silence_is_bounded_and_comments_are_silence(make: Make, mock_server: MockServer, fault: Any) -> None:
    face = make(timeout=Timeout(30, idle=0.3))
    answer(mock_server, fault=fault, after=3, gap=0.01)
    _, error = face.read(face.client.stream_complete("hi"))
    assert isinstance(error, APITimeoutError)
    assert not isinstance(error, DeadlineExceeded)
    assert error.partial == "one two"
    assert "idle" in str(error)


def test_the_deadline_covers_the_whole_stream(make: Make, mock_server: MockServer) -> None:
    face = make(timeout=0.3)
    answer(mock_server, fault="stall", after=3)
    _, error = face.read(face.client.stream_complete("hi"))
    assert isinstance(error, DeadlineExceeded)
    assert error.partial == "one two"
    assert error.elapsed < 5


def test_a_line_without_an_end_is_refused(make: Make, mock_server: MockServer) -> None:
    face = make(max_retries=0)
    answer(mock_server, fault="endless_line", after=2)
    _, error = face.read(face.client.stream_complete("hi"))
    assert isinstance(error, APIResponseValidationError)
    assert not error.retryable
    until(lambda: mock_server.stats.in_flight == 0)


def test_a_page_in_place_of_a_stream_is_no_answer(make: Make) -> None:
    with raw_server(http_answer(b"<html></html>", "content-type: text/html")) as server:
        face = make(base_url=server.base_url, max_retries=1)
        _, error = face.read(face.client.stream_complete("hi"))
    assert isinstance(error, APIResponseValidationError)
    assert error.attempts == 2


def test_what_was_handed_out_is_never_asked_for_again(make: Make, mock_server: MockServer) -> None:
    """Whatever is found to be wrong with the answer at its end."""
    face = make(max_retries=2, fallback_models=["other"])
    # A stream without a choice, which is no answer; its chunks were handed out all the same.
    chunk = (
        '{"id":"1","object":"chat.completion.chunk","created":1,"model":"m","choices":[],"usage":{"total_tokens":1}}'
    )
    body = f"data: {chunk}\n\n" * 3 + "data: [DONE]\n\n"
    mock_server.script(Answer(body=body.encode(), stream=Streaming()))
    chunks, error = face.read(create(face, stream_options={"include_usage": True}))
    assert isinstance(error, APIResponseValidationError)
    assert (len(chunks), error.partial, len(mock_server.requests)) == (3, "", 1)
    # A whole answer that is none is refused before anything of it is handed out, and asked for again.
    half = b'{"id":"1","created":1,"model":"m","choices":[{"index":0,"delta":{"content":"AB"},"finish_reason":"stop"}]}'
    mock_server.script(Answer(body=half, headers={"content-type": "application/json"}))
    assert face.read(face.client.stream_complete("hi")) == (["echo:", " hi"], None)


def events(*deltas: dict[str, Any], end: bool = True) -> bytes:
    """A stream of OpenAI's with these deltas."""
    choices = [{"index": 0, "delta": delta} for delta in deltas]
    choices += [{"index": 0, "delta": {}, "finish_reason": "stop"}] if end else []
    chunks = [{"id": "c", "model": "m", "created": 1, "choices": [choice]} for choice in choices]
    return b"".join(b"data: %b\n\n" % json.dumps(chunk).encode() for chunk in chunks)


@pytest.mark.parametrize(("encoding", "bits"), [("gzip", 31), ("deflate", 15), ("deflate", -15)])
def test_a_compressed_stream_that_is_cut_in_good_order_has_the_text_so_far(
    face: Face, mock_server: MockServer, encoding: str, bits: int
) -> None:
    def cut(kept: bytes, lost: bytes, more: int) -> None:
        coder = zlib.compressobj(wbits=bits)
        begin = coder.compress(kept) + coder.flush(zlib.Z_SYNC_FLUSH)
        body = begin + (coder.compress(lost) + coder.flush())[:more]
        headers = {"content-type": "text/event-stream", "content-encoding": encoding}
        mock_server.script(Answer(body=body, headers=headers))

    for more in (0, 5):
        cut(events({"content": "A"}, {"content": "B"}, end=False), events({"content": "C"}), more)
        pieces, error = face.read(face.client.stream_complete("hi"))
        assert isinstance(error, StreamInterruptedError)
        assert (pieces, error.partial) == (["A", "B"], "AB")
    # Only the mark of the end is missing, and the end of the compressed data.
    cut(events({"content": "A"}), b"data: [DONE]\n\n", 0)
    assert face.read(face.client.stream_complete("hi")) == (["A"], None)


def test_the_input_of_a_custom_tool_is_joined(face: Face, mock_server: MockServer) -> None:
    first = {"index": 0, "id": "a", "type": "custom", "custom": {"name": "sql", "input": ""}}
    more = [{"index": 0, "custom": {"input": piece}} for piece in ("SELECT ", "1")]
    body = events(*({"tool_calls": [piece]} for piece in (first, *more)))
    mock_server.script(Answer(body=body, headers={"content-type": "text/event-stream"}))
    chunks, error = face.read(stream := create(face))
    assert error is None
    pieces = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    assert [piece.type for piece in pieces] == ["custom", None, None]
    assert (pieces[0].custom.name, "".join(piece.custom.input for piece in pieces)) == ("sql", "SELECT 1")
    assert (pieces[0].function.name, pieces[0].function.arguments) == (None, None)
    for piece in pieces:
        assert pickle.loads(pickle.dumps(piece)) == piece
        assert pickle.loads(pickle.dumps(piece.custom)) == piece.custom
    assert repr(pieces[1]) == 'ToolCallDelta(index=0, id=None, custom=CustomCallDelta(name=None, input="SELECT "))'
    (call,) = stream.response.choices[0].message.tool_calls
    assert (call.id, call.type, call.custom.name, call.custom.input) == ("a", "custom", "sql", "SELECT 1")
    assert call.function is None


def test_a_failed_stream_fails_again_and_was_not_closed(face: Face, mock_server: MockServer) -> None:
    answer(mock_server, fault="close", after=4)
    stream = face.client.stream_complete("hi")
    _, first = face.read(stream)
    pieces, again = face.read(stream)
    assert pieces == []
    assert type(first) is type(again) is StreamInterruptedError
    assert not stream.closed


# ---- ends ----


async def _abandoned(client: AsyncClient, server: MockServer, how: str) -> None:
    answer(server, fault="stall", after=3)
    before = server.stats.aborted
    stream = client.stream_complete("hi")
    if how == "break":
        async for _ in client.stream_complete("hi"):
            break
    elif how == "aclose":
        await anext(stream)
        await stream.aclose()
    elif how == "context":
        async with stream:
            await anext(stream)
    elif how == "cancel":

        async def read() -> None:
            async for _ in stream:
                pass

        task = asyncio.create_task(read())
        await until_async(lambda: stream.text != "")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    else:
        await anext(stream)
        del stream
        gc.collect()
    await until_async(lambda: server.stats.aborted > before and server.stats.in_flight == 0)


@pytest.mark.parametrize("how", ["break", "aclose", "context", "cancel", "collected"])
def test_a_stream_that_is_left_closes_its_connection(mock_server: MockServer, how: str) -> None:
    async def main() -> None:
        async with AsyncClient(base_url=mock_server.base_url, api_key=KEY, model="m") as client:
            for _ in range(3):
                await _abandoned(client, mock_server, how)
            assert client.stats().in_flight == 0
            assert await client.complete("still there") == "echo: still there"

    asyncio.run(main())


def test_streams_in_a_row_use_one_connection(face: Face, mock_server: MockServer) -> None:
    for number in range(20):
        answer(mock_server, fault=None if number % 2 else "no_done")
        assert face.read(face.client.stream_complete("hi")) == (WORDS, None)
    until(lambda: mock_server.stats.in_flight == 0)
    assert mock_server.stats.connections == 1


def test_a_slow_consumer_stops_the_server(face: Face, mock_server: MockServer) -> None:
    answer(mock_server, chunks=200_000)
    stream = face.client.stream_complete("hi")
    pieces, _ = face.read(stream, most=1)
    written = -1

    def stopped() -> bool:
        nonlocal written
        before, written = written, mock_server.requests[0].written
        return before == written

    # Two looks in a row, far apart for a server that can write hundreds of megabytes a second.
    until(lambda: stopped() and not _moves(mock_server))
    assert written < 20_000_000
    rest, error = face.read(stream)
    assert error is None
    assert len(pieces) + len(rest) == 200_000


def _moves(server: MockServer) -> bool:
    import time

    before = server.requests[0].written
    time.sleep(0.05)
    return server.requests[0].written != before


def test_one_task_at_a_time_reads_a_stream(mock_server: MockServer) -> None:
    async def main() -> None:
        async with AsyncClient(base_url=mock_server.base_url, api_key=KEY, model="m") as client:
            answer(mock_server, fault="stall", after=0)
            stream = client.stream_complete("hi")
            first = asyncio.create_task(anext(stream))
            await until_async(lambda: len(mock_server.requests) == 1)
            with pytest.raises(RuntimeError, match="one can at a time"):
                await anext(stream)
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)

    asyncio.run(main())


def test_a_closed_stream_or_client_sends_nothing(face: Face, mock_server: MockServer) -> None:
    stream = face.client.stream_complete("hi")
    face.run(stream.close())
    assert face.read(stream) == ([], None)
    late = face.client.stream_complete("hi")
    face.close()
    with pytest.raises(ClientClosedError):
        face.client.stream_complete("hi")
    # Made while the client was open, as a call that was under way.
    assert face.read(late)[1] is None
    assert len(mock_server.requests) == 1


def test_bad_arguments_are_refused_before_anything_is_sent(face: Face, mock_server: MockServer) -> None:
    with pytest.raises(ConfigurationError, match="stream_complete"):
        face.complete("hi", stream=True)
    with pytest.raises(TypeError):
        face.client.stream_complete(5)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        face.client.stream_many("hi")
    with pytest.raises(ConfigurationError):
        face.client.stream_many(["hi"], max_concurrent=0)
    assert mock_server.requests == []


def test_a_stream_takes_a_place_in_flight_and_is_paid_for_in_tokens(make: Make, mock_server: MockServer) -> None:
    limiter = RateLimiter(tokens_per_minute=10_000)
    face = make(max_concurrency=1, rate_limiter=limiter)
    answer(mock_server, fault="stall", after=3)
    stream = face.client.stream_complete("hi")
    face.read(stream, most=1)
    assert face.client.stats().in_flight == 1
    face.run(stream.close())
    answer(mock_server)
    done = face.client.stream_complete("hi")
    assert face.read(done) == (WORDS, None)
    assert face.client.stats().in_flight == 0
    assert face.client.stats().completion_tokens == done.usage.completion_tokens


def test_a_blocking_stream_works_inside_a_running_loop(mock_server: MockServer) -> None:
    async def main() -> list[str]:
        with Client(base_url=mock_server.base_url, api_key=KEY, model="m") as client:
            return list(client.stream_complete("hi there"))

    assert asyncio.run(main()) == ["echo:", " hi", " there"]
