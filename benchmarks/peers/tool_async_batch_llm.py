"""async-batch-llm, a list of prompts in one call: `process_prompts`.

After a 429 it pauses for 300 s by default, whatever `Retry-After` says. Here it is one second, or nothing else would be
measured; the slow start after it is as it is by default.
"""

import asyncio
from pathlib import Path

from _bulk import read_prompts, run_tool, write_outcomes
from _common import API_KEY, MODEL, Job
from async_batch_llm import ProcessorConfig, RateLimitConfig, llm, process_prompts


async def ask(job: Job, prompts: list[str]) -> list[str | None]:
    strategy = llm(f"openai-compatible:{MODEL}", base_url=job.base_url, api_key=API_KEY)
    config = ProcessorConfig(concurrency=job.concurrency, rate_limit=RateLimitConfig(cooldown_seconds=1))
    batch = await process_prompts(strategy, prompts, config=config, preserve_order=True)
    return [result.output if result.success else None for result in batch.results]


def carry(job: Job, source: Path, target: Path) -> None:
    write_outcomes(target, asyncio.run(ask(job, read_prompts(source))))


if __name__ == "__main__":
    run_tool(carry, "async-batch-llm", "openai", "httpx")
