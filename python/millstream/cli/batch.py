"""``millstream batch``: a file of requests through a vendor's batch API, at half the price and within a day."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import click

from millstream._progress import quantity
from millstream.cli import _table
from millstream.cli._exit import DONE, FAILED, refusing
from millstream.cli._options import Configured, Server, request_options, server_options
from millstream.cli._types import COUNT, INPUT, OUTPUT, SECONDS

if TYPE_CHECKING:
    from millstream import BatchJob
    from millstream.types import BatchJobResult, BatchJobStatus

_SHOWN = 20


@click.group()
def batch() -> None:
    """Send a file through a vendor's batch API: half the price, within 24 hours.

    The same input files as `millstream run`, and the same output. The job is kept in OUT.jsonl.batch.json beside the
    output, so every command can be given again, by another process and after a crash; nothing is submitted twice.

    \b
    Examples:
      millstream batch submit prompts.jsonl -o answers.jsonl --model gpt-4o-mini
      millstream batch status answers.jsonl
      millstream batch fetch answers.jsonl --wait
      millstream batch cancel answers.jsonl
    """


@batch.command(cls=Configured)
@click.argument("file", metavar="IN.jsonl", type=INPUT)
@click.option("-o", "--output", type=OUTPUT, help="Where answers will be.  [default: IN.out.jsonl]")
@click.option("--strict", is_flag=True, help="Refuse the whole file if one line of it is bad.")
@click.option("--max-items", type=COUNT, help="Most items of one batch.  [default: the vendor's limit]")
@click.option("--max-bytes", type=COUNT, help="Most bytes of one batch.  [default: the vendor's limit]")
@request_options
@server_options(pace=False)
def submit(
    server: Server,
    file: str,
    output: str | None,
    strict: bool,
    max_items: int | None,
    max_bytes: int | None,
    system: str | None,
    params: dict[str, Any],
) -> int:
    """Submit a file as one or more batches; the vendor is the one of --provider.

    The same command again goes on where it was: what was submitted is not submitted twice.

    \b
    Examples:
      millstream batch submit prompts.jsonl -o answers.jsonl --model gpt-4o-mini
      millstream batch submit prompts.jsonl --provider anthropic --model claude-haiku-4-5 --param max_tokens=500
    """
    from millstream import VendorBatches

    with server.client(async_mode=False) as client:
        batches = VendorBatches(client, system=system, **params)
        with refusing(OSError, TypeError):
            job = batches.submit_blocking(file, output=output, strict=strict, max_items=max_items, max_bytes=max_bytes)
        click.echo(f"{job.output}: {', '.join(job.batch_ids) or 'nothing to submit'}")
        click.echo(f"how far it is: millstream batch status {job.output}", err=True)
    return DONE


@batch.command(cls=Configured)
@click.argument("output", metavar="OUT.jsonl", type=OUTPUT)
@click.option("--wait", is_flag=True, help="Ask again until every batch has ended.")
@click.option("--max-poll", type=SECONDS, default="5m", help="Longest time between two looks, with --wait.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@server_options(pace=False)
def status(server: Server, output: str, wait: bool, max_poll: float, as_json: bool) -> int:
    """Show how far a job is.

    \b
    Examples:
      millstream batch status answers.jsonl
      millstream batch status answers.jsonl --wait --max-poll 1m
    """
    with _for(server, output).client(async_mode=False) as client:
        job = _open(client, output)
        seen = _wait(job, max_poll) if wait else job.status_blocking()
    _show(seen, as_json)
    return DONE


@batch.command(cls=Configured)
@click.argument("output", metavar="OUT.jsonl", type=OUTPUT)
@click.option("--wait", is_flag=True, help="Wait until every batch has ended.")
@click.option("--max-poll", type=SECONDS, default="5m", help="Longest time between two looks, with --wait.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@server_options(pace=False)
def fetch(server: Server, output: str, wait: bool, max_poll: float, as_json: bool) -> int:
    """Write the answers that are there to the output, each once.

    \b
    Examples:
      millstream batch fetch answers.jsonl
      millstream batch fetch answers.jsonl --wait

    \b
    Exit codes:
      0  every request was answered
      1  some failed, or are still to come
      2  bad usage, or no such job
    """
    with _for(server, output).client(async_mode=False) as client:
        job = _open(client, output)
        if wait:
            _wait(job, max_poll)
        result = job.fetch_blocking()
    if as_json:
        click.echo(json.dumps({**asdict(result), "output": str(result.output)}))
    else:
        click.echo(_in_words(result))
    for problem in result.problems[:_SHOWN]:
        click.echo(problem, err=True)
    return FAILED if result.failed or result.pending else DONE


@batch.command(cls=Configured)
@click.argument("output", metavar="OUT.jsonl", type=OUTPUT)
@click.option("--json", "as_json", is_flag=True, help="Print how far it was as JSON.")
@server_options(pace=False)
def cancel(server: Server, output: str, as_json: bool) -> int:
    """Cancel what has not ended. What is answered already is paid for, and can be fetched.

    \b
    Examples:
      millstream batch cancel answers.jsonl
    """
    with _for(server, output).client(async_mode=False) as client:
        seen = _open(client, output).cancel_blocking()
    _show(seen, as_json)
    return DONE


def _for(server: Server, output: str) -> Server:
    """The job's vendor, where nothing else is said."""
    from millstream._vendor_state import Place

    if server.provider is not None or "provider" in server.configured:
        return server
    with refusing():
        state = Place(output).load()
    return server if state is None else replace(server, provider=state.via)


def _open(client: Any, output: str) -> BatchJob:
    from millstream import VendorBatches

    return VendorBatches(client).open(output)


def _wait(job: BatchJob, max_poll: float) -> BatchJobStatus:
    def tell(seen: BatchJobStatus) -> None:
        click.echo(f"{seen.completed + seen.failed:,}/{seen.items:,} · {seen.failed:,} failed", err=True)

    return job.wait_blocking(poll=min(5.0, max_poll), max_poll=max_poll, on_status=tell)


def _show(seen: BatchJobStatus, as_json: bool) -> None:
    if as_json:
        counted = {"completed": seen.completed, "failed": seen.failed, "done": seen.done}
        click.echo(json.dumps({**asdict(seen), **counted}))
        return
    rows = [
        ("vendor", seen.via),
        ("requests", f"{seen.items:,}"),
        ("answered", f"{seen.completed:,}"),
        ("failed", f"{seen.failed:,}"),
    ]
    if seen.bad_lines:
        rows.append(("bad lines", f"{seen.bad_lines:,}"))
    rows.extend((part.batch_id or "no name yet", f"{part.status}, {part.items:,} requests") for part in seen.parts)
    _table.show(rows)


def _in_words(result: BatchJobResult) -> str:
    parts = [f"{result.output}: {result.ok:,} answered", f"{result.failed:,} failed", f"{result.pending:,} to come"]
    parts.append(f"{quantity(result.prompt_tokens)} + {quantity(result.completion_tokens)} tokens")
    return " · ".join(parts)
