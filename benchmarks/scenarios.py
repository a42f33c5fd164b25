"""What is measured: the contenders, the scenarios they meet in, the targets of the ratios. Data, no I/O."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any

Result = dict[str, Any]
# One result per round for each contender; None where it did not run in that round, or failed.
Rounds = Mapping[str, Sequence[Result | None]]


@dataclass(frozen=True, slots=True)
class Contender:
    """A program that is run once per round.

    ``speed`` is its rough requests/s on one core at no latency; it only chooses how many requests the
    contender gets, so that a fast one is not over before it is warm and a slow one does not take minutes.
    ``environment`` names another one than that of the benchmark, for packages that do not go together with the others.
    ``spreads``: it may use what the server leaves of its core, as on a machine that is not divided for a benchmark.
    """

    name: str
    program: tuple[str, ...]
    speed: float
    requests: int | None = None
    environment: str = ""
    spreads: bool = False


@dataclass(frozen=True, slots=True)
class Scenario:
    """Contenders that meet under one load. ``subjects`` are those whose ratio to every other one is reported.

    ``latency_s`` is the server's; None means that there is no server. ``server_flags`` are more of its arguments.
    ``warmup`` is a number of requests; by default there are two for each that is in flight. ``chunks`` is the number of
    pieces with text in each answer, which is streamed; 0 if it is not. ``gaps_s`` is the server's ``--gap``. ``faulty``
    are arguments of ``faulty_server.py``, which then is the server, started anew for each run.
    """

    name: str
    title: str
    contenders: tuple[Contender, ...]
    subjects: tuple[str, ...]
    metric: str = "rps"
    latency_s: float | None = 0.0
    concurrency: int = 64
    speeds: Mapping[str, float] = field(default_factory=dict)
    note: str = ""
    server_flags: tuple[str, ...] = ()
    warmup: int | None = None
    chunks: int = 0
    gaps_s: str = "0"
    faulty: tuple[str, ...] = ()

    def rate(self, contender: Contender) -> float:
        """Return the requests/s to expect, for choosing the number of requests."""
        speed = self.speeds.get(contender.name, contender.speed)
        return min(speed, self.concurrency / self.latency_s) if self.latency_s else speed


@dataclass(frozen=True, slots=True)
class Target:
    """A claim about one scenario. ``measure`` gives one value per round in which it could be measured."""

    scenario: str
    claim: str
    measure: Callable[[Rounds], list[float]]
    at_least: float | None = None
    at_most: float | None = None
    unit: str = ""

    def is_met(self, values: Sequence[float]) -> bool:
        value = statistics.median(values)
        return (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)


def paired(rounds: Rounds, first: str, second: str) -> list[tuple[Result, Result]]:
    """Return the results of two contenders in the rounds where both ran: neighbours in time."""
    both = zip(rounds.get(first, ()), rounds.get(second, ()), strict=False)
    return [(a, b) for a, b in both if a is not None and b is not None]


def ratio(metric: str, first: str, second: str) -> Callable[[Rounds], list[float]]:
    return lambda rounds: [a[metric] / b[metric] for a, b in paired(rounds, first, second)]


def difference(metric: str, first: str, second: str) -> Callable[[Rounds], list[float]]:
    return lambda rounds: [a[metric] - b[metric] for a, b in paired(rounds, first, second)]


def over_better(name: str, *peers: str) -> Callable[[Rounds], list[float]]:
    """The throughput as a ratio to the best of ``peers``, round by round."""

    def measure(rounds: Rounds) -> list[float]:
        rivals = zip_longest(*(rounds.get(peer, ()) for peer in peers))
        best = [max((result["rps"] for result in each if result), default=None) for each in rivals]
        both = zip(rounds.get(name, ()), best, strict=False)
        return [result["rps"] / rival for result, rival in both if result is not None and rival is not None]

    return measure


def over_best_peer(metric: str, name: str, best: Callable[..., float]) -> Callable[[Rounds], list[float]]:
    """The ratio to the best of the fast peers, round by round."""

    def measure(rounds: Rounds) -> list[float]:
        names = ("aiohttp_stream", "pyreqwest_stream", "pyreqwest_unbuffered")
        peers = zip_longest(*(rounds.get(peer, ()) for peer in names))
        rivals = [[result[metric] for result in pair if result is not None] for pair in peers]
        both = zip(rounds.get(name, ()), rivals, strict=False)
        return [result[metric] / best(rival) for result, rival in both if result is not None and rival]

    return measure


def growth(name: str) -> Callable[[Rounds], list[float]]:
    """Peak RSS over the baseline, in MB."""
    return lambda rounds: [
        result["peak_rss_mb"] - result["baseline_rss_mb"] for result in rounds.get(name, ()) if result is not None
    ]


def unanswered(name: str) -> Callable[[Rounds], list[float]]:
    return lambda rounds: [
        result["requests"] - result["answered"] for result in rounds.get(name, ()) if result is not None
    ]


def extra_memory(name: str) -> Callable[[Rounds], list[float]]:
    """Peak RSS over the baseline, less what the answers themselves take, in MB."""
    return lambda rounds: [
        result["peak_rss_mb"] - result["baseline_rss_mb"] - result["answers_mb"]
        for result in rounds.get(name, ())
        if result is not None
    ]


def _peer(name: str, speed: float, *arguments: str, label: str = "", requests: int | None = None) -> Contender:
    return Contender(label or name, ("peers/" + name + ".py", *arguments), speed, requests)


FLOOR_REQWEST = Contender("floor_reqwest", ("floor", "--mode", "reqwest"), 26_000)
FLOOR_HYPER = Contender("floor_hyper", ("floor", "--mode", "hyper"), 36_000)
# Tools that carry a whole file. Most take 10 to 20 s for a thousand prompts.
TOOLS = (
    _peer("tool_millstream", 20_000, label="millstream_run", requests=20_000),
    _peer("tool_cookbook", 800, label="cookbook_script", requests=4_000),
    replace(_peer("tool_litellm", 120, label="litellm_batch", requests=1_000), environment="tools"),
    replace(_peer("tool_langchain", 120, label="langchain_abatch", requests=1_000), environment="tools"),
    replace(_peer("tool_async_batch_llm", 120, label="async_batch_llm", requests=1_000), environment="tools"),
    replace(_peer("tool_curator", 80, label="curator", requests=1_000), environment="curator"),
)
# In trouble the same number of requests for each.
TOOLS_IN_TROUBLE = tuple(replace(tool, requests=1_000) for tool in TOOLS)
MILLSTREAM_BATCH = _peer("millstream_batch", 24_000)
MILLSTREAM_GATHER = _peer("millstream_gather", 18_000)
MILLSTREAM_SEQUENTIAL = _peer("millstream_sequential", 12_000)
PYREQWEST = _peer("pyreqwest_client", 12_000)
BASETEN = _peer("baseten_client", 9_000)
AIOHTTP = _peer("aiohttp_orjson", 3_500)
OPENAI = _peer("openai_client", 350)
HTTPX = _peer("httpx_client", 100)

STREAMS = {
    contender.name: contender
    for contender in (
        Contender("floor_lines", ("floor", "--mode", "lines"), 2_000),
        _peer("millstream_stream", 1_000, label="millstream_texts"),
        _peer("millstream_stream", 500, "--kind", "chunks", label="millstream_chunks"),
        _peer("aiohttp_stream", 300),
        _peer("pyreqwest_stream", 400),
        _peer("pyreqwest_stream", 400, "--read-ahead", "0", label="pyreqwest_unbuffered"),
        _peer("openai_stream", 8),
    )
}

FLOORS = (FLOOR_REQWEST, FLOOR_HYPER)
MILLSTREAM = (MILLSTREAM_BATCH, MILLSTREAM_GATHER)
BATCH_AND_GATHER = ("millstream_batch", "millstream_gather")
HTTPX_LEFT_OUT = (
    "httpx is left out: its pool looks at every connection for every request, so that it does tens of "
    "requests/s at this concurrency. "
)


STREAMS_NOTE = (
    "Each contender gives the text of each chunk to an `async for`. `millstream_texts` is `stream_complete`, "
    "`millstream_chunks` is `create(stream=True)`; `floor_lines` is a reqwest loop that counts lines."
)


TOOLS_NOTE = """\
From a file of prompts to a file of outcomes, the tool's start and end included: what `millstream run` does, the pattern
of the script in OpenAI's cookbook (`api_request_parallel_processor.py`, which starts one request a millisecond and has
no limit of what is in flight), litellm's `batch_completion`, LangChain's `ChatOpenAI.abatch`, async-batch-llm's
`process_prompts` and Bespoke Labs' curator. Each keeps its own defaults for retries, but for async-batch-llm's pause of
300 s after a 429, which is set to one second. Requests/s count the prompts that were answered; `failed` are those that
the tool reports, `lost` those of which it says nothing. The first two read and write line by line, the others take and
give lists. Peak RSS holds what they import, too.
"""


def _adaptive(name: str, what: str, best: int, requests: int, *server_flags: str) -> Scenario:
    """A window that steers itself against the best fixed one, once it has had time to find its size."""

    def contender(size: str) -> Contender:
        return _peer("adaptive", 2000, "--max-concurrency", size, label=f"window_{size}", requests=requests)

    return Scenario(
        name,
        f'`max_concurrency="auto"` and {what}',
        (contender("auto"), contender(str(best))),
        ("window_auto",),
        latency_s=0.05,
        concurrency=256,
        note=(
            "Latencies are lognormal (median 50 ms, σ 0.5); 256 tasks ask one prompt after another; "
            f"{requests:,} requests are a warm-up. "
            "The latency is that of the request from its admission on."
        ),
        server_flags=("--latency", "0.05,0.5", *server_flags),
        warmup=requests,
    )


def _streams(name: str, title: str, metric: str, streams: Mapping[str, int], **load: Any) -> Scenario:
    """Streamed answers. ``streams`` names the contenders, each with the number of streams that it reads."""
    contenders = tuple(replace(STREAMS[label], requests=count) for label, count in streams.items())
    return Scenario(name, title, contenders, ("millstream_texts", "millstream_chunks"), metric, **load)


def _caches() -> tuple[Scenario, ...]:
    """Hits by place: the engine alone, and `batch_complete` on top of it."""

    def engine(what: str) -> Contender:
        return Contender(f"engine_{what}", ("cache", "--what", what), 100_000, 200_000)

    def batch(place: str, label: str = "") -> Contender:
        return _peer("cache", 50_000, "--place", place, label=label or f"millstream_{place}", requests=100_000)

    def scenario(place: str, title: str, note: str, *more: Contender) -> Scenario:
        contenders = (engine(place), *more, batch(place))
        calls = (
            f"`engine_{place}` are calls of the engine without Python, `millstream_{place}` is one `batch_complete`; "
            "the server is busy before they are measured, not while. "
        )
        return Scenario(f"cache_{place}", title, contenders, (f"millstream_{place}",), note=calls + note)

    put = "`engine_{0}_put` is what keeping an answer holds its call up."
    return (
        scenario("memory", "100,000 answers out of memory", put.format("memory"), engine("memory_put")),
        scenario("disk", "100,000 answers off the disk", put.format("disk"), engine("disk_put")),
        scenario(
            "redis",
            "100,000 answers out of a Redis on this machine",
            "64 are asked for at once; the Redis may have the other core. `engine_redis_store` gives decoded "
            "entries; `engine_get` are bare GETs of the same values by the same crate over one connection, 64 at once, "
            "`engine_get_pipeline` the same in pipelines of 64, and `redis_py` by redis-py with hiredis.",
            engine("redis_store"),
            engine("get"),
            engine("get_pipeline"),
            batch("redis-py", "redis_py"),
        ),
    )


def _embeddings() -> tuple[Scenario, ...]:
    """The same texts in both forms."""

    def scenario(form: str, speeds: Mapping[str, float]) -> Scenario:
        peers = tuple(
            _peer("embeddings", speed, "--kind", kind, "--form", form, label=f"{kind}_{form}", requests=20_000)
            for kind, speed in speeds.items()
        )
        floor = Contender(f"floor_{form}", ("floor", "--mode", form), 30_000, 20_000)
        return Scenario(
            f"embeddings_{form}",
            f"20,000 texts to vectors of 1536 numbers, as {form}",
            (floor, *peers),
            (f"millstream_{form}",),
            concurrency=16,
            server_flags=("--embedding-dimensions", "1536"),
            note=(
                "Packs of 128, 16 in flight; `requests/s` are texts a second. Each ends with one block of float32: "
                "millstream's own, of the others what numpy makes of their answer. `answers MB` is its size. "
                f"`floor_{form}` is a reqwest loop with serde_json and base64-simd, without retries and limits."
            ),
        )

    return (
        scenario("base64", {"millstream": 20_000, "baseten": 15_000, "openai": 3_000}),
        scenario("float", {"millstream": 8_000, "baseten": 7_500, "openai": 1_500}),
    )


_EMBED_CACHED = Scenario(
    "embeddings_cached",
    "20,000 texts whose vectors are in a cache",
    tuple(
        _peer("embeddings", 200_000, "--kind", "cached", "--cache", place, label=f"cached_{place}", requests=20_000)
        for place in ("memory", "disk")
    ),
    ("cached_memory", "cached_disk"),
    concurrency=16,
    server_flags=("--embedding-dimensions", "1536"),
    note="Vectors of 1536 numbers, all asked for before the baseline; of those on disk 64 MiB are in memory, too.",
)
_EMBED_STREAM = Scenario(
    "embeddings_stream",
    "1,000,000 short texts in pages of 2,048",
    (_peer("embeddings", 40_000, "--kind", "stream", label="embed_stream", requests=1_000_000),),
    ("embed_stream",),
    concurrency=16,
    server_flags=("--embedding-dimensions", "256"),
    note="`embed_stream`, vectors of 256 numbers; 100,000 texts before the baseline.",
)
_DECODE = Scenario(
    "embeddings_decode",
    "An answer of 128 vectors of 1536 numbers, made one block",
    (
        Contender("engine_base64", ("decode", "--form", "base64"), 1, 200),
        _peer("decode", 1, "--form", "base64", label="orjson_base64", requests=50),
        Contender("engine_float", ("decode", "--form", "float"), 1, 50),
        _peer("decode", 1, "--form", "float", label="orjson_float", requests=50),
    ),
    ("engine_base64", "engine_float"),
    metric="cpu_us_per_request",
    latency_s=None,
    note=(
        "CPU time of one answer, without a socket; smaller is better. The others are orjson, base64 and `np.stack`. "
        "millstream asks for base64; what servers give unasked are numbers."
    ),
)


SCENARIOS = (
    Scenario(
        "chat_64",
        "Chat, no latency, 64 in flight",
        (*FLOORS, *MILLSTREAM, PYREQWEST, BASETEN, AIOHTTP, OPENAI, HTTPX),
        BATCH_AND_GATHER,
    ),
    Scenario(
        "chat_256",
        "Chat, no latency, 256 in flight",
        (*FLOORS, *MILLSTREAM, PYREQWEST, BASETEN, AIOHTTP, OPENAI),
        BATCH_AND_GATHER,
        concurrency=256,
        speeds={"openai_client": 130},
        note=HTTPX_LEFT_OUT,
    ),
    Scenario(
        "latency_512",
        "Chat, 50 ms latency, 512 in flight",
        (*FLOORS, *MILLSTREAM, PYREQWEST, BASETEN, AIOHTTP, OPENAI),
        BATCH_AND_GATHER,
        latency_s=0.05,
        concurrency=512,
        speeds={"openai_client": 60},
        note=HTTPX_LEFT_OUT + "512 in flight at 50 ms cannot give more than 10,240 requests/s.",
    ),
    Scenario(
        "latency_2000",
        "Chat, 50 ms latency, 2,000 in flight",
        (*FLOORS, *MILLSTREAM, PYREQWEST, AIOHTTP),
        BATCH_AND_GATHER,
        latency_s=0.05,
        concurrency=2000,
        note="baseten's client refuses more than 1,024 in flight; AsyncOpenAI and httpx take minutes here.",
    ),
    Scenario(
        "sequential",
        "One request at a time on a kept-alive connection",
        (*FLOORS, MILLSTREAM_SEQUENTIAL, PYREQWEST, AIOHTTP, HTTPX, OPENAI),
        ("millstream_sequential",),
        metric="p50_us",
        concurrency=1,
        speeds={
            "floor_reqwest": 15_000,
            "floor_hyper": 18_000,
            "millstream_sequential": 9_000,
            "pyreqwest_client": 7_000,
            "aiohttp_orjson": 2_400,
            "httpx_client": 900,
        },
        note="The ratios are of the median latency: smaller is better.",
    ),
    Scenario(
        "batch_100k",
        "100,000 prompts in one call, 64 in flight",
        (
            _peer("millstream_batch", 24_000, label="millstream_5k", requests=5_000),
            _peer("millstream_batch", 24_000, label="millstream_100k", requests=100_000),
            _peer("baseten_client", 9_000, label="baseten_100k", requests=100_000),
        ),
        ("millstream_100k",),
    ),
    Scenario(
        "file",
        "A file of requests into a file of answers, 64 in flight",
        (
            replace(FLOOR_REQWEST, requests=1_000_000),
            _peer("millstream_file", 20_000, requests=1_000_000),
            replace(_peer("millstream_file", 20_000, label="millstream_file_spread", requests=1_000_000), spreads=True),
            _peer("millstream_file", 20_000, label="millstream_file_100k", requests=100_000),
        ),
        ("millstream_file", "millstream_file_spread"),
        note=(
            "`millstream_file` reads and checks the file before the first request, and writes what a later run needs "
            "to go on; the floor does nothing with an answer. `files %` is the share of CPU time of the threads that "
            "read, check, hash and write, `I/O %` what of it the kernel took, to read and to write. They are in the "
            "engine's way only where they share its core: `millstream_file_spread` may use what the server leaves of "
            "its own. Fewer lines: `--scenario file --requests 100000`."
        ),
    ),
    Scenario(
        "bulk_tools",
        "Bulk tools: a file of prompts, 20 ms latency, 64 in flight",
        TOOLS,
        ("millstream_run",),
        latency_s=0.02,
        note=TOOLS_NOTE + "64 in flight at 20 ms cannot give more than 3,200 requests/s.",
    ),
    Scenario("bulk_tools_0", "Bulk tools: a file of prompts, no latency, 64 in flight", TOOLS, ("millstream_run",)),
    Scenario(
        "bulk_faults",
        "Bulk tools: each fiftieth request is refused",
        TOOLS_IN_TROUBLE,
        ("millstream_run",),
        latency_s=0.02,
        faulty=("--faults",),
        note=(
            "Nine of ten refusals are 503, one is 429 with `Retry-After: 1`: whoever obeys that sends nothing for a "
            "second. 20 ms latency, 64 in flight."
        ),
    ),
    Scenario(
        "bulk_outage",
        "Bulk tools: a server that is down for 5 s",
        TOOLS_IN_TROUBLE,
        ("millstream_run",),
        latency_s=0.02,
        faulty=("--outage-after", "300", "--outage-seconds", "5"),
        note="After 300 requests, the warm-up among them, all get a 503 for 5 s; 20 ms latency, 64 in flight.",
    ),
    Scenario(
        "bulk_100k",
        "100,000 prompts as completed, 64 in flight",
        (
            replace(FLOOR_REQWEST, requests=100_000),
            _peer("millstream_batch", 24_000, requests=100_000),
            _peer("millstream_bulk", 20_000, requests=100_000),
        ),
        ("millstream_bulk",),
        note="`millstream_bulk` hands each result of `BatchProcessor.stream` to an `async for`.",
    ),
    Scenario(
        "bridge",
        "100,000 gathered futures",
        (
            _peer("bridge_future", 1, "--kind", "asyncio", label="asyncio_future", requests=100_000),
            _peer("bridge_future", 1, "--kind", "bridge", label="bridge_future", requests=100_000),
        ),
        ("bridge_future",),
        metric="us_per_future",
        latency_s=None,
        note="The ratio is of the time per future: smaller is better.",
    ),
    Scenario(
        "import_time",
        "Starting an interpreter, with and without `import millstream`",
        (
            _peer("import_time", 1, "--kind", "bare", label="import_nothing", requests=20),
            _peer("import_time", 1, "--kind", "millstream", label="import_millstream", requests=20),
        ),
        ("import_millstream",),
        metric="wall_ms",
        latency_s=None,
    ),
    Scenario(
        "limiter",
        "20,000 waiting for a rate limit of 10,000 a second",
        (
            Contender("engine_limiter", ("limiter",), 1, 20_000),
            _peer("limiter", 1, "--kind", "millstream", label="millstream_limiter", requests=20_000),
            _peer("limiter", 1, "--kind", "aiolimiter", label="aiolimiter", requests=20_000),
        ),
        ("engine_limiter", "millstream_limiter"),
        metric="cpu_us_per_request",
        latency_s=None,
        note=(
            "CPU time from the first wait to the last pass, the waiting tasks included; the ratios are of it: smaller "
            "is better. `engine_limiter` is the engine without Python, `millstream_limiter` `RateLimiter.acquire`."
        ),
    ),
    *_caches(),
    _adaptive("adaptive_8", "a server that works at 8 requests at once", 8, 800, "--slots", "8"),
    _adaptive("adaptive_32", "a server that works at 32 requests at once", 32, 2500, "--slots", "32"),
    _adaptive("adaptive_free", "a server without a knee", 64, 5000),
    *_embeddings(),
    _EMBED_CACHED,
    _EMBED_STREAM,
    _DECODE,
    _streams(
        "streams_200",
        "200 streams of 300 chunks at once",
        "chunks_per_s",
        {
            "floor_lines": 6000,
            "millstream_texts": 2000,
            "millstream_chunks": 1000,
            "aiohttp_stream": 400,
            "pyreqwest_stream": 400,
            "pyreqwest_unbuffered": 400,
            "openai_stream": 200,
        },
        concurrency=200,
        warmup=200,
        chunks=300,
        note=STREAMS_NOTE,
    ),
    _streams(
        "streams_paced",
        "200 streams of 300 chunks at once, a chunk every 10 ms",
        "cpu_us_per_chunk",
        dict.fromkeys(STREAMS, 200),
        concurrency=200,
        warmup=200,
        chunks=300,
        gaps_s="0.01",
        note="The ratios are of the CPU time for each chunk: smaller is better.",
    ),
    _streams(
        "first_chunk",
        "Time to the first chunk, one stream at a time",
        "first_us",
        dict.fromkeys(STREAMS, 300),
        concurrency=1,
        warmup=20,
        chunks=4,
        gaps_s="0,0.002",  # the first event has no text
        note="From the request to the first text; the others come 2 ms apart. The ratios are of it: smaller is better.",
    ),
    _streams(
        "long_stream",
        "One stream of 1,000,000 chunks",
        "chunks_per_s",
        {"millstream_texts": 1, "millstream_chunks": 1, "aiohttp_stream": 1, "pyreqwest_stream": 1},
        concurrency=1,
        warmup=1,
        chunks=1_000_000,
        note="The warm-up is left after 100,000 chunks. `text MB` is the size of the answer's text.",
    ),
)


def _chat_targets(scenario: str) -> tuple[Target, ...]:
    def claim(first: str, second: str, at_least: float) -> Target:
        return Target(scenario, f"{first} ÷ {second}, requests/s", ratio("rps", first, second), at_least)

    return (
        claim("millstream_batch", "floor_reqwest", 0.85),
        claim("millstream_batch", "pyreqwest_client", 1.5),
        claim("millstream_batch", "baseten_client", 2.2),
        claim("millstream_batch", "aiohttp_orjson", 5.0),
        claim("millstream_batch", "openai_client", 50.0),
        claim("millstream_gather", "floor_reqwest", 0.6),
        claim("millstream_gather", "pyreqwest_client", 1.0),
        claim("millstream_gather", "aiohttp_orjson", 3.0),
    )


def _adaptive_targets(scenario: str, best: int) -> tuple[Target, ...]:
    auto, fixed = "window_auto", f"window_{best}"
    return (
        Target(scenario, f"auto ÷ fixed at {best}, requests/s", ratio("rps", auto, fixed), at_least=0.9),
        Target(scenario, f"auto ÷ fixed at {best}, p95 latency", ratio("p95_us", auto, fixed), at_most=1.5),
    )


def _stream_targets(name: str) -> tuple[Target, ...]:
    best = "best of aiohttp and pyreqwest"
    return (
        Target("streams_200", f"{name} ÷ {best}, chunks/s", over_best_peer("chunks_per_s", name, max), at_least=2.2),
        Target(
            "streams_200",
            f"{name} ÷ openai_stream, chunks/s",
            ratio("chunks_per_s", name, "openai_stream"),
            at_least=20,
        ),
        Target("streams_paced", f"{name} ÷ {best}, CPU", over_best_peer("cpu_us_per_chunk", name, min), at_most=0.6),
        Target("streams_paced", f"{name}, growth of RSS", growth(name), at_most=20, unit="MB"),
        Target("first_chunk", f"{name} ÷ {best}, first chunk", over_best_peer("first_us", name, min), at_most=1),
        Target("long_stream", f"{name}, growth of RSS less the text", extra_memory(name), at_most=5, unit="MB"),
    )


def value(metric: str, name: str) -> Callable[[Rounds], list[float]]:
    return lambda rounds: [result[metric] for result in rounds.get(name, ()) if result is not None]


def memory_share(name: str, spare_mb: float) -> Callable[[Rounds], list[float]]:
    """Peak RSS over the baseline less ``spare_mb``, as a share of the result's own size."""
    return lambda rounds: [
        (result["peak_rss_mb"] - result["baseline_rss_mb"] - spare_mb) / result["answers_mb"]
        for result in rounds.get(name, ())
        if result is not None
    ]


