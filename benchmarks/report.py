"""Results as Markdown: the same text on the terminal and in docs/benchmarks.md."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

from document import table
from scenarios import TARGETS, Contender, Result, Rounds, Scenario, Target, ratio

Results = Mapping[str, Rounds]

INTRODUCTION = """\
# Benchmarks

Written by `benchmarks/run.py`, which replaces what it measures: a part may be older than its neighbour, and says so.
Only sections without a scenario's name are written by hand.

**Before you read the numbers:**

- The ratios matter, the digits do not. Each ratio is the median over rounds of two runs that were
  neighbours in time; the range after it is the smallest and the largest.
- One machine, the loopback interface, a mock server that answers every prompt with the same short chat
  completion. There is no TLS, no network and no model. What a real provider's limits allow is usually far
  below any of this.
- The server has one core and the client the other. `server busy` is the share of its core the server used;
  near 100 % it was the server that was measured, and the client may be faster than shown.
- `floor_reqwest` and `floor_hyper` are not clients one could use: they post the same bytes again and again
  and throw the answers away. They are the least that the same HTTP stack costs.
- Every other contender builds a request from a prompt and gives back the text of the answer. Retries are
  off, but for the bulk tools, and pools are as large as the concurrency. pyreqwest runs under uvloop, the
  others under asyncio's own loop, as most programs do.
- Slow contenders get fewer requests, so they hold less in memory, and may sit out the later rounds.
- Peak RSS is given over a baseline taken when the client is open and the prompts are made.

**To repeat it:** `make bench` on an idle machine with at least two cores, or a part of it with

```
make bench BENCH_ARGS="--scenario chat_64 --repeats 5"                              # printed
make bench BENCH_ARGS="--scenario chat_64 --repeats 5 --markdown docs/benchmarks.md"  # put in its place here
```

