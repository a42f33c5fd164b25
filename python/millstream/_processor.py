"""`BatchProcessor`: any number of items, from any source, under rules of when to stop and what it may cost."""

from __future__ import annotations

import asyncio
import inspect
import os
import weakref
from collections.abc import Iterable, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

from millstream import _millstream
from millstream._arguments import FLAG, INTEGER, NUMBER, SECONDS, TEXT, Kind, check
from millstream._asks import Asker, formatter, timeout_of
from millstream._base import Base
from millstream._batch_policy import AdaptiveBatchPolicy
from millstream._fields import REQUEST_FIELDS
from millstream._jobs import FileRun
from millstream._not_given import NOT_GIVEN, NotGiven
from millstream._prices import Prices
from millstream._progress import Progress, Watch
from millstream._results import BatchResults
from millstream._run import AsyncBatchStream, BatchStream, Run, Validation, run_blocking
from millstream._settings import Hidden
from millstream._sources import Source, source_of
from millstream._structured import _checked_retries, response_format
from millstream._vendor_batches import VendorBatches
from millstream.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from millstream._asks import Ask, Template
    from millstream._client import AsyncClient, Client
    from millstream._config import CompletionConfig, Timeout
    from millstream._millstream import BatchResult, _Options
    from millstream._prices import PriceTable
    from millstream._progress import Show
    from millstream._sources import Items
    from millstream._structured import ResponseModel
    from millstream._vendor_batches import BatchJob, Via
    from millstream.types import BatchMetrics, RunSummary

T = TypeVar("T")

OnError = Literal["return", "raise", "none", "skip"]

# What `process_all` reads and `run_file` does not.
_TABLES = (".csv", ".tsv", ".parquet")

_KINDS = {
    "batch_size": INTEGER._replace(optional=False, least=1),
    "max_concurrent": INTEGER,
    "max_errors": INTEGER,
    "max_error_rate": NUMBER,
    "stop_on_fatal": FLAG,
    "deadline": SECONDS,
    "budget_tokens": INTEGER,
    "budget_usd": NUMBER,
    "dedupe": Kind(lambda value: isinstance(value, bool), "True, False"),
    "linger": SECONDS._replace(optional=False),
    "delay": SECONDS,
    "delay_between_batches": SECONDS._replace(optional=False),
    "system": TEXT,
    "model": TEXT,
    "priority": INTEGER._replace(optional=False),
}


