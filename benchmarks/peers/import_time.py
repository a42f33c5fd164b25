"""How long `import millstream` takes and which threads it starts, against a bare interpreter.

Runs a fresh interpreter several times and prints the median wall time of its whole life. The difference
between `--kind millstream` and `--kind bare` is the import.
"""

import argparse
import statistics
import subprocess
import sys
import time

from _common import print_result

COUNT_THREADS = "import os; print(len(os.listdir('/proc/self/task')))"
STATEMENTS = {"bare": COUNT_THREADS, "millstream": f"import millstream; {COUNT_THREADS}"}


def start_interpreter(statement: str) -> tuple[float, int]:
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", statement], check=True, capture_output=True, text=True)
    return (time.perf_counter() - start) * 1e3, int(done.stdout)


def measure(kind: str, count: int) -> None:
    start_interpreter(STATEMENTS[kind])  # fills the page cache and writes the .pyc files
    started = [start_interpreter(STATEMENTS[kind]) for _ in range(count)]
    print_result(
        {
            "peer": f"import_{kind}",
            "versions": {},
            "requests": count,
            "wall_ms": statistics.median(wall for wall, _ in started),
            "threads": max(threads for _, threads in started),
        }
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", choices=sorted(STATEMENTS), required=True)
    parser.add_argument("--requests", type=int, default=20, help="interpreters started (default: 20)")
    given = parser.parse_args()
    measure(given.kind, given.requests)
