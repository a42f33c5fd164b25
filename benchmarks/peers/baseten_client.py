"""baseten's performance client: a Rust batch over HTTP, `PerformanceClient.batch_post`."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from _common import API_KEY, TIMEOUT_S, Batch, Job, chat_body, run, text_of
from baseten_performance_client import PerformanceClient, RequestProcessingPreference


@asynccontextmanager
async def peer(job: Job) -> AsyncIterator[Batch]:
    client = PerformanceClient(base_url=job.base_url, api_key=API_KEY)
    preference = RequestProcessingPreference(
        max_concurrent_requests=job.concurrency, timeout_s=TIMEOUT_S, max_retries=0
    )

    async def batch(prompts: Sequence[str]) -> list[str]:
        # It blocks the loop, which has nothing else to do here.
        response = client.batch_post(
            "/chat/completions", [chat_body(prompt) for prompt in prompts], preference=preference
        )
        return [text_of(completion) for completion in response.data]

    yield batch


if __name__ == "__main__":
    run(peer, "baseten_performance_client")
