"""``millstream completion``: what a shell needs to complete commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from millstream.cli._exit import DONE, Refused


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> int:
    """Print the script that makes a shell complete commands and options.

    \b
    Examples:
      millstream completion bash >> ~/.bashrc
      millstream completion zsh >> ~/.zshrc
      millstream completion fish > ~/.config/fish/completions/millstream.fish
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise Refused(f"no completion for {shell}")
    root = click.get_current_context().find_root()
    click.echo(kind(root.command, {}, "millstream", "_MILLSTREAM_COMPLETE").source())
    return DONE
