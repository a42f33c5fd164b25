"""``millstream ask``: one prompt."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from millstream._progress import dollars
from millstream.cli._exit import DONE, Refused, refusing
from millstream.cli._options import Configured, Server, price_options, request_options, server_options

if TYPE_CHECKING:
    from millstream import ChatCompletion, Prices


@click.command(cls=Configured)
@click.argument("prompt", required=False)
@click.option("--stream", is_flag=True, help="Print the answer as it comes.")
@click.option("--usage", is_flag=True, help="Afterwards print tokens, cost and time on stderr.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole answer as the server sent it.")
@request_options
@server_options()
@price_options
def ask(
    server: Server,
    prompt: str | None,
    stream: bool,
    usage: bool,
    as_json: bool,
    system: str | None,
    params: dict[str, Any],
    prices: Prices,
) -> int:
    """Ask one prompt and print the answer.

    Without PROMPT, or with -, the prompt is read from stdin.

    \b
    Examples:
      millstream ask "Say hello." --model gpt-4o-mini
      millstream ask "Tell a story." --model anthropic:claude-haiku-4-5 --stream
      git diff | millstream ask --system "Review this." --model gpt-4o --param temperature=0
      millstream ask "Hi." --base-url http://127.0.0.1:8000/v1 --model any --usage
    """
    if stream and as_json:
        raise click.UsageError("--stream and --json exclude each other")
    text = _prompt(prompt)
    with server.client(async_mode=False) as client, refusing(TypeError):
        if stream:
            pieces = client.stream_complete(text, system=system, **params)
            for piece in pieces:
                click.echo(piece, nl=False)
            click.echo()
            answer = pieces.response
        else:
            messages = [{"role": "system", "content": system}] if system is not None else []
            messages.append({"role": "user", "content": text})
            answer = client.chat.completions.create(messages=messages, **params)
            click.echo(json.dumps(answer.to_dict(), ensure_ascii=False) if as_json else answer.text)
    if usage and answer is not None:
        click.echo(_usage(answer, prices), err=True)
    return DONE


def _usage(answer: ChatCompletion, prices: Prices) -> str:
    used, price = answer.usage, prices.of(answer.model)
    parts = [answer.model or "unknown model"]
    if used is None:
        parts.append("tokens not counted")
    else:
        parts.append(f"{used.prompt_tokens:,} + {used.completion_tokens:,} tokens")
    cost = price.cost(used.prompt_tokens, used.completion_tokens) if used and price else None
    parts.append(f"cost {dollars(cost)}")
    parts.append(f"{answer.elapsed:.2f} s, attempts: {answer.attempts}")
    return " · ".join(parts)


def _prompt(given: str | None) -> str:
    if given is None and sys.stdin.isatty():
        raise click.UsageError("give a prompt, or text on stdin")
    text = sys.stdin.read() if given in (None, "-") else given
    if text is None or not text.strip():
        raise Refused("the prompt is empty")
    return text
