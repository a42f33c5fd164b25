"""``client.embed`` and its kin: texts in, rows of float32 out.

What decides anything (packs, refusals, forms) is in the engine. Here texts are handed over in slices, so that a million
of them do not stall the event loop, and tokens are counted where the user has an exact tokenizer.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from millstream._arguments import COUNT, FLAG, INTEGER, TEXT, Kind, check
from millstream._bridge import block, wait
from millstream._millstream import NativeTexts
from millstream.exceptions import ConfigurationError

if TYPE_CHECKING:
    from asyncio import Future
    from collections.abc import AsyncGenerator, AsyncIterable, Callable, Generator, Iterable, Iterator

    from millstream._client import AsyncClient, Client
    from millstream._millstream import Embeddings, NativeEmbedding, _EmbedRules, _Options

OnError = Literal["raise", "nan", "return"]
TooLong = Literal["error", "truncate", "chunk-mean"]
EncodingFormat = Literal["base64", "float"]

# Texts that are handed over at a time: about a millisecond.
_SLICE = 2048
# Seconds of counting tokens until the event loop has a turn.
_TURN_S = 0.002
# Pages of a stream that are asked or lie ready at once.
_PAGES = 4

_KINDS = {
    "dimensions": INTEGER._replace(least=1),
    "truncate_dim": INTEGER._replace(least=1),
    "batch_size": INTEGER,
    "max_input_tokens": INTEGER,
    "max_batch_tokens": INTEGER,
    "max_concurrent": INTEGER,
    "encoding_format": TEXT,
    "on_error": TEXT._replace(optional=False),
    "too_long": TEXT._replace(optional=False),
    "normalize": FLAG,
    "dedupe": FLAG,
    "count_tokens": Kind(callable, "a function"),
    "page_size": COUNT._replace(optional=False, least=1),
}


class Plan(NamedTuple):
    """How texts are embedded."""

    options: _Options
    sizes: tuple[int | None, int | None, int | None]
    max_concurrent: int | None
    encoding_format: str | None
    too_long: str
    on_error: str
    shape: tuple[int | None, int | None, bool]
    dedupe: bool
    count_tokens: Callable[[str], int] | None

    def rules(self, start: int) -> _EmbedRules:
        """As the engine takes them, for texts of which the first has that number."""
        return (
            self.sizes,
            self.max_concurrent,
            start,
            self.encoding_format,
            self.too_long,
            self.on_error,
            self.shape,
            self.dedupe,
        )


def plan(
    client: AsyncClient | Client,
    options: Callable[[dict[str, Any]], _Options],
    *,
    dimensions: int | None,
    truncate_dim: int | None,
    normalize: bool,
    batch_size: int | None,
    max_batch_tokens: int | None,
    max_input_tokens: int | None,
    max_concurrent: int | None,
    encoding_format: str | None,
    too_long: str,
    count_tokens: Callable[[str], int] | None,
    dedupe: bool,
    on_error: str,
    params: dict[str, Any],
) -> Plan:
    """The plan of a call, if its arguments make one.

    Raises:
        ConfigurationError: An argument is not valid.
        TypeError: One is of a wrong type.
    """
    check(
        {
            "dimensions": dimensions,
            "truncate_dim": truncate_dim,
            "normalize": normalize,
            "batch_size": batch_size,
            "max_batch_tokens": max_batch_tokens,
            "max_input_tokens": max_input_tokens,
            "max_concurrent": max_concurrent,
            "encoding_format": encoding_format,
            "too_long": too_long,
            "count_tokens": count_tokens,
            "dedupe": dedupe,
            "on_error": on_error,
        },
        _KINDS,
    )
    if "input" in params:
        raise ConfigurationError("input= is not a parameter of this call; the texts come first")
    if params.get("output_dtype", "float") != "float":
        raise ConfigurationError("output_dtype= is not a parameter of this call, whose rows are float32")
    fields = dict(params)
    if dimensions is not None:
        fields["output_dimension" if client.provider == "mistral" else "dimensions"] = dimensions
    return Plan(
        options(fields),
        (batch_size, max_input_tokens, max_batch_tokens),
        max_concurrent,
        encoding_format,
        too_long,
        on_error,
        (dimensions, truncate_dim, normalize),
        dedupe,
        count_tokens,
    )


def embed(client: Client, plan: Plan, texts: Iterable[str]) -> Embeddings:
    """Embed, blocking."""
    native = NativeTexts()
    for _ in _feed(native, texts, client, plan):
        pass
    if client._settings.token is not None:
        client._settings.token.ask(plan.options, "give Client a function that does not wait, or use AsyncClient")
    return block(client._native.embed, native, plan.options, plan.rules(0))


async def embed_awaiting(client: AsyncClient, plan: Plan, texts: Iterable[str]) -> Embeddings:
    """Embed, awaited."""
    native = await _fed(texts, client, plan)
    if client._settings.token is not None:
        await client._settings.token.ask_awaiting(plan.options)
    return await wait(client._native.embed, native, plan.options, plan.rules(0))


def pages(client: Client, plan: Plan, texts: Iterable[str], page_size: int) -> Generator[Embeddings]:
    """Pages of rows, blocking."""
    rest = iter(texts)
    asked: deque[NativeEmbedding] = deque()
    start = 0
    try:
        while True:
            while len(asked) < _PAGES and (part := list(islice(rest, page_size))):
                native = NativeTexts()
                for _ in _feed(native, part, client, plan, start):
                    pass
                if client._settings.token is not None:
                    advice = "give Client a function that does not wait, or use AsyncClient"
                    client._settings.token.ask(plan.options, advice)
                asked.append(client._native.embed_page(native, plan.options, plan.rules(start)))
                start += len(part)
            if not asked:
                return
            page = asked.popleft()
            try:
                result = block(page.result)
            finally:
                page.abort()
            yield result
    finally:
        for page in asked:
            page.abort()


async def pages_awaiting(
    client: AsyncClient, plan: Plan, texts: Iterable[str] | AsyncIterable[str], page_size: int
) -> AsyncGenerator[Embeddings]:
    """Pages of rows, awaited; a page that is ready is not held back by texts that are still to come."""
    import asyncio  # not at the top, see `millstream._bridge._running_loop`

    rest = _parts(texts, page_size)
    asked: deque[NativeEmbedding] = deque()
    coming: Future[list[str]] | None = None
    ready: Future[Embeddings] | None = None
    start = 0
    is_over = False
    try:
        while True:
            if coming is None and not is_over and len(asked) < _PAGES:
                coming = asyncio.ensure_future(anext(rest, []))
            if ready is None and asked:
                ready = asyncio.ensure_future(wait(asked[0].result))
            waited = [future for future in (coming, ready) if future is not None]
            if not waited:
                return
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if coming is not None and coming.done():
                part, coming = coming.result(), None
                is_over = not part
                if part:
                    asked.append(await begin(client, plan, part, start))
                    start += len(part)
            if ready is not None and ready.done():
                result, ready = ready.result(), None
                asked.popleft()
                yield result
    finally:
        for page in asked:
            page.abort()
        for future in (coming, ready):
            if future is not None:
                future.cancel()
                await asyncio.wait([future])
                if not future.cancelled():
                    future.exception()
        await rest.aclose()


async def begin(client: AsyncClient, plan: Plan, texts: Iterable[str], start: int = 0) -> NativeEmbedding:
    """Begin to embed a page, of which the first text has that number."""
    native = await _fed(texts, client, plan, start)
    if client._settings.token is not None:
        await client._settings.token.ask_awaiting(plan.options)
    return client._native.embed_page(native, plan.options, plan.rules(start))


async def _parts(texts: Iterable[str] | AsyncIterable[str], size: int) -> AsyncGenerator[list[str]]:
    """Lists of so many texts."""
    if not hasattr(texts, "__aiter__"):
        rest = iter(texts)
        while part := list(islice(rest, size)):
            yield part
        return
    part = []
    async for text in texts:
        part.append(text)
        if len(part) == size:
            yield part
            part = []
    if part:
        yield part


async def _fed(texts: Iterable[str], client: AsyncClient, plan: Plan, start: int = 0) -> NativeTexts:
    import asyncio

    native = NativeTexts()
    for _ in _feed(native, texts, client, plan, start):
        await asyncio.sleep(0)
    return native


def check_texts(texts: object) -> None:
    """Refuse a text alone, which would be taken for many of one letter."""
    if isinstance(texts, (str, bytes)):
        raise TypeError("texts is one string; give a list of them, or use embed_one")


def _feed(
    native: NativeTexts, texts: Iterable[str], client: AsyncClient | Client, plan: Plan, start: int = 0
) -> Iterator[None]:
    """Hand texts over; where this yields the event loop may have a turn."""
    check_texts(texts)
    if plan.count_tokens is not None:
        _, most, _ = client._native.embed_limits(plan.sizes)
        yield from _feed_counted(native, texts, plan.count_tokens, most, plan.too_long, start)
        return
    rest = iter(texts)
    row = start
    while part := list(islice(rest, _SLICE)):
        for place, text in enumerate(part):
            if not isinstance(text, str):
                raise _not_text(row + place, text)
        native.extend(part)
        row += len(part)
        yield


def _feed_counted(
    native: NativeTexts,
    texts: Iterable[str],
    count: Callable[[str], int],
    most: int | None,
    too_long: str,
    start: int,
) -> Iterator[None]:
    turn = perf_counter() + _TURN_S
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise _not_text(start + row, text)
        for part, tokens in _fitting(text, count, most, too_long):
            native.add(part, tokens, row)
        if perf_counter() >= turn:
            yield
            turn = perf_counter() + _TURN_S


def _not_text(number: int, text: object) -> TypeError:
    return TypeError(f"texts[{number}] must be a str, not {type(text).__name__}")


def _fitting(text: str, count: Callable[[str], int], most: int | None, too_long: str) -> Iterator[tuple[str, int]]:
    """What of a text is sent, in which parts, with their tokens."""
    tokens = count(text)
    while most is not None and tokens > most and too_long != "error":
        head = _longest(text, count, most)
        yield head, count(head)
        text = text[len(head) :]
        if too_long == "truncate" or not text:
            return
        tokens = count(text)
    yield text, tokens


def _longest(text: str, count: Callable[[str], int], most: int) -> str:
    """The longest beginning of at most so many tokens; at least one character."""
    fits, too_many = 1, len(text)
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if count(text[:middle]) <= most:
            fits = middle
        else:
            too_many = middle
    return text[:fits]
