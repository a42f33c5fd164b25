"""Any number of prompts through LLM APIs as fast as their limits allow, every answer back exactly once.

>>> from millstream import AsyncClient
>>> async with AsyncClient(model="gpt-4o-mini") as client:
...     texts = await client.batch_complete(["Say hi.", "Say bye."])
"""

from millstream._client import AsyncClient, Client
from millstream._config import NOT_GIVEN, CompletionConfig
from millstream._limits import RateLimiter
from millstream._millstream import BUILD_PROFILE, VERSION, ChatCompletion, Reservation
from millstream.exceptions import (
    APIConnectionError,
    APIError,
    APIResponseValidationError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    ClientClosedError,
    ConfigurationError,
    ConflictError,
    DeadlineExceeded,
    InputTooLargeError,
    InsufficientQuotaError,
    InternalError,
    InternalServerError,
    MillstreamError,
    NotFoundError,
    OverloadedError,
    PermissionDeniedError,
    QueueTimeoutError,
    RateLimitError,
    UnprocessableEntityError,
)
from millstream.types import ClientStats, ModelList

__all__ = [
    "NOT_GIVEN",
    "APIConnectionError",
    "APIError",
    "APIResponseValidationError",
    "APIStatusError",
    "APITimeoutError",
    "AsyncClient",
    "AuthenticationError",
    "BadRequestError",
    "ChatCompletion",
    "Client",
    "ClientClosedError",
    "ClientStats",
    "CompletionConfig",
    "ConfigurationError",
    "ConflictError",
    "DeadlineExceeded",
    "InputTooLargeError",
    "InsufficientQuotaError",
    "InternalError",
    "InternalServerError",
    "MillstreamError",
    "ModelList",
    "NotFoundError",
    "OverloadedError",
    "PermissionDeniedError",
    "QueueTimeoutError",
    "RateLimitError",
    "RateLimiter",
    "Reservation",
    "UnprocessableEntityError",
    "__version__",
]

__version__ = VERSION

if BUILD_PROFILE == "debug":
    import warnings

    warnings.warn("this is a debug build of millstream: slow, for development only", RuntimeWarning, stacklevel=2)
