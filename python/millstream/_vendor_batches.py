"""Vendors' batch APIs: the same items at half the price, within a day.

`VendorBatches` submits items and opens jobs that were submitted; a `BatchJob` is asked, waited for, fetched and
cancelled. Each method exists awaited and, with the suffix ``_blocking``, blocking, by the same code
(`millstream._vendor_calls`). What a process knows of a job is on disk before anything is paid for
(`millstream._vendor_state`), so it may die at any moment.
"""

from __future__ import annotations

import os
import random
import secrets
import time
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, Literal

from millstream._millstream import NativeLineReader
from millstream._vendor_apis import VENDORS, Limits
from millstream._vendor_calls import Awaiting, Blocking, Http, run
from millstream._vendor_files import (
    Preparation,
    append_bad_lines,
    append_results,
    check_items,
    check_several,
    has_items,
    read_output,
    restore_items,
)
from millstream._vendor_state import Place
from millstream.exceptions import APIError, ConfigurationError
from millstream.types import BatchJobResult, BatchJobStatus, BatchPartStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from millstream._base import Base
    from millstream._client import AsyncClient, Client
    from millstream._config import CompletionConfig
    from millstream._vendor_apis import Vendor
    from millstream._vendor_state import State

Via = Literal["openai", "anthropic", "mistral"]

# How long a job is asked for in vain before that is an error.
_PATIENCE_S = 3600.0