class BatchProcessor:
    """Carries any number of items through a client, under rules.

    One processor can be used for many runs, one after another or at once; each run has its own counters, budget and
    rules. Whatever ends a run before its items do, every item that was read has exactly one result.

    Args:
        client: An `AsyncClient` or a `Client`: its limits, retries, keys and window hold.
        template: What makes a request of an item: a text with fields (``"Summarize: {text}"`` over dicts; over texts
            any field is the item), messages with such texts, or a function of the item. Default: items are requests
            themselves: a prompt, a list of messages, or a dict with ``prompt`` or ``messages`` and any of
            ``custom_id``, ``system``, ``model``, ``deadline`` (seconds, in place of ``timeout``), ``priority``, and
            further fields of the request.
        system: A system message to put first in each.
        model: Model to ask. Default: the client's.
        config: Request fields, over the client's own.
        response_model: The type to read answers as, see `AsyncClient.complete`; ``result.parsed`` has the value.
        validation_retries: How often an item is asked again whose answer is not of that type.
        batch_size: Items of a batch, where they are processed in batches.
        adaptive: Finds the size of the next batch from how the last ones went: True, or a policy of your own.
        max_concurrent: Requests in flight at once. Default: the client's.
        on_error: What becomes of an item that fails. ``"return"``: its result has the error. ``"raise"``: the first
            error ends the run and is raised. ``"none"``: its result has neither text nor error. ``"skip"``: it has no
            result.
        dedupe: Send identical requests once, and give all of them the answer. Default: only those that ask for
            ``temperature=0``, whose answers would be the same. The last 64 MiB of answers are known.
        order: ``"prefix"``: among the next 10,000 items those that begin alike (by 1 KiB or more) are sent one after
            another, and one of them first, so that a provider's prompt cache knows what the others begin with.
        max_errors: Failed items that stop the run.
        max_error_rate: Share of the last 100 items whose failure stops the run, once as many have ended.
        stop_on_fatal: Stop at once when no item can succeed: the key is refused, or money or quota is used up.
        deadline: Seconds after which the run is stopped, and what is in flight with it.
        budget_tokens: Tokens of prompts and answers together that stop the run once they are used.
        budget_usd: Dollars, likewise. What is in flight then is still paid for. Needs the price of the model and of its
            stand-ins (``fallback_models``).
        prices: Prices over those that are shipped, see `Prices`.
        progress: True: show a line; None: the same in a terminal or a notebook only; False: nothing; a function: called
            with a `Progress` five times a second.
        timeout: Seconds for each item over all its attempts, or a `Timeout`; None for no limit. Default: the client's.
        priority: Who goes first among those who wait for a place in flight or a rate limit: higher before lower.
        **params: Request fields for every item (``temperature=``, ``max_tokens=``, a server's own).

    Raises:
        TypeError: ``client`` is none, or an argument is of the wrong type.
        ConfigurationError: An argument is not valid; its name is in the text.
    """

    def __init__(
        self,
        client: AsyncClient | Client,
        *,
        template: Template | None = None,
        system: str | None = None,
        model: str | None = None,
        config: CompletionConfig | None = None,
        response_model: ResponseModel[Any] | Mapping[str, Any] | None = None,
        validation_retries: int = 1,
        batch_size: int = 10,
        adaptive: AdaptiveBatchPolicy | bool | None = None,
        max_concurrent: int | None = None,
        on_error: OnError = "return",
        dedupe: bool | None = None,
        order: Literal["prefix"] | None = None,
        max_errors: int | None = None,
        max_error_rate: float | None = None,
        stop_on_fatal: bool = True,
        deadline: float | None = None,
        budget_tokens: int | None = None,
        budget_usd: float | None = None,
        prices: Prices | PriceTable | str | os.PathLike[str] | None = None,
        progress: Show = None,
        timeout: float | Timeout | NotGiven | None = NOT_GIVEN,
        priority: int = 0,
        **params: Any,
    ) -> None:
        if not isinstance(client, Base):
            raise TypeError(f"client must be an AsyncClient or a Client, not {type(client).__name__}")
        check(
            {
                "system": system,
                "model": model,
                "batch_size": batch_size,
                "max_concurrent": max_concurrent,
                "dedupe": dedupe,
                "max_errors": max_errors,
                "max_error_rate": max_error_rate,
                "stop_on_fatal": stop_on_fatal,
                "deadline": deadline,
                "budget_tokens": budget_tokens,
                "budget_usd": budget_usd,
                "priority": priority,
            },
            kinds=_KINDS,
        )
        if on_error not in get_args(OnError):
            raise ConfigurationError(f"on_error must be one of {', '.join(get_args(OnError))}, not {on_error!r}")
        if order not in (None, "prefix"):
            raise ConfigurationError(f'order must be "prefix" or None, not {order!r}')
        _check_spelling(params)
        self._client = client
        self._template = formatter(template)
        self._form = None if response_model is None else response_format(response_model)
        self._retries = _checked_retries(validation_retries)
        self._batch_size = batch_size
        self._policy = _policy(adaptive, batch_size)
        self._metrics: list[BatchMetrics] = []
        self._on_error = on_error
        self._dedupe = dedupe
        self._by_prefix = order == "prefix"
        self._max_concurrent = max_concurrent
        self._rules = (max_errors, max_error_rate, stop_on_fatal, deadline, budget_tokens, budget_usd)
        _millstream.check_rules(self._rules)
        self._needs_price = budget_usd is not None
        self._prices = Prices._given(prices)
        self._show = progress
        self._system = system
        self._model = model
        self._config = config
        self._timeout = timeout
        self._priority = priority
        self._params = params
        self._runs: weakref.WeakSet[Run | FileRun] = weakref.WeakSet()
        self._last: Run | FileRun | None = None
        # What is wrong with the request's fields is said here, before anything is read.
        self._request(None, None)

    # ---- all at once ----

    async def process_all(self, items: Items) -> BatchResults:
        """Ask all items; the results in their order.

        Args:
            items: A list, any iterable, an async iterable, an `asyncio.Queue` that ends with None, a column or table of
                pandas, polars or pyarrow, a data set, or the path of a file (``.jsonl``, ``.csv``, ``.tsv``,
                ``.parquet``, ``.txt``). It is read as there is room, a thousand items or so ahead.

        Returns:
            A result for each item, unless ``on_error="skip"`` leaves failed ones out. In a stopped run the items that
            were given up have a `BatchStoppedError`.

        Raises:
            TypeError: ``items`` is one item, or cannot be read.
            ConfigurationError: An argument is not valid; nothing was sent.
            MillstreamError: With ``on_error="raise"`` the first error.
            Exception: What the source raises ends the run.
        """
        return await self._all(items, self._template)

    async def map(self, template: Template, items: Items) -> BatchResults:
        """As `process_all`, with another template: a text with fields, messages, or a function of the item."""
        return await self._all(items, formatter(template))

    async def process_batch(self, batch: Items) -> BatchResults:
        """As `process_all`."""
        return await self._all(batch, self._template)

    async def process_item(self, item: Any) -> BatchResult:
        """Ask one item.

        Raises:
            MillstreamError: With ``on_error="raise"``, if it fails.
            LookupError: With ``on_error="skip"``, if it fails.
        """
        return (await self._all([item], self._template))[0]

    async def _all(self, items: Items, template: Callable[[Any], Any] | None) -> BatchResults:
        source = source_of(items)
        async with await self._start(source, template) as run:
            run.feed()
            results: list[BatchResult] = []
            while page := await run.page():
                results += page
        results.sort(key=_index)
        return BatchResults(results, run.summary())

    # ---- as completed ----

    def stream(self, items: Items) -> AsyncBatchStream:
        """Ask all items; the results as they come, each with its ``index``.

        Memory does not grow with the number of items: whoever reads slowly holds the source back. Nothing is sent
        before the first is read.

        Args:
            items: As in `process_all`.

        Raises:
            TypeError: ``items`` is one item, or cannot be read.
            Exception: While it is read: as in `process_all`.
        """
        source = source_of(items)
        return AsyncBatchStream(lambda: self._start(source, self._template))

    def as_completed(self, items: Items) -> AsyncBatchStream:
        """As `stream`."""
        return self.stream(items)

    # ---- in batches ----

    def create_batches(self, items: Iterable[T], batch_size: int | None = None) -> list[list[T]]:
        """The items as lists of ``batch_size``, of which the last may be shorter."""
        size = self.batch_size if batch_size is None else batch_size
        check({"batch_size": size}, kinds=_KINDS)
        if isinstance(items, (str, bytes, Mapping)):
            raise TypeError(f"items must be many, not one {type(items).__name__}; wrap it in a list")
        whole = list(items)
        return [whole[start : start + size] for start in range(0, len(whole), size)]

    async def process_in_batches(
        self,
        items: Items,
        batch_size: int | None = None,
        delay_between_batches: float = 0.0,
        *,
        delay: float | None = None,
    ) -> BatchResults:
        """Ask the items a batch at a time: the next begins once all of the last have ended.

        That is slower than `process_all` and only asked for where a pause is; the rules and the budget hold over all
        batches. `metrics` has how each went, and with ``adaptive`` the sizes follow from that.

        Args:
            items: As in `process_all`.
            batch_size: Items of a batch. Default: the processor's, or its policy's.
            delay_between_batches: Seconds between two batches; not after the last.
            delay: The same by its short name.

        Returns:
            A result for each item, in their order.

        Raises:
            Exception: As in `process_all`.
        """
        pause = delay_between_batches if delay is None else delay
        size = self.batch_size if batch_size is None else batch_size
        check({"delay_between_batches": pause, "batch_size": size}, kinds=_KINDS)
        if pause < 0:
            raise ConfigurationError(f"delay_between_batches must be at least 0 seconds, not {pause}")
        policy = self._policy if batch_size is None else None
        source = source_of(items)
        results: list[BatchResult] = []
        async with await self._start(source, self._template) as run:
            batch = await run.read(size)
            while batch:
                begun = monotonic()
                before = run.summary()
                if not await run.submit(batch):
                    break
                results += await run.collect(len(batch))
                after = run.summary()
                if after.stopped:
                    break
                self._record(policy, len(batch), monotonic() - begun, after.ok - before.ok)
                batch = await run.read(self.batch_size if batch_size is None else batch_size)
                if batch and pause:
                    await run.unless_over(asyncio.sleep(pause))
            run.close()
            while page := await run.page():
                results += page
        results.sort(key=_index)
        return BatchResults(results, run.summary())

    def _record(self, policy: AdaptiveBatchPolicy | None, size: int, duration: float, succeeded: int) -> None:
        if policy is not None:
            policy.record(size, duration, succeeded, size - succeeded)
            self._metrics.append(policy.metrics[-1])
            return
        speed = size / duration if duration else float("inf")
        self._metrics.append(
            {"batch_size": size, "duration": duration, "success_rate": succeeded / size, "items_per_second": speed}
        )

    @property
    def batch_size(self) -> int:
        """Items of the next batch."""
        return self._batch_size if self._policy is None else self._policy.batch_size

    @property
    def metrics(self) -> list[BatchMetrics]:
        """How each batch went, in order: ``batch_size, duration, success_rate, items_per_second``."""
        return list(self._metrics)

    # ---- a worker ----

    async def process_queue(
        self,
        queue: asyncio.Queue[Any],
        batch_size: int | None = None,
        linger: float = 1.0,
        handle: Callable[[BatchResults], Awaitable[object] | object] | None = None,
    ) -> BatchResults:
        """Take items off a queue and ask them in small batches, until the queue gives None.

        A batch goes out as soon as it is full, or ``linger`` seconds after its first item came. The queue is told of
        each item that is done with (``task_done``), so that ``queue.join()`` waits for the results.

        Args:
            queue: Where items come from. Its ``maxsize`` holds the producers back.
            batch_size: Most items of a batch. Default: the processor's.
            linger: Seconds that the first item of a batch waits for others.
            handle: Called with the results of each batch; may be async.

        Returns:
            All results in their order; with ``handle`` none, but their `summary`.

        Raises:
            Exception: As in `process_all`, and what ``handle`` raises.
        """
        size = self.batch_size if batch_size is None else batch_size
        check({"batch_size": size, "linger": linger}, kinds=_KINDS)
        if not isinstance(queue, asyncio.Queue):
            raise TypeError(f"queue must be an asyncio.Queue, not {type(queue).__name__}")
        kept: list[BatchResult] = []
        async with await self._start(Source(), self._template) as run:
            is_over = False
            while not is_over:
                batch: list[Any] = []
                is_over = not await run.unless_over(_micro_batch(queue, size, linger, batch))
                if batch and batch[-1] is None:
                    queue.task_done()
                    batch.pop()
                    is_over = True
                begun, ok = monotonic(), run.summary().ok
                try:
                    if batch:
                        is_over |= not await run.submit(batch)
                        results = sorted(await run.collect(len(batch)), key=_index)
                        self._record(None, len(batch), monotonic() - begun, run.summary().ok - ok)
                        if handle is None:
                            kept += results
                        elif inspect.isawaitable(handled := handle(BatchResults(results))):
                            await handled
                finally:
                    # Also where `handle` raises: a producer in `queue.join()` would wait for ever.
                    for _ in batch:
                        queue.task_done()
            run.close()
            while page := await run.page():
                kept += page
        return BatchResults(kept, run.summary())

    # ---- blocking ----

    def process_all_blocking(self, items: Items) -> BatchResults:
        """As `process_all`, blocking; also where an event loop runs."""
        return run_blocking(self.process_all(items))

    def map_blocking(self, template: Template, items: Items) -> BatchResults:
        """As `map`, blocking."""
        return run_blocking(self.map(template, items))

    def process_item_blocking(self, item: Any) -> BatchResult:
        """As `process_item`, blocking."""
        return run_blocking(self.process_item(item))

    def process_in_batches_blocking(
        self,
        items: Items,
        batch_size: int | None = None,
        delay_between_batches: float = 0.0,
        *,
        delay: float | None = None,
    ) -> BatchResults:
        """As `process_in_batches`, blocking."""
        return run_blocking(self.process_in_batches(items, batch_size, delay_between_batches, delay=delay))

    def stream_blocking(self, items: Items) -> BatchStream:
        """As `stream`, blocking."""
        return BatchStream(self.stream(items))

    # ---- files ----

    async def run_file(
        self,
        input: str | os.PathLike[str],  # noqa: A002 - the word for it
        output: str | os.PathLike[str],
        *,
        errors: str | os.PathLike[str] | None = None,
        ordered: bool = False,
        resume: bool = True,
        retry_failed: bool = False,
        strict: bool = False,
        bare: bool = False,
    ) -> RunSummary:
        """Carry a file of requests through, into a file of answers; nothing of either is in Python.

        The output is the journal: the same call again, however the last one ended, asks for nothing that stands in it.
        One process at a time may write it. ``on_error``, ``dedupe`` and ``order`` are for items, not for files.

        Args:
            input: Requests, one a line: lines of OpenAI's Batch API, of Mistral's or Anthropic's, or ``{"prompt": …}``,
                ``{"messages": […]}`` and whole request bodies. Read twice.
            output: Results, one a line, as OpenAI's Batch API writes them. Made for its owner alone.
            errors: Where failed requests go. Default: into ``output``, too.
            ordered: Results in the order of the input rather than as they come.
            resume: Go on with what ``output`` holds. False: it must be empty.
            retry_failed: Ask again what failed in an earlier run.
            strict: Refuse a file with a line that is no request, rather than report the line.
            bare: Results without the key ``millstream`` (line, attempts, latency, key).

        Returns:
            What became of the lines.

        Raises:
            ConfigurationError: A file that cannot be read or written; two lines with one ``custom_id``; a line that
                asks something else than what was answered; with ``strict`` a line that is no request; with
                ``budget_usd`` a model of unknown price. Nothing was sent.
            JournalError: Another run has the output, or it cannot be written any more.
        """
        run = self._file_run(input, output, errors, ordered, resume, retry_failed, strict, bare)
        async with Watch(run.counters, self._show, stats=self._client.stats):
            return await run.run()

    def run_file_blocking(
        self,
        input: str | os.PathLike[str],  # noqa: A002 - the word for it
        output: str | os.PathLike[str],
        *,
        errors: str | os.PathLike[str] | None = None,
        ordered: bool = False,
        resume: bool = True,
        retry_failed: bool = False,
        strict: bool = False,
        bare: bool = False,
    ) -> RunSummary:
        """As `run_file`, blocking. Ctrl-C aborts what is in flight; what was answered is written."""
        run = self._file_run(input, output, errors, ordered, resume, retry_failed, strict, bare)
        with Watch(run.counters, self._show, stats=self._client.stats):
            return run.run_blocking()

    def _file_run(
        self,
        input: str | os.PathLike[str],  # noqa: A002 - the word for it
        output: str | os.PathLike[str],
        errors: str | os.PathLike[str] | None,
        ordered: bool,
        resume: bool,
        retry_failed: bool,
        strict: bool,
        bare: bool,
    ) -> FileRun:
        suffix = os.path.splitext(os.fspath(input))[1].lower()
        if suffix in _TABLES:
            raise ConfigurationError(
                f"{os.fspath(input)}: run_file carries lines of JSON through, and {suffix} has none: process_all and "
                "stream read it"
            )
        if self._template is not None or self._form is not None:
            raise ConfigurationError(
                "run_file sends the lines of a file as they stand: template= and response_model= are for items, as in "
                "process_all(path)"
            )
        max_errors, max_error_rate, stop_on_fatal, deadline, budget_tokens, budget_usd = self._rules
        run = FileRun(
            self._client,
            input,
            output,
            errors=errors,
            ordered=ordered,
            resume=resume,
            retry_failed=retry_failed,
            strict=strict,
            bare=bare,
            system=self._system,
            model=self._model,
            config=self._config,
            max_concurrent=self._max_concurrent,
            max_errors=max_errors,
            max_error_rate=max_error_rate,
            stop_on_fatal=stop_on_fatal,
            deadline=deadline,
            budget_tokens=budget_tokens,
            budget_usd=budget_usd,
            prices=self._prices,
            timeout=self._timeout,
            priority=self._priority,
            **self._params,
        )
        self._runs.add(run)
        self._last = run
        return run

    # ---- vendors' batch APIs ----

    async def submit(
        self,
        items: str | os.PathLike[str] | Iterable[object],
        *,
        via: Via | None = None,
        output: str | os.PathLike[str] | None = None,
        strict: bool = False,
    ) -> BatchJob:
        """Submit items to a vendor's batch API: half the price, within a day. See `VendorBatches.submit`.

        Args:
            items: The path of a JSONL file, or prompts, lists of messages, request bodies and batch lines in any mix.
            via: ``"openai"``, ``"anthropic"`` or ``"mistral"``. Default: the client's provider.
            output: Where results will be; the job is kept beside it. Default: for ``IN.jsonl`` ``IN.out.jsonl``.
            strict: Refuse everything if one line is bad. Otherwise bad lines are errors in the output.

        Returns:
            The job, which is asked, waited for, fetched and cancelled.

        Raises:
            ConfigurationError: Two items have one ``custom_id``, or an argument is not valid; nothing was sent.
            APIError: The vendor refuses a batch, or cannot be asked.
        """
        return await self._vendor_batches().submit(items, via=via, output=output, strict=strict)

    def submit_blocking(
        self,
        items: str | os.PathLike[str] | Iterable[object],
        *,
        via: Via | None = None,
        output: str | os.PathLike[str] | None = None,
        strict: bool = False,
    ) -> BatchJob:
        """As `submit`, blocking."""
        return self._vendor_batches().submit_blocking(items, via=via, output=output, strict=strict)

    def _vendor_batches(self) -> VendorBatches:
        return VendorBatches(self._client, model=self._model, system=self._system, config=self._config, **self._params)

    # ---- while it runs ----

    def stop(self, grace: float = 30.0) -> None:
        """Stop the runs that are under way: begin no further item and give up what only waits.

        What is on the wire may end, and its results come; the second call ends it at once. May be called from any
        thread and from a signal's handler.

        Args:
            grace: Seconds after which what is on the wire is given up, too.
        """
        check({"grace": grace}, kinds={"grace": SECONDS._replace(optional=False)})
        for run in list(self._runs):
            run.stop(grace)

    def progress(self) -> Progress:
        """How far the run is that was begun last."""
        return Progress() if self._last is None else self._last.counters()

    # ---- the parts of a run ----

    def _request(self, ask: Ask | None, hidden: Hidden | None) -> tuple[str | None, _Options]:
        """System message and options of a kind of items; without ``ask`` of those that say nothing themselves."""
        params = {**self._params, **(ask.params if ask is not None else {})}
        if self._form is not None:
            params = self._form._fields(params)
        system = ask.system if ask is not None and ask.system is not None else self._system
        model = ask.model if ask is not None and ask.model is not None else self._model
        priority = ask.priority if ask is not None and ask.priority is not None else self._priority
        own_timeout = NOT_GIVEN if ask is None else timeout_of(ask)
        timeout = self._timeout if isinstance(own_timeout, NotGiven) else own_timeout
        options = self._client._options(
            system,
            model,
            self._config,
            timeout,
            NOT_GIVEN,
            priority,
            None,
            hidden,
            params,
            max_concurrent=self._max_concurrent,
        )
        return system, options

    async def _start(self, source: Source, template: Callable[[Any], Any] | None) -> Run:
        token = self._client._settings.token
        hidden = None if token is None else Hidden(None, None)
        system, options = self._request(None, hidden)
        if token is not None:
            await token.ask_awaiting(options)
        asker = Asker(
            template,
            self._form,
            lambda ask: self._request(ask, hidden),
            self._prices,
            self._needs_price,
            self._client._settings.fallback_models,
        )
        dollars = asker.dollars(options)
        native = self._client._native.bulk(
            system,
            options,
            max_concurrent=self._max_concurrent,
            rules=self._rules,
            dollars=dollars,
            dedupe=self._dedupe,
            prefix=self._by_prefix,
        )
        validation = None if self._form is None else Validation(self._form, self._retries, asker, native)
        run = Run(
            native,
            asker,
            source,
            on_error=self._on_error,
            validation=validation,
            show=self._show,
            stats=self._client.stats,
            has_prices=any(price is not None for _, price in dollars),
        )
        self._runs.add(run)
        self._last = run
        return run

    def __repr__(self) -> str:
        return f"BatchProcessor({self._client!r}, on_error={self._on_error!r})"


