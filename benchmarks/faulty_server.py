"""The mock server as it is on a bad day, started by `run.py` in place of `python -m millstream.testing`.

Of every 500 answers nine are 503 without a word about when to come back, and one a 429 with `Retry-After: 1`: each
fiftieth is refused. Or all of it is down for a while, once it has been asked so many times.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time

from millstream.testing import Answer, MockServer

LOOK_S = 0.002
# Faults for so many requests: after the last of them all goes well.
SCRIPTED = 200_000


def main() -> None:
    given = parse_arguments()
    with MockServer(reply=given.reply, latency=given.latency, record=False) as server:
        if given.faults:
            server.script(*bad_day())
        if given.outage_after:
            threading.Thread(target=break_down, args=(server, given), daemon=True).start()
        print(json.dumps({"base_url": server.base_url}), flush=True)
        sys.stdin.read()


def bad_day() -> list[Answer]:
    good, overload = Answer(times=49), Answer(status=503)
    slow_down = Answer(status=429, headers={"retry-after": "1"})
    return [*[good, overload] * 9, good, slow_down] * (SCRIPTED // 500)


def break_down(server: MockServer, given: argparse.Namespace) -> None:
    while server.stats.requests < given.outage_after:
        time.sleep(LOOK_S)
    server.outage(503, seconds=given.outage_seconds)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--reply", default="fixed")
    parser.add_argument("--faults", action="store_true", help="refuse each fiftieth request")
    parser.add_argument("--outage-after", type=int, default=0, help="requests after which nothing goes any more")
    parser.add_argument("--outage-seconds", type=float, default=5.0)
    parser.add_argument("--exit-on-stdin-eof", action="store_true", help="it always does")
    return parser.parse_args()


if __name__ == "__main__":
    main()
