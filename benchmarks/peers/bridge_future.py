"""What one awaited future costs: completed by millstream's bridge, or by asyncio itself.

`--kind bridge` gathers futures of `millstream._bridge.probe()`: each is created in the loop, completed by a
task of the Rust runtime on its own thread and brought back through the loop's port. `--kind asyncio` gathers
futures that the loop completes itself with `call_soon`: the least that any awaitable can cost.
"""

import argparse
import asyncio
import gc
import importlib.metadata
import time
from typing import TYPE_CHECKING

from _common import cpu_seconds, print_result, reset_peak_rss, rss_mb

if TYPE_CHECKING:
    from collections.abc import Callable


def asyncio_probe() -> "asyncio.Future[None]":
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()
    loop.call_soon(future.set_result, None)
    return future


def probe_of(kind: str) -> "Callable[[], asyncio.Future[None]]":
    if kind == "asyncio":
        return asyncio_probe
    from millstream._bridge import probe

    return probe


async def gather(probe: "Callable[[], asyncio.Future[None]]", count: int) -> None:
    await asyncio.gather(*[probe() for _ in range(count)])


async def measure(kind: str, count: int) -> None:
    probe = probe_of(kind)
    await gather(probe, count // 10)
    gc.collect()
    reset_peak_rss()
    baseline_mb, cpu_before, start = rss_mb("VmRSS"), cpu_seconds(), time.perf_counter()
    await gather(probe, count)
    seconds, cpu = time.perf_counter() - start, cpu_seconds() - cpu_before
    print_result(
        {
            "peer": f"{kind}_future",
            "versions": {"millstream": importlib.metadata.version("millstream")} if kind == "bridge" else {},
            "requests": count,
            "seconds": seconds,
            "cpu_seconds": cpu,
            "rps": count / seconds,
            "cpu_us_per_request": cpu * 1e6 / count,
            "us_per_future": seconds * 1e6 / count,
            "baseline_rss_mb": baseline_mb,
            "peak_rss_mb": rss_mb("VmHWM"),
        }
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", choices=["bridge", "asyncio"], required=True)
    parser.add_argument("--requests", type=int, default=100_000, help="futures gathered (default: 100,000)")
    given = parser.parse_args()
    asyncio.run(measure(given.kind, given.requests))
