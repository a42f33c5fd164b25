"""One block of float32 of an answer with embeddings, 128 of 1536 numbers: orjson, and numpy for the rest.

What a program does that has the body and wants an array; `benchmarks/decode.rs` is the engine's reader on the same.
"""

import argparse
import base64
import importlib.metadata
import statistics
import time

import numpy as np
import orjson
from _common import print_result

ROWS, DIMENSIONS = 128, 1536


def answer(form: str) -> bytes:
    places = np.arange(ROWS * DIMENSIONS, dtype=np.uint64).reshape(ROWS, DIMENSIONS)
    numbers = (places * 2_654_435_761 % 1_000_003).astype(np.float32) / np.float32(1_000_003) - np.float32(0.5)
    rows = numbers.tolist() if form == "float" else [base64.b64encode(row).decode() for row in numbers]
    if form == "float":
        # As short as the number allows, as a server writes it.
        rows = [[float(str(np.float32(number))) for number in row] for row in rows]
    data = [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)]
    return orjson.dumps(
        {"object": "list", "data": data, "model": "m", "usage": {"prompt_tokens": 1000, "total_tokens": 1000}}
    )


def block_of_base64(body: bytes) -> np.ndarray:
    data = orjson.loads(body)["data"]
    return np.stack([np.frombuffer(base64.b64decode(one["embedding"]), np.float32) for one in data])


def block_of_floats(body: bytes) -> np.ndarray:
    return np.stack([np.array(one["embedding"], np.float32) for one in orjson.loads(body)["data"]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--form", choices=["base64", "float"], required=True)
    parser.add_argument("--requests", type=int, default=100, help="how often it is read")
    given = parser.parse_args()
    body = answer(given.form)
    read = block_of_base64 if given.form == "base64" else block_of_floats
    times = []
    for _ in range(given.requests):
        start = time.thread_time()
        block = read(body)
        times.append((time.thread_time() - start) * 1e6)
    if block.shape != (ROWS, DIMENSIONS):
        raise SystemExit(f"a block of {block.shape}")
    micros = statistics.median(times)
    versions = {name: importlib.metadata.version(name) for name in ("orjson", "numpy")}
    print_result(
        {
            "peer": f"orjson_{given.form}",
            "versions": versions,
            "requests": given.requests,
            "bytes": len(body),
            "cpu_us_per_request": micros,
            "rps": 1e6 / micros,
        }
    )


if __name__ == "__main__":
    main()
