"""Everything that millstream raises.

The names are openai-python's, so that existing ``except`` clauses read on::

    MillstreamError
    ├─ ConfigurationError (ValueError)             a bad argument; raised before anything is sent
    │   └─ InputTooLargeError                      one request needs more than a rate limit ever lets through
    ├─ ClientClosedError (RuntimeError)            a call on a closed client
    ├─ BatchStoppedError                           a run was stopped before this item had an answer
    ├─ JournalError (OSError)                      a file of results cannot be written, or another run has it
    ├─ InternalError (RuntimeError)                a fault of millstream's; please report it
    ├─ LengthFinishReasonError                     no value of a type: the answer was cut at its length limit
    ├─ ContentFilterFinishReasonError              no value of a type: a filter cut the answer
    ├─ RefusalError                                no value of a type: the model refused
    └─ APIError
        ├─ APIResponseValidationError              a 2xx that is not an answer, or not of the type asked for
        ├─ APIStatusError                          any other status
        │   ├─ BadRequestError 400                 ├─ PermissionDeniedError 403
        │   ├─ AuthenticationError 401             ├─ NotFoundError 404
        │   ├─ ConflictError 409                   ├─ UnprocessableEntityError 422
        │   ├─ RateLimitError 429
        │   │   └─ InsufficientQuotaError          money or quota is used up; waiting does not help
        │   └─ InternalServerError 5xx
        │       └─ OverloadedError 503, 529
        └─ APIConnectionError (ConnectionError)    no complete HTTP response
            ├─ StreamInterruptedError              a stream ended before it was told to be complete
            └─ APITimeoutError (TimeoutError)      no connection, no head or no next piece of an answer in time
                ├─ QueueTimeoutError               not admitted within ``queue_timeout``; nothing was sent
                └─ DeadlineExceeded                no answer within ``timeout``, all attempts included

``asyncio.CancelledError`` and ``KeyboardInterrupt`` pass through untouched. All of these survive pickling, and none
of them ever holds the API key. In a program that has imported openai they are also caught by its names, as by ``except
openai.RateLimitError``; see `millstream._openai_errors`.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import ModuleType

    from millstream._millstream import ChatCompletion

__all__ = [
    "APIConnectionError",
    "APIError",
    "APIResponseValidationError",
    "APIStatusError",
    "APITimeoutError",
    "AuthenticationError",
    "BadRequestError",
    "BatchStoppedError",
    "ClientClosedError",
    "ConfigurationError",
    "ConflictError",
    "ContentFilterFinishReasonError",
    "DeadlineExceeded",
    "InputTooLargeError",
    "InsufficientQuotaError",
    "InternalError",
    "InternalServerError",
    "JournalError",
    "LengthFinishReasonError",
    "MillstreamError",
    "NotFoundError",
    "OverloadedError",
    "PermissionDeniedError",
    "QueueTimeoutError",
    "RateLimitError",
    "RefusalError",
    "StreamInterruptedError",
    "UnprocessableEntityError",
]


class MillstreamError(Exception):
    """Root of everything that millstream raises.

    Attributes:
        message: What happened, what was tried and what can be done.
        retryable: Whether the same may succeed later.
        retry_after: Seconds that the server asked to wait, if one did.
        index: Which of a batch's prompts it is about, from 0; None if it is not about one of them.
    """

    retryable: bool = False
    retry_after: float | None = None
    index: int | None = None

    def __init__(self, message: str) -> None:
        if sys.modules.get("openai") is not _openai:
            _join_openai()
        # Not `super()`: the next class may be openai's, whose constructor wants an HTTP response.
        Exception.__init__(self, message)
        self.message = message

    def __str__(self) -> str:
        return self.message


class ConfigurationError(MillstreamError, ValueError):
    """A bad argument, found before anything was sent."""


class InputTooLargeError(ConfigurationError):
    """One request needs more than a rate limit ever lets through at once; waiting would never help."""


class BatchStoppedError(MillstreamError):
    """A run was stopped, by its user or by one of its rules, before this item had an answer; run it again.

    Attributes:
        reason: What stopped it: ``"interrupted"``, ``"deadline"``, ``"budget"``, ``"max_errors"``, ``"error_rate"`` or
            ``"fatal"``; None if that is not known.
    """

    retryable: bool = True
    reason: str | None = None


class ClientClosedError(MillstreamError, RuntimeError):
    """A call on a client that was closed."""


class JournalError(MillstreamError, OSError):
    """A file of results could not be written any more, or another run has it. What stands in the file is not lost."""


class InternalError(MillstreamError, RuntimeError):
    """A fault of millstream's own. The client stays usable; please report it."""


class LengthFinishReasonError(MillstreamError):
    """The answer that was to become a value of a type was cut at its length limit.

    Attributes:
        completion: The answer.
        failed_tries: Answers before it that were not of the type.
    """

    failed_tries: tuple[ChatCompletion, ...] = ()

    def __init__(self, message: str, completion: ChatCompletion) -> None:
        super().__init__(message)
        self.args = (message, completion)
        self.completion = completion


class ContentFilterFinishReasonError(MillstreamError):
    """The answer that was to become a value of a type was cut by the server's content filter.

    Attributes:
        completion: The answer.
        failed_tries: Answers before it that were not of the type.
    """

    failed_tries: tuple[ChatCompletion, ...] = ()

    def __init__(self, message: str, completion: ChatCompletion) -> None:
        super().__init__(message)
        self.args = (message, completion)
        self.completion = completion


class RefusalError(MillstreamError):
    """The model refused, where a value of a type was to be returned.

    Attributes:
        completion: The answer; ``completion.choices[0].message.refusal`` says why.
        failed_tries: Answers before it that were not of the type.
    """

    failed_tries: tuple[ChatCompletion, ...] = ()

    def __init__(self, message: str, completion: ChatCompletion) -> None:
        super().__init__(message)
        self.args = (message, completion)
        self.completion = completion


