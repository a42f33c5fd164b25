"""Many prompts at once: order, failures, concurrency, and every prompt answered exactly once."""

from __future__ import annotations

import asyncio
import pickle
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from helpers import KEY, until, until_async
from millstream import (
    APIResponseValidationError,
    APIStatusError,
    AsyncClient,
    BadRequestError,
    Client,
    InputTooLargeError,
    InternalServerError,
    MillstreamError,
    RateLimiter,
)
from millstream.testing import Answer, MockServer

if TYPE_CHECKING:
    from collections.abc import Callable

    from helpers import Face

    Make = Callable[..., Face]


def prompts_seen(server: MockServer) -> Counter[str]:
    return Counter(request.json()["messages"][-1]["content"] for request in server.requests)


def items(count: int) -> list[str]:
    """Prompts of which none contains another."""
    return [f"<item {number}>" for number in range(count)]


def test_order_is_kept_when_later_items_finish_first(face: Face, mock_server: MockServer) -> None:
    prompts = items(8)
    for place, prompt in enumerate(prompts):
        mock_server.when(prompt, Answer(text=f"answer {place}", latency=0.02 * (len(prompts) - place)))

    assert face.batch_complete(prompts) == [f"answer {place}" for place in range(len(prompts))]
    assert mock_server.stats.max_in_flight == len(prompts)


def test_no_prompts_give_no_answers(face: Face, mock_server: MockServer) -> None:
    assert face.batch_complete([]) == []
    assert face.batch_complete(iter(())) == []
    assert face.batch_complete([], return_exceptions=True) == []
    assert mock_server.stats.connections == 0


def test_equal_prompts_are_each_asked(face: Face, mock_server: MockServer) -> None:
    assert face.batch_complete(["same"] * 50) == ["echo: same"] * 50
    assert prompts_seen(mock_server) == {"same": 50}


def test_one_failing_item_disturbs_no_other(face: Face, mock_server: MockServer) -> None:
    prompts = items(300)
    mock_server.when("<item 7>", Answer(status=400))
    mock_server.when("<item 8>", Answer(fault="reset_before", times=0))
    mock_server.when("<item 9>", Answer(body={}, times=0))
    answers = face.batch_complete(prompts, return_exceptions=True)

    failed = {place: answer for place, answer in enumerate(answers) if not isinstance(answer, str)}
    assert {place: type(error).__name__ for place, error in failed.items()} == {
        7: "BadRequestError",
        8: "APIConnectionError",
        9: "APIResponseValidationError",
    }
    assert all(answers[place] == f"echo: {prompts[place]}" for place in range(300) if place not in failed)
    attempts = {prompt: failed[place].attempts if place in failed else 1 for place, prompt in enumerate(prompts)}
    assert prompts_seen(mock_server) == attempts
    # A reset may have met a pooled connection, which is then tried once more outside of the retries.
    assert [attempts[prompts[place]] for place in (7, 9)] == [1, 3]
    assert attempts["<item 8>"] in (3, 4)


def test_a_hanging_item_holds_up_nothing_but_itself(make: Make, mock_server: MockServer) -> None:
    prompts = items(200)
    mock_server.when("<item 3>", Answer(fault="hang_before", times=0))
    started = time.monotonic()
    answers = make(timeout=0.5, max_concurrency=4).batch_complete(prompts, return_exceptions=True)

    assert time.monotonic() - started < 0.5 + 1
    assert [place for place, answer in enumerate(answers) if isinstance(answer, TimeoutError)] == [3]
    assert sum(isinstance(answer, str) for answer in answers) == 199


def test_the_first_error_is_raised_after_the_others_were_aborted(face: Face, mock_server: MockServer) -> None:
    prompts = items(40)
    mock_server.when("<item 39>", Answer(status=400, latency=0.05))
    mock_server.script(Answer(fault="hang_before", times=0))

    with pytest.raises(BadRequestError) as caught:
        face.batch_complete(prompts)
    assert caught.value.attempts == 1
    until(lambda: mock_server.stats.in_flight == 0, 1)
    assert mock_server.stats.aborted == 39
    mock_server.clear()
    assert face.complete("the client still works") == "echo: the client still works"


def test_the_first_error_keeps_the_rest_from_being_sent(face: Face, mock_server: MockServer) -> None:
    mock_server.when("<item 0>", Answer(status=401))
    with pytest.raises(MillstreamError):
        face.batch_complete(items(1000), max_concurrent=2)

    assert mock_server.stats.requests < 500


def test_return_exceptions_keeps_bad_input_an_exception(face: Face, mock_server: MockServer) -> None:
    with pytest.raises(TypeError, match=r"prompts\[1\]"):
        face.batch_complete(["fine", None], return_exceptions=True)
    assert mock_server.stats.requests == 0


