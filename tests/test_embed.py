"""`embed`: texts in, rows of float32 out; what packs are made of is told by tests/engine/embed.rs."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import math
import pickle
from typing import TYPE_CHECKING, Any

import pytest
from helpers import KEY, Face, until_async
from millstream import (
    APIResponseValidationError,
    AsyncClient,
    AuthenticationError,
    BadRequestError,
    ClientClosedError,
    ConfigurationError,
    EmbeddingBatcher,
    Embeddings,
    InputTooLargeError,
)
from millstream.testing import Answer, MockServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from conftest import Make


def embed(face: Face, texts: Any, **arguments: Any) -> Embeddings:
    return face.run(face.client.embed(texts, **arguments))


def sent(server: MockServer) -> list[dict[str, Any]]:
    return [json.loads(request.body) for request in server.requests]


def sizes(server: MockServer) -> list[int]:
    return [len(body["input"]) for body in sent(server)]


def texts(count: int) -> list[str]:
    return [f"text {number}" for number in range(count)]


def pages(face: Face, source: Any, **arguments: Any) -> list[Embeddings]:
    pieces, error = face.read(face.client.embed_stream(source, **arguments))
    if error is not None:
        raise error
    return pieces


def test_rows_are_the_vectors_of_their_texts(face: Face, mock_server: MockServer) -> None:
    embeddings = embed(face, iter(texts(300)), dimensions=3)
    one_by_one = face.run(face.client.embeddings.create(input=texts(300), dimensions=3))

    assert embeddings.tolist() == [pytest.approx(each.embedding) for each in one_by_one.data]
    assert (embeddings.shape, len(embeddings), embeddings.model, embeddings.start) == ((300, 3), 300, "m", 0)
    assert embeddings.usage is not None
    assert embeddings.usage.prompt_tokens == embeddings.usage.total_tokens > 300
    assert embeddings.usage.to_dict()["total_tokens"] == embeddings.usage.total_tokens
    assert (embeddings.requests, embeddings.errors) == (3, {})
    assert sizes(mock_server)[:3] == [128, 128, 44]
    first = sent(mock_server)[0]
    assert (first["model"], first["encoding_format"], first["dimensions"]) == ("m", "base64", 3)
    assert repr(embeddings) == "<Embeddings 300 x 3, model 'm'>".replace("'", '"')


def test_they_are_read_where_they_lie(face: Face) -> None:
    embeddings = embed(face, texts(5))
    view = memoryview(embeddings)
    assert (view.shape, view.strides, view.format, view.readonly, view.c_contiguous) == (
        (5, 8),
        (32, 4),
        "f",
        True,
        True,
    )
    assert view.tolist() == embeddings.tolist()
    row = embeddings[-1]
    assert (row.shape, row.format, row.tolist()) == ((8,), "f", embeddings.tolist()[4])
    assert embeddings[1:3].tolist() == embeddings.tolist()[1:3]
    assert [list(each) for each in embeddings] == embeddings.tolist()
    for place in (5, -6):
        with pytest.raises(IndexError, match=f"row {place} of 5"):
            embeddings[place]
    expected = embeddings.tolist()
    del embeddings
    gc.collect()
    # The view keeps the block.
    assert view.tolist() == expected
    assert row.tolist() == expected[4]


def test_numpy_and_arrow_share_the_memory(face: Face) -> None:
    np = pytest.importorskip("numpy")
    pa = pytest.importorskip("pyarrow")
    embeddings = embed(face, texts(4))
    array = np.asarray(embeddings)
    assert (array.shape, array.dtype, array.flags.writeable) == ((4, 8), np.float32, False)
    assert np.shares_memory(array, embeddings.to_numpy())
    assert array.tolist() == embeddings.tolist()
    arrow = embeddings.to_arrow()
    assert arrow.type == pa.list_(pa.float32(), 8)
    assert arrow.to_pylist() == embeddings.tolist()
    assert arrow.flatten().buffers()[1].address == array.__array_interface__["data"][0]


def test_torch_shares_the_memory_and_keeps_it(face: Face) -> None:
    np = pytest.importorskip("numpy")
    torch = pytest.importorskip("torch")
    embeddings = embed(face, texts(4))
    tensor = embeddings.to_torch()
    assert (tuple(tensor.shape), tensor.dtype) == ((4, 8), torch.float32)
    assert tensor.data_ptr() == np.asarray(embeddings).__array_interface__["data"][0]
    expected = embeddings.tolist()
    del embeddings
    gc.collect()
    assert tensor.tolist() == expected


def test_they_are_pickled_and_compared(face: Face, mock_server: MockServer) -> None:
    mock_server.when("text 1", Answer(status=400, times=0))
    embeddings = embed(face, texts(3), on_error="nan")
    again = pickle.loads(pickle.dumps(embeddings))
    assert again == embeddings
    assert bytes(again) == bytes(embeddings)
    assert again.errors.keys() == {1}
    assert str(again.errors[1]) == str(embeddings.errors[1])
    assert embed(face, texts(1)) != embeddings


def test_nothing_and_one(face: Face, mock_server: MockServer) -> None:
    empty = embed(face, [])
    assert (empty.shape, empty.tolist(), list(empty), len(mock_server.requests)) == ((0, 0), [], [], 0)
    assert embed(face, [], dimensions=7).shape == (0, 7)
    vector = face.run(face.client.embed_one("a"))
    assert vector.tolist() == embed(face, ["a"]).tolist()[0]


@pytest.mark.mock_server(base64_embeddings="refused")
def test_the_form_is_learnt_for_all_calls_of_the_client(face: Face, mock_server: MockServer) -> None:
    expected = embed(face, texts(2), encoding_format="float").tolist()
    assert [embed(face, texts(2)).tolist() for _ in range(2)] == [expected] * 2
    assert [body["encoding_format"] for body in sent(mock_server)] == ["float", "base64", "float", "float"]
    other = face.with_options(timeout=5)
    embed(other, texts(2))
    assert sent(mock_server)[-1]["encoding_format"] == "float"
    with pytest.raises(BadRequestError):
        embed(face, texts(1), encoding_format="base64")


def test_a_bad_text_does_not_fail_its_neighbours(face: Face, mock_server: MockServer) -> None:
    mock_server.when('text 7"', Answer(status=400, times=0))
    expected = embed(face, [text for text in texts(20) if text != "text 7"]).tolist()
    for on_error in ("nan", "return"):
        embeddings = embed(face, texts(20), on_error=on_error)
        rows = embeddings.tolist()
        assert all(math.isnan(number) for number in rows.pop(7))
        assert rows == expected
        assert list(embeddings.errors) == [7]
        error = embeddings.errors[7]
        assert isinstance(error, BadRequestError)
        assert error.index == 7
        with pytest.raises(BadRequestError, match=r"^texts\[7\]: "):
            embeddings.raise_first()
    with pytest.raises(BadRequestError, match=r"^texts\[7\]: "):
        embed(face, texts(20))


def test_a_failed_row_is_null_in_arrow(face: Face, mock_server: MockServer) -> None:
    pytest.importorskip("pyarrow")
    mock_server.when("text 1", Answer(status=400, times=0))
    rows = embed(face, texts(3), on_error="nan").to_arrow().to_pylist()
    assert [row is None for row in rows] == [False, True, False]


@pytest.mark.mock_server(api_key="another")
def test_a_fault_of_nobody_is_raised_unless_all_is_wanted(face: Face) -> None:
    for on_error in ("raise", "nan"):
        with pytest.raises(AuthenticationError):
            embed(face, texts(3), on_error=on_error)
    embeddings = embed(face, texts(3), on_error="return")
    assert [type(error) for error in embeddings.errors.values()] == [AuthenticationError] * 3
    assert embeddings.shape == (3, 0)
    assert embeddings[1].tolist() == []


def words(text: str) -> int:
    return len(text.split())


def test_exact_tokens_decide_what_is_too_long(face: Face, mock_server: MockServer) -> None:
    long = "one two three four five six seven"
    with pytest.raises(InputTooLargeError, match=r"^texts\[1\]: it has 7 tokens and the model takes 3"):
        embed(face, ["a", long], count_tokens=words, max_input_tokens=3)
    assert not mock_server.requests
    kept = embed(face, ["a", long], count_tokens=words, max_input_tokens=3, on_error="nan")
    assert list(kept.errors) == [1]
    mock_server.clear()
    embed(face, ["a", long], count_tokens=words, max_input_tokens=3, too_long="truncate")
    assert sent(mock_server)[0]["input"] == ["a", "one two three "]
    mock_server.clear()
    mean = embed(face, ["a", long], count_tokens=words, max_input_tokens=3, too_long="chunk-mean")
    assert "".join(sent(mock_server)[0]["input"]) == f"a{long}"
    assert mean.shape == (2, 8)
    assert math.hypot(*mean[1]) == pytest.approx(1)


@pytest.mark.mock_server(tokens_per_embedding=4)
def test_what_the_server_finds_too_long_is_cut(face: Face) -> None:
    long = "a text of more than four tokens of four letters"
    assert list(embed(face, ["a", long], on_error="nan").errors) == [1]
    for too_long in ("truncate", "chunk-mean"):
        assert embed(face, ["a", long], too_long=too_long).errors == {}


def test_rows_can_be_cut_and_normalized(face: Face) -> None:
    whole = embed(face, texts(2)).tolist()
    for row, full in zip(embed(face, texts(2), truncate_dim=3).tolist(), whole, strict=True):
        length = math.hypot(*full[:3])
        assert row == pytest.approx([number / length for number in full[:3]], rel=1e-5)
    with pytest.raises(APIResponseValidationError, match="truncate_dim is 9"):
        embed(face, texts(2), truncate_dim=9)


def test_a_stream_comes_in_pages_in_order(face: Face, mock_server: MockServer) -> None:
    expected = embed(face, texts(1000)).tolist()
    got = pages(face, (text for text in texts(1000)), page_size=300)
    assert [(page.start, len(page)) for page in got] == [(0, 300), (300, 300), (600, 300), (900, 100)]
    assert [row for page in got for row in page.tolist()] == expected
    assert pages(face, []) == []


def test_a_stream_reads_no_further_than_it_must(face: Face) -> None:
    read = 0

    def endless() -> Iterator[str]:
        nonlocal read
        for number in itertools.count():
            read = number
            yield f"text {number}"

    pieces, error = face.read(face.client.embed_stream(endless(), page_size=10), most=3)
    assert error is None
    assert [piece.start for piece in pieces] == [0, 10, 20]
    assert read <= 10 * 8


def test_an_error_in_a_later_page_names_its_text(face: Face, mock_server: MockServer) -> None:
    mock_server.when('text 25"', Answer(status=400, times=0))
    with pytest.raises(BadRequestError, match=r"^texts\[25\]: "):
        pages(face, texts(40), page_size=10)
    third = pages(face, texts(40), page_size=10, on_error="nan")[2]
    assert (list(third.errors), third.errors[5].index) == ([5], 25)


async def test_a_stream_of_a_live_source_hands_out_what_is_ready(mock_server: MockServer) -> None:
    more = asyncio.Event()

    async def source() -> AsyncIterator[str]:
        for number in range(4):
            if number == 2:
                await more.wait()
            yield f"text {number}"

    async with AsyncClient(api_key=KEY, base_url=mock_server.base_url, model="m") as client:
        stream = client.embed_stream(source(), page_size=2)
        async with asyncio.timeout(20):
            first = await anext(stream)
            more.set()
            rest = [page async for page in stream]
    assert [page.start for page in (first, *rest)] == [0, 2]


@pytest.mark.mock_server(latency=5.0)
async def test_a_stream_that_is_left_ends_what_is_in_flight(mock_server: MockServer) -> None:
    async with AsyncClient(api_key=KEY, base_url=mock_server.base_url, model="m") as client:
        stream = client.embed_stream(texts(100), page_size=10)
        task = asyncio.ensure_future(anext(stream))
        await until_async(lambda: mock_server.stats.in_flight > 0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await stream.aclose()
        await until_async(lambda: mock_server.stats.in_flight == 0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"texts": "a text"}, "texts is one string"),
        ({"texts": ["a", 3]}, r"texts\[1\] must be a str, not int"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"max_batch_tokens": "1"}, "max_batch_tokens must be an int"),
        ({"max_concurrent": 0}, "max_concurrent must be at least 1"),
        ({"encoding_format": "int8"}, 'encoding_format must be "base64" or "float", not "int8"'),
        ({"too_long": "cut"}, "too_long must be"),
        ({"on_error": "ignore"}, "on_error must be"),
        ({"dimensions": 0}, "dimensions must be at least 1"),
        ({"truncate_dim": 0}, "truncate_dim must be at least 1"),
        ({"output_dtype": "int8"}, "output_dtype= is not a parameter"),
        ({"count_tokens": 3}, "count_tokens must be a function"),
        ({"input": ["x"]}, "input= is not a parameter"),
        ({"base_url": "x"}, "base_url= is not a parameter"),
    ],
)
def test_arguments_are_checked_before_anything_is_sent(
    face: Face, mock_server: MockServer, arguments: dict[str, Any], said: str
) -> None:
    arguments = dict(arguments)
    source = arguments.pop("texts", ["a"])
    with pytest.raises((ConfigurationError, TypeError), match=said):
        embed(face, source, **arguments)
    with pytest.raises((ConfigurationError, TypeError), match=said):
        pages(face, source, **arguments)
    assert not mock_server.requests


def test_a_closed_client_says_so(make: Make) -> None:
    face = make()
    face.close()
    with pytest.raises(ClientClosedError):
        embed(face, ["a"])


def test_mistral_has_another_name_for_dimensions(make: Make, mock_server: MockServer) -> None:
    embed(make(provider="mistral"), ["a"], extra_body={"x": 1}, user="u")
    with pytest.raises(APIResponseValidationError, match="dimensions=3"):
        embed(make(provider="mistral"), ["a"], dimensions=3)
    first, second = sent(mock_server)
    assert (first["x"], first["user"], second["output_dimension"]) == (1, "u", 3)


async def test_the_event_loop_goes_on_while_texts_are_handed_over(mock_server: MockServer) -> None:
    async with AsyncClient(api_key=KEY, base_url=mock_server.base_url, model="m") as client:
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        counting = asyncio.ensure_future(count())
        seen = 0

        def source() -> Iterator[str]:
            nonlocal seen
            for number in range(20_000):
                seen = turns
                yield f"{number % 100}"

        await client.embed(source())
        counting.cancel()
    # A turn for each slice of 2048.
    assert seen >= 9


# ---- many callers ----


class Batched:
    """A batcher over the mock server."""

    def __init__(self, server: MockServer, **options: Any) -> None:
        self.client = AsyncClient(api_key=KEY, base_url=server.base_url, model="m", timeout=20)
        self.batcher = EmbeddingBatcher(self.client, **options)

    async def __aenter__(self) -> EmbeddingBatcher:
        return self.batcher

    async def __aexit__(self, *_: object) -> None:
        await self.batcher.aclose()
        await self.client.aclose()


async def test_concurrent_callers_share_a_request(mock_server: MockServer) -> None:
    async with Batched(mock_server, linger=0.01) as batcher:
        vectors = await asyncio.gather(*(batcher.embed(text) for text in texts(30)))
        assert sizes(mock_server) == [30]
        alone = await batcher.embed("text 3")
    assert vectors[3].tolist() == alone.tolist()
    assert (alone.format, alone.shape) == ("f", (8,))


async def test_a_full_pack_does_not_linger(mock_server: MockServer) -> None:
    async with Batched(mock_server, max_batch=10, linger=60) as batcher, asyncio.timeout(20):
        await asyncio.gather(*(batcher.embed(text) for text in texts(20)))
    assert sizes(mock_server) == [10, 10]


async def test_one_callers_end_or_error_is_no_others(mock_server: MockServer) -> None:
    mock_server.when("BAD", Answer(status=400, times=0))
    async with Batched(mock_server, linger=0.01) as batcher:
        tasks = [asyncio.ensure_future(batcher.embed(text)) for text in ("a", "BAD", "c", "d")]
        await asyncio.sleep(0)
        tasks[2].cancel()
        got = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(one) for one in got] == [memoryview, BadRequestError, asyncio.CancelledError, memoryview]


@pytest.mark.mock_server(latency=5.0)
async def test_a_pack_that_nobody_waits_for_is_given_up(mock_server: MockServer) -> None:
    async with Batched(mock_server, linger=0.0) as batcher:
        tasks = [asyncio.ensure_future(batcher.embed(text)) for text in texts(3)]
        await until_async(lambda: mock_server.stats.in_flight == 1)
        for task in tasks:
            task.cancel()
        await until_async(lambda: mock_server.stats.in_flight == 0)


async def test_a_batcher_that_is_closed_sends_what_waits(mock_server: MockServer) -> None:
    async with Batched(mock_server, linger=60) as batcher, asyncio.timeout(20):
        waiting = asyncio.ensure_future(batcher.embed("a"))
        await asyncio.sleep(0)
        await batcher.aclose()
        assert len(await waiting) == 8
        with pytest.raises(ClientClosedError):
            await batcher.embed("b")


@pytest.mark.mock_server(api_key="another")
async def test_every_caller_learns_of_a_fault(mock_server: MockServer) -> None:
    async with Batched(mock_server) as batcher:
        got = await asyncio.gather(*(batcher.embed(text) for text in texts(3)), return_exceptions=True)
    assert [type(one) for one in got] == [AuthenticationError] * 3
    assert len({id(one) for one in got}) == 3


def test_a_batcher_checks_its_arguments() -> None:
    client = AsyncClient(api_key=KEY, base_url="http://127.0.0.1:1/v1", model="m")
    for options, said in [
        ({"max_batch": 0}, "max_batch"),
        ({"linger": -1}, "linger"),
        ({"on_error": "nan"}, "on_error"),
    ]:
        with pytest.raises(ConfigurationError, match=said):
            EmbeddingBatcher(client, **options)
