"""Lines of a vendor's batch: what a user writes, as the vendor wants it, and what it answers, as OpenAI writes it.

In goes what the file engine takes, read by it: a prompt, messages, a request's body, an OpenAI, Mistral or Anthropic
batch line. Out come OpenAI Batch output lines, whoever answered.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple

from millstream._millstream import chat_answer, chat_body

if TYPE_CHECKING:
    from millstream._millstream import NativeLine

Json = dict[str, Any]

CHAT = "/v1/chat/completions"
EMBEDDINGS = "/v1/embeddings"
MESSAGES = "/v1/messages"

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


class Request(NamedTuple):
    """One line as it is meant.

    ``custom_id`` is None where the line has none, and ``name`` is then made of what it asks; ``url`` begins with
    ``/v1/``.
    """

    custom_id: str | None
    name: str
    url: str
    body: Json
    metadata: Any


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
    """What a line of a vendor's file holds; an empty one is None."""
    line = line.removeprefix(_BOM).strip()
    if not line:
        return None
    try:
        return json.loads(line)
    except ValueError as error:
        raise BadLineError(f"not JSON: {error}") from None
    except RecursionError:
        raise BadLineError("not JSON that can be read: nested too deeply") from None


def line_of(item: object) -> bytes:
    """The line that an item would be in a file.

    Raises:
        BadLineError: None can be made of it.
    """
    if isinstance(item, str):
        item = {"prompt": item}
    elif isinstance(item, (list, tuple)):
        item = {"messages": list(item)}
    elif not isinstance(item, Mapping):
        raise BadLineError(f"a request must be an object, a list of messages or a text, not {type(item).__name__}")
    try:
        return to_bytes(dict(item))
    except (TypeError, ValueError, RecursionError) as error:
        raise BadLineError(str(error)) from None


def request_of(line: NativeLine) -> Request:
    """What a line asks for.

    Raises:
        BadLineError: Nothing that can be asked.
    """
    if line.problem is not None:
        raise BadLineError(line.problem)
    try:
        body = json.loads(line.body)
        metadata = None if line.metadata is None else json.loads(line.metadata)
        # A number like 1e999 is JSON, and infinite once it is read.
        to_bytes(metadata)
    except RecursionError:
        raise BadLineError("it is nested too deeply") from None
    except ValueError as error:
        raise BadLineError(str(error)) from None
    return Request(line.custom_id, line.name, line.url, body, metadata)


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


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
        raise BadLineError("it names no model, and neither does the run")
    if url == CHAT and not _list(body.get("messages")):
        raise BadLineError("messages must be a list that is not empty")
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
    return Line(custom_id, content, url, model, len(inputs) if isinstance(inputs, list) else 1)


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
