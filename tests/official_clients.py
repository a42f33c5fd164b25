"""The official clients of OpenAI and Anthropic, asked in a process of their own: ``base_url model`` and cases on stdin.

A process of its own, because importing openai puts our exceptions under openai's for good. Each case is the arguments
of one chat completion; out comes, as JSON, what the API's own client says of each, once whole and once streamed, in the
words of `Fields`.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    from collections.abc import Iterable


class Fields(TypedDict):
    """What an answer says, whoever reads it."""

    role: str
    text: str
    finish_reason: str
    usage: list[int]
    """Prompt, completion, total."""
    tools: list[tuple[str, Any]]
    """Name and arguments of each call."""


def of_openai(base_url: str, model: str, cases: Iterable[dict[str, Any]]) -> Iterable[tuple[Fields, Fields]]:
    """Both forms of each answer from ``/chat/completions``."""
    import openai

    # The server closes a connection after 100 requests or 5 s, which may be when it is used again.
    with openai.OpenAI(api_key="unused", base_url=base_url, max_retries=4, timeout=60) as client:
        for case in cases:
            whole = client.chat.completions.create(model=model, **case)
            choice = whole.choices[0]
            assert whole.usage is not None
            fields = Fields(
                role=choice.message.role,
                text=choice.message.content or "",
                finish_reason=choice.finish_reason,
                usage=[whole.usage.prompt_tokens, whole.usage.completion_tokens, whole.usage.total_tokens],
                tools=[
                    (call.function.name, json.loads(call.function.arguments))
                    for call in choice.message.tool_calls or ()
                    if call.type == "function"
                ],
            )
            yield fields, streamed_by_openai(client, model, case)


def streamed_by_openai(client: Any, model: str, case: dict[str, Any]) -> Fields:
    """The same from its chunks, joined here as its documentation says."""
    role, text, finish_reason, usage = "", "", "", [0, 0, 0]
    tools: dict[int, list[str]] = {}
    for chunk in client.chat.completions.create(
        model=model, stream=True, stream_options={"include_usage": True}, **case
    ):
        if chunk.usage:
            usage = [chunk.usage.prompt_tokens, chunk.usage.completion_tokens, chunk.usage.total_tokens]
        for choice in chunk.choices:
            role = choice.delta.role or role
            text += choice.delta.content or ""
            finish_reason = choice.finish_reason or finish_reason
            for call in choice.delta.tool_calls or ():
                name_and_arguments = tools.setdefault(call.index, ["", ""])
                name_and_arguments[0] += call.function.name or ""
                name_and_arguments[1] += call.function.arguments or ""
    calls = [(name, json.loads(arguments)) for _, (name, arguments) in sorted(tools.items())]
    return Fields(role=role, text=text, finish_reason=finish_reason, usage=usage, tools=calls)


def of_responses(base_url: str, model: str, cases: Iterable[dict[str, Any]]) -> Iterable[tuple[Fields, Fields]]:
    """Both forms of each answer from ``/responses``."""
    import openai

    with openai.OpenAI(api_key="unused", base_url=base_url, max_retries=4, timeout=60) as client:
        for case in cases:
            arguments = responses_arguments(case)
            whole = client.responses.create(model=model, **arguments)
            streamed = None
            for event in client.responses.create(model=model, stream=True, **arguments):
                if event.type in ("response.completed", "response.incomplete"):
                    streamed = event.response
            yield of_response(whole), of_response(streamed)


def responses_arguments(case: dict[str, Any]) -> dict[str, Any]:
    """A case in the form of the Responses API, written by hand; it has no ``stop``."""
    items: list[dict[str, Any]] = []
    for message in case["messages"]:
        if message["role"] == "tool":
            result = {"call_id": message["tool_call_id"], "output": message["content"]}
            items.append({"type": "function_call_output", **result})
        elif calls := message.get("tool_calls"):
            items += [{"type": "function_call", "call_id": call["id"], **call["function"]} for call in calls]
        elif message["role"] == "assistant":
            text = {"type": "output_text", "text": message["content"], "annotations": []}
            items.append({"type": "message", "role": "assistant", "content": [text]})
        else:
            items.append(message)
    tools = [{"type": "function", **tool["function"]} for tool in case.get("tools", ())]
    return {
        "input": items,
        "max_output_tokens": case["max_tokens"],
        "temperature": case["temperature"],
        **({"tools": tools} if tools else {}),
    }


def of_response(response: Any) -> Fields:
    """The official client's record, or ours: the names are the same."""
    usage = response.usage
    return Fields(
        role="assistant",
        text=response.output_text,
        finish_reason=response.status,
        usage=[usage.input_tokens, usage.output_tokens, usage.total_tokens],
        tools=[[item.name, json.loads(item.arguments)] for item in response.output if item.type == "function_call"],
    )


