"""A file of texts embedded: a column in, a file of vectors out, gone on with where an earlier run ended.

Every pack that comes is written at once (`millstream._embed_work`); the output is made of what is there when the last
one has come. The file is read three times at most: to count the rows and to know them again, to embed them, and for
what they are called. No reading keeps more than a block of it.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any

from millstream import _embed
from millstream._arguments import COUNT, FLAG, INTEGER, NUMBER, SECONDS, TEXT, check
from millstream._bridge import wait
from millstream._columns import Column, Pack, Survey, Unusable, checked, packs
from millstream._embed_output import Stopped, facts, kind_of, write
from millstream._embed_work import FAILED, TODO, Place, Work, said, tokens_of
from millstream._not_given import NOT_GIVEN
from millstream._prices import Prices
from millstream._progress import Progress
from millstream._settings import hide
from millstream.exceptions import (
    BadRequestError,
    BatchStoppedError,
    ConfigurationError,
    JournalError,
    MillstreamError,
    UnprocessableEntityError,
)

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Task
    from collections.abc import Iterator

    from millstream._client import AsyncClient, Client
    from millstream._embed import OnError, Plan, TooLong
    from millstream._embed_work import State
    from millstream._millstream import Embeddings, NativeEmbedding

USUAL_PACK = 256
"""Texts of a request, unless the server takes fewer or the user says otherwise: what one kill may cost."""

_AT_ONCE = 32
"""Packs that are under way, unless the user says how many."""

_FILLED = 0.9
"""How much of what a request may hold in tokens is used, since they are an estimate."""

_BYTES_PER_TOKEN = 4
_MOST_PROBLEMS = 1000

_KINDS = {
    "column": TEXT,
    "id_column": TEXT,
    **dict.fromkeys(("fresh", "retry_failed", "strict"), FLAG),
    "max_errors": INTEGER._replace(least=1),
    "deadline": SECONDS,
    "budget_tokens": COUNT,
    "budget_usd": NUMBER,
}


@dataclass(frozen=True, slots=True)
class EmbedSummary:
    """How a run ended. Every row is one of ok, failed, done before, and not reached.

    Attributes:
        output: The file of vectors; None if it is not made yet.
        rows: Rows of the input.
        dimensions: Numbers of a vector; 0 if none has come.
        ok: Embedded by this run.
        failed: Without a vector, by this run.
        skipped: Done by an earlier run.
        failed_before: Of them those that have none (``retry_failed`` asks them again).
        unusable: Rows of the input without a text, which are among those that failed.
        requests: Packs that this run sent.
        prompt_tokens: What this run used, as far as the server counts it.
        cost: Dollars for that; None if the price is not known.
        unpriced: Rows whose price or tokens are not known.
        elapsed: Seconds.
        stopped: What ended it before its rows did: ``"interrupted"``, ``"deadline"``, ``"budget"``, ``"max_errors"``,
            ``"error"`` (a text failed, with ``on_error="raise"``) or ``"fatal"``; None if nothing did.
        error: The error of the last two.
        problems: What was wrong: of each the file, the row from 0 (or the line of a journal), and the reason. The first
            thousand.
    """

    output: str | None
    rows: int
    dimensions: int
    ok: int
    failed: int
    skipped: int
    failed_before: int
    unusable: int
    requests: int
    prompt_tokens: int
    cost: float | None
    unpriced: int
    elapsed: float
    stopped: str | None
    error: str | None
    problems: list[tuple[str, int, str]]


def limits(
    client: AsyncClient | Client, batch_size: int | None, max_input_tokens: int | None, max_batch_tokens: int | None
) -> tuple[int, int | None, float]:
    """Texts of a pack, tokens of a text if that is known, and bytes of a pack."""
    most, per_text, tokens = client._native.embed_limits((batch_size, max_input_tokens, max_batch_tokens))
    return most if batch_size else min(most, USUAL_PACK), per_text, tokens * _BYTES_PER_TOKEN * _FILLED


class EmbedRun:
    """One run over a file of texts.

    Args:
        client: Whom to ask.
        input: JSONL, CSV, TSV or Parquet with a column of texts, or a text a line (``.txt``).
        output: A ``.parquet``, ``.npy`` or ``.jsonl`` file, with one row for each of the input, in its order. Made for
            its owner alone, and there only once it is whole.
        column: The texts' column.
        id_column: A column that goes into the output beside the vectors.
        fresh: Throw away what an earlier run left, and replace an output that is there.
        retry_failed: Ask again what failed in an earlier run.
        strict: Refuse a file with a row that has no text, rather than report the row.
        on_error: What becomes of a text that has no vector: ``"nan"``: a row without one, if it is the text's own
            fault, while any other (the key, a quota, an outage after every retry) stops the run; ``"return"``: such a
            row, whatever went wrong; ``"raise"``: the run is stopped.
        model: Default: the client's.
        dimensions: Numbers of each vector, if the model leaves a choice.
        truncate_dim: Keep only so many numbers of each, and bring them to length 1.
        normalize: Bring each vector to length 1.
        batch_size: Texts of one request. Default: what the server takes, 256 at most.
        max_batch_tokens: Tokens of one request, by estimate. Default: what the server takes.
        max_input_tokens: Tokens of one text. Default: what the server takes, if that is known.
        too_long: What becomes of a longer one, see `Client.embed`.
        max_concurrent: Packs under way. Default: 32, of which the client's window lets in flight what fits.
        max_errors: Failed rows at which the run is stopped.
        deadline: Seconds from its start after which it is aborted.
        budget_tokens: Tokens at which it is stopped.
        budget_usd: Dollars at which it is stopped. Needs the model's price.
        prices: Prices over those that are shipped, see `Prices`.
        params: Further request fields.

    Raises:
        ConfigurationError: An argument that makes no sense.
    """

    def __init__(
        self,
        client: AsyncClient,
        input: str | os.PathLike[str],  # noqa: A002 - the word for it
        output: str | os.PathLike[str],
        *,
        column: str = "text",
        id_column: str | None = None,
        fresh: bool = False,
        retry_failed: bool = False,
        strict: bool = False,
        on_error: OnError = "nan",
        model: str | None = None,
        dimensions: int | None = None,
        truncate_dim: int | None = None,
        normalize: bool = False,
        batch_size: int | None = None,
        max_batch_tokens: int | None = None,
        max_input_tokens: int | None = None,
        too_long: TooLong = "error",
        max_concurrent: int | None = None,
        max_errors: int | None = None,
        deadline: float | None = None,
        budget_tokens: int | None = None,
        budget_usd: float | None = None,
        prices: Prices | None = None,
        **params: Any,
    ) -> None:
        given: dict[str, Any] = {"column": column, "id_column": id_column, "fresh": fresh, "retry_failed": retry_failed}
        given |= {"strict": strict, "max_errors": max_errors, "deadline": deadline, "budget_tokens": budget_tokens}
        check({**given, "budget_usd": budget_usd}, kinds=_KINDS)
        if on_error not in ("raise", "nan", "return"):
            raise ConfigurationError(f'on_error must be "raise", "nan" or "return", not {on_error!r}')
        self._client = client
        self._place = Place(output)
        self._suffix = kind_of(self._place.output, id_column)
        self._column = Column(os.fspath(input), column, id_column)
        self._survey = Survey()
        self._names = _Names(self._column, self._survey)
        self._fresh, self._retry_failed, self._strict, self._on_error = fresh, retry_failed, strict, on_error
        self._max_errors, self._deadline = max_errors, deadline
        self._budget_tokens, self._budget_usd = budget_tokens, budget_usd
        self._most, _, self._most_bytes = limits(client, batch_size, max_input_tokens, max_batch_tokens)
        self._at_once = max_concurrent or _AT_ONCE

        def plan(size: int, on_error: str) -> Plan:
            return _embed.plan(
                client,
                lambda fields: client._post_options(
                    "embeddings", model, NOT_GIVEN, NOT_GIVEN, 0, None, hide(None, None), fields
                ),
                dimensions=dimensions,
                truncate_dim=truncate_dim,
                normalize=normalize,
                batch_size=size,
                max_batch_tokens=max_batch_tokens,
                max_input_tokens=max_input_tokens,
                max_concurrent=None,
                encoding_format=None,
                too_long=too_long,
                count_tokens=None,
                dedupe=True,
                on_error=on_error,
                params=params,
            )

        self._plan = plan(self._most, "return" if on_error == "return" else "nan")
        self._plan_alone = plan(1, "nan")
        self._model = str(self._plan.options[0])
        self._price = Prices._given(prices)._per_token(self._model, for_budget=budget_usd is not None)
        self._job: dict[str, Any] = {
            "model": self._model,
            "provider": client.provider,
            "dimensions": dimensions,
            "truncate_dim": truncate_dim,
            "normalize": normalize,
            "too_long": too_long,
            "max_input_tokens": max_input_tokens if too_long != "error" else None,
            "params": params,
        }
        self._is_surveyed = False
        self._is_finishing = False
        self._work: Work | None = None
        self._loop: AbstractEventLoop | None = None
        self._tasks: list[Task[None]] = []
        self._asked: set[NativeEmbedding] = set()
        self._grace = 0.0
        self._stopped: str | None = None
        self._is_aborted = False
        self._error: str | None = None
        self._unwritten = 0
        self._ok = self._failed = self._skipped = self._failed_before = 0
        self._requests = self._tokens = self._uncounted = self._in_flight = 0
        self._begun = monotonic()

    # ---- from outside ----

    async def run(self) -> EmbedSummary:
        """Carry it through.

        Raises:
            ConfigurationError: A file that cannot be read or written, or holds something else than is said; an earlier
                run that was about other texts or vectors. Nothing was sent.
            JournalError: Another run makes the output, or what came cannot be written any more.
        """
        import asyncio  # not at the top: it is most of what importing millstream would take

        self._loop, self._begun = asyncio.get_running_loop(), monotonic()
        timer = None if self._deadline is None else self._loop.call_later(self._deadline, self._halt, "deadline", 0.0)
        # One thread reads and another one writes, so that neither waits for the other.
        self._reader = ThreadPoolExecutor(1, "millstream-reader")
        self._writer = ThreadPoolExecutor(1, "millstream-writer")
        try:
            with suppress(Stopped):
                await self._in(self._reader, self._look)
                await self._in(self._writer, self._prepare)
                is_made = self._stopped is None and await self._in(self._writer, self._is_made)
                if not is_made:
                    await self._embed_all()
                    await self._in(self._writer, self._finish)
            return self._summary()
        finally:
            if timer is not None:
                timer.cancel()
            self._reader.shutdown()
            self._writer.submit(self._close)
            self._writer.shutdown()

    def stop(self, grace: float) -> None:
        """Begin no further pack, from the loop's thread; what is on the wire has `grace` seconds to end.

        Called again, it is ended at once.
        """
        self._halt("interrupted", grace)

    def counters(self) -> Progress:
        """How far it is."""
        price = None if self._price is None else self._price[0]
        done = self._ok > 0
        return Progress(
            done=self._ok,
            failed=self._failed,
            in_flight=self._in_flight,
            total=self._survey.rows if self._is_surveyed else None,
            skipped=self._skipped,
            prompt_tokens=self._tokens,
            cost=None if price is None else self._tokens * price,
            unpriced=self._unpriced() if done else 0,
            elapsed=monotonic() - self._begun,
        )

    # ---- what is there ----

    def _look(self) -> None:
        for block in self._column.blocks():
            self._check_wanted()
            self._survey.take(block, _MOST_PROBLEMS)
        self._is_surveyed = True
        if self._strict and self._survey.problems:
            row, reason = self._survey.problems[0]
            raise ConfigurationError(
                f"{self._column.path}, row {row}: {reason}, as {self._survey.unusable - 1:,} others; nothing was sent"
            )
        self._job = {"rows": self._survey.rows, "texts": self._survey.digest, **self._job}

    def _prepare(self) -> None:
        self._check_wanted()
        output = self._place.output
        if output.is_symlink():
            raise ConfigurationError(f"{output} is a symbolic link, and nothing is written through one")
        work = self._work = Work(self._place, fresh=self._fresh)
        if work.is_new:
            if output.exists() and not self._fresh:
                raise ConfigurationError(
                    f"{output} is there, and nothing says that a run like this one made it: name another output, or "
                    f"replace it with fresh=True"
                )
            work.begin(self._job)
        else:
            work.take_up(self._check_job, lambda: not self._is_ending)
            self._check_wanted()
        state = work.state
        if self._retry_failed and state.failed:
            state.status = state.status.replace(bytes([FAILED]), bytes([TODO]))
        self._skipped, self._failed_before = state.done + state.failed, state.failed

    def _check_job(self, state: State) -> None:
        """Refuse to go on with vectors of other texts, or of another kind."""
        different = [name for name in self._job if state.job.get(name) != self._job[name]]
        if not different:
            return
        if "rows" in different or "texts" in different:
            what = f"the texts of {self._column.path} are others ({state.job.get('rows'):,} rows then)"
        else:
            what = ", ".join(f"{name} was {state.job.get(name)!r} and is {self._job[name]!r}" for name in different)
        raise ConfigurationError(
            f"{self._place.journal} is of another job: {what}. Put that back, name another output, or throw away the "
            f"{state.done:,} vectors that are there with fresh=True. Nothing was sent"
        )

    def _is_made(self) -> bool:
        """Whether an earlier run has done all of it, so that there is nothing to do."""
        work = self._held()
        state, output = work.state, self._place.output
        if state.end is None or state.todo:
            return False
        has_vectors = self._place.vectors.exists()
        if output.exists() and state.end == facts(output, self._names.name):
            if has_vectors and not state.failed:
                self._place.vectors.unlink()
            return True
        if has_vectors:
            return False
        what = "gone" if not output.exists() else "no more what it was, or was made with another id_column"
        raise ConfigurationError(
            f"{output} was finished by an earlier run and is {what}, and its vectors are kept nowhere else: put it "
            f"back, name another output, or begin anew with fresh=True"
        )

    # ---- texts to vectors ----

    async def _embed_all(self) -> None:
        import asyncio

        todo = self._packs()
        self._tasks = [asyncio.ensure_future(self._embed_some(todo)) for _ in range(self._at_once)]
        if self._is_aborted:
            self._abort()
        outcomes = await asyncio.gather(*self._tasks, return_exceptions=True)
        # A pack that was aborted is the next run's.
        faults = [fault for fault in outcomes if isinstance(fault, Exception)]
        if not faults:
            await self._in(self._writer, self._held().sync)
        elif self._unwritten and isinstance(faults[0], JournalError):
            raise JournalError(
                f"{faults[0]}; the vectors of {self._unwritten:,} rows that are paid for were not written"
            )
        else:
            raise faults[0]

    async def _embed_some(self, todo: Iterator[Pack | list[tuple[int, str]]]) -> None:
        """Embed one pack after the other."""
        while self._stopped is None:
            try:
                pack = await self._in(self._reader, next, todo, None)
                if pack is None:
                    return
                if not isinstance(pack, Pack):
                    await self._in(self._writer, self._refuse, pack)
                    continue
                self._in_flight += len(pack.rows)
                try:
                    page = await self._embed(pack)
                    if page is not None:
                        await self._in(self._writer, self._keep, pack, page)
                finally:
                    self._in_flight -= len(pack.rows)
            except Stopped:
                return
            except Exception:
                # Whatever is on the wire may still be written, unless it is the disk.
                self._halt("fatal", 30.0)
                raise

    async def _embed(self, pack: Pack) -> Embeddings | None:
        try:
            try:
                return await self._ask(self._plan, pack)
            except (BadRequestError, UnprocessableEntityError):
                if not self._ok and not self._skipped:
                    raise
                # The server takes other texts, so it is not the request: each is asked for by itself.
                return await self._ask(self._plan_alone, pack)
        except BatchStoppedError:
            return None
        except MillstreamError as error:
            if self._error is None:
                self._error = said(error)
            self._halt("fatal", 30.0)
            return None

    async def _ask(self, plan: Plan, pack: Pack) -> Embeddings:
        asked = await _embed.begin(self._client, plan, pack.texts)
        self._asked.add(asked)
        try:
            if self._stopped is not None:
                # Whatever still waits is given up.
                asked.stop(self._grace)
            return await wait(asked.result)
        finally:
            self._asked.discard(asked)
            asked.abort()

    def _packs(self) -> Iterator[Pack | list[tuple[int, str]]]:
        """What is to be done: packs of texts, and between them rows that have none."""
        status = self._held().state.status
        if TODO not in status:
            return
        unusable: list[tuple[int, str]] = []

        def rows() -> Iterator[tuple[int, str, int]]:
            for block in checked(self._column, self._survey):
                self._check_wanted()
                for row, (text, size) in enumerate(zip(block.texts, block.sizes, strict=True), block.start):
                    if status[row] != TODO:
                        continue
                    if isinstance(text, Unusable):
                        unusable.append((row, text.reason))
                    else:
                        yield row, text, size

        for pack in packs(rows(), self._most, self._most_bytes):
            if len(unusable) >= self._most:
                found, unusable[:] = unusable[:], []
                yield found
            yield pack
        if unusable:
            yield unusable

    def _keep(self, pack: Pack, page: Embeddings) -> None:
        work = self._held()
        errors = page.errors
        if errors and self._on_error == "raise":
            place, error = next(iter(errors.items()))
            self._error = f"{self._column.path}, row {pack.rows[place]}: {said(error)}"
            self._call(self._halt, "error", 30.0)
        try:
            ok = work.write(pack.rows, page, keep_errors=self._on_error != "raise")
        except MillstreamError:
            self._unwritten += len(pack.rows) - len(errors)
            raise
        self._ok += ok
        self._requests += page.requests
        tokens = tokens_of(page)
        if tokens is None:
            self._uncounted += ok
        self._tokens += tokens or 0
        if self._on_error != "raise":
            self._failed += len(errors)
        self._check_rules()

    def _refuse(self, rows: list[tuple[int, str]]) -> None:
        self._held().fail((row, "no_text", reason) for row, reason in rows)
        self._failed += len(rows)
        self._check_rules()

    def _check_rules(self) -> None:
        spent = 0.0 if self._price is None else self._tokens * self._price[0]
        if self._max_errors is not None and self._failed >= self._max_errors:
            self._call(self._halt, "max_errors", 30.0)
        elif (self._budget_tokens is not None and self._tokens >= self._budget_tokens) or (
            self._budget_usd is not None and spent >= self._budget_usd
        ):
            self._call(self._halt, "budget", 30.0)

    # ---- the end ----

    def _finish(self) -> None:
        """Make the output, if nothing is missing."""
        work = self._held()
        if work.state.todo:
            return
        # Whatever was to stop it came too late, but for who will not wait even for that.
        self._is_finishing = True
        if self._stopped != "interrupted":
            self._stopped = None
        self._check_wanted()
        try:
            made = write(work, self._suffix, self._names, lambda: not self._is_ending)
        except OSError as error:
            if isinstance(error, MillstreamError):
                raise
            raise JournalError(
                f"{self._place.output} cannot be written: {error.strerror or error}. The vectors are kept; run again"
            ) from error
        work.end(made)

    def _summary(self) -> EmbedSummary:
        state = None if self._work is None else self._work.state
        is_made = state is not None and state.end is not None and not state.todo
        problems = [] if state is None else list(state.problems)
        if state is not None:
            for row in sorted(state.failures)[: max(_MOST_PROBLEMS - len(problems), 0)]:
                if state.status[row] == FAILED:
                    problems.append((self._column.path, row, state.failures[row][1]))
        unpriced = self._unpriced()
        return EmbedSummary(
            output=str(self._place.output) if is_made else None,
            rows=self._survey.rows,
            dimensions=0 if state is None else state.size,
            ok=self._ok,
            failed=self._failed,
            skipped=self._skipped,
            failed_before=self._failed_before,
            unusable=self._survey.unusable,
            requests=self._requests,
            prompt_tokens=self._tokens,
            cost=None if self._price is None else self._tokens * self._price[0],
            unpriced=unpriced,
            elapsed=monotonic() - self._begun,
            stopped=self._stopped,
            error=self._error,
            problems=problems,
        )

    def _unpriced(self) -> int:
        return self._ok if self._price is None else self._uncounted

    def _close(self) -> None:
        if self._work is not None:
            self._work.close()

    # ---- stopping ----

    @property
    def _is_ending(self) -> bool:
        return self._stopped is not None

    def _check_wanted(self) -> None:
        if self._stopped is not None:
            raise Stopped

    def _halt(self, reason: str, grace: float) -> None:
        """Begin nothing more, in the loop's thread. Called again by a user who will not wait: end what is under way."""
        if self._is_finishing and reason != "interrupted":
            return
        is_again = self._stopped is not None
        self._stopped = self._stopped or reason
        if reason == "interrupted":
            self._stopped = reason
        if not is_again:
            self._grace = grace
            for asked in self._asked:
                asked.stop(grace)
        if grace <= 0 or (is_again and reason == "interrupted"):
            self._abort()
        elif not is_again and self._loop is not None:
            self._loop.call_later(grace, self._abort)

    def _abort(self) -> None:
        self._is_aborted = True
        for task in self._tasks:
            task.cancel()

    def _call(self, function: Any, *arguments: Any) -> None:
        """Have it called in the loop's thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(function, *arguments)

    async def _in(self, threads: ThreadPoolExecutor, function: Any, *arguments: Any) -> Any:
        assert self._loop is not None
        return await self._loop.run_in_executor(threads, function, *arguments)

    def _held(self) -> Work:
        assert self._work is not None
        return self._work


class _Names:
    """What the rows are called, read once more."""

    def __init__(self, column: Column, survey: Survey) -> None:
        self._column = column
        self._survey = survey

    @property
    def name(self) -> str | None:
        return self._column.id_name

    def arrow_type(self) -> Any:
        from importlib import import_module

        arrow = import_module("pyarrow")
        return self._column.id_type() or (arrow.int64() if self._survey.has_whole_ids else arrow.string())

    def values(self, kind: Any = None) -> Iterator[Any]:
        if self.name is None:
            return
        as_text = str(kind) == "string"
        for block in checked(self._column, self._survey):
            for value in block.ids:
                yield str(value) if as_text and value is not None else value
