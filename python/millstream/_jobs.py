"""A file of requests carried through: JSONL in, JSONL out, gone on with where an earlier run ended.

Python crosses into the engine twice: to have the files checked, and to have them carried through. Everything between,
reading, asking and writing, happens there.
"""

from __future__ import annotations

import os
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

from millstream._arguments import FLAG, INTEGER, NUMBER, SECONDS, TEXT, check
from millstream._bridge import block, wait
from millstream._not_given import NOT_GIVEN, NotGiven
from millstream._prices import Prices
from millstream._progress import Progress
from millstream.types import RunSummary

if TYPE_CHECKING:
    from millstream._client import AsyncClient, Client
    from millstream._config import CompletionConfig, Timeout
    from millstream._millstream import NativeFileRun
    from millstream._prices import PriceTable

_KINDS = {
    "max_concurrent": INTEGER,
    "max_errors": INTEGER,
    "max_error_rate": NUMBER,
    "deadline": SECONDS,
    "budget_tokens": INTEGER,
    "budget_usd": NUMBER,
    "system": TEXT,
    **dict.fromkeys(("ordered", "resume", "retry_failed", "strict", "bare", "stop_on_fatal"), FLAG),
}

# How long a run that was cancelled waits for what was answered to be written, and how often it looks.
_SETTLING_S = 5.0
_LOOK_S = 0.01

_NO_WAITING = "give Client a function that does not wait, or use run() with an AsyncClient"


