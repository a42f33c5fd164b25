"""The pattern of the script in OpenAI's cookbook (`api_request_parallel_processor.py`), with aiohttp.

One loop starts a request a millisecond while the minute's capacity lasts, those to be tried again first, and tries each
five times without a backoff; each answer is appended to a file that is opened for it. There is no limit of what is in
flight. The capacity is so high here that nothing waits for it, and tokens are counted by length, since a tokenizer's
table would have to be downloaded. The script's pause of 15 s is left out: it is for errors with the code "429", which
OpenAI's API does not send.
"""

import asyncio
import json
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from _bulk import Outcome, run_tool
from _common import API_KEY, Job, chat_body, text_of

PER_MINUTE = 1e9
ATTEMPTS = 5
TICK_S = 0.001


@dataclass(slots=True)
class Request:
    body: dict[str, Any]
    index: int
    attempts_left: int = ATTEMPTS
    errors: list[Any] = field(default_factory=list)

    @property
    def tokens(self) -> float:
        return sum(len(message["content"]) for message in self.body["messages"]) / 4 + 15


@dataclass(slots=True)
class Capacity:
    """What is left of a minute's requests or tokens."""

    left: float = PER_MINUTE
    since: float = field(default_factory=time.time)

    def refill(self) -> None:
        now = time.time()
        self.left = min(PER_MINUTE, self.left + PER_MINUTE * (now - self.since) / 60)
        self.since = now


class Script:
    def __init__(self, job: Job, target: Path) -> None:
        self.url = job.chat_url
        self.target = target
        self.again: deque[Request] = deque()
        self.in_progress = 0
        self.tasks: set[asyncio.Task[None]] = set()

    async def run(self, source: Path) -> None:
        requests, tokens = Capacity(), Capacity()
        upcoming: Request | None = None
        with source.open() as file:
            async with aiohttp.ClientSession() as session:
                while True:
                    upcoming = upcoming or self.next(file)
                    requests.refill()
                    tokens.refill()
                    if upcoming and requests.left >= 1 and tokens.left >= upcoming.tokens:
                        requests.left -= 1
                        tokens.left -= upcoming.tokens
                        self.start(session, upcoming)
                        upcoming = None
                    if not self.in_progress:
                        return
                    await asyncio.sleep(TICK_S)

    def next(self, file: Iterator[str]) -> Request | None:
        if self.again:
            return self.again.popleft()
        line = next(file, None)
        if line is None:
            return None
        body = json.loads(line)
        self.in_progress += 1
        return Request(body, body.pop("metadata")["row"])

    def start(self, session: aiohttp.ClientSession, request: Request) -> None:
        request.attempts_left -= 1
        task = asyncio.create_task(self.call(session, request))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def call(self, session: aiohttp.ClientSession, request: Request) -> None:
        try:
            headers = {"Authorization": f"Bearer {API_KEY}"}
            async with session.post(self.url, headers=headers, json=request.body) as response:
                answer = await response.json()
            error = answer if "error" in answer else None
        except Exception as fault:
            error = str(fault)
        if error is None:
            self.append([request.body, answer, {"row": request.index}])
        else:
            request.errors.append(error)
            if request.attempts_left:
                self.again.append(request)
                return
            self.append([request.body, [str(error) for error in request.errors], {"row": request.index}])
        self.in_progress -= 1

    def append(self, outcome: list[Any]) -> None:
        with self.target.open("a") as file:
            file.write(json.dumps(outcome) + "\n")


def carry(job: Job, source: Path, target: Path) -> None:
    asyncio.run(Script(job, target).run(source))


def line(index: int, prompt: str) -> dict[str, Any]:
    return {**chat_body(prompt), "metadata": {"row": index}}


def read(target: Path) -> Iterator[Outcome]:
    with target.open() as file:
        for text in file:
            _, answer, metadata = json.loads(text)
            yield metadata["row"], text_of(answer) if isinstance(answer, dict) else None


if __name__ == "__main__":
    run_tool(carry, "aiohttp", line=line, read=read)
