"""The benchmark behind `make bench`: every contender against the mock server, interleaved, as ratios.

The server is pinned to one core and each contender, in a process of its own, to another. A round runs every
contender once (A B C, A B C, ...), so that whatever else the machine does meets all of them alike; ratios
are taken within a round and their median is reported. A debug build of millstream is refused.

    python benchmarks/run.py                                # everything, about half an hour
    python benchmarks/run.py --quick                        # does it all run? a few minutes
    python benchmarks/run.py --scenario chat_64 --only millstream_batch,floor_reqwest --repeats 9
    python benchmarks/run.py --markdown docs/benchmarks.md  # what `make bench` does
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import shlex
import sys
import tempfile
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import document
import measure
import report
from peers._common import chat_body, make_prompts
from scenarios import SCENARIOS, TARGETS, Contender, Result, Scenario

# Runs that take longer than this are done in the first rounds only.
LONG_RUN_S = 6.0
ROUNDS_OF_LONG_RUNS = 2
QUICK_SHARE = 0.1


def main() -> int:
    given = parse_arguments()
    scenarios = chosen_scenarios(given)
    if os.getloadavg()[0] > 0.5:
        log(f"warning: the machine is busy (load {os.getloadavg()[0]:.1f}); the numbers will show it")
    refuse_debug_build(scenarios, given.server)
    if any(contender.program[0] in measure.NATIVE for scenario in scenarios for contender in scenario.contenders):
        measure.build_native()
    measure.allow_many_sockets()

    load = os.getloadavg()[0]
    results, failures = run_scenarios(scenarios, given)
    pinned = f"server to core {given.server_core}, client to core {given.client_core}"
    circumstances = (
        f"{datetime.date.today().isoformat()}, {given.repeats} round{'s' * (given.repeats > 1)}, load {load:.2f} before"
        f"{', a quick run: its numbers mean little' if given.quick else ''}"
    )
    text = report.render(measure.describe_machine() | {"pinned": pinned}, circumstances, scenarios, results)
    print(text)
    if given.markdown:
        write_document(given.markdown, text)
    for failure in failures:
        log(f"failed: {failure}")
    return 1 if failures else 0


def write_document(path: Path, text: str) -> None:
    """Put what was measured in its place in the document."""
    old = path.read_text() if path.exists() else ""
    every = [scenario.name for scenario in SCENARIOS]
    claims = [(target.scenario, target.claim) for target in TARGETS]
    path.write_text(document.merged(old, f"{report.INTRODUCTION}\n{text}", every, claims))
    log(f"wrote {path}")


def run_scenarios(
    scenarios: list[Scenario], given: argparse.Namespace
) -> tuple[dict[str, dict[str, list[Result | None]]], list[str]]:
    """Run every scenario and return the rounds of each contender, and what went wrong."""
    results: dict[str, dict[str, list[Result | None]]] = {}
    failures: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        payload = Path(folder) / "body.json"
        for scenario in scenarios:
            body = chat_body(average_prompt()) | ({"stream": True} if scenario.chunks else {})
            payload.write_text(json.dumps(body))
            log(f"{scenario.name}: {scenario.title}")
            results[scenario.name] = run_scenario(scenario, given, payload, failures)
    return results, failures


def run_scenario(
    scenario: Scenario, given: argparse.Namespace, payload: Path, failures: list[str]
) -> dict[str, list[Result | None]]:
    rounds: dict[str, list[Result | None]] = {contender.name: [] for contender in scenario.contenders}
    server_of_all = contextlib.nullcontext(None) if scenario.faulty else server_of(scenario, given)
    with server_of_all as server:
        for number in range(given.repeats):
            for contender in scenario.contenders:
                requests = request_count(contender, scenario, given)
                is_long = requests / scenario.rate(contender) > LONG_RUN_S and scenario.latency_s is not None
                result = None
                if number < ROUNDS_OF_LONG_RUNS or not is_long:
                    try:
                        with server_of(scenario, given) if scenario.faulty else contextlib.nullcontext(server) as its:
                            result = measure.run_contender(
                                contender, scenario, requests, its, cores_of(contender, given), payload
                            )
                        log(f"  {number + 1}/{given.repeats} {contender.name}: {summary(result)}")
                    except measure.RunError as error:
                        failures.append(f"{scenario.name} {contender.name}: {error}")
                        log(f"  {number + 1}/{given.repeats} {contender.name}: FAILED")
                rounds[contender.name].append(result)
    return rounds


def cores_of(contender: Contender, given: argparse.Namespace) -> str:
    """Return the cores that a contender may use, as `taskset` takes them."""
    return f"{given.server_core},{given.client_core}" if contender.spreads else str(given.client_core)


def server_of(scenario: Scenario, given: argparse.Namespace) -> AbstractContextManager[measure.Server | None]:
    """Return the server that a scenario needs, not yet started."""
    if scenario.latency_s is None:
        return contextlib.nullcontext()
    command = [sys.executable, str(measure.FAULTY_SERVER)] if scenario.faulty else given.server
    return measure.serve(command, scenario, given.server_core)


def request_count(contender: Contender, scenario: Scenario, given: argparse.Namespace) -> int:
    """Return how many requests a contender gets: about ``given.seconds`` of work, or its own fixed number."""
    if contender.requests is not None:
        return max(5, min(int(contender.requests * (QUICK_SHARE if given.quick else 1)), given.requests or sys.maxsize))
    seconds = given.seconds
    if given.requests:
        seconds = given.requests / max(scenario.rate(other) for other in scenario.contenders)
    return max(int(seconds * scenario.rate(contender)), scenario.concurrency, 20)


def average_prompt() -> str:
    """Return a prompt of average length: the floor sends this one every time."""
    prompts = sorted(make_prompts(999), key=len)
    return prompts[len(prompts) // 2]


def summary(result: Result) -> str:
    if "us_per_future" in result:
        return f"{result['us_per_future']:.2f} µs per future"
    if "us_per_hit" in result:
        return f"{result['us_per_hit']:.2f} µs a hit"
    if "wall_ms" in result:
        return f"{result['wall_ms']:.1f} ms"
    if "chunks_per_s" in result:
        growth = result["peak_rss_mb"] - result["baseline_rss_mb"]
        return (
            f"{result['chunks_per_s']:,.0f} chunks/s, {result['cpu_us_per_chunk']:.2f} µs CPU each, "
            f"first after {result['first_us']:.0f} µs, {growth:+.1f} MB, server busy {result['server_busy']:.0%}"
        )
    text = f"{result['rps']:,.0f} requests/s, {result['cpu_us_per_request']:.1f} µs CPU each"
    if "answered" in result:
        text += f"; {result['answered']:,} answered, {result['failed']} failed, {result['lost']} lost"
    if "files_share" in result:
        text += f"; {result['peak_rss_mb']:.0f} MB, files {result['files_share']:.0%}"
    return text


def chosen_scenarios(given: argparse.Namespace) -> list[Scenario]:
    """Return the scenarios asked for, with only the contenders asked for."""
    known = {scenario.name: scenario for scenario in SCENARIOS}
    if unknown := set(given.scenario) - set(known):
        raise SystemExit(f"no such scenario: {', '.join(unknown)}; there are {', '.join(known)}")
    chosen = [known[name] for name in given.scenario or known]
    everybody = {contender.name: contender for scenario in chosen for contender in scenario.contenders}
    wanted = set(given.only or everybody)
    for name, contender in everybody.items():
        if name in wanted and not measure.interpreter(contender).exists():
            log(f"without {name}: it needs `make bench-{contender.environment}`")
            wanted.remove(name)
    narrowed = [narrow(scenario, wanted) for scenario in chosen]
    return [scenario for scenario in narrowed if scenario.contenders]


def narrow(scenario: Scenario, names: set[str]) -> Scenario:
    contenders = tuple(contender for contender in scenario.contenders if contender.name in names)
    return replace(scenario, contenders=contenders, subjects=tuple(name for name in scenario.subjects if name in names))


def refuse_debug_build(scenarios: list[Scenario], server: list[str]) -> None:
    """End the program when millstream takes part and is a debug build, or is missing."""
    programs = [" ".join(contender.program) for scenario in scenarios for contender in scenario.contenders]
    uses_millstream = "millstream" in " ".join([*programs, *server]) or any("bridge" in one for one in programs)
    if not uses_millstream:
        return
    try:
        profile = measure.build_profile()
    except ImportError as error:
        raise SystemExit(f"millstream is not installed for {sys.executable}: {error}") from None
    if profile != "release":
        raise SystemExit(f"the installed millstream is a {profile} build; its speed means nothing. Build a release.")


def parse_arguments() -> argparse.Namespace:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("the benchmark needs two cores: one for the server, one for the client")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", type=names, default=[], help="comma-separated; default: all of them")
    parser.add_argument("--only", type=names, default=[], help="contenders, comma-separated; default: all of them")
    parser.add_argument("--repeats", type=int, help="rounds (default: 5)")
    parser.add_argument("--seconds", type=float, help="about how long one run lasts (default: 2)")
    parser.add_argument(
        "--requests",
        type=int,
        help="instead: requests of the fastest contender, others in proportion; where the number is fixed, the most",
    )
    parser.add_argument("--quick", action="store_true", help="2 rounds of runs of 0.2 s: does it all run?")
    parser.add_argument("--markdown", type=Path, help="put the report in its place there, with its caveats")
    parser.add_argument("--server", type=shlex.split, help="command to start instead of `python -m millstream.testing`")
    parser.add_argument("--server-core", type=int, default=cores[0])
    parser.add_argument("--client-core", type=int, default=cores[1])
    given = parser.parse_args()
    if given.only and given.markdown:
        parser.error("--markdown replaces whole tables: it does not go with --only")
    given.repeats = given.repeats or (2 if given.quick else 5)
    given.seconds = given.seconds or (0.2 if given.quick else 2.0)
    given.server = given.server or [sys.executable, "-m", "millstream.testing"]
    return given


def names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