class VendorBatches:
    """Jobs of a vendor's batch API."""

    def __init__(
        self,
        client: AsyncClient | Client,
        *,
        model: str | None = None,
        system: str | None = None,
        config: CompletionConfig | None = None,
        **params: Any,
    ) -> None:
        """Make it; nothing is sent.

        Args:
            client: Whose key, server, retries and limits are used.
            model: For items that name none. Default: the client's.
            system: A system message for shorthands that have none.
            config: Request fields for shorthands, over the client's own.
            **params: The same, over those of ``config``.
        """
        settings = client._settings
        sources = (source.to_dict() for source in (settings.config, config) if source is not None)
        fields = {name: value for source in (*sources, params) for name, value in source.items()}
        configured = fields.pop("model", None)
        self._client: Base = client
        self._reader = NativeLineReader(model or configured or settings.model, system, fields)

    async def submit(
        self,
        items: str | os.PathLike[str] | Iterable[object],
        *,
        via: Via | None = None,
        output: str | os.PathLike[str] | None = None,
        strict: bool = False,
        max_items: int | None = None,
        max_bytes: int | None = None,
    ) -> BatchJob:
        """Submit items as one or more batches.

        The same call again, after a process was killed or the vendor has refused a batch, goes on where it was: what
        was submitted is not submitted twice.

        Args:
            items: The path of a JSONL file, or prompts, lists of messages, request bodies and batch lines in any mix.
            via: The vendor. Default: the client's provider. For another than this a client is made of the environment
                (its key and base URL).
            output: Where results will be; the job is kept beside it, in ``output + ".batch.json"``. Default: for
                ``IN.jsonl`` ``IN.out.jsonl``, else a new name in the working directory (`BatchJob.output`).
            strict: Refuse everything if one line is bad. Otherwise bad lines are errors in the output.
            max_items: Most items of one batch. Default: the vendor's limit.
            max_bytes: Most bytes of one batch; so much is in memory while it is sent. Default: the vendor's limit.

        Returns:
            The job.

        Raises:
            ConfigurationError: Two items have one ``custom_id``, the job beside ``output`` has other items, or an
                argument is not valid; nothing was sent.
            APIError: The vendor refuses a batch, or cannot be asked.
            OSError: A file cannot be read or written.
            TypeError: ``items`` is one item.
        """
        client = self._client_for(via)
        work = self._submit(Http(client, Awaiting(client)), client, items, output, strict, max_items, max_bytes)
        return await work

    def submit_blocking(
        self,
        items: str | os.PathLike[str] | Iterable[object],
        *,
        via: Via | None = None,
        output: str | os.PathLike[str] | None = None,
        strict: bool = False,
        max_items: int | None = None,
        max_bytes: int | None = None,
    ) -> BatchJob:
        """`submit`, blocking."""
        client = self._client_for(via)
        return run(self._submit(Http(client, Blocking(client)), client, items, output, strict, max_items, max_bytes))

    def open(self, output: str | os.PathLike[str]) -> BatchJob:
        """The job that was submitted with this output, by whatever process.

        Raises:
            ConfigurationError: There is none, or it is at another server than the client's.
        """
        place = Place(output)
        state = place.load()
        if state is None:
            raise ConfigurationError(f"there is no batch job of {place.output}: {place.state} does not exist")
        client = self._client_for(state.via)
        _check_server(place, state, client)
        return BatchJob(client, place, state)

    def _client_for(self, via: str | None) -> Base:
        client = self._client
        via = client.provider if via is None else via
        if via not in VENDORS:
            known = ", ".join(f'"{name}"' for name in VENDORS)
            raise ConfigurationError(f"via must be one of {known}, not {via!r}")
        if via != client.provider:
            client = type(client)(provider=VENDORS[via].provider)
        # What makes a batch is sent once: no twin of it, and none with another model.
        return client.with_options(hedge_after=None, fallback_models=())

    async def _submit(
        self,
        http: Http,
        client: Base,
        items: str | os.PathLike[str] | Iterable[object],
        output: str | os.PathLike[str] | None,
        strict: bool,
        max_items: int | None,
        max_bytes: int | None,
    ) -> BatchJob:
        check_several(items)
        vendor = VENDORS[client.provider]
        place = Place(_default_output(items) if output is None else output)
        limits, stop = _limits(vendor, max_items, max_bytes), Event()

        async def prepare(keep: Place | None, limits: Limits) -> State:
            work = Preparation(keep, vendor, client.base_url, self._reader, limits, strict, stop)
            return await http.calls.aside(stop, lambda: work.run(items))

        if place.load() is None:
            # Before a file of ours is beside it.
            _check_empty(place)
        with place.locked(create=True):
            state = place.load()
            if state is None:
                # Once more, now that nobody else can fill it.
                _check_empty(place)
                place.drop_parts()
                try:
                    state = await prepare(place, limits)
                    place.save(state)
                except BaseException:
                    # Nothing was sent, and prompts are not left lying about.
                    place.drop_parts()
                    place.items.unlink(missing_ok=True)
                    raise
            else:
                _check_server(place, state, client)
                # Cut as before, so that what is to be sent, and the file of items, can be made again where it is gone.
                kept = state
                is_whole = await http.calls.aside(stop, lambda: has_items(place, kept))
                again = None if is_whole and not any(place.lacks(part) for part in state.parts) else place.again()
                try:
                    limits = limits._replace(items=state.max_items, bytes=state.max_bytes)
                    prepared = await prepare(again, limits)
                    _check_same(place, state, prepared)
                    if again is not None and not is_whole:
                        restore_items(place, again)
                    for part in state.parts:
                        if again is not None and place.lacks(part):
                            os.replace(again.part(part.number), place.part(part.number))
                finally:
                    if again is not None:
                        again.drop_parts()
                        again.items.unlink(missing_ok=True)
            job = BatchJob(client, place, state)
            await job._submit(http)
        return job


