"""What a typed answer costs with the GIL held: the record made of what the engine has read, and its usual fields.

The reading itself is done on the engine's thread; `cargo run --release --no-default-features --example stream` says
what that costs. Prints one JSON line, in microseconds: the least of several rounds, since others use the machine, too.
"""

from __future__ import annotations

import json
import time
import timeit
from typing import TYPE_CHECKING

from millstream import Client
from millstream._millstream import BUILD_PROFILE
from millstream.testing import MockServer

if TYPE_CHECKING:
    from collections.abc import Callable

CALLS, ROUNDS = 100_000, 15
# Of the answer, and of it what is around the text.
BYTES, AROUND = 974, 532


def microseconds(work: Callable[[], object]) -> float:
    """The CPU time of one call of ``work`` without that of a call of nothing."""

    def least(work: Callable[[], object]) -> float:
        return min(timeit.repeat(work, timer=time.thread_time, number=CALLS, repeat=ROUNDS)) * 1e6 / CALLS

    return round(least(work) - least(lambda: None), 3)


def main() -> None:
    if BUILD_PROFILE != "release":
        raise SystemExit(f"the installed millstream is a {BUILD_PROFILE} build; its speed means nothing")
    with MockServer() as server, Client(base_url=server.base_url, api_key="sk-bench", model="m") as client:
        stream = client.stream_complete("x" * (BYTES - AROUND))
        for _ in stream:
            pass
        record = stream._native.answer
        answer = record()
        results = {
            "bytes": len(answer.raw_body),
            "record": microseconds(lambda: record()),
            "text": microseconds(lambda: answer.text),
            "choices[0].message.content": microseconds(lambda: answer.choices[0].message.content),
        }
    print(json.dumps(results))


if __name__ == "__main__":
    main()
