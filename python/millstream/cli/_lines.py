"""A file of requests, line by line, as ``check`` reads it: what a line asks for, or what is wrong with it."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping

_CHAT = "/v1/chat/completions"
_PROMPTS = ("messages", "prompt", "input", "system", "instructions", "tools", "functions")
_ANSWERS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
_FORBIDDEN = ("base_url", "api_key")

# A message is a few tokens more than its text.
_MESSAGE_BYTES = 16
_BYTES_PER_TOKEN = 4


@dataclass(frozen=True, slots=True)
class Request:
    """What a line asks for.

    Attributes:
        custom_id: Its name, if it has one.
        url: Where it goes, below the server's root.
        body: The request's fields.
        shorthand: Whether the command line's fields and system message are added to them.
    """

    custom_id: str | None
    url: str
    body: Mapping[str, Any]
    shorthand: bool

    def with_fields(self, fields: Mapping[str, Any], system: str | None) -> Request:
        """As it will be sent: a whole request stays as it stands."""
        if not self.shorthand or not (fields or system):
            return self
        extra = {} if system is None else {"instructions": system}
        return replace(self, body={**fields, **extra, **self.body})

    @property
    def prompt_tokens(self) -> int:
        """An estimate: a quarter of the text's bytes."""
        return -(-_bytes([self.body.get(name) for name in _PROMPTS]) // _BYTES_PER_TOKEN)

    @property
    def most_answer_tokens(self) -> int | None:
        """What the request allows; None if it does not say. An embedding has no answer."""
        if self.url.endswith("/embeddings"):
            return 0
        for name in _ANSWERS:
            most = self.body.get(name)
            if isinstance(most, int):
                count = self.body.get("n")
                return most * (count if isinstance(count, int) else 1)
        return None


def read(path: str | os.PathLike[str]) -> Iterator[tuple[int, Request | str]]:
    """Each line that is not empty, by its number from 1: a request, or what is wrong with the line."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, _request(line)


def _request(line: bytes) -> Request | str:
    try:
        content = json.loads(line)
    except UnicodeDecodeError:
        return "not UTF-8"
    except (ValueError, RecursionError) as error:
        return f"not JSON: {getattr(error, 'msg', 'nested too deeply')}"
    if not isinstance(content, dict):
        return "not a JSON object"
    for name in _FORBIDDEN:
        if name in content:
            return f"a line may not set {name}"
    custom_id = content.get("custom_id")
    if custom_id is not None and not isinstance(custom_id, str):
        return "custom_id must be a string"
    if "body" in content:
        return _whole(custom_id, content, "body", _CHAT)
    if "params" in content:
        return _whole(custom_id, content, "params", "/v1/messages")
    if isinstance(content.get("messages"), list):
        return Request(custom_id, _CHAT, content, True)
    if isinstance(content.get("prompt"), str):
        return Request(custom_id, _CHAT, content, True)
    if "model" in content and "input" in content:
        return Request(custom_id, "/v1/embeddings", content, True)
    return "neither a body, nor params, messages or a prompt"


def _whole(custom_id: str | None, content: Mapping[str, Any], name: str, usual_url: str) -> Request | str:
    body, url = content[name], content.get("url", usual_url)
    if not isinstance(body, dict):
        return f"{name} must be an object"
    if content.get("method", "POST") != "POST":
        return "method must be POST"
    if not isinstance(url, str) or not url.startswith("/"):
        return "url must be a path such as /v1/chat/completions"
    return Request(custom_id, url, body, False)


def _bytes(value: Any) -> int:
    if isinstance(value, str):
        # A picture's tokens do not go by its bytes.
        return 0 if value.startswith("data:") else len(value.encode())
    if isinstance(value, list):
        return sum(map(_bytes, value))
    if isinstance(value, dict):
        return _MESSAGE_BYTES * ("role" in value) + sum(_bytes(each) for key, each in value.items() if key != "role")
    return 0
