"""How many of the faults of `tests/faults` end well: in this package, and in the official openai client beside it.

    .venv/bin/python tools/compare_faults.py

Ends well: the right text, or an exception of the client's own, within the timeout and a few seconds. What goes on for
longer, comes out as another text, or as an exception of a library below, does not. Both clients ask the same servers
with the same timeouts and one retry. What is right for each entry is written in the tables.
"""

from __future__ import annotations

import sys
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "faults")]
warnings.simplefilter("ignore")

import millstream  # noqa: E402
import openai  # noqa: E402
from fault_server import echo, fault_server  # noqa: E402
from http_faults import CASES  # noqa: E402
from millstream.testing import Answer, MockServer  # noqa: E402
from odd_bodies import ANSWERS  # noqa: E402
from odd_streams import STREAMS, Cut  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

SHORT_S, LONG_S, GRACE_S = 0.6, 15.0, 4.0
MESSAGES: Any = [{"role": "user", "content": "hi"}]


def clients(base_url: str, timeout: float) -> dict[str, tuple[Any, type[Exception]]]:
    """Both clients by name, each with what it ought to raise."""
    options: dict[str, Any] = {"base_url": base_url, "api_key": "sk-test", "timeout": timeout, "max_retries": 1}
    return {
        "millstream": (millstream.Client(model="m", **options), millstream.MillstreamError),
        "openai": (openai.OpenAI(**options), openai.OpenAIError),
    }


def whole(client: Any) -> str:
    """The text of an answer."""
    return client.chat.completions.create(model="m", messages=MESSAGES).choices[0].message.content or ""


def streamed(client: Any) -> str:
    """The text of a stream."""
    chunks = client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices[:1])


def ends_well(call: Callable[[], str], right: str | None, own: type[Exception], patience_s: float) -> bool:
    """Whether a call gives the right text; without one, whether it raises an exception of the client's own."""
    outcome: list[bool] = []

    def work() -> None:
        try:
            outcome.append(call() == right)
        except own:
            outcome.append(right is None)
        except Exception:
            outcome.append(False)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(patience_s)
    return outcome == [True]


def main() -> None:
    """Print a table."""
    counts: dict[str, dict[str, list[str]]] = {}

    def count(
        group: str, name: str, base_url: str, timeout: float, call: Callable[[Any], str], right: str | None
    ) -> None:
        for who, (client, own) in clients(base_url, timeout).items():
            failed = counts.setdefault(group, {}).setdefault(who, [])
            if not ends_well(lambda client=client: call(client), right, own, timeout + GRACE_S):  # type: ignore[misc]
                failed.append(name)

    for name, case in CASES.items():
        for group, call, gives in (("HTTP", whole, case.gives), ("HTTP, streamed", streamed, case.of_stream)):
            timeout = SHORT_S if gives == "deadline" else LONG_S
            with fault_server(case.act, at=case.at) as server:
                count(group, name, server.base_url, timeout, call, echo("hi") if gives == "answer" else None)
    with MockServer() as mock:
        for name, (body, right) in ANSWERS.items():
            mock.clear()
            mock.script(Answer(body=body, times=0))
            count("bodies", name, mock.base_url, LONG_S, whole, right)
        for name, (body, found) in STREAMS.items():
            mock.clear()
            mock.script(Answer(body=body, headers={"content-type": "text/event-stream"}, times=0))
            text = None if isinstance(found, Cut) else found
            count("streams", name, mock.base_url, LONG_S, streamed, text)
    totals = {"HTTP": len(CASES), "HTTP, streamed": len(CASES), "bodies": len(ANSWERS), "streams": len(STREAMS)}
    print(f"millstream {millstream.__version__}, openai {openai.__version__}\n")
    print("| Set | entries | millstream | openai |\n|---|---|---|---|")
    for group, by_client in counts.items():
        well = [str(totals[group] - len(failed)) for failed in by_client.values()]
        print(f"| {group} | {totals[group]} | {' | '.join(well)} |")
    if "-v" in sys.argv:
        for group, by_client in counts.items():
            for who, failed in by_client.items():
                print(f"\n{group}, {who}:", *failed, sep="\n  ")


if __name__ == "__main__":
    main()