def _index(result: BatchResult) -> int:
    return result.index


# `difflib`'s ratio; vLLM's `chat_template` and our `template` are 0.76.
_CLOSE = 0.8


def _check_spelling(params: Mapping[str, Any]) -> None:
    """Refuse a request field that is nearly an argument of the processor's own: a server would ignore it."""
    unknown = params.keys() - REQUEST_FIELDS
    if not unknown:
        return
    from difflib import get_close_matches  # not cheap, and most give no such name

    own = [
        name for name, each in inspect.signature(BatchProcessor).parameters.items() if each.kind is each.KEYWORD_ONLY
    ]
    for name in unknown:
        for meant in get_close_matches(name, own, 1, _CLOSE):
            raise ConfigurationError(
                f"{name}= is not a request field that is known: did you mean {meant}=? A server's own field of that "
                "name goes by CompletionConfig(extra={...})"
            )


def _policy(adaptive: AdaptiveBatchPolicy | bool | None, batch_size: int) -> AdaptiveBatchPolicy | None:
    if isinstance(adaptive, AdaptiveBatchPolicy):
        return adaptive
    if adaptive not in (None, True, False):
        raise TypeError(f"adaptive must be an AdaptiveBatchPolicy, True or None, not {type(adaptive).__name__}")
    if not adaptive:
        return None
    return AdaptiveBatchPolicy(initial_batch_size=batch_size, max_batch_size=max(50, batch_size))


async def _micro_batch(queue: asyncio.Queue[Any], size: int, linger: float, batch: list[Any]) -> None:
    """Fill ``batch`` with the next items, the last of which may be None."""
    loop = asyncio.get_running_loop()
    ends: float | None = None
    while len(batch) < size:
        try:
            async with asyncio.timeout_at(ends):
                batch.append(await queue.get())
        except TimeoutError:
            return
        if batch[-1] is None:
            return
        ends = loop.time() + linger if ends is None else ends
