"""What a run comes to: its results in order, and what they add up to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn, Self, overload

from millstream.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from millstream._millstream import BatchResult
    from millstream._progress import Progress
    from millstream.exceptions import MillstreamError


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSummary:
    """What a run came to.

    Attributes:
        total: Items that have a result.
        ok: Items that were answered.
        failed: Items that were not, those included that a stopped run gave up.
        given_up: Items that were given up because the run was stopped.
        cached: Items that got another item's answer, which asked the same.
        attempts: HTTP requests made.
        prompt_tokens: Tokens of prompts that were paid for, as the servers counted them.
        completion_tokens: Tokens of answers, likewise.
        cost: Dollars for the answers whose price is known; None if no price is known.
        unpriced: Answers whose price is not known, so that they are not in ``cost``.
        elapsed: Seconds that the run took.
        stopped: What stopped it, see `BatchStoppedError`; None if nothing did.
        errors: How many items failed of what: the error's class by its name.
    """

    total: int = 0
    ok: int = 0
    failed: int = 0
    given_up: int = 0
    cached: int = 0
    attempts: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None
    unpriced: int = 0
    elapsed: float = 0.0
    stopped: str | None = None
    errors: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        """One line: ``Successful 98/100 in 3.2 s (2 BadRequestError)``."""
        why = ", ".join(f"{count} {name}" for name, count in self.errors.items())
        stopped = f"; stopped: {self.stopped}" if self.stopped else ""
        return f"Successful {self.ok}/{self.total} in {self.elapsed:.1f} s{f' ({why})' if why else ''}{stopped}"


class Tally:
    """Adds results up."""

    __slots__ = ("_attempts", "_cached", "_errors", "_given_up", "_ok", "total")

    def __init__(self) -> None:
        self.total = self._ok = self._cached = self._attempts = self._given_up = 0
        self._errors: Counter[str] = Counter()

    def add(self, page: Iterable[BatchResult]) -> None:
        """Take in results, before their errors are left out."""
        for result in page:
            self.total += 1
            self._attempts += result.attempts
            self._cached += result.cached
            if result.ok:
                self._ok += 1
                continue
            name = type(result.error).__name__
            self._given_up += name == "BatchStoppedError"
            self._errors[name] += 1

    def summary(self, progress: Progress, elapsed: float, stopped: str | None) -> BatchSummary:
        """What they come to."""
        return BatchSummary(
            total=self.total,
            ok=self._ok,
            failed=self.total - self._ok,
            given_up=self._given_up,
            cached=self._cached,
            attempts=self._attempts,
            prompt_tokens=progress.prompt_tokens,
            completion_tokens=progress.completion_tokens,
            cost=progress.cost,
            unpriced=progress.unpriced,
            elapsed=elapsed,
            stopped=stopped,
            errors=dict(self._errors.most_common()),
        )


# What a table of results has, and where an answer of a type is.
_COLUMNS = (
    "index",
    "custom_id",
    "input",
    "text",
    "ok",
    "error",
    "error_type",
    "prompt_tokens",
    "completion_tokens",
    "attempts",
    "queue_time",
    "latency",
    "cached",
    "key_id",
)


class BatchResults(Sequence["BatchResult"]):
    """The results of a run, in the order of its items."""

    __slots__ = ("_results", "_summary")

    def __init__(self, results: Iterable[BatchResult], summary: BatchSummary | None = None) -> None:
        self._results = list(results)
        if summary is None:
            from millstream._progress import Progress  # which is not needed otherwise

            tally = Tally()
            tally.add(self._results)
            used = [result.usage for result in self._results if result.usage is not None]
            tokens = Progress(
                prompt_tokens=sum(usage.prompt_tokens for usage in used),
                completion_tokens=sum(usage.completion_tokens for usage in used),
                unpriced=len(used),
            )
            summary = tally.summary(tokens, 0.0, None)
        self._summary = summary

    @overload
    def __getitem__(self, place: int) -> BatchResult: ...

    @overload
    def __getitem__(self, place: slice) -> BatchResults: ...

    def __getitem__(self, place: int | slice) -> BatchResult | BatchResults:
        """One result; or some, whose summary is theirs alone."""
        return BatchResults(self._results[place]) if isinstance(place, slice) else self._results[place]

    def __len__(self) -> int:
        return len(self._results)

    def __eq__(self, other: object) -> bool:
        return self._results == other._results if isinstance(other, BatchResults) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def texts(self) -> list[str | None]:
        """The texts, with None where an item failed."""
        return [result.text for result in self._results]

    @property
    def parsed(self) -> list[Any]:
        """The values, with ``response_model``; None where an item failed."""
        return [result.parsed for result in self._results]

    @property
    def errors(self) -> dict[int, MillstreamError]:
        """The errors of the items that failed, by their index."""
        return {result.index: result.error for result in self._results if result.error is not None}

    def raise_first(self) -> Self:
        """Raise the first error, if an item failed; else these results.

        Raises:
            MillstreamError: That of the first failed item.
        """
        for result in self._results:
            if result.error is not None:
                raise result.error
        return self

    def summary(self) -> BatchSummary:
        """What the run came to: counts, tokens, cost, time."""
        return self._summary

    @property
    def stopped(self) -> str | None:
        """What stopped the run; None if nothing did."""
        return self._summary.stopped

    def to_dicts(self, **names: str) -> list[dict[str, Any]]:
        """A dict for each result.

        Args:
            **names: Which fields, by the names that they shall have: ``to_dicts(prompt="input", response="text",
                error="error")``. Default: all but the response, by their own names. An error is its text, or just
                ``"timeout"``; ``error_type`` its class.
        """
        wanted = names or {name: name for name in (*_COLUMNS, *(["parsed"] if any(self.parsed) else []))}
        for name in wanted.values():
            if name not in (*_COLUMNS, "parsed", "response", "usage"):
                raise ConfigurationError(f"a result has no {name!r}; it has {', '.join(_COLUMNS)}")
        return [{name: _value(result, column) for name, column in wanted.items()} for result in self._results]

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame`` with the columns of `to_dicts`.

        Raises:
            ConfigurationError: pandas is not installed.
        """
        try:
            import pandas  # type: ignore[import-untyped,import-not-found,unused-ignore]
        except ImportError:
            _missing("pandas")
        return pandas.DataFrame(self.to_dicts(), columns=None if self._results else list(_COLUMNS))

    def to_polars(self) -> Any:
        """A ``polars.DataFrame`` with the columns of `to_dicts`; inputs that are no texts are JSON.

        Raises:
            ConfigurationError: polars is not installed.
        """
        try:
            import polars  # type: ignore[import-not-found,unused-ignore]
        except ImportError:
            _missing("polars")
        return polars.DataFrame(self._columns())

    def to_arrow(self) -> Any:
        """A ``pyarrow.Table`` with the columns of `to_dicts`; inputs that are no texts are JSON.

        Raises:
            ConfigurationError: pyarrow is not installed.
        """
        try:
            import pyarrow  # type: ignore[import-untyped,import-not-found,unused-ignore]
        except ImportError:
            _missing("pyarrow")
        return pyarrow.table(self._columns())

    def _columns(self) -> dict[str, list[Any]]:
        names = [*_COLUMNS, *(["parsed"] if any(self.parsed) else [])]
        columns = {name: [_value(result, name) for result in self._results] for name in names}
        for name in ("input", "parsed"):
            if any(value is not None and not isinstance(value, str) for value in columns.get(name, ())):
                columns[name] = [value if value is None else _as_json(value) for value in columns[name]]
        return columns

    def __repr__(self) -> str:
        return f"<BatchResults: {self._summary}>"


def _value(result: BatchResult, name: str) -> Any:
    if name == "error":
        error = result.error
        # As people have always written it.
        return None if error is None else "timeout" if isinstance(error, TimeoutError) else str(error)
    if name == "error_type":
        return None if result.error is None else type(result.error).__name__
    if name in ("prompt_tokens", "completion_tokens"):
        return getattr(result.usage, name, None)
    return getattr(result, name)


def _as_json(value: Any) -> str:
    if isinstance(value, str):
        return value
    import json

    dump = getattr(value, "model_dump_json", None)
    return str(dump()) if dump is not None else json.dumps(value, ensure_ascii=False, default=str)


def _missing(package: str) -> NoReturn:
    raise ConfigurationError(
        f"to_{'arrow' if package == 'pyarrow' else package}() needs {package}: pip install {package}"
    )
