"""A web service of aiohttp's: an answer as JSON, and one as it is written.

Run it with ``python examples/aiohttp_app.py 8000`` (``pip install aiohttp``). The client
is made once, when the module is imported, and a browser that goes away ends the request to the model, too.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator

from aiohttp import web
from millstream import AsyncClient, MillstreamError

# Key and server come from OPENAI_API_KEY and OPENAI_BASE_URL.
client = AsyncClient(model=os.environ.get("MODEL", "gpt-4o-mini"), max_concurrency=256)


async def answer(request: web.Request) -> web.Response:
    """Answer at once."""
    question = await request.json()
    try:
        completion = await client.chat.completions.create(messages=[{"role": "user", "content": question["prompt"]}])
    except MillstreamError as error:
        raise web.HTTPBadGateway(text="the model cannot be asked now") from error
    usage = completion.usage
    return web.json_response({"text": completion.text, "tokens": usage.total_tokens if usage else None})


async def stream(request: web.Request) -> web.StreamResponse:
    """Answer as the model writes."""
    question = await request.json()
    response = web.StreamResponse(headers={"Content-Type": "text/plain; charset=utf-8"})
    async with client.stream_complete(question["prompt"]) as texts:
        await response.prepare(request)
        async for text in texts:
            await response.write(text.encode())
    await response.write_eof()
    return response


async def closing(_: web.Application) -> AsyncIterator[None]:
    """Close the client with the service."""
    async with client:
        yield


def make_app() -> web.Application:
    """Make the service."""
    app = web.Application()
    app.add_routes([web.post("/answer", answer), web.post("/stream", stream)])
    app.cleanup_ctx.append(closing)
    return app


if __name__ == "__main__":
    # Without handler_cancellation a handler that waits for the model does not learn that its client has gone.
    web.run_app(make_app(), port=int(sys.argv[1]) if sys.argv[1:] else 8000, handler_cancellation=True)
