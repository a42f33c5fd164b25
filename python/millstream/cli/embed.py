"""``millstream embed``: a column of texts in, a file of vectors out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import click

from millstream._embed import OnError, TooLong
from millstream._embed_job import EmbedRun
from millstream._progress import Watch, duration, quantity
from millstream.cli._exit import refusing
from millstream.cli._options import Configured, Server, param_option, price_options, server_options
from millstream.cli._outcome import cost, done_before, exit_code, interruptions, report
from millstream.cli._types import CACHE, COUNT, INPUT, OUTPUT, SECONDS
from millstream.exceptions import ConfigurationError

if TYPE_CHECKING:
    from millstream import Prices
    from millstream._embed_job import EmbedSummary


@click.command(cls=Configured)
@click.argument("file", metavar="IN", type=INPUT)
@click.option("-o", "--output", required=True, type=OUTPUT, help="A .parquet, .npy or .jsonl file for the vectors.")
@click.option("--column", default="text", metavar="NAME", help="Column with the texts.")
@click.option("--id-column", metavar="NAME", help="Column that goes into the output, too.")
@click.option("--dimensions", type=click.IntRange(1), help="Numbers of a vector.  [default: the model's]")
@click.option("--truncate-dim", type=click.IntRange(1), help="Keep only so many of them, brought to length 1.")
@click.option("--normalize", is_flag=True, help="Bring each vector to length 1.")
@click.option(
    "--batch-size", type=click.IntRange(1), help="Texts of a request.  [default: what the server takes, at most 256]"
)
@click.option("--max-batch-tokens", type=COUNT, help="Tokens of a request.  [default: what the server takes]")
@click.option("--max-input-tokens", type=COUNT, help="Tokens of a text.  [default: what the server takes, if known]")
@click.option(
    "--too-long",
    type=click.Choice(get_args(TooLong)),
    default="error",
    help="A longer text is sent as it is, cut, or split and its parts' vectors averaged.",
)
@click.option(
    "--on-error",
    type=click.Choice(get_args(OnError)),
    default="nan",
    help="A text that has no vector: stop; a row without one, if the fault is its own; or whatever went wrong.",
)
@click.option("--fresh", is_flag=True, help="Throw away what an earlier run left, and replace the output.")
@click.option("--retry-failed", is_flag=True, help="Ask again for what failed in an earlier run.")
@click.option("--strict", is_flag=True, help="Refuse the whole file if one row of it has no text.")
@click.option(
    "--cache", type=CACHE, metavar="PATH|URL", help='Cache of answers: a folder, or "disk" for the usual one.'
)
@click.option("--max-errors", type=click.IntRange(1), help="Stop after so many failures.")
@click.option("--deadline", type=SECONDS, help="Stop after so long.")
@click.option("--budget-tokens", type=COUNT, help="Stop once so many tokens are used.")
@click.option("--budget-usd", type=COUNT, help="Stop once so many dollars are spent.")
@click.option("--grace", type=SECONDS, default="30s", help="How long Ctrl-C waits for what is on the wire.")
@click.option("--progress/--no-progress", default=None, help="Show how far it is.  [default: in a terminal]")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON on stdout.")
@param_option
@server_options()
@price_options
def embed(
    server: Server,
    file: str,
    output: str,
    cache: str | None,
    grace: float,
    progress: bool | None,
    as_json: bool,
    params: dict[str, Any],
    prices: Prices,
    **how: Any,
) -> int:
    """Embed a column of a file: one row of the output for each row of the input, in its order.

    IN is JSONL, CSV, TSV or Parquet with a column of texts, or a .txt file with a text a line. The output is Parquet
    (needs pyarrow; a column "embedding", null where a text failed), an .npy file (numbers alone, NaN where one failed)
    or JSONL ({"row", "id", "embedding"}, with an "error" where one failed). Rows are counted from 0.

    What has come is kept in OUT.embed.journal and OUT.embed.vectors: the same command again goes on where the last one
    ended, however it ended, and asks for nothing that has come. The output is put in its place whole, once nothing is
    missing. Ctrl-C lets what is on the wire end (--grace); a second one stops at once.

    \b
    Examples:
      millstream embed texts.csv -o vectors.parquet --column body --id-column id --model text-embedding-3-small
      millstream embed texts.jsonl -o vectors.npy --model text-embedding-3-large --dimensions 256 --tpm 1M
      millstream embed texts.txt -o vectors.jsonl --base-url http://127.0.0.1:8080/v1 --model any --batch-size 32
      millstream embed texts.csv -o vectors.parquet --column body --model text-embedding-3-small --retry-failed

    \b
    Exit codes:
      0    every row has its vector
      1    some failed, or something ended the run early
      2    bad usage or input; nothing was sent
      130  interrupted (143 by SIGTERM)
    """
    with refusing(ConfigurationError, TypeError):
        client = server.client(async_mode=True, cache=cache)
    at_once = server.max_concurrency if isinstance(server.max_concurrency, int) else None
    with refusing():
        run = EmbedRun(client, file, output, max_concurrent=at_once, prices=prices, **how, **params)

    async def carry() -> tuple[EmbedSummary, int | None]:
        async with client:
            seen = interruptions(run.stop, grace)
            async with Watch(run.counters, progress, stats=client.stats):
                summary = await run.run()
        return summary, seen[0] if seen else None

    import asyncio  # not at the top: the other commands need none of it

    summary, interruption = asyncio.run(carry())
    report(summary, map(_problem, summary.problems), _in_words(summary), _REASONS, as_json=as_json)
    if summary.error:
        click.echo(f"Error: {summary.error}", err=True)
    return exit_code(summary, interruption, has_failed=bool(summary.failed or summary.failed_before))


_REASONS = {
    "max_errors": "stopped: as many failures as --max-errors allows",
    "error": "stopped: a text failed, and --on-error is raise",
    "fatal": "stopped: it is no text's fault",
    "deadline": "stopped: --deadline is over",
    "budget": "stopped: the budget is used up",
    "interrupted": "interrupted; the same command again goes on from here",
}


def _problem(problem: tuple[str, int, str]) -> str:
    file, row, reason = problem
    return f"{file}, {'line' if file.endswith('.embed.journal') else 'row'} {row}: {reason}"


def _in_words(summary: EmbedSummary) -> list[str]:
    made = f"{summary.output}: {summary.rows:,} x {summary.dimensions}" if summary.output else "no output yet"
    parts = [made, f"{summary.ok:,} embedded", f"{summary.failed:,} failed"]
    parts.extend(done_before(summary))
    parts.append(f"{summary.requests:,} requests")
    parts.append(f"{quantity(summary.prompt_tokens)} tokens")
    parts.append(cost(summary, "rows"))
    parts.append(duration(summary.elapsed))
    return parts
