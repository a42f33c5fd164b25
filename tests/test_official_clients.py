"""The official clients and ours, over one real model: the same texts, finish reasons, usage and tool calls."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest
from millstream import Client
from official_clients import Fields, of_response, responses_arguments
from real_server import RealServer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from millstream import ChatCompletion

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        not (importlib.util.find_spec("openai") and importlib.util.find_spec("anthropic")),
        reason="the official clients are not installed",
    ),
]

Api = Literal["openai", "anthropic"]

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city now.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def example(city: str) -> list[dict[str, Any]]:
    """A turn that shows the model how a tool is called."""
    function = {"name": "get_weather", "arguments": json.dumps({"city": city})}
    return [
        {"role": "user", "content": f"What is the weather in {city}?"},
        {"role": "assistant", "tool_calls": [{"id": f"call_{city}", "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": f"call_{city}", "content": "Sunny."},
        {"role": "assistant", "content": "It is sunny."},
    ]


def question(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


# What each is there for: which finish reason and which fields it brings.
CASES: dict[str, dict[str, Any]] = {
    "ends by itself": {"messages": [question("Say hello in French.")], "max_tokens": 48},
    "cut at its length": {"messages": [question("What is the capital of Japan?")], "max_tokens": 6},
    "system and stop": {
        "messages": [{"role": "system", "content": "You answer in one word."}, question("Count: 1, 2, 3,")],
        "max_tokens": 24,
        "stop": [".", "\n"],
    },
    "several turns": {
        "messages": [
            question("My name is Ada."),
            {"role": "assistant", "content": "Hello Ada."},
            question("What is my name?"),
        ],
        "max_tokens": 12,
    },
    "calls a tool": {
        "messages": [*example("Oslo"), *example("Lima"), *example("Rome"), question("What is the weather in Paris?")],
        "tools": [TOOL],
        "max_tokens": 40,
    },
}


@pytest.fixture(scope="module")
def server(real_server_available: None) -> Iterator[RealServer]:
    # One slot: the tokens of neighbours in a batch would move the last digits of the numbers.
    with RealServer(parallel=1, context=1024, tools=True) as server:
        yield server


@pytest.fixture(scope="module")
def official(server: RealServer) -> dict[str, dict[str, tuple[Fields, Fields]]]:
    """What the official clients say, by API and case: whole and streamed."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("official_clients.py")), server.base_url, server.model],
        input=json.dumps([{**case, "temperature": 0} for case in CASES.values()]),
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    return {api: dict(zip(CASES, answers, strict=True)) for api, answers in json.loads(done.stdout).items()}


def fields(answer: ChatCompletion) -> Fields:
    choice, usage = answer.choices[0], answer.usage
    assert usage is not None
    return Fields(
        role=choice.message.role,
        text=choice.message.content or "",
        finish_reason=choice.finish_reason,
        usage=[usage.prompt_tokens, usage.completion_tokens, usage.total_tokens],
        tools=[[call.function.name, json.loads(call.function.arguments)] for call in choice.message.tool_calls or ()],
    )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("api", ["openai", "anthropic"])
def test_ours_says_what_the_official_client_says(
    server: RealServer, official: dict[str, dict[str, tuple[Fields, Fields]]], api: Api, case: str
) -> None:
    arguments = {**CASES[case], "temperature": 0}
    with Client(
        provider=api, api_key="unused", base_url=server.base_url, model=server.model, timeout=60, max_retries=0
    ) as client:
        whole = fields(client.chat.completions.create(**arguments))
        with client.chat.completions.create(stream=True, **arguments) as stream:
            streamed = fields(stream.get_final())
            text = stream.text

    assert whole == official[api][case][0]
    assert streamed == official[api][case][1]
    assert text == streamed["text"]


@pytest.mark.parametrize("case", CASES)
def test_ours_says_the_same_over_the_responses_api(
    server: RealServer, official: dict[str, dict[str, tuple[Fields, Fields]]], case: str
) -> None:
    arguments = responses_arguments({**CASES[case], "temperature": 0})
    with Client(api_key="unused", base_url=server.base_url, model=server.model, timeout=60, max_retries=0) as client:
        whole = of_response(client.responses.create(**arguments))
        streamed = of_response(client.responses.create(stream=True, **arguments).get_final())

    assert whole == official["responses"][case][0]
    assert streamed == official["responses"][case][1]


@pytest.mark.parametrize("api", ["openai", "anthropic"])
def test_the_cases_are_different_ones(official: dict[str, dict[str, tuple[Fields, Fields]]], api: Api) -> None:
    """Otherwise the comparison above would be of empty things."""
    answers = {case: whole for case, (whole, _) in official[api].items()}
    assert {answer["finish_reason"] for answer in answers.values()} == {"stop", "length", "tool_calls"}
    assert [name for name, _ in answers["calls a tool"]["tools"]] == ["get_weather"]
    assert all(answer["text"] for case, answer in answers.items() if case != "calls a tool")
    assert all(min(answer["usage"]) > 0 for answer in answers.values())
    # This server calls every response completed.
    assert official["responses"]["calls a tool"][0]["tools"] == answers["calls a tool"]["tools"]
