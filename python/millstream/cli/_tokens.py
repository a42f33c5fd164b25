"""What a request will take, as far as it can be known before it is sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_PROMPTS = ("messages", "prompt", "input", "system", "instructions", "tools", "functions")
_ANSWERS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
# A message is a few tokens more than its text.
_MESSAGE_BYTES = 16
_BYTES_PER_TOKEN = 4


def of_prompt(body: Mapping[str, Any]) -> int:
    """An estimate: a quarter of the text's bytes."""
    return -(-_bytes([body.get(name) for name in _PROMPTS]) // _BYTES_PER_TOKEN)


def of_answer(url: str, body: Mapping[str, Any]) -> int | None:
    """What the request allows; None if it does not say. An embedding has no answer."""
    if url.endswith("/embeddings"):
        return 0
    for name in _ANSWERS:
        most = body.get(name)
        if isinstance(most, int):
            count = body.get("n")
            return most * (count if isinstance(count, int) else 1)
    return None


def _bytes(value: Any) -> int:
    if isinstance(value, str):
        # A picture's tokens do not go by its bytes. Half of a character has bytes, too.
        return 0 if value.startswith("data:") else len(value.encode(errors="surrogatepass"))
    if isinstance(value, list):
        return sum(map(_bytes, value))
    if isinstance(value, dict):
        return _MESSAGE_BYTES * ("role" in value) + sum(_bytes(each) for key, each in value.items() if key != "role")
    return 0
