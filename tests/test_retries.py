"""Whether and when an attempt is made again, as the server saw it; and retries for functions of the user's own."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import inspect
import itertools
import pickle
import signal
import threading
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from helpers import made, run_python, until, until_async
from millstream import (
    APIConnectionError,
    APIError,
    APIResponseValidationError,
    BadRequestError,
    ClientClosedError,
    ConfigurationError,
    InternalServerError,
    NotFoundError,
    OverloadedError,
    RateLimitError,
    RetryPolicy,
    retry_with_backoff,
    retrying,
)
from millstream import exceptions as errors
from millstream.testing import Answer

if TYPE_CHECKING:
    from collections.abc import Callable

    from helpers import Face
    from millstream.testing import MockServer

    Make = Callable[..., Face]

QUICK: dict[str, Any] = {"base_delay": 0.001, "max_delay": 0.001}
NAME = "idempotency-key"


def fails(face: Face, kind: type[APIError], **arguments: Any) -> Any:
    with pytest.raises(kind) as caught:
        face.complete("hi", **arguments)
    return caught.value


def gaps(server: MockServer) -> list[float]:
    arrivals = [request.arrived for request in server.requests]
    return [later - earlier for earlier, later in itertools.pairwise(arrivals)]


# ---- the policy of a client ----


def test_the_schedule_is_the_policys(make: Make, mock_server: MockServer) -> None:
    mock_server.script(Answer(status=500, times=4))
    retry = RetryPolicy(max_retries=4, base_delay=0.05, max_delay=0.3, exponential_base=3, jitter="none")
    make(retry=retry).complete("hi")

    waits = [0.05, 0.15, 0.3, 0.3]
    assert all(wait <= gap < wait + 1 for wait, gap in zip(waits, gaps(mock_server), strict=True))


def test_refusals_for_load_are_counted_apart_if_told(make: Make, mock_server: MockServer) -> None:
    face = make(retry=RetryPolicy(max_retries=1, max_rate_limit_retries=3, **QUICK))
    mock_server.script(Answer(status=429), Answer(status=503), Answer(status=500), Answer(status=529))
    assert face.create().attempts == 5
    mock_server.script(Answer(status=500, times=2))
    assert fails(face, InternalServerError).attempts == 2
    mock_server.script(Answer(status=429, times=4))
    assert fails(face, RateLimitError).attempts == 4


def test_a_single_call_counts_refusals_and_faults_together(make: Make, mock_server: MockServer) -> None:
    mock_server.script(Answer(status=500), Answer(status=429, times=2))

    assert fails(make(retry=RetryPolicy(max_retries=2, **QUICK)), RateLimitError).attempts == 3


def test_a_refusal_for_load_does_not_use_up_the_retries_of_an_item(make: Make, mock_server: MockServer) -> None:
    # Fewer 503s in a row than open the breaker.
    mock_server.script(Answer(status=429, times=20), Answer(status=503, times=8))
    face = make(retry=RetryPolicy(max_retries=1, **QUICK))

    assert face.batch_complete(["a", "b"], max_concurrent=2) == ["echo: a", "echo: b"]


@pytest.mark.parametrize(
    "policy", [RetryPolicy(max_retries=0), RetryPolicy(max_retries=3, max_rate_limit_retries=0)], ids=["all", "load"]
)
def test_no_retries_means_none_in_a_batch_too(make: Make, mock_server: MockServer, policy: RetryPolicy) -> None:
    mock_server.script(Answer(status=429, times=0))
    [error] = make(retry=policy).batch_complete(["a"], return_exceptions=True)

    assert (type(error), error.attempts) == (RateLimitError, 1)


def test_the_users_statuses_replace_the_usual_ones(make: Make, mock_server: MockServer) -> None:
    face = make(retry=RetryPolicy(max_retries=2, statuses={404, 429}, **QUICK))
    mock_server.script(Answer(status=404, times=2))
    assert face.create().attempts == 3
    mock_server.script(Answer(status=500))
    assert fails(face, InternalServerError).attempts == 1
    mock_server.script(Answer(status=404, headers={"x-should-retry": "false"}))
    assert fails(face, NotFoundError).attempts == 1
    mock_server.script(Answer(status=400, headers={"x-should-retry": "true"}))
    assert face.create().attempts == 2


def test_no_status_makes_a_used_up_quota_worth_a_retry(make: Make, mock_server: MockServer) -> None:
    mock_server.script(Answer(status=429, body={"error": {"message": "m", "code": "insufficient_quota"}}, times=0))
    error = fails(make(retry=RetryPolicy(max_retries=3, statuses=[429], **QUICK)), errors.InsufficientQuotaError)

    assert (error.attempts, error.retryable) == (1, False)


def test_faults_of_the_connection_can_be_left_alone(make: Make, mock_server: MockServer) -> None:
    face = make(retry=RetryPolicy(connection_faults=False, **QUICK))
    mock_server.script(Answer(fault="truncate"))
    assert fails(face, APIConnectionError).attempts == 1
    mock_server.script(Answer(status=500), Answer(body="{}"))
    assert face.create().attempts == 3


def test_bad_answers_can_be_left_alone(make: Make, mock_server: MockServer) -> None:
    face = make(retry=RetryPolicy(invalid_responses=False, **QUICK))
    mock_server.script(Answer(body="{}"))
    assert fails(face, APIResponseValidationError).attempts == 1
    mock_server.script(Answer(status=500), Answer(fault="truncate"))
    assert face.create().attempts == 3


def test_a_servers_wait_is_kept_up_to_the_longest(make: Make, mock_server: MockServer) -> None:
    face = make(retry=RetryPolicy(longest_retry_after=0.2, **QUICK))
    mock_server.script(Answer(status=429, headers={"retry-after": "0.2"}))
    assert face.create().attempts == 2
    assert gaps(mock_server)[0] >= 0.2
    mock_server.script(Answer(status=429, headers={"retry-after": "0.3"}))
    error = fails(face, RateLimitError)
    assert (error.attempts, error.retry_after, error.retryable) == (1, 0.3, True)


def test_a_servers_wait_can_be_ignored(make: Make, mock_server: MockServer) -> None:
    mock_server.script(Answer(status=429, headers={"retry-after": "15"}))
    response = make(retry=RetryPolicy(respect_retry_after=False, **QUICK)).create()

    assert response.attempts == 2
    assert response.elapsed < 10


def test_max_retries_is_short_for_a_policy_and_goes_over_one(make: Make, mock_server: MockServer) -> None:
    mock_server.script(Answer(status=500, times=0))
    quick = RetryPolicy(max_retries=3, **QUICK)
    face = make(retry=quick)

    assert fails(face, InternalServerError).attempts == 4
    assert fails(make(retry=quick, max_retries=1), InternalServerError).attempts == 2
    assert fails(face.with_options(max_retries=0), InternalServerError).attempts == 1
    assert fails(face.with_options(retry=RetryPolicy(max_retries=5, **QUICK)), InternalServerError).attempts == 6
    assert fails(face.with_options(timeout=15), InternalServerError).attempts == 4


def test_the_defaults_are_what_the_docstring_says() -> None:
    policy = RetryPolicy()

    assert (policy.max_retries, policy.base_delay, policy.max_delay, policy.exponential_base) == (2, 0.5, 8, 2)
    assert (policy.jitter, policy.longest_retry_after, policy.max_rate_limit_retries) == ("full", 120, None)


@pytest.mark.parametrize(
    "broken",
    [
        {"max_retries": -1},
        {"max_rate_limit_retries": -1},
        {"statuses": [200]},
        {"statuses": [429, 600]},
        {"base_delay": -1},
        {"base_delay": float("nan")},
        {"max_delay": 0.1},
        {"max_delay": float("inf")},
        {"exponential_base": 0.9},
        {"jitter": "half"},
        {"longest_retry_after": -1},
    ],
    ids=str,
)
def test_a_policy_is_checked_where_it_is_made(broken: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(broken))):
        RetryPolicy(**broken)


def test_a_policy_is_a_frozen_value() -> None:
    policy = RetryPolicy(statuses=[503, 429], jitter="none")

    assert policy == RetryPolicy(statuses={429, 503}, jitter="none") != RetryPolicy()
    assert pickle.loads(pickle.dumps(policy)) == copy.deepcopy(policy) == policy
    assert len({policy, dataclasses.replace(policy, max_retries=9)}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        policy.max_retries = 1  # type: ignore[misc]


def test_retries_beyond_the_budget_wait_and_none_fails(make: Make, mock_server: MockServer) -> None:
    # A hundred at once and a fifth of the 160 requests, then ten a second. What is answered gives its own back, but
    # here every first retry fails. 408s: a server that fails is the breaker's matter.
    mock_server.script(Answer(status=408, times=320))
    face = make(retry=RetryPolicy(max_retries=9, **QUICK), max_concurrency=160)
    answers = face.batch_complete([f"{index}" for index in range(160)])

    assert answers == [f"echo: {index}" for index in range(160)]
    assert mock_server.stats.requests == 480
    arrived = sorted(request.arrived for request in mock_server.requests)
    assert arrived[-1] - arrived[0] >= 2


# ---- the name of an item ----


def names(server: MockServer) -> list[str | None]:
    return [request.header(NAME) for request in server.requests]


def test_an_item_keeps_its_name_over_all_attempts_and_shares_it_with_none(make: Make, mock_server: MockServer) -> None:
    mock_server.when("first", Answer(status=500), Answer(fault="truncate"), Answer(body="{}"))
    face = make(retry=RetryPolicy(max_retries=3, **QUICK))
    face.complete("first")
    face.batch_complete([str(index) for index in range(50)])

    seen = names(mock_server)
    assert len(seen) == 54
    assert len(set(seen[:4])) == 1
    assert len(set(seen)) == 51
    assert all(uuid.UUID(name).version == 4 for name in seen if name is not None)


def test_the_users_own_name_stays(make: Make, mock_server: MockServer) -> None:
    make().complete("hi", extra_headers={"Idempotency-Key": "mine"})
    make(default_headers={"idempotency-key": "ours"}).complete("hi")

    assert names(mock_server) == ["mine", "ours"]


def test_names_can_be_left_out_and_reading_needs_none(make: Make, mock_server: MockServer) -> None:
    face = make(idempotency_key=False)
    face.complete("hi")
    face.with_options(timeout=5).complete("hi")
    make().models()
    face.with_options(idempotency_key=True).complete("hi")

    assert [name is None for name in names(mock_server)] == [True, True, True, False]


def test_a_forked_child_does_not_go_on_with_its_parents_names(mock_server: MockServer) -> None:
    code = """