class APIError(MillstreamError):
    """A call that did not get its answer.

    Attributes:
        status_code: HTTP status, if a server answered (the last failed attempt) with one that is not 2xx.
        code: The server's ``error.code``, as text.
        type: The server's ``error.type``.
        param: The server's ``error.param``.
        body: The server's ``error`` object, else the parsed body, else its text, at most 64 KiB; None without an
            answer.
        request_id: The server's name for the request, for its support.
        attempts: HTTP requests made for this call, the first included.
        elapsed: Seconds from the call's admission to the error.
        key_id: The fingerprint of the key that was used, never the key; None if nothing was sent.
        partial: The text of a stream that failed after it had begun; None for any other call.
    """

    status_code: int | None = None
    code: str | None = None
    type: str | None = None
    param: str | None = None
    body: Any = None
    request_id: str | None = None
    attempts: int = 0
    elapsed: float = 0.0
    key_id: str | None = None
    partial: str | None = None


class APIResponseValidationError(APIError):
    """The server's 2xx is not an answer: not JSON, an error in the guise of a success, or without a message.

    Or it is one, but its text is not of the type that was asked for, still so after every validation retry. Then
    ``__cause__`` says what is wrong with the last text, and these are set:

    Attributes:
        completion: The last answer.
        failed_tries: Every answer, the last included; each has its ``usage``.
        text: The last answer's text.
    """

    completion: ChatCompletion | None = None
    failed_tries: tuple[ChatCompletion, ...] = ()
    text: str | None = None


class APIStatusError(APIError):
    """The server answered with a status other than 2xx."""


class BadRequestError(APIStatusError):
    """400: the request is wrong; the same again would be, too."""


class AuthenticationError(APIStatusError):
    """401: the key is missing or wrong."""


class PermissionDeniedError(APIStatusError):
    """403: the key may not do this."""


class NotFoundError(APIStatusError):
    """404: no such path or model."""


class ConflictError(APIStatusError):
    """409: in conflict with another request."""


class UnprocessableEntityError(APIStatusError):
    """422: understood, but not valid."""


class RateLimitError(APIStatusError):
    """429: too many requests or tokens, still so after every retry."""


class InsufficientQuotaError(RateLimitError):
    """The account's money or quota is used up. Waiting does not help, so it is not retried."""


class InternalServerError(APIStatusError):
    """5xx: the server is in trouble, still so after every retry."""


class OverloadedError(InternalServerError):
    """503 or 529: the server has too much to do, still so after every retry."""


class APIConnectionError(APIError, ConnectionError):
    """No complete HTTP response: refused, reset, cut, not trusted, or not HTTP."""


class StreamInterruptedError(APIConnectionError):
    """A stream ended before it was told to be complete; ``partial`` has the text that came of it."""


class APITimeoutError(APIConnectionError, TimeoutError):
    """No connection, no head or no next piece of an answer in time; the text says which and names its argument.

    Also caught by ``TimeoutError`` and ``asyncio.TimeoutError``.
    """


class QueueTimeoutError(APITimeoutError):
    """Not admitted within ``queue_timeout``, or a `RateLimiter`'s ``max_wait``: others were before it.

    Nothing was sent, unless ``attempts`` says so: an item of a batch waits again after a failed attempt.
    """


class DeadlineExceeded(APITimeoutError):
    """No answer within ``timeout``, which covers every attempt and every wait between them.

    What is known of the server's answer (``status_code``, ``body``, ...) is the last failed attempt's. In a batch the
    time does not run while a limit holds the item back.
    """


# The module openai whose exceptions ours are under.
_openai: ModuleType | None = None


def _join_openai() -> None:
    global _openai
    module = sys.modules.get("openai")
    if module is None:
        return
    from millstream._openai_errors import join

    if join(module):
        _openai = module


_BY_KIND: dict[str, type[MillstreamError]] = {
    "configuration": ConfigurationError,
    "input_too_large": InputTooLargeError,
    "connection": APIConnectionError,
    "stream_interrupted": StreamInterruptedError,
    "timeout": APITimeoutError,
    "queue_timeout": QueueTimeoutError,
    "deadline": DeadlineExceeded,
    "quota": InsufficientQuotaError,
    "invalid_response": APIResponseValidationError,
    "closed": ClientClosedError,
    "stopped": BatchStoppedError,
    "journal": JournalError,
}

_BY_STATUS: dict[int, type[APIStatusError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    409: ConflictError,
    422: UnprocessableEntityError,
    429: RateLimitError,
    503: OverloadedError,
    529: OverloadedError,
}


def _from_engine(kind: str, message: str, index: int | None, facts: dict[str, Any]) -> MillstreamError:
    """Build the exception for an error of the engine; called by the native module."""
    if kind == "status":
        status = facts["status_code"]
        server_fault = InternalServerError if status >= 500 else APIStatusError
        error: MillstreamError = _BY_STATUS.get(status, server_fault)(message)
    else:
        error = _BY_KIND.get(kind, InternalError)(message)
    if index is not None:
        error.index = index
    if isinstance(error, APIError):
        facts["body"] = _error_object(facts.get("body"))
        vars(error).update(facts)
    return error


def _error_object(body: str | None) -> Any:
    """The ``error`` object of a body, as openai-python's ``exc.body``; the body's text if it is not JSON."""
    if body is None:
        return None
    import json  # not at the top: it would be a tenth of what importing millstream takes

    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        return body
    return parsed.get("error", parsed) if isinstance(parsed, dict) else parsed