def _embedding_targets(form: str, over_peers: float) -> tuple[Target, ...]:
    name, scenario = f"millstream_{form}", f"embeddings_{form}"
    peers = (f"baseten_{form}", f"openai_{form}")
    return (
        Target(scenario, f"{name} ÷ the better peer, texts/s", over_better(name, *peers), at_least=over_peers),
        Target(scenario, f"{name} ÷ openai_{form}, texts/s", ratio("rps", name, f"openai_{form}"), at_least=5.0),
        Target(scenario, "growth of RSS less 60 MB ÷ the result's size", memory_share(name, 60.0), at_most=1.3),
        Target(scenario, "longest stall of the event loop", value("stall_ms", name), at_most=5.0, unit="ms"),
    )


TARGETS = (
    Target("cache_memory", "engine, a hit", value("us_per_hit", "engine_memory"), at_most=5.0, unit="µs"),
    Target("cache_memory", "100,000 hits, requests/s", value("rps", "millstream_memory"), at_least=100_000),
    Target("cache_disk", "engine, a hit", value("us_per_hit", "engine_disk"), at_most=30.0, unit="µs"),
    Target("cache_disk", "engine, a put", value("us_per_hit", "engine_disk_put"), at_most=20.0, unit="µs"),
    Target(
        "cache_redis",
        "engine_redis_store ÷ engine_get, time",
        ratio("us_per_hit", "engine_redis_store", "engine_get"),
        at_most=1.2,
    ),
    Target(
        "cache_redis", "engine_redis ÷ engine_get, time", ratio("us_per_hit", "engine_redis", "engine_get"), at_most=1.2
    ),
    *_embedding_targets("base64", 2.0),
    *_embedding_targets("float", 1.05),
    Target(
        "embeddings_cached", "a text in memory, CPU", value("cpu_us_per_request", "cached_memory"), at_most=5, unit="µs"
    ),
    Target(
        "embeddings_cached", "a text on disk, CPU", value("cpu_us_per_request", "cached_disk"), at_most=30, unit="µs"
    ),
    Target("embeddings_stream", "growth of RSS", growth("embed_stream"), at_most=20, unit="MB"),
    Target(
        "embeddings_decode",
        "orjson and np.stack of numbers ÷ the engine's reader of base64, CPU",
        ratio("cpu_us_per_request", "orjson_float", "engine_base64"),
        at_least=6.0,
    ),
    Target(
        "file", "millstream_file ÷ floor_reqwest, requests/s", ratio("rps", "millstream_file", "floor_reqwest"), 0.75
    ),
    Target(
        "file",
        "millstream_file_spread ÷ floor_reqwest, requests/s",
        ratio("rps", "millstream_file_spread", "floor_reqwest"),
        0.75,
    ),
    Target("file", "peak RSS of millstream_file", value("peak_rss_mb", "millstream_file"), at_most=300, unit="MB"),
    Target("file", "share of CPU time to read and write", value("io_share", "millstream_file"), at_most=0.15),
    Target("file", "the same, with checking and hashing", value("files_share", "millstream_file"), at_most=0.15),
    Target("bulk_faults", "prompts of 1,000 not answered", unanswered("millstream_run"), at_most=0),
    Target("bulk_outage", "prompts of 1,000 not answered", unanswered("millstream_run"), at_most=0),
    *_chat_targets("chat_64"),
    *_chat_targets("chat_256"),
    Target(
        "latency_512",
        "millstream_batch ÷ floor_reqwest, requests/s",
        ratio("rps", "millstream_batch", "floor_reqwest"),
        at_least=0.95,
    ),
    Target(
        "latency_2000",
        "millstream_batch ÷ floor_reqwest, requests/s",
        ratio("rps", "millstream_batch", "floor_reqwest"),
        at_least=0.9,
    ),
    Target(
        "sequential",
        "millstream ÷ pyreqwest, median latency",
        ratio("p50_us", "millstream_sequential", "pyreqwest_client"),
        at_most=0.8,
    ),
    Target(
        "sequential",
        "millstream ÷ floor_reqwest, median latency",
        ratio("p50_us", "millstream_sequential", "floor_reqwest"),
        at_most=2.2,
    ),
    Target(
        "batch_100k",
        "peak RSS over baseline less the answers",
        extra_memory("millstream_100k"),
        at_most=150.0,
        unit="MB",
    ),
    Target(
        "batch_100k",
        "100,000 prompts ÷ 5,000 prompts, requests/s",
        ratio("rps", "millstream_100k", "millstream_5k"),
        at_least=0.85,
    ),
    Target(
        "bulk_100k",
        "CPU of the loop's thread for each item",
        value("loop_us_per_request", "millstream_bulk"),
        at_most=10.0,
        unit="µs",
    ),
    Target(
        "bulk_100k",
        "millstream_bulk ÷ floor_reqwest, requests/s",
        ratio("rps", "millstream_bulk", "floor_reqwest"),
        at_least=0.75,
    ),
    Target(
        "bridge",
        "bridge future ÷ asyncio future, time",
        ratio("us_per_future", "bridge_future", "asyncio_future"),
        at_most=1.5,
    ),
    Target(
        "import_time",
        "import millstream",
        difference("wall_ms", "import_millstream", "import_nothing"),
        at_most=60.0,
        unit="ms",
    ),
    Target(
        "import_time",
        "threads started by the import",
        difference("threads", "import_millstream", "import_nothing"),
        at_most=0.0,
    ),
    Target(
        "limiter",
        "CPU for each that passes, 20,000 waiting",
        value("cpu_us_per_request", "engine_limiter"),
        at_most=15.0,
        unit="µs",
    ),
    *_adaptive_targets("adaptive_8", 8),
    *_adaptive_targets("adaptive_32", 32),
    *_stream_targets("millstream_texts"),
    *_stream_targets("millstream_chunks"),
    # Without a knee more in flight is simply faster, so only the throughput says anything.
    _adaptive_targets("adaptive_free", 64)[0],
)
