"""A process that may open few files: what is in its way is its own, so no item is lost and no server blamed."""

from __future__ import annotations

import pytest
from child import run
from millstream.testing import MockServer

pytest.importorskip("resource")

FEW = """
import os, resource, sys
import millstream.types  # what is imported at its first use would find no file, either
from millstream import APIConnectionError, Client

resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))
options = dict(api_key="k", base_url=sys.argv[1], model="m")
prompts = [f"prompt {number}" for number in range(200)]
answers = [f"echo: {prompt}" for prompt in prompts]
"""


@pytest.fixture
def server() -> MockServer:
    return MockServer(latency=0.05)


def test_a_window_that_steers_itself_stays_below_the_files_that_may_be_open(server: MockServer) -> None:
    asked = """
with Client(**options) as client:
    print(client.batch_complete(prompts) == answers, client.stats().max_in_flight <= 30)
"""
    with server:
        assert run(FEW + asked, server.base_url) == (0, "True True", "")


@pytest.mark.parametrize("retries", [0, 2])
def test_a_batch_with_more_in_flight_than_files_is_answered_whole(server: MockServer, retries: int) -> None:
    asked = f"""
with Client(**options, max_concurrency=150, max_retries={retries}) as client:
    print(client.batch_complete(prompts) == answers, client.stats().failed)
"""
    with server:
        assert run(FEW + asked, server.base_url) == (0, "True 0", "")
        assert server.stats.requests == 200


def test_what_could_not_leave_is_no_attempt_and_spends_nothing(server: MockServer) -> None:
    asked = """
from millstream import BatchProcessor, RateLimiter

limiter = RateLimiter(requests_per_day=1000, burst=1000)
with Client(**options, max_concurrency=150, rate_limiter=limiter) as client:
    results = BatchProcessor(client, progress=False).process_all_blocking(prompts)
    print({result.attempts for result in results}, round(limiter.snapshot().limits[0].level))
"""
    with server:
        assert run(FEW + asked, server.base_url) == (0, "{1} 800", "")


def test_a_call_without_a_file_says_so_and_the_client_stays_usable(server: MockServer) -> None:
    asked = """
up = Client(**options)
up.complete("the engine has its files, and keeps a connection")
client = Client(**options, max_retries=1)
taken = []
try:
    while True:
        taken.append(os.open(os.devnull, os.O_RDONLY))
except OSError:
    pass
try:
    client.complete("hi")
except APIConnectionError as error:
    said = str(error)
for each in taken:
    os.close(each)
print("too many open files" in said, "ulimit -n" in said, client.complete("hi"))
client.close(), up.close()
"""
    with server:
        assert run(FEW + asked, server.base_url) == (0, "True True echo: hi", "")