The other bulk tools do not go together with the rest: `make bench-tools bench-curator` gives them environments of their
own, the second of which takes most of a gigabyte. Without those they are left out.
"""


def render(
    machine: Mapping[str, str],
    circumstances: str,
    scenarios: Sequence[Scenario],
    results: Results,
) -> str:
    """Return the whole report but the introduction.

    Args:
        machine: What stays the same for all that is measured there.
        circumstances: When and how this was measured.
        scenarios: Those that were run.
        results: What they gave.
    """
    parts = ["## Machine\n", _facts(machine), "\n"]
    targets = [target for target in TARGETS if target.scenario in results]
    if targets:
        parts += ["## Targets\n", _target_table(targets, results), "\n"]
    for scenario in scenarios:
        parts += [f"## {scenario.title} (`{scenario.name}`)\n"]
        parts += [f"{scenario.note.strip()}\n"] if scenario.note else []
        versions = versions_in(results[scenario.name])
        parts += [f"*{circumstances}{'; ' if versions else ''}{versions}*\n"]
        parts += [_scenario_table(scenario, results[scenario.name]), "\n"]
    return "\n".join(part.rstrip("\n") + "\n" for part in parts if part.strip()).rstrip() + "\n"


def versions_in(rounds: Rounds) -> str:
    """Return the versions that the peers themselves reported: those in other environments may have others."""
    results = _present(one for series in rounds.values() for one in series)
    found = {name: set[str]() for result in results for name in result.get("versions", {})}
    for result in results:
        for name, version in result.get("versions", {}).items():
            found[name].add(version)
    return ", ".join(f"{name} {' and '.join(sorted(versions))}" for name, versions in sorted(found.items()))


def _facts(facts: Mapping[str, str]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in facts.items())


def _target_table(targets: Iterable[Target], results: Results) -> str:
    rows = []
    for target in targets:
        values = target.measure(results[target.scenario])
        bound = f"≥ {target.at_least:g}" if target.at_least is not None else f"≤ {target.at_most:g}"
        verdict = ("met" if target.is_met(values) else "**not met**") if values else "not measured"
        measured = _spread(values, 2)
        rows.append(
            [
                target.scenario,
                target.claim,
                f"{bound} {target.unit}".strip(),
                measured,
                str(len(values)),
                verdict,
            ]
        )
    return table(["scenario", "what", "target", "measured (range)", "rounds", "verdict"], rows)


def _scenario_table(scenario: Scenario, rounds: Rounds) -> str:
    columns = [column for column in COLUMNS if _column_is_used(column, rounds)]
    header = ["contender", "n × rounds", *columns, *(f"{subject} ÷ it" for subject in scenario.subjects)]
    rows = [_row(contender, scenario, columns, rounds) for contender in scenario.contenders]
    return table(header, [row for row in rows if row])


def _row(contender: Contender, scenario: Scenario, columns: Sequence[str], rounds: Rounds) -> list[str]:
    results = _present(rounds.get(contender.name, ()))
    if not results:
        return [contender.name, "failed"] + ["–"] * (len(columns) + len(scenario.subjects))
    row = [contender.name, f"{results[0]['requests']:,} × {len(results)}"]
    row += [_cell(column, results) for column in columns]
    for subject in scenario.subjects:
        values = ratio(scenario.metric, subject, contender.name)(rounds)
        row.append("1" if subject == contender.name else _spread(values, 2))
    return row


# Column → (keys it needs, how to read it from a result, digits, spread shown)
COLUMNS: dict[str, tuple[tuple[str, ...], Callable[[Result], float], int, bool]] = {
    "requests/s": (("rps", "concurrency"), lambda result: result["rps"], 0, True),
    "chunks/s": (("chunks_per_s",), lambda result: result["chunks_per_s"], 0, True),
    "CPU µs a chunk": (("cpu_us_per_chunk",), lambda result: result["cpu_us_per_chunk"], 2, False),
    "first chunk µs": (("first_us",), lambda result: result["first_us"], 0, False),
    "longest stall ms": (("stall_ms",), lambda result: result["stall_ms"], 1, True),
    "µs per future": (("us_per_future",), lambda result: result["us_per_future"], 2, True),
    "µs a hit": (("us_per_hit",), lambda result: result["us_per_hit"], 2, True),
    "wall ms": (("wall_ms",), lambda result: result["wall_ms"], 1, True),
    "threads": (("threads",), lambda result: result["threads"], 0, False),
    "CPU µs each": (("cpu_us_per_request",), lambda result: result["cpu_us_per_request"], 1, False),
    "p50 µs": (("p50_us",), lambda result: result["p50_us"], 0, False),
    "p95 µs": (("p95_us",), lambda result: result["p95_us"], 0, False),
    "p99 µs": (("p99_us",), lambda result: result["p99_us"], 0, False),
    "answered": (("answered",), lambda result: result["answered"], 0, True),
    "failed": (("answered",), lambda result: result["failed"], 0, True),
    "lost": (("answered",), lambda result: result["lost"], 0, True),
    "twice": (("twice",), lambda result: result["twice"], 0, True),
    "seconds": (("answered",), lambda result: result["seconds"], 1, True),
    "files %": (("files_share",), lambda result: result["files_share"] * 100, 1, True),
    "I/O %": (("io_share",), lambda result: result["io_share"] * 100, 1, True),
    "peak RSS MB": (("peak_rss_mb",), lambda result: result["peak_rss_mb"], 0, False),
    "over baseline MB": (
        ("peak_rss_mb", "baseline_rss_mb"),
        lambda result: result["peak_rss_mb"] - result["baseline_rss_mb"],
        1,
        False,
    ),
    "text MB": (("chunks", "answers_mb"), lambda result: result["answers_mb"], 1, False),
    "answers MB": (("rps", "answers_mb"), lambda result: result["answers_mb"], 1, False),
    "server busy %": (("server_busy",), lambda result: result["server_busy"] * 100, 0, False),
}


def _column_is_used(column: str, rounds: Rounds) -> bool:
    return any(_has(column, result) for series in rounds.values() for result in _present(series))


def _cell(column: str, results: Sequence[Result]) -> str:
    _, read, digits, with_spread = COLUMNS[column]
    values = [read(result) for result in results if _has(column, result)]
    return _spread(values, digits) if with_spread or not values else f"{statistics.median(values):,.{digits}f}"


def _has(column: str, result: Result) -> bool:
    return all(result.get(key) is not None for key in COLUMNS[column][0])


def _present(results: Iterable[Result | None]) -> list[Result]:
    return [result for result in results if result is not None]


def _spread(values: Sequence[float], digits: int) -> str:
    if not values:
        return "–"
    median, low, high = (f"{value:,.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
    return f"{median} ({low}–{high})" if low != high else median