class BatchJob:
    """Items that were submitted to a vendor's batch API."""

    def __init__(self, client: Base, place: Place, state: State) -> None:
        """Not made directly: `VendorBatches.submit` and `VendorBatches.open` do."""
        self._client = client
        self._place = place
        self._state = state
        self._vendor: Vendor = VENDORS[state.via]

    @property
    def output(self) -> Path:
        """Where results go; by this name the job can be opened again."""
        return self._place.output

    @property
    def via(self) -> str:
        """The vendor."""
        return self._state.via

    @property
    def batch_ids(self) -> list[str]:
        """The vendor's names of the batches that exist."""
        return [part.batch_id for part in self._state.parts if part.batch_id is not None]

    async def status(self) -> BatchJobStatus:
        """Ask how far the job is.

        Raises:
            APIError: The vendor cannot be asked.
        """
        return await self._status(self._awaiting())

    def status_blocking(self) -> BatchJobStatus:
        """`status`, blocking."""
        return run(self._status(self._blocking()))

    async def wait(
        self,
        *,
        poll: float = 5.0,
        max_poll: float = 300.0,
        timeout: float | None = None,
        on_status: Callable[[BatchJobStatus], object] | None = None,
    ) -> BatchJobStatus:
        """Wait until every batch has ended. Faults that may pass are waited out, for up to an hour.

        Args:
            poll: Seconds until the vendor is asked again, each time half as long again.
            max_poll: The longest that becomes.
            timeout: Seconds to wait at most. Default: as long as it takes.
            on_status: Called with each status.

        Returns:
            The last status, which is ``done``.

        Raises:
            TimeoutError: The job has not ended in time.
            APIError: The vendor cannot be asked.
        """
        return await self._wait(self._awaiting(), poll, max_poll, timeout, on_status)

    def wait_blocking(
        self,
        *,
        poll: float = 5.0,
        max_poll: float = 300.0,
        timeout: float | None = None,
        on_status: Callable[[BatchJobStatus], object] | None = None,
    ) -> BatchJobStatus:
        """`wait`, blocking."""
        return run(self._wait(self._blocking(), poll, max_poll, timeout, on_status))

    async def fetch(self) -> BatchJobResult:
        """Write the results of every batch that has ended to the output, each once: OpenAI Batch output lines.

        Lines have the metadata of their items, and the number of their line under ``millstream``. Items that expired,
        were cancelled or failed, and lines that are no requests, are lines with an error.

        Returns:
            What is in the output now, and how many items are still to come.

        Raises:
            APIError: The vendor cannot be asked; what was fetched is kept.
            ConfigurationError: The output or the job's file of items was changed meanwhile, or another process is at
                work on the job.
            OSError: A file cannot be written.
        """
        return await self._fetch(self._awaiting())

    def fetch_blocking(self) -> BatchJobResult:
        """`fetch`, blocking."""
        return run(self._fetch(self._blocking()))

    async def results(self) -> list[dict[str, Any]]:
        """`fetch`, and read what is there: output lines in the order of the items."""
        return await self._results(self._awaiting())

    def results_blocking(self) -> list[dict[str, Any]]:
        """`results`, blocking."""
        return run(self._results(self._blocking()))

    async def cancel(self) -> BatchJobStatus:
        """Cancel what has not ended. What the vendor has answered already is paid for, and can be fetched.

        Raises:
            APIError: The vendor refuses, or cannot be asked.
        """
        return await self._cancel(self._awaiting())

    def cancel_blocking(self) -> BatchJobStatus:
        """`cancel`, blocking."""
        return run(self._cancel(self._blocking()))

    def __repr__(self) -> str:
        return f"BatchJob(via={self.via!r}, output={str(self.output)!r}, batch_ids={self.batch_ids!r})"

    def _awaiting(self) -> Http:
        return Http(self._client, Awaiting(self._client))

    def _blocking(self) -> Http:
        return Http(self._client, Blocking(self._client))

    def _save(self) -> None:
        self._place.save(self._state)

    def _reload(self) -> None:
        """What another process may have done meanwhile; for who holds the lock."""
        state = self._place.load()
        if state is None:
            raise ConfigurationError(
                f"{self._place.state} is gone; the batches are {', '.join(self.batch_ids) or 'none'}"
            )
        self._state = state

    async def _submit(self, http: Http) -> None:
        for part in self._state.parts:
            content = self._place.part(part.number)
            if part.batch_id is None and not part.is_over:
                await self._vendor.submit(http, part, content, self.batch_ids, self._save)
            content.unlink(missing_ok=True)

    async def _status(self, http: Http) -> BatchJobStatus:
        for part in self._state.parts:
            if part.batch_id is not None and not part.is_over:
                await self._vendor.look(http, part)
        return self._seen()

    def _seen(self) -> BatchJobStatus:
        state = self._state
        parts = [
            BatchPartStatus(part.batch_id, part.status, part.items, part.completed, part.failed, part.is_over)
            for part in state.parts
        ]
        return BatchJobStatus(state.via, state.items, state.bad_lines, parts)

    async def _wait(
        self,
        http: Http,
        poll: float,
        max_poll: float,
        timeout: float | None,
        on_status: Callable[[BatchJobStatus], object] | None,
    ) -> BatchJobStatus:
        if not 0 < poll <= max_poll:
            raise ConfigurationError(f"poll must be positive and at most max_poll, not {poll} of {max_poll}")
        begin = answered = time.monotonic()
        while True:
            try:
                status = await self._status(http)
            except APIError as error:
                if not error.retryable or time.monotonic() - answered > _PATIENCE_S:
                    raise
            else:
                answered = time.monotonic()
                if on_status is not None:
                    on_status(status)
                if status.done:
                    return status
            pause = poll * random.uniform(0.9, 1.1)
            if timeout is not None and time.monotonic() - begin + pause > timeout:
                raise TimeoutError(f"the batch job of {self.output} has not ended within {timeout} s")
            await http.calls.sleep(pause)
            poll = min(poll * 1.5, max_poll)

    async def _fetch(self, http: Http) -> BatchJobResult:
        place, problems = self._place, list[str]()
        with place.locked():
            self._reload()
            state, stop = self._state, Event()
            if state.written and not place.output.exists():
                state.forget_output()
            await self._status(http)
            self._save()
            has_bad_lines = state.bad_lines > 0 and not state.has_bad_lines
            if has_bad_lines or any(part.is_over and not part.is_fetched for part in state.parts):
                await http.calls.aside(stop, lambda: check_items(place, state))
            if has_bad_lines:
                await http.calls.aside(stop, lambda: append_bad_lines(place, state, stop))
                self._save()
            for part in state.parts:
                if part.is_fetched or not part.is_over:
                    continue
                files = [place.results(part.number, number) for number in range(len(part.results))]
                try:
                    for path, file in zip(part.results, files, strict=True):
                        await http.download(path, file)
                    problems += await http.calls.aside(stop, _appending(place, state, part, files, stop))
                finally:
                    for file in files:
                        file.unlink(missing_ok=True)
                self._save()
            return self._result(problems)

    def _result(self, problems: list[str]) -> BatchJobResult:
        state = self._state
        total = state.items + state.bad_lines
        return BatchJobResult(
            output=self.output,
            total=total,
            ok=state.ok,
            failed=state.failed,
            pending=total - state.ok - state.failed,
            bad_lines=state.bad_lines,
            prompt_tokens=state.prompt_tokens,
            completion_tokens=state.completion_tokens,
            problems=problems,
        )

    async def _results(self, http: Http) -> list[dict[str, Any]]:
        await self._fetch(http)
        place = self._place
        return await http.calls.aside(Event(), lambda: read_output(place))

    async def _cancel(self, http: Http) -> BatchJobStatus:
        with self._place.locked():
            self._reload()
            for part in self._state.parts:
                if part.batch_id is None and part.asked is not None and not part.is_over:
                    part.batch_id = await self._vendor.find(http, part, self.batch_ids)
                if part.batch_id is None and not part.is_over:
                    part.is_over, part.status, part.missing = True, "cancelled", "batch_cancelled"
                elif not part.is_over:
                    await self._vendor.cancel(http, part)
                self._save()
            await self._status(http)
            self._save()
            return self._seen()


