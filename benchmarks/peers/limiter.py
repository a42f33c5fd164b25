"""What a place in a rate limiter's line costs with `--requests` waiting at once: CPU time for each that passes."""

import argparse
import asyncio
import gc
import importlib.metadata
import time
from collections.abc import Awaitable, Callable

from _common import cpu_seconds, print_result, reset_peak_rss, rss_mb

PER_SECOND = 10_000
BURST = 100


def limiter_of(kind: str) -> Callable[[], Awaitable[object]]:
    if kind == "aiolimiter":
        from aiolimiter import AsyncLimiter

        return AsyncLimiter(BURST, BURST / PER_SECOND).acquire
    from millstream import RateLimiter

    return RateLimiter(requests_per_second=PER_SECOND, burst=BURST).acquire


async def measure(kind: str, count: int) -> None:
    acquire = limiter_of(kind)
    await acquire()
    gc.collect()
    reset_peak_rss()
    baseline_mb, cpu_before, start = rss_mb("VmRSS"), cpu_seconds(), time.perf_counter()
    await asyncio.gather(*[acquire() for _ in range(count)])
    seconds, cpu = time.perf_counter() - start, cpu_seconds() - cpu_before
    print_result(
        {
            "peer": f"{kind}_limiter",
            "versions": {kind: importlib.metadata.version(kind)},
            "requests": count,
            "seconds": seconds,
            "rps": count / seconds,
            "cpu_us_per_request": cpu * 1e6 / count,
            "baseline_rss_mb": baseline_mb,
            "peak_rss_mb": rss_mb("VmHWM"),
        }
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=["millstream", "aiolimiter"], required=True)
    parser.add_argument("--requests", type=int, default=20_000, help="waiting at once (default: 20,000)")
    given = parser.parse_args()
    asyncio.run(measure(given.kind, given.requests))
