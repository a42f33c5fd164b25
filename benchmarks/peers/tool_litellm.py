"""litellm, a list of prompts in one call: `batch_completion`, a thread for each request in flight."""

import os
from pathlib import Path

# Otherwise its import downloads a table of prices.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm
from _bulk import read_prompts, run_tool, write_outcomes
from _common import API_KEY, MODEL, Job


def carry(job: Job, source: Path, target: Path) -> None:
    responses = litellm.batch_completion(
        model=f"openai/{MODEL}",
        messages=[[{"role": "user", "content": prompt}] for prompt in read_prompts(source)],
        api_base=job.base_url,
        api_key=API_KEY,
        max_workers=job.concurrency,
    )
    # A failed request is an exception in its place.
    write_outcomes(
        target,
        (None if isinstance(one, Exception) else one.choices[0].message.content for one in responses),
    )


if __name__ == "__main__":
    run_tool(carry, "litellm", "openai", "httpx")