def _appending(place: Place, state: State, part: Any, files: list[Path], stop: Event) -> Callable[[], list[str]]:
    return lambda: append_results(place, state, part, files, stop)


def _check_server(place: Place, state: State, client: Base) -> None:
    if (state.via, state.base_url) != (client.provider, client.base_url):
        raise ConfigurationError(
            f"the job in {place.state} is at {state.base_url} ({state.via}) and the client at {client.base_url} "
            f"({client.provider})"
        )


def _check_empty(place: Place) -> None:
    if place.output.exists() and place.output.stat().st_size:
        raise ConfigurationError(f"{place.output} has something in it that is of no batch job; name another output")


def _check_same(place: Place, state: State, prepared: State) -> None:
    if state.digest != prepared.digest:
        raise ConfigurationError(
            f"the job in {place.state} has other items (or other fields for all of them): name another output, or "
            "submit the same again"
        )


def _default_output(items: object) -> Path:
    if isinstance(items, (str, os.PathLike)):
        path = Path(items)
        return path.with_name(f"{path.stem}.out.jsonl")
    return Path(time.strftime(f"batch-%Y%m%d-%H%M%S-{secrets.token_hex(3)}.jsonl"))


def _limits(vendor: Vendor, max_items: int | None, max_bytes: int | None) -> Limits:
    own = vendor.limits
    for name, most, bound in (("max_items", max_items, own.items), ("max_bytes", max_bytes, own.bytes)):
        if most is not None and not 1 <= most <= bound:
            raise ConfigurationError(f"{name} must be at least 1 and at most the vendor's {bound:,}, not {most}")
    return own._replace(items=max_items or own.items, bytes=max_bytes or own.bytes)