import os, sys
from millstream import Client
client = Client(api_key="k", base_url=sys.argv[1], model="m", timeout=20)
client.complete("before")
child = os.fork()
for _ in range(3):
    client.complete("child" if child == 0 else "parent")
if child == 0:
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""
    done = run_python(code, mock_server.base_url)

    assert (done.returncode, done.stderr) == (0, "")
    assert len(set(names(mock_server))) == 7


# ---- every error says whether it may pass ----


def test_every_error_says_whether_the_same_may_succeed_later(make: Make, mock_server: MockServer) -> None:
    for name in errors.__all__:
        # What was not tried to its end may be tried again, whatever it is about.
        assert made(getattr(errors, name), "x").retryable is (name == "BatchStoppedError")
    face = make(max_retries=0)
    mock_server.script(Answer(status=503), Answer(status=400), Answer(fault="truncate"))
    assert fails(face, OverloadedError).retryable
    assert not fails(face, BadRequestError).retryable
    assert fails(face, APIConnectionError).retryable


# ---- a function of the user's own ----


class Flaky:
    """Fails as often as told, then returns its arguments."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.calls = 0

    def __call__(self, *args: Any) -> Any:
        self.calls += 1
        if self.failures:
            raise self.failures.pop(0)
        return args

    async def wait(self, *args: Any) -> Any:
        await asyncio.sleep(0)
        return self(*args)


class Noted:
    """An ``on_retry`` that keeps what it was told."""

    def __init__(self) -> None:
        self.delays: list[float] = []
        self.attempts: list[int] = []

    def __call__(self, error: Exception, attempt: int, delay: float) -> None:
        assert isinstance(error, Exception)
        self.attempts.append(attempt)
        self.delays.append(delay)


async def test_a_call_is_made_until_it_succeeds_with_its_arguments() -> None:
    flaky = Flaky(OSError(), ValueError())

    assert await retry_with_backoff(flaky.wait, 1, "b", base_delay=0) == (1, "b")
    assert flaky.calls == 3


async def test_max_retries_counts_attempts_and_the_last_error_comes_at_once() -> None:
    last = ValueError("last")
    flaky, noted = Flaky(OSError(), last), Noted()
    with pytest.raises(ValueError) as caught:
        await retry_with_backoff(flaky.wait, max_retries=2, base_delay=0, on_retry=noted)
    assert caught.value is last
    assert (flaky.calls, noted.attempts) == (2, [1])
    # A wait of an hour after the only attempt would be noticed.
    with pytest.raises(OSError):
        await asyncio.wait_for(
            retry_with_backoff(Flaky(OSError()).wait, max_retries=1, base_delay=3600, max_delay=3600), 10
        )


async def test_without_jitter_the_waits_double_up_to_the_most() -> None:
    noted = Noted()
    flaky = Flaky(*[OSError() for _ in range(5)])
    await retry_with_backoff(flaky.wait, max_retries=6, base_delay=0.001, max_delay=0.007, jitter=False, on_retry=noted)

    assert noted.delays == pytest.approx([0.001, 0.002, 0.004, 0.007, 0.007])
    assert noted.attempts == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(("jitter", "least"), [(True, 0.5), ("equal", 0.5), ("full", 0.0)])
async def test_jitter_takes_a_part_of_each_wait_away(jitter: Any, least: float) -> None:
    noted = Noted()
    flaky = Flaky(*[OSError() for _ in range(50)])
    await retry_with_backoff(
        flaky.wait, max_retries=51, base_delay=0.001, exponential_base=1, jitter=jitter, on_retry=noted
    )

    assert all(0.001 * least - 1e-9 <= delay <= 0.001 for delay in noted.delays)
    assert len(set(noted.delays)) > 25


@pytest.mark.parametrize(
    "retry_on",
    [OSError, (KeyError, OSError), lambda error: isinstance(error, OSError)],
    ids=["class", "tuple", "function"],
)
async def test_only_what_is_asked_for_is_retried(retry_on: Any) -> None:
    flaky = Flaky(ConnectionError(), ValueError())
    with pytest.raises(ValueError):
        await retry_with_backoff(flaky.wait, max_retries=9, base_delay=0, retry_on=retry_on)
    assert flaky.calls == 2


async def test_an_error_of_ours_that_cannot_pass_is_not_retried() -> None:
    for error in (BadRequestError("x"), ConfigurationError("x"), ClientClosedError("x")):
        flaky = Flaky(error)
        with pytest.raises(type(error)):
            await retry_with_backoff(flaky.wait, base_delay=0)
        assert flaky.calls == 1


async def test_a_wait_that_a_server_asked_for_is_waited_out() -> None:
    error = RateLimitError("x")
    error.retryable, error.retry_after = True, 0.05
    noted = Noted()
    await retry_with_backoff(Flaky(error).wait, base_delay=0, on_retry=noted)
    assert 0.05 <= noted.delays[0] <= 0.06
    error.retry_after = 121
    with pytest.raises(RateLimitError):
        await retry_with_backoff(Flaky(error).wait, base_delay=0)


async def test_cancelling_goes_through() -> None:
    flaky = Flaky(OSError())
    task = asyncio.create_task(retry_with_backoff(flaky.wait, base_delay=3600, max_delay=3600))
    await until_async(lambda: flaky.calls == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 10)
    assert flaky.calls == 1


@pytest.mark.parametrize(
    "broken", [{"max_retries": 0}, {"base_delay": -1}, {"exponential_base": 0}, {"jitter": "half"}]
)
async def test_a_senseless_number_is_refused_by_name_before_the_first_call(broken: dict[str, Any]) -> None:
    flaky = Flaky()
    with pytest.raises(ConfigurationError, match=next(iter(broken))):
        await retry_with_backoff(flaky.wait, **broken)
    assert flaky.calls == 0


# ---- the decorator ----


async def test_a_decorated_coroutine_function_stays_one() -> None:
    flaky = Flaky(OSError())

    @retrying(base_delay=0)
    async def fetch(what: str, *, size: int) -> Any:
        """Fetch it."""
        return await flaky.wait(what, size)

    assert await fetch("it", size=3) == ("it", 3)
    assert (flaky.calls, fetch.__name__, fetch.__doc__) == (2, "fetch", "Fetch it.")
    assert inspect.iscoroutinefunction(fetch)


def test_a_decorated_function_counts_anew_in_every_call() -> None:
    flaky = Flaky(OSError(), OSError(), OSError(), OSError())
    fetch = retrying(max_retries=3, base_delay=0)(flaky.__call__)

    with pytest.raises(OSError):
        fetch(1)
    assert flaky.calls == 3
    assert fetch(2) == (2,)
    assert flaky.calls == 5


def test_ctrl_c_ends_the_wait_of_a_plain_function() -> None:
    # A process that was started in the background of a shell ignores it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    flaky = Flaky(OSError())
    main = threading.main_thread().ident
    assert main is not None

    def interrupt() -> None:
        until(lambda: flaky.calls == 1)
        signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    fetch = retrying(base_delay=3600, max_delay=3600)(flaky.__call__)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            fetch()
    finally:
        signal.signal(signal.SIGINT, before)
    thread.join(10)
    assert flaky.calls == 1


def test_a_generator_cannot_be_begun_again() -> None:
    def numbers() -> Any:
        yield 1

    async def more() -> Any:
        yield 1

    for generator in (numbers, more):
        with pytest.raises(TypeError, match="generator"):
            retrying()(generator)
