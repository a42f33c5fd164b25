"""A web service of FastAPI's: an answer as JSON, and one as it is written.

Run it with ``uvicorn fastapi_app:app`` in this directory (``pip install fastapi uvicorn``). The client is made once,
when the module is imported: it opens no connection and starts no thread before its first call, so it survives servers
that fork their workers. A browser that goes away ends the request to the model, too.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException
from fastapi.responses import StreamingResponse
from millstream import AsyncClient, MillstreamError
from pydantic import BaseModel

# Key and server come from OPENAI_API_KEY and OPENAI_BASE_URL.
client = AsyncClient(model=os.environ.get("MODEL", "gpt-4o-mini"), max_concurrency=256)


class Question(BaseModel):
    """What is asked."""

    prompt: str


class Answer(BaseModel):
    """The whole answer, and what it cost."""

    text: str
    tokens: int | None


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Close the client with the service."""
    async with client:
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/answer")
async def answer(question: Question) -> Answer:
    """Answer at once."""
    try:
        completion = await client.chat.completions.create(messages=[{"role": "user", "content": question.prompt}])
    except MillstreamError as error:
        raise HTTPException(502, "the model cannot be asked now") from error
    usage = completion.usage
    return Answer(text=completion.text, tokens=usage.total_tokens if usage else None)


@app.post("/stream")
async def stream(question: Question) -> StreamingResponse:
    """Answer as the model writes."""
    return StreamingResponse(pieces(question.prompt), media_type="text/plain")


async def pieces(prompt: str) -> AsyncIterator[str]:
    """Yield the answer's texts. A generator that is closed leaves ``async with``, which closes the connection."""
    async with client.stream_complete(prompt) as texts:
        async for text in texts:
            yield text
