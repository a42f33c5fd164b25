"""The mock server with faults by chance, started as a process of its own by the programs beside this one.

Which request meets which fault is drawn from the seed before the first one arrives, in order of arrival. So the number
of requests that a run has sent says how many of them were answered well, without keeping one of them. A line on stdin
is answered with the counters, the end of stdin ends it.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from itertools import accumulate

from millstream.testing import Answer, MockServer

HTML = {"content-type": "text/html"}
CUT = '{"id":"c","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"ec'

# All that a request can meet and that another attempt cures. What no attempt cures (400, 401, 404, ...) is not here.
FAULTS = {
    "408": Answer(status=408),
    "429 with a wait": Answer(status=429, headers={"retry-after-ms": "100"}),
    "429 with no number": Answer(status=429, headers={"retry-after": "soon"}),
    "500": Answer(status=500),
    "502 in HTML": Answer(status=502, body="<html>bad gateway</html>", headers=HTML),
    "503": Answer(status=503),
    "504": Answer(status=504, body=""),
    "529": Answer(status=529, body={"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}),
    "200 in HTML": Answer(body="<html>welcome</html>", headers=HTML),
    "200 null": Answer(body="null"),
    "200 {}": Answer(body="{}"),
    "200 empty": Answer(body=""),
    "200 no choice": Answer(body={"choices": []}),
    "200 with an error": Answer(body={"error": {"message": "The server had an error", "type": "server_error"}}),
    "200 cut JSON": Answer(body=CUT),
    "200 no gzip": Answer(body="no gzip", headers={"content-encoding": "gzip"}),
    "reset before": Answer(fault="reset_before"),
    "closed before": Answer(fault="close_before"),
    "reset in body": Answer(fault="reset_in_body"),
    "truncated": Answer(fault="truncate"),
    "hang before": Answer(fault="hang_before"),
    "hang in body": Answer(fault="hang_in_body"),
}


def draw(requests: int, share: float, seed: int, without: str | None = None) -> list[str | None]:
    """The fault of each request, None for most; none whose name begins with ``without``."""
    known = [name for name in FAULTS if without is None or not name.startswith(without)]
    chance = random.Random(seed)
    kinds: list[str] = []

    def fault() -> str:
        # Each as often as any other.
        if not kinds:
            kinds.extend(chance.sample(known, len(known)))
        return kinds.pop()

    return [fault() if chance.random() < share else None for _ in range(requests)]


def script(faults: list[str | None]) -> list[Answer]:
    answers, well = [], 0
    for fault in faults:
        if fault is None:
            well += 1
            continue
        if well:
            answers.append(Answer(times=well))
        answers.append(FAULTS[fault])
        well = 0
    return answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=0, help="so many are drawn for; all goes well after them")
    parser.add_argument("--share", type=float, default=0.0, help="of the requests that meet a fault")
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--without", help="leave out the faults whose names begin so")
    given = parser.parse_args()
    faults = draw(given.requests, given.share, given.seed, given.without)
    faults_before = [0, *accumulate(fault is not None for fault in faults)]
    with MockServer(latency=given.latency, record=False) as server:
        server.script(*script(faults))
        print(json.dumps({"base_url": server.base_url}), flush=True)
        for _ in sys.stdin:
            stats = server.stats
            counted = {
                "requests": stats.requests,
                "faults": faults_before[min(stats.requests, len(faults))],
                "in_flight": stats.in_flight,
                "aborted": stats.aborted,
                "connections": stats.connections,
                "open_connections": stats.open_connections,
            }
            print(json.dumps(counted), flush=True)


if __name__ == "__main__":
    main()
