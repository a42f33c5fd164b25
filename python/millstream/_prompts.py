"""What a prompt is, for every call that takes one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from millstream._chat import Message

Prompt = str | Sequence[Message]
"""A user message, or a list of messages."""


def checked_prompt(prompt: Prompt) -> Prompt:
    """The prompt, if it is one."""
    if not isinstance(prompt, (str, list, tuple)):
        raise TypeError(f"prompt must be a string or a list of messages, not {type(prompt).__name__}")
    return prompt


def checked_prompts(prompts: Iterable[Prompt]) -> list[Prompt]:
    """The prompts as a list, if they are many."""
    if isinstance(prompts, (str, bytes, Mapping)) or not isinstance(prompts, Iterable):
        raise TypeError(f"prompts must be a list of prompts, not {type(prompts).__name__}; wrap one in a list")
    return prompts if isinstance(prompts, list) else list(prompts)


def kept(prompt: Prompt) -> Prompt:
    """A prompt that stays as it is now, whatever its list is used for next."""
    return list(prompt) if isinstance(prompt, list) else prompt