class FileRun:
    """One run over a file of requests.

    The output is the journal: the same run again asks for nothing that stands in it, however the last one ended. One
    process at a time may write it.

    Args:
        client: Whom to ask. Its model, key and limits hold for every line; a line may name another model, but neither a
            server nor a key.
        input: Requests, one a line: lines of OpenAI's Batch API, of Mistral's or Anthropic's, or ``{"prompt": …}``,
            ``{"messages": […]}`` and whole request bodies. Read twice.
        output: Results, one a line, as OpenAI's Batch API writes them. Made for its owner alone.
        errors: Where failed requests go; None: into ``output``, too.
        ordered: Results in the order of the input rather than as they come.
        resume: Go on with what ``output`` holds. False: it must be empty.
        retry_failed: Ask again what failed in an earlier run.
        strict: Refuse a file with a line that is no request, rather than report the line.
        bare: Results without the key ``millstream``.
        system: System message of short lines without one.
        model: Model of lines that name none; default: the client's.
        config: Settings of short lines.
        max_concurrent: Most requests in flight; default: the client's.
        max_errors: Failed requests at which the run is stopped.
        max_error_rate: Share of the last 100 requests at which it is stopped, if so many of them failed and once as
            many have ended.
        stop_on_fatal: Stop it when no request can succeed: the key is refused, or money is used up.
        deadline: Seconds from its start after which it is aborted.
        budget_tokens: Tokens, of prompts and answers together, at which it is stopped.
        budget_usd: Dollars at which it is stopped. Needs the price of every model.
        prices: Prices over those that are shipped, see `Prices`.
        timeout: Seconds for each request, all its attempts included; default: the client's.
        priority: Who goes first among those who wait for the same limits.
        params: Further settings of short lines.

    Raises:
        ConfigurationError: An argument that makes no sense.
    """

    def __init__(
        self,
        client: AsyncClient | Client,
        input: str | os.PathLike[str],  # noqa: A002 - the word for it
        output: str | os.PathLike[str],
        *,
        errors: str | os.PathLike[str] | None = None,
        ordered: bool = False,
        resume: bool = True,
        retry_failed: bool = False,
        strict: bool = False,
        bare: bool = False,
        system: str | None = None,
        model: str | None = None,
        config: CompletionConfig | None = None,
        max_concurrent: int | None = None,
        max_errors: int | None = None,
        max_error_rate: float | None = None,
        stop_on_fatal: bool = True,
        deadline: float | None = None,
        budget_tokens: int | None = None,
        budget_usd: float | None = None,
        prices: Prices | PriceTable | str | os.PathLike[str] | None = None,
        timeout: float | Timeout | NotGiven | None = NOT_GIVEN,
        priority: int = 0,
        **params: Any,
    ) -> None:
        rules = (max_errors, max_error_rate, stop_on_fatal, deadline, budget_tokens, budget_usd)
        switches = (ordered, resume, retry_failed, strict, bare)
        names = ("max_errors", "max_error_rate", "stop_on_fatal", "deadline", "budget_tokens", "budget_usd")
        given = dict(zip(names, rules, strict=True))
        given |= dict(zip(("ordered", "resume", "retry_failed", "strict", "bare"), switches, strict=True))
        check({**given, "system": system, "max_concurrent": max_concurrent}, kinds=_KINDS)
        self._client = client
        self._paths = (os.fspath(input), os.fspath(output), None if errors is None else os.fspath(errors))
        self._switches = switches
        self._rules = rules
        self._system = system
        self._max_concurrent = max_concurrent
        self._prices = Prices._given(prices)
        self._needs_price = budget_usd is not None
        self._options = client._options(
            system, model, config, timeout, NOT_GIVEN, priority, None, None, params, max_concurrent=max_concurrent
        )
        self._native: NativeFileRun | None = None
        self._stopped: float | None = None
        self._begun = 0.0
        self._ended: float | None = None

    async def run(self) -> RunSummary:
        """Carry the file through.

        Returns:
            What became of its lines.

        Raises:
            ConfigurationError: A file that cannot be read or written; two lines with one ``custom_id``; a line that
                asks something else than what was answered; with ``strict`` a line that is no request; with
                ``budget_usd`` a model of unknown price. Nothing was sent.
            JournalError: Another run has the output, or it cannot be written any more.
        """
        token = self._client._settings.token
        if token is not None:
            await token.ask_awaiting(self._options)
        native = self._start()
        try:
            models = await wait(native.prepare)
            return RunSummary(**await wait(native.run, self._dollars(models)))
        except BaseException:
            native.close()
            await _settle_awaiting(native)
            raise
        finally:
            self._ended = monotonic()

    def run_blocking(self) -> RunSummary:
        """The same, blocking. Ctrl-C aborts what is in flight; what was answered is written."""
        token = self._client._settings.token
        if token is not None:
            token.ask(self._options, _NO_WAITING)
        native = self._start()
        try:
            models = block(native.prepare)
            return RunSummary(**block(native.run, self._dollars(models)))
        except BaseException:
            native.close()
            _settle(native)
            raise
        finally:
            self._ended = monotonic()

    def stop(self, grace: float = 30.0) -> None:
        """Stop the run, from any thread: no further line is asked, and what is on the wire may end.

        Args:
            grace: Seconds after which what is on the wire is aborted. A second call aborts it at once.
        """
        check({"grace": grace}, kinds={"grace": SECONDS})
        if self._ended is not None:
            return
        self._stopped = grace = grace if self._stopped is None else 0.0
        if self._native is not None:
            self._native.stop(grace)

    def progress(self) -> dict[str, Any]:
        """The counters now.

        Returns:
            ``total`` lines (None until they are counted), ``succeeded``, ``failed``, ``in_flight``, ``skipped``,
            ``bad_lines``, ``written``, ``prompt_tokens``, ``completion_tokens``, ``cost`` in dollars and ``unpriced``
            answers; empty before the run.
        """
        return {} if self._native is None else self._native.progress()

    def counters(self) -> Progress:
        """The same as `BatchProcessor.progress` gives it."""
        now = self.progress()
        if not now:
            return Progress()
        cost, unpriced, done = now["cost"], now["unpriced"], now["succeeded"]
        return Progress(
            done=done,
            failed=now["failed"] + now["bad_lines"],
            in_flight=now["in_flight"],
            total=now["total"],
            skipped=now["skipped"],
            prompt_tokens=now["prompt_tokens"],
            completion_tokens=now["completion_tokens"],
            cost=cost if cost or done > unpriced else None,
            unpriced=unpriced,
            elapsed=(self._ended or monotonic()) - self._begun,
        )

    def _start(self) -> NativeFileRun:
        if self._native is not None:
            raise RuntimeError("a FileRun runs once; make another to go on")
        native = self._client._native.file_run(
            self._system,
            self._options,
            self._paths,
            max_concurrent=self._max_concurrent,
            switches=self._switches,
            rules=self._rules,
        )
        self._native, self._begun = native, monotonic()
        if self._stopped is not None:
            native.stop(self._stopped)
        return native

    def _dollars(self, models: list[str]) -> dict[str, tuple[float, float]]:
        """Per token, as the engine counts them."""
        prices = {model: self._prices._per_token(model, for_budget=self._needs_price) for model in models}
        return {model: price for model, price in prices.items() if price is not None}

    def __repr__(self) -> str:
        return f"FileRun(input={self._paths[0]!r}, output={self._paths[1]!r})"


def _settle(native: NativeFileRun) -> None:
    """Wait until what was answered is written."""
    until = monotonic() + _SETTLING_S
    while native.is_open and monotonic() < until:
        sleep(_LOOK_S)


async def _settle_awaiting(native: NativeFileRun) -> None:
    import asyncio  # not at the top: it is most of what importing millstream would take

    until = monotonic() + _SETTLING_S
    while native.is_open and monotonic() < until:  # noqa: ASYNC110 - a run that was aborted tells nobody
        await asyncio.sleep(_LOOK_S)
