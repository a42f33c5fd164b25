"""Answer a file of prompts in one `batch_complete` call and print each answer: `make demo`.

Without arguments a small language model is started on this machine: no API key is needed. For a provider:

    make demo DEMO_ARGS="--base-url $OPENAI_BASE_URL --model gpt-4o-mini"

with the key in `OPENAI_API_KEY`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from millstream import AsyncClient

HERE = Path(__file__).resolve().parent

# The server that the tests use too.
sys.path.insert(0, str(HERE.parent / "tests"))

from real_server import RealServer  # noqa: E402


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Answer a file of prompts in one batch.")
    parser.add_argument("--base-url", help="an OpenAI-compatible API (default: one on this machine)")
    parser.add_argument("--model", help="model name; needed with --base-url")
    parser.add_argument("--prompts", type=Path, default=HERE / "prompts.txt", help="file, one prompt a line")
    parser.add_argument("--max-tokens", type=int, default=24, help="longest answer, in tokens")
    options = parser.parse_args()
    if options.base_url and not options.model:
        parser.error("--base-url needs --model")
    return options


def read_prompts(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def say_how_to_use_a_provider() -> None:
    if "OPENAI_API_KEY" in os.environ or "OPENAI_BASE_URL" in os.environ:
        url = os.environ.get("OPENAI_BASE_URL", "https://api.openai.com/v1")
        print("OPENAI_API_KEY or OPENAI_BASE_URL is set; this demo does not use them unless told to:")
        print(f'    make demo DEMO_ARGS="--base-url {url} --model gpt-4o-mini"\n')


async def answer(client: AsyncClient, prompts: list[str], max_tokens: int) -> int:
    """Run the batch, print answers and a summary; return how many failed."""
    began = time.perf_counter()
    answers = await client.batch_complete(prompts, max_tokens=max_tokens, temperature=0, return_exceptions=True)
    seconds = time.perf_counter() - began

    for number, (prompt, reply) in enumerate(zip(prompts, answers, strict=True), start=1):
        text = " ".join(reply.split()) if isinstance(reply, str) else f"! {type(reply).__name__}: {reply}"
        print(f"{number:3} {prompt}\n    {text}")

    failed = sum(not isinstance(reply, str) for reply in answers)
    stats = client.stats()
    print(
        f"\nn={len(prompts)} ok={len(prompts) - failed} failed={failed}"
        f" {len(prompts) / seconds:.1f} requests/s in {seconds:.1f} s,"
        f" tokens in={stats.prompt_tokens} out={stats.completion_tokens}"
    )
    return failed


async def main() -> int:
    options = parse_arguments()
    prompts = read_prompts(options.prompts)
    with ExitStack() as stack:
        if options.base_url:
            client = AsyncClient(
                api_key=os.environ.get("OPENAI_API_KEY"), base_url=options.base_url, model=options.model
            )
            print(f"{len(prompts)} prompts to {options.model}\n")
        else:
            say_how_to_use_a_provider()
            server = stack.enter_context(RealServer(parallel=4))
            client = AsyncClient(api_key="unused", base_url=server.base_url, model=server.model)
            print(f"{len(prompts)} prompts to {server.model}, a real model on this machine\n")
        async with client:
            failed = await answer(client, prompts, options.max_tokens)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
