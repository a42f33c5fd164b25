"""``millstream run``: a file of requests in, a file of answers out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from millstream import BatchProcessor, ConfigurationError
from millstream._progress import duration, quantity
from millstream.cli._exit import refusing
from millstream.cli._options import Configured, Server, price_options, request_options, server_options
from millstream.cli._outcome import cost, done_before, exit_code, interruptions, report
from millstream.cli._types import COUNT, INPUT, OUTPUT, SECONDS

if TYPE_CHECKING:
    from millstream import Prices
    from millstream.types import RunSummary


@click.command(cls=Configured)
@click.argument("file", metavar="IN.jsonl", type=INPUT)
@click.option("-o", "--output", required=True, type=OUTPUT, help="Where the answers go.")
@click.option("--errors", type=OUTPUT, help="Where failures go.  [default: the output]")
@click.option("--ordered", is_flag=True, help="Write in the order of the input, not in that of the answers.")
@click.option("--resume/--no-resume", default=True, help="Go on with an output that is there, or refuse it.")
@click.option("--retry-failed", is_flag=True, help="Ask again for what failed in an earlier run.")
@click.option("--strict", is_flag=True, help="Refuse the whole file if one line of it is bad.")
@click.option("--bare", is_flag=True, help='Leave the key "millstream" (attempts, latency) out of the output.')
@click.option("--max-errors", type=click.IntRange(1), help="Stop after so many failures.")
@click.option(
    "--max-error-rate", type=click.FloatRange(0, 1, min_open=True), help="Stop at such a share of the last 100."
)
@click.option(
    "--stop-on-fatal/--no-stop-on-fatal", default=True, help="Stop when the key is refused or a quota used up."
)
@click.option("--deadline", type=SECONDS, help="Stop after so long.")
@click.option("--budget-tokens", type=COUNT, help="Stop once so many tokens are used.")
@click.option("--budget-usd", type=COUNT, help="Stop once so many dollars are spent.")
@click.option("--grace", type=SECONDS, default="30s", help="How long Ctrl-C waits for what is on the wire.")
@click.option("--progress/--no-progress", default=None, help="Show how far it is.  [default: in a terminal]")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON on stdout.")
@request_options
@server_options()
@price_options
def run(
    server: Server,
    file: str,
    output: str,
    errors: str | None,
    ordered: bool,
    resume: bool,
    retry_failed: bool,
    strict: bool,
    bare: bool,
    max_errors: int | None,
    max_error_rate: float | None,
    stop_on_fatal: bool,
    deadline: float | None,
    budget_tokens: int | None,
    budget_usd: float | None,
    grace: float,
    progress: bool | None,
    as_json: bool,
    system: str | None,
    params: dict[str, Any],
    prices: Prices,
) -> int:
    """Send every request of a file and write every answer, exactly once.

    A line of IN.jsonl is a line of OpenAI's Batch API ({"custom_id", "method", "url", "body"}), of Mistral's or
    Anthropic's, or short: {"prompt": "..."} or {"messages": [...]}, with any request fields beside it. A line of the
    output is one of OpenAI's Batch API; its custom_id says whose answer it is.

    The output is also the journal: the same command again goes on where the last one ended, however it ended, and asks
    for nothing that is there already. Ctrl-C lets what is on the wire end (--grace); a second one stops at once.

    \b
    Examples:
      millstream run prompts.jsonl -o answers.jsonl --model gpt-4o-mini
      millstream run prompts.jsonl -o answers.jsonl --rpm 500 --tpm 200k --budget-usd 5
      millstream run prompts.jsonl -o answers.jsonl --errors failed.jsonl --max-error-rate 0.5
      millstream run prompts.jsonl -o answers.jsonl --retry-failed
      millstream run prompts.jsonl -o answers.jsonl --config millstream.toml --profile local
      millstream run prompts.jsonl -o answers.jsonl --base-url http://127.0.0.1:8080/v1 --model any

    \b
    A configuration file:
      model = "gpt-4o-mini"
      api_key_env = "MY_KEY"
      [options]                      # of the command line
      rpm = 500
      [profiles.local]               # with --profile local
      base_url = "http://127.0.0.1:8080/v1"
      [profiles.local.options]
      max-concurrency = 4

    \b
    Exit codes:
      0    every request was answered
      1    some failed, or a rule ended the run early
      2    bad usage or input; nothing was sent
      130  interrupted (143 by SIGTERM)
    """
    client = server.client(async_mode=True)
    with refusing(ConfigurationError, TypeError):
        processor = BatchProcessor(
            client,
            system=system,
            max_errors=max_errors,
            max_error_rate=max_error_rate,
            stop_on_fatal=stop_on_fatal,
            deadline=deadline,
            budget_tokens=budget_tokens,
            budget_usd=budget_usd,
            prices=prices,
            progress=progress,
            **params,
        )

    async def carry() -> tuple[RunSummary, int | None]:
        async with client:
            seen = interruptions(processor.stop, grace)
            summary = await processor.run_file(
                file,
                output,
                errors=errors,
                ordered=ordered,
                resume=resume,
                retry_failed=retry_failed,
                strict=strict,
                bare=bare,
            )
        return summary, seen[0] if seen else None

    import asyncio  # not at the top: the other commands need none of it

    summary, interruption = asyncio.run(carry())
    problems = (f"{file}:{line}: {reason}" for file, line, reason in summary.problems)
    report(summary, problems, _in_words(summary), _REASONS, as_json=as_json)
    has_failed = bool(summary.failed or summary.failed_before or summary.bad_lines)
    return exit_code(summary, interruption, has_failed=has_failed)


_REASONS = {
    "max_errors": "stopped: as many failures as --max-errors allows",
    "error_rate": "stopped: as large a share of failures as --max-error-rate allows",
    "fatal": "stopped: no request can succeed, see the last errors",
    "deadline": "stopped: --deadline is over",
    "budget": "stopped: the budget is used up",
    "interrupted": "interrupted; the same command again goes on from here",
}


def _in_words(summary: RunSummary) -> list[str]:
    parts = [f"{summary.ok:,} answered", f"{summary.failed:,} failed"]
    parts.extend(done_before(summary))
    if summary.bad_lines:
        parts.append(f"{summary.bad_lines:,} bad lines")
    parts.append(f"{quantity(summary.prompt_tokens)} + {quantity(summary.completion_tokens)} tokens")
    parts.append(cost(summary, "answers"))
    parts.append(duration(summary.elapsed))
    return parts
