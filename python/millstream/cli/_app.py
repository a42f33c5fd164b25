"""The commands together, and what becomes of an exception."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from millstream import __version__
from millstream.cli._exit import FAILED, INTERRUPTED, REFUSED
from millstream.cli.ask import ask
from millstream.cli.batch import batch
from millstream.cli.cache import cache
from millstream.cli.check import check
from millstream.cli.completion import completion
from millstream.cli.embed import embed
from millstream.cli.run import run as run_command
from millstream.cli.serve_mock import serve_mock
from millstream.cli.stats import stats
from millstream.exceptions import ConfigurationError, MillstreamError

if TYPE_CHECKING:
    from collections.abc import Sequence

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100, "show_default": True}


@click.group(context_settings=_CONTEXT)
@click.version_option(__version__, prog_name="millstream")
def app() -> None:
    """Any number of prompts through LLM APIs, as fast as their limits allow, every answer back exactly once.

    The key comes from the environment (OPENAI_API_KEY, ANTHROPIC_API_KEY, MISTRAL_API_KEY, AZURE_OPENAI_API_KEY), from
    the variable that --api-key-env names, or from a configuration file; never from the command line, which every user
    of the machine can read.

    \b
    Examples:
      millstream ask "Say hello." --model gpt-4o-mini
      millstream check prompts.jsonl --model gpt-4o-mini
      millstream run prompts.jsonl -o answers.jsonl --model gpt-4o-mini
      millstream stats answers.jsonl
      millstream embed texts.csv -o vectors.parquet --model text-embedding-3-small
      millstream serve-mock --port 8000

    \b
    Exit codes:
      0    all done
      1    some failed, or the run ended before its items did
      2    bad usage or input; nothing was sent
      130  interrupted (143 by SIGTERM); the same command again goes on where it was
    """


for _command in (run_command, ask, embed, batch, cache, check, stats, serve_mock, completion):
    app.add_command(_command)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name; the exit code."""
    try:
        code = app.main(arguments, prog_name="millstream", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        return INTERRUPTED
    except ConfigurationError as error:
        return _say(error, REFUSED)
    except (MillstreamError, OSError) as error:
        return _say(error, FAILED)
    return code if isinstance(code, int) else 0


def _say(error: Exception, code: int) -> int:
    print(f"Error: {error}", file=sys.stderr)
    return code
