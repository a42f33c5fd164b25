"""Answer a file of prompts with `millstream run`, break it off half-way and let it go on: `make demo`.

Without arguments a small language model is started on this machine: no API key is needed. For a provider:

    make demo DEMO_ARGS="--base-url $OPENAI_BASE_URL --model gpt-4o-mini"

with the key in `OPENAI_API_KEY`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent

# The server that the tests use too.
sys.path.insert(0, str(HERE.parent / "tests"))

from real_server import RealServer  # noqa: E402

# What `millstream run` ends with after a Ctrl-C.
INTERRUPTED = 130


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Answer a file of prompts in two runs.")
    parser.add_argument("--base-url", help="an OpenAI-compatible API (default: one on this machine)")
    parser.add_argument("--model", help="model name; needed with --base-url")
    parser.add_argument("--prompts", type=Path, default=HERE / "prompts.jsonl", help="file, one request a line")
    parser.add_argument("--max-tokens", type=int, default=12, help="longest answer, in tokens")
    options = parser.parse_args()
    if options.base_url and not options.model:
        parser.error("--base-url needs --model")
    return options


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSONL file, which may not exist yet."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def start(command: list[str], key: str) -> subprocess.Popen[bytes]:
    print(f"$ {' '.join(['millstream', *command[3:]])}", flush=True)
    return subprocess.Popen(command, env=os.environ | {"OPENAI_API_KEY": key})


def break_off_half_way(run: subprocess.Popen[bytes], output: Path, half: int) -> int:
    """Send Ctrl-C once half of the answers are there; return how many there are in the end."""
    while run.poll() is None and len(read_lines(output)) < half:
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    status = run.wait()
    done = len(read_lines(output))
    if status != INTERRUPTED:
        raise SystemExit(f"the first run was to be interrupted, and ended with {status} after {done} answers")
    return done


def say_how_to_use_a_provider() -> None:
    if "OPENAI_API_KEY" in os.environ or "OPENAI_BASE_URL" in os.environ:
        url = os.environ.get("OPENAI_BASE_URL", "https://api.openai.com/v1")
        print("OPENAI_API_KEY or OPENAI_BASE_URL is set; this demo does not use them unless told to:")
        print(f'    make demo DEMO_ARGS="--base-url {url} --model gpt-4o-mini"\n')


def show(prompts: dict[str, str], lines: list[dict[str, Any]]) -> int:
    """Print every answer and a summary; return how many are not what they should be."""
    ok = tokens_in = tokens_out = 0
    for line in lines:
        response = line["response"]
        if response and response["status_code"] == 200:
            text = " ".join((response["body"]["choices"][0]["message"]["content"] or "").split())
            usage = response["body"].get("usage") or {}
            tokens_in += usage.get("prompt_tokens", 0)
            tokens_out += usage.get("completion_tokens", 0)
            ok += 1
        else:
            text = f"! {line['error'] or response['body']}"
        print(f"{line['custom_id']:<12} {prompts[line['custom_id']]}\n{'':<12} {text}")
    ids = [line["custom_id"] for line in lines]
    lost, doubled = len(prompts.keys() - set(ids)), len(ids) - len(set(ids))
    print(
        f"\nn={len(prompts)} ok={ok} failed={len(lines) - ok} lost={lost} doubled={doubled},"
        f" tokens in={tokens_in} out={tokens_out}"
    )
    return len(lines) - ok + lost + doubled


def main() -> int:
    options = parse_arguments()
    prompts = {line["custom_id"]: line["prompt"] for line in read_lines(options.prompts)}
    with ExitStack() as stack:
        if options.base_url:
            base_url, model, key = options.base_url, options.model, os.environ.get("OPENAI_API_KEY", "")
            print(f"{len(prompts)} prompts to {model}\n")
        else:
            say_how_to_use_a_provider()
            server = stack.enter_context(RealServer(parallel=4))
            base_url, model, key = server.base_url, server.model, "unused"
            print(f"{len(prompts)} prompts to {model}, a real model on this machine\n")
        output = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="demo-"))) / "answers.jsonl"
        command = [sys.executable, "-m", "millstream.cli", "run", str(options.prompts), "-o", str(output)]
        command += ["--base-url", base_url, "--model", model, "--max-concurrency", "4"]
        command += ["--param", f"max_tokens={options.max_tokens}", "--param", "temperature=0"]

        began = time.perf_counter()
        done = break_off_half_way(start(command, key), output, len(prompts) // 2)
        print(f"\nbroken off after {done} of {len(prompts)} answers; once more, and it goes on where it was:\n")
        status = start(command, key).wait()
        seconds = time.perf_counter() - began

        lines = read_lines(output)
        wrong = show(prompts, lines)
        print(f"{len(lines) / seconds:.1f} requests/s in {seconds:.1f} s, two runs")
    return 1 if status or wrong else 0


if __name__ == "__main__":
    sys.exit(main())
