"""Lines of a vendor's batch: what a user writes, as the vendor wants it, and what it answers, as OpenAI writes it.

In goes what the file engine takes, too: a prompt, messages, a request's body, an OpenAI, Mistral or Anthropic batch
line. Out come OpenAI Batch output lines, whoever answered.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, NamedTuple

from millstream._fields import FORBIDDEN_IN_LINES, REQUEST_FIELDS, SERVERS_FIELDS
from millstream._millstream import chat_answer, chat_body

Json = dict[str, Any]

CHAT = "/v1/chat/completions"
EMBEDDINGS = "/v1/embeddings"
MESSAGES = "/v1/messages"

_FIELDS = REQUEST_FIELDS | SERVERS_FIELDS

_BOM = b"\xef\xbb\xbf"

# What Anthropic takes for a name of a request.
_ANTHROPIC_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")

# Anthropic names the kind of an error and not the status that it would have had; its SDK and reference pair them so.
_STATUS_OF_TYPE = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "conflict_error": 409,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}


class BadLineError(Exception):
    """A line that is no request, or none that the vendor could be sent; the others go on."""


@dataclass(frozen=True, slots=True)
class Defaults:
    """What lines without it have.

    Attributes:
        model: For every line that names none.
        system: A system message for shorthands that have none.
        fields: Request fields for shorthands.
    """

    model: str | None = None
    system: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)


class Request(NamedTuple):
    """One line as it is meant.

    ``custom_id`` is None where the line has none; ``url`` begins with ``/v1/``.
    """

    custom_id: str | None
    url: str
    body: Json
    metadata: Json


def to_bytes(value: object) -> bytes:
    """JSON on one line."""
    try:
        return _sent(value)
    except UnicodeEncodeError:
        # Half of a character, which only JSON's escapes can carry.
        return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()


def _sent(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def parse(line: bytes) -> object:
    """What a line of a file holds; an empty one is None."""
    line = line.removeprefix(_BOM).strip()
    if not line:
        return None
    try:
        return json.loads(line)
    except ValueError as error:
        raise BadLineError(f"not JSON: {error}") from None
    except RecursionError:
        raise BadLineError("not JSON that can be read: nested too deeply") from None


def read_request(item: object, defaults: Defaults) -> Request:
    """What an item asks for.

    Raises:
        BadLineError: Nothing that can be asked.
    """
    if isinstance(item, str):
        item = {"prompt": item}
    elif isinstance(item, (list, tuple)):
        item = {"messages": list(item)}
    if not isinstance(item, Mapping):
        raise BadLineError(f"a request must be an object, a list of messages or a text, not {type(item).__name__}")
    rest = dict(item)
    for name in rest:
        if str(name).lower() in FORBIDDEN_IN_LINES:
            raise BadLineError(f"a line may not set {name}")
    custom_id = rest.pop("custom_id", None)
    if not (custom_id is None or (isinstance(custom_id, str) and custom_id)):
        raise BadLineError("custom_id must be a text that is not empty")
    metadata = rest.pop("metadata", None)
    metadata = dict(metadata) if isinstance(metadata, Mapping) else {} if metadata is None else {"metadata": metadata}
    if rest.pop("method", "POST") != "POST":
        raise BadLineError('method must be "POST"')
    url = _url(rest.pop("url", None))
    if "body" in rest or "params" in rest:
        body = rest.pop("params" if "params" in rest else "body")
        if not isinstance(body, Mapping):
            raise BadLineError("body must be an object")
        url, body = url or (MESSAGES if "params" in item else CHAT), dict(body)
    else:
        # Of a bare body every field is the server's; beside a prompt, what no server knows is the user's own.
        is_bare = "model" in rest and "prompt" not in rest
        body = {name: rest.pop(name) for name in list(rest) if is_bare or name in _FIELDS}
        if "prompt" in rest:
            body["messages"] = _messages(rest.pop("prompt"), rest.pop("system", None))
        elif "system" in rest:
            body["messages"] = [{"role": "system", "content": rest.pop("system")}, *_list(body.get("messages"))]
        if url is None:
            url = EMBEDDINGS if "input" in body else CHAT
        body = {**defaults.fields, **body} if url == CHAT else body
        messages = _list(body.get("messages"))
        has_system = any(isinstance(each, Mapping) and each.get("role") == "system" for each in messages)
        if defaults.system is not None and url == CHAT and messages and not has_system:
            body["messages"] = [{"role": "system", "content": defaults.system}, *messages]
    metadata.update(rest)
    if "model" not in body and defaults.model is not None:
        body = {"model": defaults.model, **body}
    if url == CHAT and not _list(body.get("messages")):
        raise BadLineError("messages must be a list that is not empty")
    if body.get("stream"):
        raise BadLineError("a batch has whole answers; leave stream out")
    return Request(custom_id, url, body, metadata)


def _url(url: object) -> str | None:
    if url is None:
        return None
    if not isinstance(url, str) or "://" in url or url.startswith("//") or not url.strip("/"):
        raise BadLineError('url must be a path such as "/v1/chat/completions"')
    path = url.strip("/")
    return f"/{path}" if path.startswith("v1/") else f"/v1/{path}"


def _list(value: object) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else []


def _messages(prompt: object, system: object) -> list[Json]:
    if not isinstance(prompt, str):
        raise BadLineError("prompt must be a text")
    asked = [{"role": "user", "content": prompt}]
    return asked if system is None else [{"role": "system", "content": system}, *asked]


def id_of(request: Request) -> str:
    """The name of a request that has none: the same wherever its line stands."""
    return "h-" + sha256(to_bytes([request.url, request.body])).hexdigest()[:16]


class Line(NamedTuple):
    """One line as the vendor takes it, and what all lines of its batch must have in common."""

    vendor_id: str
    content: bytes
    url: str
    model: str
    inputs: int


def vendor_line(via: str, custom_id: str, request: Request) -> Line:
    """The line by which ``via`` is asked.

    Raises:
        BadLineError: It cannot be asked that.
    """
    url, body = request.url, request.body
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise BadLineError("model is missing: name one in the line, or give one for all")
    try:
        if via == "anthropic":
            return _anthropic_line(custom_id, url, model, body)
        if url == MESSAGES:
            raise BadLineError("a request in Anthropic's format can only be sent to Anthropic")
        if via == "mistral":
            # The job has the model.
            if url == CHAT:
                body = json.loads(_translated(via, model, body))
            body = {name: value for name, value in body.items() if name != "model"}
            content = _sent({"custom_id": custom_id, "body": body})
        else:
            content = _sent({"custom_id": custom_id, "method": "POST", "url": url, "body": body})
    except UnicodeEncodeError:
        # One such line, and a vendor refuses the whole batch.
        raise BadLineError("a text has half of a character (a lone surrogate), which cannot be sent") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise BadLineError(str(error)) from None
    inputs = body.get("input") if url == EMBEDDINGS else None
    return Line(custom_id, content, url, model, len(inputs) if isinstance(inputs, (list, tuple)) else 1)


def _translated(via: str, model: str, body: Json) -> bytes:
    fields = {name: value for name, value in body.items() if name not in ("model", "messages", "stream")}
    return chat_body(via, model, _list(body.get("messages")), fields)


def _anthropic_line(custom_id: str, url: str, model: str, body: Json) -> Line:
    if url == CHAT:
        params = _translated("anthropic", model, body)
    elif url == MESSAGES:
        params = _sent(body)
    else:
        raise BadLineError(f"Anthropic has no {url}")
    is_taken = _ANTHROPIC_ID.fullmatch(custom_id) is not None
    vendor_id = custom_id if is_taken else "h-" + sha256(to_bytes(custom_id)).hexdigest()[:40]
    return Line(vendor_id, b'{"custom_id":"%s","params":%s}' % (vendor_id.encode(), params), "", "", 1)


class Result(NamedTuple):
    """What became of one request: an OpenAI Batch output line, and what to count of it."""

    line: Json
    ok: bool
    prompt_tokens: int
    completion_tokens: int


def read_result(via: str, batch_id: str, custom_id: str, url: str, result: Json) -> Result:
    """A vendor's result as OpenAI writes it, an answer of a chat as a chat completion."""
    if via == "anthropic":
        request_id, response, error = f"{batch_id}-{custom_id}", *_anthropic_result(result.get("result"))
    else:
        request_id = result.get("id") or f"{batch_id}-{custom_id}"
        response, error = result.get("response"), result.get("error")
    body = response.get("body") if isinstance(response, dict) else None
    is_chat = url in ("", CHAT)
    if is_chat and isinstance(body, dict) and isinstance(response, dict) and response.get("status_code") == 200:
        translated = chat_answer(via, to_bytes(body))
        if translated is not None:
            body = json.loads(translated)
            response = {**response, "body": body}
    return _counted({"id": request_id, "custom_id": custom_id, "response": response, "error": error})


