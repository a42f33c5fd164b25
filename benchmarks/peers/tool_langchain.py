"""LangChain, a list of prompts in one call: `ChatOpenAI.abatch` with `max_concurrency`."""

import asyncio
from pathlib import Path

from _bulk import read_prompts, run_tool, write_outcomes
from _common import API_KEY, MODEL, Job
from langchain_openai import ChatOpenAI


def carry(job: Job, source: Path, target: Path) -> None:
    model = ChatOpenAI(model=MODEL, base_url=job.base_url, api_key=API_KEY)
    config = {"max_concurrency": job.concurrency}
    answers = asyncio.run(model.abatch(read_prompts(source), config=config, return_exceptions=True))
    write_outcomes(target, (None if isinstance(one, Exception) else one.text for one in answers))


if __name__ == "__main__":
    run_tool(carry, "langchain-openai", "langchain-core", "openai", "httpx")
