"""Bespoke Labs' curator, a list of rows in one call: `curator.LLM`, with nothing in its cache."""

import os
import tempfile
from pathlib import Path
from typing import Any

os.environ |= {"TELEMETRY_ENABLED": "0", "CURATOR_VIEWER": "0", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}

from _bulk import read_prompts, run_tool, write_outcomes
from _common import API_KEY, MODEL, Job
from bespokelabs import curator

# High enough that it never waits for them.
PER_MINUTE = 1_000_000_000


class Asker(curator.LLM):
    def prompt(self, row: dict[str, Any]) -> str:
        return str(row["prompt"])

    def parse(self, row: dict[str, Any], response: str) -> dict[str, Any]:
        return {"index": row["index"], "answer": response}


def carry(job: Job, source: Path, target: Path) -> None:
    # Its first request, which looks at the headers only, takes no other key.
    os.environ["OPENAI_API_KEY"] = API_KEY
    asker = Asker(
        model_name=f"openai/{MODEL}",
        backend="litellm",
        backend_params={
            "base_url": job.base_url,
            "api_key": API_KEY,
            "max_concurrent_requests": job.concurrency,
            "max_requests_per_minute": PER_MINUTE,
            "max_tokens_per_minute": PER_MINUTE,
            "require_all_responses": False,
        },
    )
    rows = [{"index": index, "prompt": prompt} for index, prompt in enumerate(read_prompts(source))]
    with tempfile.TemporaryDirectory() as cache:
        answers = {row["index"]: row["answer"] for row in asker(rows, working_dir=cache).dataset}
        # Those that have failed are in a file of its own, and missing here.
        write_outcomes(target, (answers.get(index) for index in range(len(rows))))


if __name__ == "__main__":
    run_tool(carry, "bespokelabs-curator", "litellm", "openai")
