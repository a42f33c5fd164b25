"""A file of requests, line by line, as ``check`` reads it: what a line asks for, or what is wrong with it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from millstream._fields import FORBIDDEN_IN_LINES

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping

_CHAT = "/chat/completions"
_MESSAGES = "/messages"
_PATHS = {"messages": _CHAT, "input": "/embeddings", "prompt": "/completions"}
"""Where a whole request without a url goes, by what it has."""

_PROMPTS = ("messages", "prompt", "input", "system", "instructions", "tools", "functions")
_ANSWERS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
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
    def needs_model(self) -> bool:
        """Whether it cannot be sent without one."""
        return self.url.endswith((_CHAT, _MESSAGES))

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
    if forbidden := [name for name in content if name.lower() in FORBIDDEN_IN_LINES]:
        return f"a line may not set {forbidden[0]}"
    custom_id = content.get("custom_id")
    if custom_id is not None and not isinstance(custom_id, str):
        return "custom_id must be a string"
    if custom_id == "":
        return "custom_id must not be empty"
    if content.get("body") is not None:
        if content.get("method", "POST") != "POST":
            return 'method must be "POST"'
        return _whole(custom_id, content["body"], content.get("url"))
    if content.get("params") is not None:
        return _whole(custom_id, content["params"], _MESSAGES)
    has_model = content.get("model") is not None
    prompt, messages = content.get("prompt"), content.get("messages")
    if (prompt is not None and messages is None) or (messages is not None and not has_model):
        given = prompt if messages is None else messages
        if not given if isinstance(given, list) else not isinstance(given, str):
            return "the prompt must be a string or a list of messages"
        return Request(custom_id, _CHAT, content, True)
    if not has_model:
        return "neither a body, nor params, messages, a prompt or a model"
    return _whole(custom_id, content, content.get("url"))


def _whole(custom_id: str | None, body: Any, url: Any) -> Request | str:
    """A request that is sent as it stands."""
    if not isinstance(body, dict):
        return "the request must be a JSON object"
    if url is None:
        url = next((path for name, path in _PATHS.items() if body.get(name) is not None), None)
        if url is None:
            return "it has no url, and neither messages nor input that would tell what it asks for"
    if not isinstance(url, str) or "://" in url or url.startswith("//") or ".." in re.split(r"[/?\\]", url):
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