def test_an_item_that_no_limit_lets_pass_fails_alone(make: Make, mock_server: MockServer) -> None:
    face = make(rate_limiter=RateLimiter(tokens_per_minute=100))
    answers = face.batch_complete(["small", "x" * 1000], return_exceptions=True)

    assert answers[0] == "echo: small"
    assert isinstance(answers[1], InputTooLargeError)
    assert mock_server.stats.requests == 1


# ---- concurrency ----


@pytest.mark.mock_server(latency=0.2)
def test_max_concurrent_is_how_many_are_in_flight(face: Face, mock_server: MockServer) -> None:
    for count, max_concurrent, expected in ((12, 3, 3), (200, 100, 100), (200, 1000, 200)):
        mock_server.clear()
        face.batch_complete(items(count), max_concurrent=max_concurrent)
        assert mock_server.stats.max_in_flight == expected


@pytest.mark.mock_server(latency=0.02)
@pytest.mark.parametrize("max_concurrency", [None, "auto"])
def test_by_default_the_window_starts_at_64_and_grows_while_the_server_keeps_up(
    make: Make, mock_server: MockServer, max_concurrency: str | None
) -> None:
    face = make(max_concurrency=max_concurrency)
    face.batch_complete(items(64))
    assert mock_server.stats.max_in_flight <= 64
    face.batch_complete(items(2000))
    window = face.client.stats().concurrency
    assert mock_server.stats.max_in_flight > 64
    assert (window.in_flight, window.waiting) == (0, 0)
    assert window.limit > 64


@pytest.mark.mock_server(latency=0.02)
def test_an_explicit_max_concurrency_of_the_client_always_holds(make: Make, mock_server: MockServer) -> None:
    face = make(max_concurrency=5)
    for max_concurrent, expected in ((None, 5), (2, 2), (100, 5)):
        mock_server.clear()
        face.batch_complete(items(40), max_concurrent=max_concurrent)
        assert mock_server.stats.max_in_flight == expected


@pytest.mark.mock_server(latency=0.02)
async def test_max_concurrency_holds_over_batches_calls_and_derived_clients(mock_server: MockServer) -> None:
    async with AsyncClient(api_key=KEY, base_url=mock_server.base_url, model="m", max_concurrency=4) as client:
        derived = client.with_options(timeout=9)
        await asyncio.gather(
            client.batch_complete(items(20), max_concurrent=3),
            client.batch_complete(items(20)),
            derived.batch_complete(items(20)),
            *(client.complete(prompt) for prompt in items(20)),
        )
        assert mock_server.stats.max_in_flight == 4
        assert mock_server.stats.requests == 80

        mock_server.clear()
        await client.with_options(max_concurrency=7).batch_complete(items(40))
        assert mock_server.stats.max_in_flight == 7


@pytest.mark.mock_server(latency=0.01)
async def test_single_calls_are_held_to_the_window(mock_server: MockServer) -> None:
    async with AsyncClient(api_key=KEY, base_url=mock_server.base_url, model="m", max_concurrency=64) as client:
        await asyncio.gather(*(client.complete(prompt) for prompt in items(300)))

    assert mock_server.stats.max_in_flight == 64
    assert client.stats().max_in_flight == 64


@pytest.mark.mock_server(latency=0.05)
async def test_the_wait_for_a_place_is_not_in_the_timeout(mock_server: MockServer) -> None:
    async with AsyncClient(
        api_key=KEY, base_url=mock_server.base_url, model="m", max_concurrency=1, timeout=0.2
    ) as client:
        answers = await client.batch_complete(items(8))
        responses = await asyncio.gather(
            *(client.chat.completions.create(messages=[{"role": "user", "content": "hi"}]) for _ in range(3))
        )

    assert len(answers) == 8
    assert sorted(response.queue_time for response in responses)[-1] > 0.08
    assert max(response.elapsed for response in responses) < 0.2


# ---- exactly once ----


def test_ten_thousand_items_are_each_asked_and_answered_exactly_once(face: Face, mock_server: MockServer) -> None:
    prompts = items(10_000)
    answers = face.batch_complete(prompts, max_concurrent=128)

    assert answers == [f"echo: {prompt}" for prompt in prompts]
    assert prompts_seen(mock_server) == dict.fromkeys(prompts, 1)


def test_ten_percent_of_mixed_faults_lose_confuse_and_double_nothing(make: Make, mock_server: MockServer) -> None:
    wait = {"retry-after-ms": "5"}
    troubles = [
        Answer(status=503, headers=wait),
        Answer(status=429, headers=wait),
        Answer(status=500, headers=wait),
        Answer(fault="reset_before"),
        Answer(fault="close_before"),
        Answer(fault="reset_in_body"),
        Answer(fault="truncate"),
        Answer(body=b"<html>busy</html>", headers={"content-type": "text/html"}),
        Answer(body=b"null"),
        Answer(body={}),
        Answer(body={"error": {"message": "busy", "type": "server_error"}}),
        Answer(body=b'{"choices":[{"message":{"content":"cut'),
    ]
    prompts = items(3000)
    for number, prompt in enumerate(prompts[::10]):
        mock_server.when(prompt, troubles[number % len(troubles)])
    answers = make(max_retries=1).batch_complete(prompts, return_exceptions=True)

    wrong = [place for place, answer in enumerate(answers) if answer != f"echo: {prompts[place]}"]
    assert [(place, answers[place]) for place in wrong] == []
    assert prompts_seen(mock_server) == {prompt: 2 if number % 10 == 0 else 1 for number, prompt in enumerate(prompts)}
    assert mock_server.stats.in_flight == 0


