"""Any number of prompts through LLM APIs as fast as their limits allow, every answer back exactly once.

>>> from millstream import AsyncClient
>>> async with AsyncClient(model="gpt-4o-mini") as client:
...     texts = await client.batch_complete(["Say hi.", "Say bye."])
"""

from typing import TYPE_CHECKING

from millstream._client import AsyncClient, Client
from millstream._limits import RateLimiter
from millstream._millstream import (
    BUILD_PROFILE,
    VERSION,
    BatchResult,
    ChatCompletion,
    ChatCompletionChunk,
    Embeddings,
    Endpoint,
    Reservation,
)
from millstream._not_given import NOT_GIVEN
from millstream._raw import RawResponse
from millstream._stream import AsyncEventStream, AsyncMergedStream, AsyncStream, EventStream, MergedStream, Stream
from millstream.exceptions import (
    APIConnectionError,
    APIError,
    APIResponseValidationError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    BatchStoppedError,
    ClientClosedError,
    ConfigurationError,
    ConflictError,
    ContentFilterFinishReasonError,
    DeadlineExceeded,
    InputTooLargeError,
    InsufficientQuotaError,
    InternalError,
    InternalServerError,
    JournalError,
    LengthFinishReasonError,
    MillstreamError,
    NotFoundError,
    OverloadedError,
    PermissionDeniedError,
    QueueTimeoutError,
    RateLimitError,
    RefusalError,
    StreamInterruptedError,
    UnprocessableEntityError,
)

if TYPE_CHECKING:
    from millstream import types as types
    from millstream._batch_policy import AdaptiveBatchPolicy
    from millstream._cache import Cache, CacheEntry, CacheStats
    from millstream._config import CompletionConfig, Timeout
    from millstream._create import create_client, create_from_config
    from millstream._embedding_batcher import EmbeddingBatcher
    from millstream._prices import Price, Prices
    from millstream._processor import BatchProcessor
    from millstream._progress import Progress
    from millstream._results import BatchResults, BatchSummary
    from millstream._retry import RetryPolicy, retry_with_backoff, retrying
    from millstream._run import AsyncBatchStream, BatchStream
    from millstream._structured import ResponseFormat
    from millstream._vendor_batches import BatchJob, VendorBatches
    from millstream.types import ClientStats, ModelList
else:
    _LATER = {
        "AdaptiveBatchPolicy": "_batch_policy",
        "BatchJob": "_vendor_batches",
        "AsyncBatchStream": "_run",
        "BatchProcessor": "_processor",
        "BatchResults": "_results",
        "BatchStream": "_run",
        "BatchSummary": "_results",
        "Cache": "_cache",
        "CacheEntry": "_cache",
        "CacheStats": "_cache",
        "ClientStats": "types",
        "CompletionConfig": "_config",
        "EmbeddingBatcher": "_embedding_batcher",
        "ModelList": "types",
        "Price": "_prices",
        "Prices": "_prices",
        "Progress": "_progress",
        "ResponseFormat": "_structured",
        "RetryPolicy": "_retry",
        "Timeout": "_config",
        "VendorBatches": "_vendor_batches",
        "create_client": "_create",
        "create_from_config": "_create",
        "retry_with_backoff": "_retry",
        "retrying": "_retry",
        "types": "types",
    }

    def __getattr__(name):
        # Dataclasses and what needs them: to make them takes longer than all the rest of the import.
        if name not in _LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        module = import_module(f"{__name__}.{_LATER[name]}")
        value = globals()[name] = getattr(module, name, module)
        return value


__all__ = [
    "NOT_GIVEN",
    "APIConnectionError",
    "APIError",
    "APIResponseValidationError",
    "APIStatusError",
    "APITimeoutError",
    "AdaptiveBatchPolicy",
    "AsyncBatchStream",
    "AsyncClient",
    "AsyncEventStream",
    "AsyncMergedStream",
    "AsyncStream",
    "AuthenticationError",
    "BadRequestError",
    "BatchJob",
    "BatchProcessor",
    "BatchResult",
    "BatchResults",
    "BatchStoppedError",
    "BatchStream",
    "BatchSummary",
    "Cache",
    "CacheEntry",
    "CacheStats",
    "ChatCompletion",
    "ChatCompletionChunk",
    "Client",
    "ClientClosedError",
    "ClientStats",
    "CompletionConfig",
    "ConfigurationError",
    "ConflictError",
    "ContentFilterFinishReasonError",
    "DeadlineExceeded",
    "EmbeddingBatcher",
    "Embeddings",
    "Endpoint",
    "EventStream",
    "InputTooLargeError",
    "InsufficientQuotaError",
    "InternalError",
    "InternalServerError",
    "JournalError",
    "LengthFinishReasonError",
    "MergedStream",
    "MillstreamError",
    "ModelList",
    "NotFoundError",
    "OverloadedError",
    "PermissionDeniedError",
    "Price",
    "Prices",
    "Progress",
    "QueueTimeoutError",
    "RateLimitError",
    "RateLimiter",
    "RawResponse",
    "RefusalError",
    "Reservation",
    "ResponseFormat",
    "RetryPolicy",
    "Stream",
    "StreamInterruptedError",
    "Timeout",
    "UnprocessableEntityError",
    "VendorBatches",
    "__version__",
    "create_client",
    "create_from_config",
    "retry_with_backoff",
    "retrying",
]

__version__ = VERSION

if BUILD_PROFILE == "debug":
    import warnings

    warnings.warn("this is a debug build of millstream: slow, for development only", RuntimeWarning, stacklevel=2)
