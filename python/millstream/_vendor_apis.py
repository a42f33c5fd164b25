"""How OpenAI, Anthropic and Mistral take a batch, show it and hand out its results.

A batch is made by a request that must not be made twice, since both would be paid for, and of which nobody promises
that the vendor knows it by its ``Idempotency-Key``. So it is sent once; where its outcome is not known, the vendor's
list of batches is asked for it, before it is sent again. OpenAI and Mistral keep our token in the batch's metadata;
Anthropic keeps none, so there it is the one batch that was made since then with as many items.
"""

from __future__ import annotations

import random
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from millstream.exceptions import (
    APIConnectionError,
    APIResponseValidationError,
    APIStatusError,
    ConfigurationError,
    InternalServerError,
    MillstreamError,
    QueueTimeoutError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable
    from pathlib import Path

    from millstream._providers import Provider
    from millstream._vendor_calls import Http
    from millstream._vendor_state import Part

_PAGES = 50
_PAGE = 100

# How far the vendor's clock may be from ours. Where a token decides, this only says when to stop looking.
_SKEW_S = 900.0
_SKEW_WITH_TOKEN_S = 2 * 86400.0

_ATTEMPTS = 4
_BACKOFF_S = 0.5
_LONGEST_BACKOFF_S = 60.0

_TOKEN = "millstream"

# Why there are no results for some items.
_MISSING = {"expired": "batch_expired", "cancelled": "batch_cancelled", "failed": "batch_failed"}


class Limits(NamedTuple):
    """What one batch may have."""

    items: int
    bytes: int
    inputs: int | None = None


class Vendor:
    """What the three have in common."""

    name: ClassVar[str]
    provider: ClassVar[Provider]
    limits: ClassVar[Limits]
    # Around and between the lines of what is sent.
    frame: ClassVar[tuple[bytes, bytes, bytes]] = (b"", b"\n", b"\n")
    folder: ClassVar[str]

    async def submit(
        self, http: Http, part: Part, content: Path, known: Iterable[str], save: Callable[[], None]
    ) -> None:
        """Make the batch of a part, once; ``save`` keeps what is known of it. ``known`` are other batches.

        Raises:
            APIError: The vendor refuses it, or cannot be asked. To go on later is safe.
        """
        if part.asked is not None:
            part.batch_id = await self.find(http, part, known)
        for attempt in range(1, _ATTEMPTS + 1):
            if part.batch_id is not None:
                break
            await self.prepare(http, part, content)
            # What was asked for before may have arrived, whatever is said of this attempt.
            is_first = part.asked is None
            part.asked = part.asked or time.time()
            save()
            try:
                part.batch_id = _text(await self.make(http, part, content), "id")
            except MillstreamError as error:
                if not _may_have_arrived(error):
                    if is_first:
                        # Nothing to look for.
                        part.asked = None
                        save()
                    if not _may_pass(error):
                        raise
                if attempt == _ATTEMPTS:
                    raise
                await http.calls.sleep(_backoff(attempt, error))
                if part.asked is not None:
                    part.batch_id = await self.find(http, part, known)
        part.status = "submitted"
        save()

    async def prepare(self, http: Http, part: Part, content: Path) -> None:
        """What has to be there before the batch."""

    async def make(self, http: Http, part: Part, content: Path) -> Any:
        """Ask for the batch, once."""
        raise NotImplementedError

    async def find(self, http: Http, part: Part, known: Iterable[str]) -> str | None:
        """The batch of a part that was asked for before."""
        async for batch in self.pages(http):
            metadata = batch.get("metadata")
            if isinstance(metadata, dict) and metadata.get(_TOKEN) == part.token:
                return _text(batch, "id")
            if _moment(batch.get("created_at")) < (part.asked or 0.0) - _SKEW_WITH_TOKEN_S:
                break
        return None

    async def pages(self, http: Http) -> AsyncIterator[Any]:
        """All batches, the newest first."""
        after = ""
        for _ in range(_PAGES):
            page = await http.get(f"{self.folder}?limit={_PAGE}{after}")
            for batch in page.get("data") or ():
                yield batch
            last = page.get("last_id")
            if not (page.get("has_more") and isinstance(last, str)):
                return
            after = f"&{self.cursor}={last}"

    cursor: ClassVar[str] = "after"

    async def look(self, http: Http, part: Part) -> None:
        """Bring a part up to date."""
        self.read(part, await http.get(f"{self.folder}/{part.batch_id}"))

    def read(self, part: Part, batch: Any) -> None:
        """What the vendor says of a batch."""
        raise NotImplementedError

    async def cancel(self, http: Http, part: Part) -> None:
        """Ask for the end of a batch; one that has ended stays as it is."""
        try:
            await http.post(f"{self.folder}/{part.batch_id}/cancel")
        except APIStatusError as error:
            # It has ended meanwhile, as the look at it says.
            await self.look(http, part)
            if not part.is_over:
                raise error from None


class _OfFiles(Vendor):
    """A file is uploaded, and a batch is made of it; results are one or two files."""

    async def prepare(self, http: Http, part: Part, content: Path) -> None:
        """Upload the file, unless that was done."""
        if part.file_id is None:
            form = [("purpose", "batch")], "file", f"{part.token}.jsonl", "application/jsonl"
            part.file_id = _text(await http.upload("files", content, form), "id")


class OpenAI(_OfFiles):
    """The first of its kind."""

    name = provider = "openai"
    # Also: 50,000 inputs of embeddings.
    limits = Limits(50_000, 200_000_000, 50_000)
    folder = "batches"

    async def make(self, http: Http, part: Part, content: Path) -> Any:
        """Ask for the batch, once."""
        order = {
            "input_file_id": part.file_id,
            "endpoint": part.url,
            "completion_window": "24h",
            "metadata": {_TOKEN: part.token},
        }
        return await http.post_once(self.folder, order, part.token)

    def read(self, part: Part, batch: Any) -> None:
        """What the vendor says of a batch."""
        part.status = str(batch.get("status"))
        part.is_over = part.status in ("completed", "failed", "expired", "cancelled")
        part.missing = _MISSING.get(part.status, "no_result")
        counts = batch.get("request_counts") or {}
        part.completed, part.failed = _count(counts, "completed"), _count(counts, "failed")
        files = (batch.get("output_file_id"), batch.get("error_file_id"))
        part.results = [f"files/{file}/content" for file in files if file]
        part.errors = _errors((batch.get("errors") or {}).get("data"))


class Mistral(_OfFiles):
    """The same with other names; the model is the job's."""

    name = provider = "mistral"
    # The vendor names no limits of one job; these are ours, for the memory of a part that is sent.
    limits = Limits(100_000, 200_000_000)
    folder = "batch/jobs"

    async def make(self, http: Http, part: Part, content: Path) -> Any:
        """Ask for the job, once."""
        order = {
            "input_files": [part.file_id],
            "endpoint": part.url,
            "model": part.model,
            "timeout_hours": 24,
            "metadata": {_TOKEN: part.token},
        }
        return await http.post_once(self.folder, order, part.token)

    async def pages(self, http: Http) -> AsyncIterator[Any]:
        """All jobs, the newest first."""
        for number in range(_PAGES):
            page = await http.get(f"{self.folder}?page={number}&page_size={_PAGE}")
            jobs = page.get("data") or []
            for job in jobs:
                yield job
            if len(jobs) < _PAGE:
                return

    def read(self, part: Part, batch: Any) -> None:
        """What the vendor says of a job."""
        part.status = str(batch.get("status"))
        part.is_over = part.status in ("SUCCESS", "FAILED", "TIMEOUT_EXCEEDED", "CANCELLED")
        words = {"TIMEOUT_EXCEEDED": "batch_expired", "CANCELLED": "batch_cancelled", "FAILED": "batch_failed"}
        part.missing = words.get(part.status, "no_result")
        part.completed, part.failed = _count(batch, "succeeded_requests"), _count(batch, "failed_requests")
        files = (batch.get("output_file"), batch.get("error_file"))
        part.results = [f"files/{file}/content" for file in files if file]
        part.errors = _errors(batch.get("errors"))


class Anthropic(Vendor):
    """All requests in the request for the batch; results are one stream of lines."""

    name = provider = "anthropic"
    limits = Limits(100_000, 256_000_000)
    frame = (b'{"requests":[\n', b",\n", b"\n]}\n")
    folder = "messages/batches"
    cursor = "after_id"

    async def make(self, http: Http, part: Part, content: Path) -> Any:
        """Ask for the batch, once."""
        return await http.upload_once(self.folder, content, part.token)

    async def find(self, http: Http, part: Part, known: Iterable[str]) -> str | None:
        """The one batch of so many items that was made since then and is not known."""
        known, found = set(known), []
        async for batch in self.pages(http):
            if _moment(batch.get("created_at")) < (part.asked or 0.0) - _SKEW_S:
                break
            if batch.get("id") not in known and sum(_counts(batch).values()) == part.items:
                found.append(_text(batch, "id"))
        if len(found) > 1:
            raise ConfigurationError(
                f"any of the batches {', '.join(found)} may be batch {part.number} of this job, which was asked for "
                "without an answer: look at them and write the right one as its batch_id into the job's state file, "
                "or null as asked to submit it again"
            )
        return found[0] if found else None

    def read(self, part: Part, batch: Any) -> None:
        """What the vendor says of a batch."""
        part.status = str(batch.get("processing_status"))
        part.is_over = part.status == "ended"
        counts = _counts(batch)
        part.completed = counts.get("succeeded", 0)
        part.failed = sum(counts.get(name, 0) for name in ("errored", "canceled", "expired"))
        # Below our own base URL and not where `results_url` says: the key goes to no other host.
        part.results = [f"{self.folder}/{part.batch_id}/results"] if part.is_over else []


VENDORS: dict[str, Vendor] = {vendor.name: vendor for vendor in (OpenAI(), Anthropic(), Mistral())}


def _text(answer: Any, name: str) -> str:
    value = answer.get(name)
    if not isinstance(value, str) or not value:
        raise APIResponseValidationError(f"the answer has no {name}")
    return value


def _count(counts: Any, name: str) -> int:
    value = counts.get(name)
    return value if isinstance(value, int) else 0


def _counts(batch: Any) -> dict[str, int]:
    counts = batch.get("request_counts") or {}
    return {name: _count(counts, name) for name in counts}


def _errors(errors: Any) -> list[tuple[int | None, str, str]]:
    """Why a batch could not begin: the first thousand reasons."""
    read = []
    for error in (errors or [])[:1000]:
        line = error.get("line")
        read.append((line if isinstance(line, int) else None, str(error.get("code")), str(error.get("message"))))
    return read


def _moment(created: Any) -> float:
    """Unix time of a number or a text of RFC 3339; what is neither may be now."""
    if isinstance(created, (int, float)):
        return float(created)
    try:
        return datetime.fromisoformat(str(created)).timestamp()
    except ValueError:
        return time.time()


def _may_have_arrived(error: MillstreamError) -> bool:
    """Whether the vendor may have done what it was asked."""
    if isinstance(error, QueueTimeoutError):
        return False
    return isinstance(error, (APIConnectionError, APIResponseValidationError, InternalServerError)) or (
        isinstance(error, APIStatusError) and error.status_code in (408, 409)
    )


def _may_pass(error: MillstreamError) -> bool:
    return bool(getattr(error, "retryable", False))


def _backoff(attempt: int, error: MillstreamError) -> float:
    told = getattr(error, "retry_after", None) or 0.0
    wait: float = max(told, random.uniform(0.5, 1.0) * _BACKOFF_S * 2**attempt)
    return min(wait, _LONGEST_BACKOFF_S)
