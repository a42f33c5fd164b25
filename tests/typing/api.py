"""The public API as a typed program uses it: `mypy --strict` must agree with every `assert_type`. Never run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypedDict, assert_type

from millstream import (
    NOT_GIVEN,
    AdaptiveBatchPolicy,
    APIError,
    APIStatusError,
    AsyncBatchStream,
    AsyncClient,
    AsyncEventStream,
    BatchJob,
    BatchProcessor,
    BatchResult,
    BatchResults,
    BatchStream,
    BatchSummary,
    ChatCompletion,
    Client,
    ClientStats,
    CompletionConfig,
    EmbeddingBatcher,
    Embeddings,
    Endpoint,
    EventStream,
    MillstreamError,
    ModelList,
    Price,
    Prices,
    Progress,
    RateLimiter,
    RateLimitError,
    RawResponse,
    Reservation,
    ResponseFormat,
    RetryPolicy,
    Timeout,
    VendorBatches,
    __version__,
    create_client,
    create_from_config,
    retry_with_backoff,
    retrying,
)
from millstream.testing import Answer, Fault, MockServer, MockStats, RecordedRequest
from millstream.types import (
    BatchJobResult,
    BatchJobStatus,
    BatchMetrics,
    BatchPartStatus,
    ChatMessage,
    Choice,
    Completion,
    ConcurrencyStats,
    CreateEmbeddingResponse,
    CustomCall,
    Embedding,
    FunctionCall,
    LaneStats,
    LimitLevel,
    Model,
    ParsedChatCompletion,
    RateLimiterSnapshot,
    Reply,
    Response,
    StreamEvent,
    ToolCall,
    Usage,
)
from pydantic import BaseModel

if TYPE_CHECKING:
    from collections.abc import Iterator


def prompts() -> Iterator[str]:
    yield "a"


def blocking(flag: bool) -> None:
    limiter = RateLimiter(requests_per_minute=500, tokens_per_minute=200_000.5)
    config = CompletionConfig(model="m", temperature=0, stop=["x"], extra={"top_k": 1})
    with Client(
        api_key="k",
        base_url="http://127.0.0.1/v1",
        model="m",
        config=config,
        timeout=None,
        connect_timeout=1,
        max_retries=0,
        max_concurrency=8,
        rate_limiter=limiter,
        default_headers={"X-A": "1"},
        http2=True,
        allow_http=True,
    ) as client:
        assert_type(client, Client)
        assert_type(client.complete("hi"), str)
        assert_type(client.complete([{"role": "user", "content": "hi"}], system="s", temperature=0.5, top_k=1), str)
        assert_type(client.complete("hi", timeout=NOT_GIVEN, config=config, extra_headers={"X-A": "1"}), str)
        assert_type(client.batch_complete(["a", [{"role": "user", "content": "b"}]]), list[str])
        assert_type(client.batch_complete(prompts(), max_concurrent=3, return_exceptions=False), list[str])
        assert_type(client.batch_complete(prompts(), return_exceptions=True), list[str | MillstreamError])
        assert_type(client.batch_complete(prompts(), return_exceptions=flag), list[str | MillstreamError])
        assert_type(client.with_options(timeout=5).with_options(rate_limiter=None), Client)
        assert_type(client.gather({"a": lambda: client.complete("hi"), "b": client.stats}), dict[str, Any])
        assert_type(client.stats(), ClientStats)
        assert_type(client.stats().in_flight, int)
        assert_type(client.models.list(), ModelList)
        assert_type([model.id for model in client.models.list()], list[str])
        assert_type(client.models.list().data, list[Model])
        assert_type(client.base_url, str)
        assert_type(client.closed, bool)
        response = client.chat.completions.create(messages=[{"role": "user", "content": "hi"}], n=2)
        record(response)
        # An answer's message goes into the next request as it is.
        client.complete([{"role": "user", "content": "hi"}, response.choices[0].message])
        client.chat.completions.create(messages=[response.choices[0].message], extra_body={"top_k": 1})
    assert_type(__version__, str)


async def half(number: int, name: str) -> float:
    return number / 2


@retrying(max_retries=5, retry_on=(OSError, ValueError), on_retry=print)
async def decorated(number: int, *, name: str) -> float:
    return await half(number, name)


@retrying(jitter="full", retry_on=lambda error: isinstance(error, OSError))
def decorated_too(number: int) -> str:
    return str(number)


async def retries() -> None:
    policy = RetryPolicy(max_retries=5, max_rate_limit_retries=50, statuses={429, 503}, jitter="equal")
    timeout = Timeout(30, connect=None, first_byte=5, idle=5)
    async with AsyncClient(retry=policy, timeout=timeout, queue_timeout=None, idempotency_key=False) as client:
        assert_type(await client.complete("hi", timeout=Timeout(5), queue_timeout=1), str)
        calls = {"text": client.complete("hi"), "models": client.models.list()}
        assert_type(await client.gather(calls, return_exceptions=True), dict[str, Any])
        assert_type(client.with_options(retry=policy, timeout=timeout, queue_timeout=2), AsyncClient)
    assert_type(await retry_with_backoff(half, 1, "a", max_retries=5, jitter=False, retry_on=OSError), float)
    assert_type(await decorated(1, name="a"), float)
    assert_type(decorated_too(1), str)


class CityModel(BaseModel):
    name: str


class CityDict(TypedDict):
    name: str


@dataclass
class City:
    name: str


SCHEMA: dict[str, Any] = {"type": "object"}


def structured(client: Client, flag: bool) -> None:
    assert_type(client.complete("hi", response_model=City), City)
    assert_type(client.complete("hi", response_model=CityModel, validation_retries=3, temperature=0), CityModel)
    assert_type(client.complete("hi", response_model=CityDict), CityDict)
    assert_type(client.complete("hi", response_model=list[City]), list[City])
    assert_type(client.complete("hi", response_model=SCHEMA), Any)
    assert_type(client.complete("hi", response_model={"type": "json_object"}), Any)
    assert_type(client.complete("hi", response_model=None), str)
    form = ResponseFormat(City, name="city", mode="json_object", strict=False)
    assert_type(form, ResponseFormat[City])
    assert_type(form.read("{}"), City)
    assert_type(client.complete("hi", response_model=form), City)
    assert_type(ResponseFormat(SCHEMA), ResponseFormat[Any])
    assert_type(ResponseFormat(Literal["a", "b"]), ResponseFormat[Any])
    assert_type(client.batch_complete(prompts(), response_model=City), list[City])
    assert_type(client.batch_complete(["a"], response_model=form, max_concurrent=2), list[City])
    assert_type(client.batch_complete(["a"], response_model=SCHEMA), list[Any])
    assert_type(client.batch_complete(["a"], response_model=SCHEMA, return_exceptions=True), list[Any])
    failing = client.batch_complete(["a"], response_model=CityModel, return_exceptions=True)
    assert_type(failing, list[CityModel | MillstreamError])
    failing = client.batch_complete(["a"], response_model=CityModel, return_exceptions=flag)
    assert_type(failing, list[CityModel | MillstreamError])
    answer = client.chat.completions.parse(messages=[{"role": "user", "content": "hi"}], response_format=City)
    assert_type(answer, ParsedChatCompletion[City])
    assert_type(answer.choices[0].message.parsed, City | None)
    assert_type(answer.choices[0].message.refusal, str | None)
    assert_type(answer.usage, Usage | None)
    assert_type(answer.failed_tries, tuple[ChatCompletion, ...])
    client.complete([answer.choices[0].message])
    raw = client.chat.completions.parse(messages=[answer.choices[0].message], response_format=SCHEMA)
    assert_type(raw, ParsedChatCompletion[Any])


async def structured_awaited(client: AsyncClient) -> None:
    assert_type(await client.complete("hi", response_model=City), City)
    assert_type(await client.complete("hi", response_model=SCHEMA), Any)
    assert_type(await client.batch_complete(["a"], response_model=CityDict), list[CityDict])
    failing = await client.batch_complete(["a"], response_model=City, return_exceptions=True)
    assert_type(failing, list[City | MillstreamError])
    answer = await client.chat.completions.parse(messages=[], response_format=CityModel)
    assert_type(answer.choices[0].message.parsed, CityModel | None)


def record(response: ChatCompletion) -> None:
    assert_type(response.id, str)
    assert_type(response.created, int)
    assert_type(response.choices, list[Choice])
    assert_type(response.choices[0].index, int)
    assert_type(response.choices[0].finish_reason, str | None)
    message = response.choices[0].message
    assert_type(message, ChatMessage)
    assert_type(message.content, str | None)
    assert_type(message.tool_calls, list[ToolCall] | None)
    if message.tool_calls:
        call = message.tool_calls[0]
        assert_type(call.function, FunctionCall | None)
        assert_type(call.custom, CustomCall | None)
        if call.function:
            assert_type(call.function.arguments, str)
        if call.custom:
            assert_type(call.custom.input, str)
    assert_type(response.usage, Usage | None)
    if response.usage is not None:
        assert_type(response.usage.total_tokens, int)
    assert_type(response.text, str)
    assert_type(response.headers, dict[str, str])
    assert_type(response.request_id, str | None)
    assert_type(response.attempts, int)
    assert_type(response.elapsed, float)
    assert_type(response.to_dict(), dict[str, Any])
    # A server's own field.
    assert_type(response.system_fingerprint, Any)


async def awaited(flag: bool) -> None:
    async with AsyncClient(model="m") as client:
        assert_type(client, AsyncClient)
        assert_type(await client.complete("hi"), str)
        assert_type(await client.batch_complete(prompts()), list[str])
        assert_type(await client.batch_complete(["a"], return_exceptions=False), list[str])
        assert_type(await client.batch_complete(["a"], return_exceptions=True), list[str | MillstreamError])
        assert_type(await client.batch_complete(["a"], return_exceptions=flag), list[str | MillstreamError])
        assert_type(await client.chat.completions.create(messages=[]), ChatCompletion)
        assert_type(await client.models.list(), ModelList)
        assert_type(client.with_options(base_url="https://h/v1", api_key="k", model="n"), AsyncClient)
    await client.aclose()
    await client.close()


async def limits() -> None:
    limiter = RateLimiter(requests_per_minute=5)
    assert_type(await limiter.acquire(tokens=5), Reservation)
    assert_type(limiter.acquire_blocking(1, 2.5), Reservation)
    assert_type(limiter.try_acquire(), Reservation | None)
    assert_type(limiter.waiting, int)
    async with limiter as entered:
        assert_type(entered, RateLimiter)
    with limiter as entered_blocking:
        assert_type(entered_blocking, RateLimiter)
    reservation = limiter.acquire_blocking()
    assert_type(reservation.tokens, float)
    reservation.settle(5)
    reservation.settle(input_tokens=5, output_tokens=6)
    limiter.set_limits(tokens_per_day=1e6, algorithm="sliding_window")
    assert_type(limiter.snapshot().limits[0].level, float)
    assert_type(limiter.estimated_wait(tokens=5), float)
    assert_type(await limiter.reserve(tokens=5, priority=1, max_wait=2), Reservation)
    async with limiter.reserve(input_tokens=5) as held:
        assert_type(held, Reservation)
    with limiter.reserve() as held_blocking:
        assert_type(held_blocking, Reservation)


async def steering() -> None:
    endpoint = Endpoint("https://h/v1", "k", weight=2, rpm=60, tpm=1e5, model_map={"m": "n"})
    assert_type(endpoint.base_url, str)
    assert_type(endpoint.key_id, str)
    assert_type(endpoint.has_key, bool)
    assert_type(endpoint.weight, float)
    assert_type(endpoint.rpm, float | None)
    assert_type(endpoint.tpm, float | None)
    assert_type(endpoint.model_map, dict[str, str])
    Client(endpoints=[endpoint], fallback_models=["b"], max_concurrency="auto", hedge_after="p95")
    async with AsyncClient(api_key=["a", "b"], fallback_models=("b", "c"), hedge_after=2) as client:
        assert_type(await client.complete("hi", priority=1), str)
        assert_type(await client.batch_complete(["hi"], priority=-1), list[str])
        assert_type(await client.chat.completions.create(messages=[], priority=1), ChatCompletion)
        client.with_options(api_key=["a"], max_concurrency="auto", hedge_after=None, fallback_models=[])
        stats = client.stats()
    assert_type(stats.concurrency, ConcurrencyStats)
    assert_type(stats.limiter, RateLimiterSnapshot | None)
    assert_type(stats.lanes, tuple[LaneStats, ...])
    assert_type(stats.lanes[0].limiter, RateLimiterSnapshot | None)
    assert_type(stats.lanes[0].waits.gate.p95, float)
    if stats.limiter is not None:
        assert_type(stats.limiter.limits, tuple[LimitLevel, ...])


def errors(client: Client) -> None:
    try:
        client.complete("hi")
    except RateLimitError as error:
        assert_type(error.retry_after, float | None)
        assert_type(error.attempts, int)
    except APIStatusError as error:
        assert_type(error.status_code, int | None)
        assert_type(error.request_id, str | None)
    except APIError as error:
        assert_type(error.elapsed, float)
        assert_type(error.key_id, str | None)
        assert_type(error.retryable, bool)
    except MillstreamError as error:
        assert_type(error.message, str)


def mock() -> None:
    fault: Fault = "hang_before"
    with MockServer(latency=(0.1, 0.5), requests_per_minute=60) as server:
        server.script(Answer(status=503), Answer(fault=fault, times=0))
        server.when("x", Answer(body={"a": 1}))
        assert_type(server.base_url, str)
        assert_type(server.requests, list[RecordedRequest])
        assert_type(server.requests[0].header("a"), str | None)
        assert_type(server.stats, MockStats)
        assert_type(server.stats.max_in_flight, int)


def batch_policy() -> None:
    policy = AdaptiveBatchPolicy("aimd", initial_batch_size=5, max_batch_size=20)
    assert_type(policy.record(5, 1.5, 4, 1), int)
    assert_type(policy.batch_size, int)
    assert_type(policy.metrics, list[BatchMetrics])
    assert_type(policy.metrics[0]["success_rate"], float)


def providers() -> None:
    assert_type(create_client("anthropic", model="m"), AsyncClient)
    assert_type(create_client("mistral", async_mode=False), Client)
    assert_type(create_from_config({"model": "m"}), AsyncClient)
    assert_type(create_from_config("config.toml", profile="local", async_mode=False), Client)


def prices_and_progress(progress: Progress) -> None:
    prices = Prices({"a": (1, 2), "b": {"input": 1, "output": 2}, "c": Price(1, 2), "d": None})
    assert_type(prices.of("a"), Price | None)
    assert_type(Price(input=1, output=2.5).cost(1, 2), float)
    assert_type(Prices("prices.json").date, str)
    assert_type(progress.left, int | None)
    assert_type(progress.projected_cost, float | None)
    assert_type(progress.waiting, Literal["rate", "concurrency", "server"] | None)
    client = Client(provider="azure", auth="bearer", api_version="2024-10-21")
    assert_type(client.provider, str)
    assert_type(client.test_connection(), bool)
    assert_type(client.chat.completions.create(messages=[]).raw_body, bytes)


async def vendor_batches(client: AsyncClient) -> None:
    batches = VendorBatches(client, system="s", temperature=0.0)
    job = await batches.submit(["a", {"prompt": "b"}], via="openai", output="out", max_items=5)
    assert_type(job, BatchJob)
    assert_type(batches.submit_blocking("in.jsonl", strict=True), BatchJob)
    assert_type(batches.open("out"), BatchJob)
    assert_type(await job.wait(poll=1.0, timeout=None), BatchJobStatus)
    assert_type((await job.status()).parts, list[BatchPartStatus])
    assert_type(job.cancel_blocking().done, bool)
    assert_type(await job.fetch(), BatchJobResult)
    assert_type(job.results_blocking(), list[dict[str, Any]])
    assert_type(await client.get("batches"), Reply)
    assert_type(await client.upload("files", "f", fields={"purpose": "batch"}, timeout=None), Reply)
    await client.download("files/f/content", "out")


def surface(client: Client, flag: bool) -> None:
    assert_type(client.get("batches", extra_query={"limit": 1}), Reply)
    assert_type(client.upload("files", "f", content_type="text/plain"), Reply)
    assert_type(client.post("rerank", {"a": [1]}, extra_query={"b": 1}, max_retries=0), Reply)
    assert_type(client.responses.create(input="hi"), Response)
    assert_type(client.responses.create(input=[{"role": "user", "content": "hi"}], stream=False), Response)
    assert_type(client.responses.create(input="hi", stream=True), EventStream[Response])
    assert_type(client.responses.create(input="hi", stream=flag), Response | EventStream[Response])
    assert_type(client.responses.create(input="hi").output_text, str)
    assert_type(client.completions.create(prompt="hi"), Completion)
    assert_type(client.completions.create(prompt=["hi"], stream=True), EventStream[Completion])
    assert_type(client.completions.create(prompt="hi", stream=True).response, Completion)
    embeddings = client.embed(iter(["hi"]), dimensions=8, on_error="nan", too_long="truncate", count_tokens=len)
    assert_type(embeddings, Embeddings)
    assert_type(embeddings.shape, tuple[int, int])
    assert_type(embeddings[0], memoryview[float])
    assert_type(embeddings.errors, dict[int, MillstreamError])
    assert_type(client.embed_one("hi", model="m"), memoryview[float])
    for page in client.embed_stream(["hi"], page_size=2):
        assert_type(page, Embeddings)
    client.embed(["hi"], on_error="ignore")  # type: ignore[arg-type]
    for event in client.responses.create(input="hi", stream=True):
        assert_type(event, StreamEvent)
    answer = client.embeddings.create(input=["hi"], dimensions=8)
    assert_type(answer, CreateEmbeddingResponse)
    assert_type(answer.data, list[Embedding])
    assert_type(answer.data[0].embedding, list[float])
    assert_type(client.chat.completions.with_raw_response.create(messages=[]), RawResponse[ChatCompletion])
    assert_type(client.embeddings.with_raw_response.create(input="hi").parse(), CreateEmbeddingResponse)
    assert_type(client.responses.with_raw_response.create(input="hi").content, bytes)
    Client(api_key=lambda: "token", default_query={"a": 1}, organization="o", project="p").with_options(project="q")


async def token() -> str:
    return "token"


async def surface_async(flag: bool) -> None:
    client = AsyncClient(api_key=token)
    assert_type(await client.post("rerank"), Reply)
    assert_type(await client.responses.create(input="hi", max_retries=1), Response)
    assert_type(await client.responses.create(input="hi", stream=True), AsyncEventStream[Response])
    assert_type(await client.completions.create(prompt="hi", stream=flag), Completion | AsyncEventStream[Completion])
    assert_type(await (await client.completions.create(prompt="hi", stream=True)).get_final(), Completion)
    assert_type(await client.embeddings.create(input=[1, 2]), CreateEmbeddingResponse)
    assert_type(await client.responses.with_raw_response.create(input="hi"), RawResponse[Response])
    assert_type(await client.embed(["hi"]), Embeddings)
    async for page in client.embed_stream(["hi"]):
        assert_type(page, Embeddings)
    async with EmbeddingBatcher(client, linger=0.01, model="m") as batcher:
        assert_type(await batcher.embed("hi"), memoryview[float])


async def bulk(client: AsyncClient, blocking: Client) -> None:
    """Runs of any length."""
    processor = BatchProcessor(client, template="{text}", budget_usd=1.0, prices={"m": (1.0, 2.0)}, temperature=0)
    results = await processor.process_all(["a", {"prompt": "b"}])
    assert_type(results, BatchResults)
    assert_type(results[0], BatchResult)
    assert_type(results[0].text, str | None)
    assert_type(results[0].error, MillstreamError | None)
    assert_type(results[0].response, ChatCompletion | None)
    assert_type(results[0].usage, Usage | None)
    assert_type(results.texts(), list[str | None])
    assert_type(results.errors, dict[int, MillstreamError])
    assert_type(results.raise_first(), BatchResults)
    assert_type(results.summary(), BatchSummary)
    assert_type(results.summary().cost, float | None)
    assert_type(processor.stream("items.jsonl"), AsyncBatchStream)
    async for result in processor.as_completed(iter(["a"])):
        assert_type(result, BatchResult)
    assert_type(await processor.map(lambda item: item["text"], [{"text": "a"}]), BatchResults)
    assert_type(await processor.process_in_batches(["a"], 10, delay=0.5), BatchResults)
    assert_type(processor.create_batches(["a"]), list[list[str]])
    assert_type(processor.metrics, list[BatchMetrics])
    assert_type(processor.progress(), Progress)
    blocked = BatchProcessor(blocking, adaptive=AdaptiveBatchPolicy(), on_error="skip", order="prefix")
    assert_type(blocked.process_all_blocking(["a"]), BatchResults)
    assert_type(blocked.stream_blocking(["a"]), BatchStream)
    assert_type(blocked.process_item_blocking("a"), BatchResult)
    blocked.stop(grace=1)
    BatchProcessor(client, on_error="ignore")  # type: ignore[arg-type]