# Anthropic's words for the same, as docs/providers.md has them.
FINISH_REASONS = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length", "tool_use": "tool_calls"}


def of_anthropic(base_url: str, model: str, cases: Iterable[dict[str, Any]]) -> Iterable[tuple[Fields, Fields]]:
    """Both forms of each answer from ``/messages``."""
    import anthropic

    root = base_url.removesuffix("/v1")
    with anthropic.Anthropic(api_key="unused", base_url=root, max_retries=4, timeout=60) as client:
        for case in cases:
            arguments = anthropic_arguments(case)
            whole = client.messages.create(model=model, **arguments)
            with client.messages.stream(model=model, **arguments) as stream:
                streamed = stream.get_final_message()
            yield of_message(whole), of_message(streamed)


def anthropic_arguments(case: dict[str, Any]) -> dict[str, Any]:
    """A case in Anthropic's form, written by hand."""
    # Its newer versions have no argument for the temperature any more.
    arguments: dict[str, Any] = {"max_tokens": case["max_tokens"], "extra_body": {"temperature": case["temperature"]}}
    if stop := case.get("stop"):
        arguments["stop_sequences"] = stop
    messages: list[dict[str, Any]] = []
    for message in case["messages"]:
        if message["role"] == "system":
            arguments["system"] = message["content"]
        elif calls := message.get("tool_calls"):
            content = [
                {
                    "type": "tool_use",
                    "id": call["id"],
                    "name": call["function"]["name"],
                    "input": json.loads(call["function"]["arguments"]),
                }
                for call in calls
            ]
            messages.append({"role": "assistant", "content": content})
        elif message["role"] == "tool":
            result = {"type": "tool_result", "tool_use_id": message["tool_call_id"], "content": message["content"]}
            messages.append({"role": "user", "content": [result]})
        else:
            messages.append(message)
    if tools := case.get("tools"):
        arguments["tools"] = [
            {
                "name": tool["function"]["name"],
                "description": tool["function"]["description"],
                "input_schema": tool["function"]["parameters"],
            }
            for tool in tools
        ]
    return {"messages": messages, **arguments}


def of_message(message: Any) -> Fields:
    usage = message.usage
    # What the server had in its cache is counted apart, and differs from one time to the next.
    prompt = usage.input_tokens + (usage.cache_read_input_tokens or 0) + (usage.cache_creation_input_tokens or 0)
    return Fields(
        role=message.role,
        text="".join(block.text for block in message.content if block.type == "text"),
        finish_reason=FINISH_REASONS[message.stop_reason],
        usage=[prompt, usage.output_tokens, prompt + usage.output_tokens],
        tools=[(block.name, block.input) for block in message.content if block.type == "tool_use"],
    )


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    by_api = {"openai": of_openai, "anthropic": of_anthropic, "responses": of_responses}
    answers = {api: list(ask(sys.argv[1], sys.argv[2], asked)) for api, ask in by_api.items()}
    json.dump(answers, sys.stdout)