def failed(request_id: str, custom_id: str | None, code: str, message: str) -> Result:
    """The line of a request that was not executed."""
    error = {"code": code, "message": message}
    return Result({"id": request_id, "custom_id": custom_id, "response": None, "error": error}, False, 0, 0)


def _counted(line: Json) -> Result:
    response = line["response"]
    is_ok = isinstance(response, dict) and response.get("status_code") == 200 and line["error"] is None
    body = response.get("body") if isinstance(response, dict) else None
    usage = body.get("usage") if isinstance(body, dict) else None
    tokens = [0, 0]
    for place, names in enumerate([("prompt_tokens", "input_tokens"), ("completion_tokens", "output_tokens")]):
        counts = [usage.get(name) for name in names] if isinstance(usage, dict) else []
        tokens[place] = next((count for count in counts if isinstance(count, int)), 0)
    return Result(line, is_ok, *tokens)


def _anthropic_result(result: object) -> tuple[Json | None, Json | None]:
    """Response and error."""
    result = result if isinstance(result, dict) else {}
    match result.get("type"):
        case "succeeded":
            message = result.get("message")
            return {"status_code": 200, "request_id": None, "body": message}, None
        case "errored":
            outer = result.get("error")
            outer = outer if isinstance(outer, dict) else {}
            inner = outer.get("error")
            inner = inner if isinstance(inner, dict) else outer
            kind = str(inner.get("type"))
            error = {"message": inner.get("message"), "type": kind, "param": None, "code": None}
            response = {
                "status_code": _STATUS_OF_TYPE.get(kind, 500),
                "request_id": outer.get("request_id"),
                "body": {"error": error},
            }
            return response, None
        case "canceled":
            return None, {
                "code": "batch_cancelled",
                "message": "The batch was cancelled before this request was executed.",
            }
        case "expired":
            message = "This request could not be executed before the completion window expired."
            return None, {"code": "batch_expired", "message": message}
        case other:
            return None, {"code": "no_result", "message": f"A result of a kind that is not known: {other!r}"}
