"""An independent mock server that grades its clients: LLMock plays a provider with true limits and random faults.

Its verdict names what a client did wrong: undercut a Retry-After, retried what cannot be retried, stormed, gave up.
It is a third party's, so it shares none of our assumptions. The official client completes 662 of these 700.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from helpers import KEY
from millstream import AsyncClient, RateLimiter
from real_server import real_python

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.real, pytest.mark.slow]

REQUESTS = 700
LLMOCK = Path(real_python()).with_name("llmock")
STARTUP_TIMEOUT_S = 60.0


class Examiner:
    """One LLMock process."""

    def __init__(self, *options: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        command = [str(LLMOCK), "serve", "--port", str(self.port), "--log-level", "warning", *options]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + STARTUP_TIMEOUT_S
        while not self._is_up():
            assert self._process.poll() is None, f"llmock ended with {self._process.returncode}"
            assert time.monotonic() < deadline, "llmock did not start"
            time.sleep(0.05)

    def _is_up(self) -> bool:
        try:
            # Not one of the API's paths: the random 503 would be for this, and it would be graded.
            self.get("/_llmock/verdict")
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
        return True

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
            return json.load(answer)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def examiner() -> Iterator[Examiner]:
    if not LLMOCK.exists():
        message = f"no examiner: {LLMOCK} is missing; see CONTRIBUTING.md"
        if os.environ.get("MILLSTREAM_REQUIRE_REAL") == "1":
            pytest.fail(message, pytrace=False)
        pytest.skip(message)
    examiner = Examiner("--rpm", "600", "--error-rate", "503=0.1")
    yield examiner
    examiner.stop()


@pytest.mark.parametrize("told", [False, True], ids=["limit-learnt", "limit-told"])
async def test_an_independent_examiner_finds_nothing_wrong_and_every_item_is_answered(
    examiner: Examiner, told: bool
) -> None:
    limiter = RateLimiter(requests_per_minute=600) if told else None
    async with AsyncClient(
        api_key=KEY, base_url=examiner.base_url, model="gpt-4o", max_retries=8, rate_limiter=limiter
    ) as client:
        # It groups attempts by body, so the prompts must differ.
        prompts = [f"prompt number {index}" for index in range(REQUESTS)]
        answers = await client.batch_complete(prompts, max_concurrent=64, return_exceptions=True)
    failed = [answer for answer in answers if not isinstance(answer, str)]
    assert not failed, failed[:3]
    verdict = examiner.get("/_llmock/verdict")
    assert verdict["passed"], verdict
    assert (verdict["errors"], verdict["warnings"], verdict["findings"]) == (0, 0, [])
    assert verdict["calls"] >= REQUESTS
