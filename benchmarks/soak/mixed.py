"""100,000 prompts at a server that fails each tenth request in some way: none lost, wrong, doubled or misplaced.

``python benchmarks/soak/mixed.py [--items N] [--openai N]``. With ``--openai`` the official client, with as many
retries and the same time limits, asks so many prompts of a server with the same faults. Exits with 1 if a figure is
not held. One JSON line for each client, then the verdicts.

Of the faults two are a 429, one of them with a wait of 100 ms. That holds back all who use the key, so most of the time
goes there; ``--without 429`` leaves them out.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from typing import Any

from common import API_KEY, MODEL, Server, answer_to, prompt_of, status_kb, verdict

AT_ONCE = 256
SHARE = 0.1
ATTEMPTS = 6
SEED = 1
# A hanging attempt is given up after this.
SILENCE_S = 3.0
TOTAL_S = 120.0
MOST_REQUESTS_PER_ITEM = 1.15
MOST_RSS_MB = 300


def judged(answers: list[Any], prompts: list[str]) -> dict[str, Any]:
    """What became of the items. Every prompt has another answer, so one in a wrong place is a wrong one."""
    assert len(answers) == len(prompts)
    lost = Counter(type(answer).__name__ for answer in answers if isinstance(answer, BaseException))
    pairs = list(zip(answers, map(answer_to, prompts), strict=True))
    wrong = sum(not isinstance(answer, BaseException) and answer != expected for answer, expected in pairs)
    return {"lost": lost.total(), "wrong": wrong, "errors": dict(lost)}


async def by_millstream(prompts: list[str], base_url: str) -> list[Any]:
    from millstream import AsyncClient, Timeout

    timeout = Timeout(TOTAL_S, first_byte=SILENCE_S, idle=SILENCE_S)
    async with AsyncClient(
        api_key=API_KEY,
        base_url=base_url,
        model=MODEL,
        timeout=timeout,
        max_retries=ATTEMPTS - 1,
        max_concurrency=AT_ONCE,
    ) as client:
        return await client.batch_complete(prompts, max_concurrent=AT_ONCE, return_exceptions=True)


async def by_openai(prompts: list[str], base_url: str) -> list[Any]:
    from httpx2 import Limits
    from openai import AsyncOpenAI, DefaultAsyncHttpxClient

    pool = DefaultAsyncHttpxClient(limits=Limits(max_connections=AT_ONCE, max_keepalive_connections=AT_ONCE))
    places = asyncio.Semaphore(AT_ONCE)
    async with AsyncOpenAI(
        api_key=API_KEY, base_url=base_url, timeout=SILENCE_S, max_retries=ATTEMPTS - 1, http_client=pool
    ) as client:

        async def ask(prompt: str) -> str | None:
            async with places:
                completion = await client.chat.completions.create(
                    model=MODEL, messages=[{"role": "user", "content": prompt}]
                )
                return completion.choices[0].message.content

        return await asyncio.gather(*map(ask, prompts), return_exceptions=True)


def measure(name: str, carry: Any, items: int, without: str) -> dict[str, Any]:
    prompts = [prompt_of(index) for index in range(items)]
    faults = ("--requests", 2 * items + 10_000, "--share", SHARE, "--seed", SEED)
    with Server(*faults, *(("--without", without) if without else ())) as server:
        start = time.perf_counter()
        answers = asyncio.run(carry(prompts, server.base_url))
        seconds = time.perf_counter() - start
        stats = server.stats()
    # What was answered well and did not become the answer of an item was paid for twice.
    well = stats["requests"] - stats["faults"]
    result = judged(answers, prompts)
    answered = items - result["lost"]
    return {
        "client": name,
        "items": items,
        "at_once": AT_ONCE,
        "seconds": round(seconds, 1),
        **result,
        "requests": stats["requests"],
        "requests_per_item": round(stats["requests"] / items, 4),
        "faults": stats["faults"],
        "complete_twice": max(0, well - (answered - result["wrong"])),
        "peak_rss_mb": round(status_kb("VmHWM") / 1024, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--openai", type=int, default=0, help="items for the official client; default: it stays out")
    parser.add_argument("--without", default="", help="leave out faults whose names begin so")
    given = parser.parse_args()
    result = measure("millstream", by_millstream, given.items, given.without)
    print(json.dumps(result), flush=True)
    if given.openai:
        print(json.dumps(measure("openai", by_openai, given.openai, given.without)), flush=True)
    verdicts = [
        verdict("lost", result["lost"], 0),
        verdict("wrong or misplaced", result["wrong"], 0),
        verdict("answered twice", result["complete_twice"], 0),
        verdict("requests per item", result["requests_per_item"], MOST_REQUESTS_PER_ITEM),
        verdict("peak RSS", result["peak_rss_mb"], MOST_RSS_MB, " MB"),
    ]
    for _, line in verdicts:
        print(line, file=sys.stderr)
    return 0 if all(held for held, _ in verdicts) else 1


if __name__ == "__main__":
    raise SystemExit(main())
