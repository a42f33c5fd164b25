"""millstream, a file: `BatchProcessor.run_file_blocking`, what `millstream run` does."""

import json
from collections.abc import Iterator
from pathlib import Path

from _bulk import Outcome, run_tool
from _common import API_KEY, MODEL, Job, text_of
from millstream import BatchProcessor, Client


def carry(job: Job, source: Path, target: Path) -> None:
    with Client(api_key=API_KEY, base_url=job.base_url, model=MODEL, max_concurrency=job.concurrency) as client:
        BatchProcessor(client, progress=False).run_file_blocking(source, target)


def read(target: Path) -> Iterator[Outcome]:
    with target.open() as file:
        for line in file:
            result = json.loads(line)
            response = result["response"]
            is_answered = result["error"] is None and response["status_code"] == 200
            yield int(result["custom_id"]), text_of(response["body"]) if is_answered else None


if __name__ == "__main__":
    run_tool(carry, "millstream", read=read)
