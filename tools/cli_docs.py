"""Write docs/cli.md from the program's own help, or with --check say whether it is what it would be.

`python tools/cli_docs.py [--check]`, with the wheel and its extra `cli` installed. The words between the help texts are
here, so that the page has one source.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
from millstream.cli._app import app

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = Path(__file__).resolve().parent.parent / "docs" / "cli.md"
WIDTH = 100

BEFORE = """# The command line

<!-- Written by tools/cli_docs.py from the program's own help. -->

`millstream` sends files of requests, embeds files of texts, asks single prompts, and says what became of them:

```sh
pip install 'millstream[cli]'
millstream check prompts.jsonl --model gpt-4o-mini                    # what it will cost; sends nothing
millstream run prompts.jsonl -o answers.jsonl --model gpt-4o-mini     # again: goes on where it was
millstream stats answers.jsonl
millstream embed texts.csv -o vectors.parquet --model text-embedding-3-small     # again: goes on where it was
```

`python -m millstream.cli` is the same. To try it without a key or costs, `millstream serve-mock` plays a server, and
`--base-url http://127.0.0.1:8000/v1` asks that.

## Keys

A key comes from the provider's environment variable, from the one that `--api-key-env` names, or from a configuration
file; there is no option for it, since every user of a machine can read the command lines of its programs. A key of the
environment goes to the vendor's own host alone, one of the configuration file to that file's server, and one that
`--api-key-env` names to whichever `--base-url` says. Neither keys nor prompts are in anything that is printed.

## Configuration files

`--config FILE` (or `MILLSTREAM_CONFIG`) reads TOML, JSON or YAML (which needs PyYAML). At the top are the keys of
`millstream.create_from_config`; the section `options` holds options of the commands by their names; `profiles` holds
sections of the same form, one of which `--profile NAME` (or `MILLSTREAM_PROFILE`) lays over the rest. The command line
goes before all of it.

```toml
model = "gpt-4o-mini"
api_key_env = "MY_KEY"

[options]
rpm = 500
tpm = "200k"

[options.param]
temperature = 0

[profiles.local]
base_url = "http://127.0.0.1:8080/v1"
model = "smollm2"

[profiles.local.options]
max-errors = 10
```

## Prices

Costs are estimates from a small table of list prices that is shipped with its date. Prices change: your own go in a
JSON or TOML file, by `--prices FILE` or `MILLSTREAM_PRICES`, as `{"my-model": {"input": 0.5, "output": 2}}` in dollars
per million tokens; a name may end in `*`. A price that is not known is said to be unknown, and never counted as 0.
What a prompt cache saves is not in them.

## Completion

`millstream completion bash` (or `zsh`, `fish`) prints what makes the shell complete commands and options.
"""


def page() -> str:
    """The whole page."""
    root = click.Context(app, info_name="millstream", terminal_width=WIDTH, **app.context_settings)
    return "\n".join([BEFORE, *sections(root)])


def sections(context: click.Context) -> Iterator[str]:
    """The help of a command and, after it, of those below it."""
    yield section(context)
    if isinstance(context.command, click.Group):
        for name, command in sorted(context.command.commands.items()):
            yield from sections(click.Context(command, info_name=name, parent=context, terminal_width=WIDTH))


def section(context: click.Context) -> str:
    """One help text."""
    lines = (line.rstrip() for line in context.get_help().splitlines())
    return f"## {context.command_path}\n\n```text\n" + "\n".join(lines) + "\n```\n"


def main() -> int:
    """Write or check."""
    if sys.argv[1:] == ["--check"]:
        if PAGE.read_text(encoding="utf-8") == page():
            return 0
        print(f"{PAGE.name} is stale: run python tools/cli_docs.py", file=sys.stderr)
        return 1
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