def test_attempts_and_tokens_are_the_servers_count(make: Make, mock_server: MockServer) -> None:
    mock_server.script(*(Answer(status=503, headers={"retry-after-ms": "1"}) for _ in range(8)))
    face = make(max_retries=30, max_concurrency=4)
    face.batch_complete(items(100))

    stats = face.client.stats()
    assert (stats.requests, stats.attempts, stats.succeeded) == (100, 108, 100)
    assert mock_server.stats.requests == 108
    assert stats.prompt_tokens == sum(-(-len(prompt) // 4) for prompt in items(100))


def test_errors_in_a_batch_are_those_of_a_single_call(make: Make, mock_server: MockServer) -> None:
    mock_server.script(Answer(status=500, headers={"x-request-id": "req_5"}, times=0))
    face = make(max_retries=0)
    with pytest.raises(InternalServerError) as single:
        face.complete("hi")
    with pytest.raises(InternalServerError) as raised:
        face.batch_complete(["hi"])
    (returned,) = face.batch_complete(["hi"], return_exceptions=True)

    assert isinstance(returned, InternalServerError)
    for error in (single.value, raised.value, returned):
        assert isinstance(error, APIStatusError)
        assert (error.status_code, error.attempts, error.request_id) == (500, 1, "req_5")


def test_a_bad_answer_in_a_batch_is_named_by_its_kind(make: Make, mock_server: MockServer) -> None:
    mock_server.when("<item 1>", Answer(body=b"null", times=0))
    answers = make(max_retries=0).batch_complete(items(2), return_exceptions=True)

    assert answers[0] == "echo: <item 0>"
    assert isinstance(answers[1], APIResponseValidationError)


# ---- the event loop ----


@pytest.mark.slow
async def test_the_loop_does_not_stall_while_a_hundred_thousand_answers_are_handed_over() -> None:
    prompts = items(100_000)
    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.001)
            longest = max(longest, time.monotonic() - before)

    with MockServer(record=False) as server:
        async with AsyncClient(api_key=KEY, base_url=server.base_url, model="m", max_concurrency=128) as client:
            call = asyncio.create_task(client.batch_complete(prompts))
            # What is measured is the handing over, not the taking in, which is one crossing on purpose.
            await until_async(lambda: client.stats().requests > 0)
            ticking = asyncio.create_task(tick())
            answers = await call
            ticking.cancel()

    assert answers == [f"echo: {prompt}" for prompt in prompts]
    assert longest < 0.25


def test_a_blocking_batch_lets_other_threads_run(mock_server: MockServer) -> None:
    import threading

    ticks = 0
    done = threading.Event()

    def tick() -> None:
        nonlocal ticks
        while not done.wait(0.005):
            ticks += 1

    mock_server.script(Answer(text="late", latency=0.3))
    thread = threading.Thread(target=tick)
    thread.start()
    try:
        with Client(api_key=KEY, base_url=mock_server.base_url, model="m") as client:
            client.complete("hi")
    finally:
        done.set()
        thread.join()
    assert ticks > 10


def test_the_error_of_a_batch_names_its_prompt(face: Face, mock_server: MockServer) -> None:
    mock_server.when("prompt 17.", Answer(status=400, times=0))
    prompts = [f"prompt {number}." for number in range(20)]
    with pytest.raises(BadRequestError, match=r"^prompts\[17\]: 400 from ") as caught:
        face.batch_complete(prompts)
    returned = face.batch_complete(prompts, return_exceptions=True)[17]
    for error in (caught.value, returned, pickle.loads(pickle.dumps(returned))):
        assert error.index == 17
        assert str(error).startswith("prompts[17]: ")
    with pytest.raises(BadRequestError, match=r"^400 from ") as single:
        face.complete("prompt 17.")
    assert single.value.index is None


@pytest.mark.parametrize("poisoned", [12])
def test_items_that_always_fail_do_not_take_the_others_with_them(
    face: Face, mock_server: MockServer, poisoned: int
) -> None:
    mock_server.when("poison", Answer(status=500, times=0))
    good = [f"good {number}" for number in range(300)]
    answers = face.batch_complete(
        [f"poison {number}" for number in range(poisoned)] + good, return_exceptions=True, timeout=6
    )
    assert answers[poisoned:] == [f"echo: {prompt}" for prompt in good]
    assert all(isinstance(answer, InternalServerError) for answer in answers[:poisoned])
