"""What a client sends, what it takes and what it gives back."""

from __future__ import annotations

import copy
import gc
import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from helpers import KEY, last_request, run_python, until
from millstream import (
    NOT_GIVEN,
    APIStatusError,
    AsyncClient,
    ChatCompletion,
    Client,
    ClientClosedError,
    CompletionConfig,
    ConfigurationError,
    DeadlineExceeded,
    InputTooLargeError,
    MillstreamError,
    QueueTimeoutError,
    RateLimiter,
    __version__,
)
from millstream.testing import Answer, MockServer

if TYPE_CHECKING:
    from collections.abc import Callable

    from helpers import Face

    Make = Callable[..., Face]

CHAT = "/v1/chat/completions"

# An answer with everything that servers are known to send, and some that they are not.
RICH = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1700000000,
    "model": "m-2024",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "first é", "refusal": None, "reasoning_content": "hmm"},
            "logprobs": {"content": [{"token": "x", "logprob": -0.5}]},
            "finish_reason": "stop",
        },
        {"index": 1, "message": {"role": "assistant", "content": None, "refusal": "no"}, "finish_reason": "length"},
    ],
    "usage": {
        "prompt_tokens": 3,
        "completion_tokens": 5,
        "total_tokens": 8,
        "prompt_tokens_details": {"cached_tokens": 2},
    },
    "system_fingerprint": "fp_1",
    "vendor": {"cost": {"usd": 0.25}, "flags": [1, None, True]},
}
TOOLS = {
    "choices": [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}},
                    {"id": "call_2", "type": "function", "function": {"name": "g", "arguments": "{"}},
                ],
            },
            "finish_reason": "tool_calls",
        }
    ]
}


def nothing_was_sent(server: MockServer) -> bool:
    return (server.stats.requests, server.stats.connections) == (0, 0)


# ---- what is sent ----


def test_complete_sends_the_prompt_and_nothing_else(face: Face, mock_server: MockServer) -> None:
    assert face.complete("Grüße ✓ 😀 \u2028") == "echo: Grüße ✓ 😀 \u2028"

    seen = last_request(mock_server)
    assert (seen.method, seen.path) == ("POST", CHAT)
    expected = '{"model":"m","messages":[{"role":"user","content":"Grüße ✓ 😀 \u2028"}]}'
    assert seen.body == expected.encode()


def test_headers_are_the_few_that_are_needed(face: Face, mock_server: MockServer) -> None:
    face.complete("hi")

    assert sorted(mock_server.requests[0].headers) == [
        ("accept", "application/json"),
        ("accept-encoding", "gzip, deflate"),
        ("authorization", f"Bearer {KEY}"),
        ("content-length", str(len(mock_server.requests[0].body))),
        ("content-type", "application/json"),
        ("host", f"127.0.0.1:{mock_server.port}"),
        ("idempotency-key", mock_server.requests[0].header("idempotency-key")),
        ("user-agent", f"millstream/{__version__}"),
    ]


def test_system_message_comes_first_and_fields_last(face: Face, mock_server: MockServer) -> None:
    face.complete("hi", system='Be "brief".\n', temperature=0, max_tokens=5)

    expected = (
        r'{"model":"m","messages":[{"role":"system","content":"Be \"brief\".\n"},{"role":"user","content":"hi"}],'
        r'"temperature":0,"max_tokens":5}'
    )
    assert last_request(mock_server).body == expected.encode()


def test_unknown_fields_pass_through_untouched(face: Face, mock_server: MockServer) -> None:
    fields: dict[str, Any] = {
        "top_k": 5,
        "guided_json": {"type": "object", "properties": {"ä": {"enum": [None, True, 1.5, -0.0, 1e300, 10**30]}}},
        "stop": ("a", "b"),
        "logit_bias": {"50256": -100},
        "response_format": {"type": "json_object"},
        "user": '\x00\x1f"\\/',
        "empty": [{}, [], ""],
    }
    face.complete("hi", **fields)

    sent = last_request(mock_server).json()
    assert list(sent) == ["model", "messages", *fields]
    assert sent == {
        **fields,
        "stop": ["a", "b"],
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
    }


def test_a_list_of_messages_is_sent_as_it_is(face: Face, mock_server: MockServer) -> None:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "what is this?"}, {"type": "image_url", "x": None}]},
        {"role": "assistant", "content": "a cat", "name": "é"},
        {"role": "user", "content": "sure?"},
    ]
    assert face.complete(messages, system="Look.") == "echo: sure?"
    assert last_request(mock_server).json()["messages"] == [{"role": "system", "content": "Look."}, *messages]

    face.complete(tuple(messages))
    assert last_request(mock_server).json()["messages"] == messages


def test_a_batch_sends_the_same_bodies_as_single_calls(face: Face, mock_server: MockServer) -> None:
    prompts = ["one", [{"role": "user", "content": "two"}], "drei ✓"]
    for prompt in prompts:
        face.complete(prompt, system="s", seed=1)
    face.batch_complete(prompts, system="s", seed=1, max_concurrent=1)

    bodies = [request.body for request in mock_server.requests]
    assert len(bodies) == 6
    assert bodies[:3] == bodies[3:]


def test_create_sends_what_openai_python_would(face: Face, mock_server: MockServer) -> None:
    messages = [{"role": "user", "content": "hi"}]
    face.create(messages, model="other", temperature=0.5, extra_body={"top_k": 5})

    assert last_request(mock_server).body == (
        b'{"model":"other","messages":[{"role":"user","content":"hi"}],"temperature":0.5,"top_k":5}'
    )


def test_a_model_in_extra_body_is_the_only_one(make: Make, mock_server: MockServer) -> None:
    make(model="client").create(extra_body={"model": "extra"})

    assert last_request(mock_server).body.startswith(b'{"model":"extra","messages":')
    assert last_request(mock_server).body.count(b'"model"') == 1


def test_extra_headers_join_the_clients_and_replace_them(make: Make, mock_server: MockServer) -> None:
    face = make(default_headers={"X-A": "client", "X-B": "client", "User-Agent": "mine/1", "OpenAI-Project": "p"})
    face.complete("hi", extra_headers={"x-b": "call", "X-C": "call"})

    seen = last_request(mock_server)
    assert [seen.header(name) for name in ("x-a", "x-b", "x-c", "user-agent", "openai-project")] == [
        "client",
        "call",
        "call",
        "mine/1",
        "p",
    ]
    assert [name for name, _ in seen.headers].count("x-b") == 1


def test_the_users_own_authorization_replaces_the_keys(make: Make, mock_server: MockServer) -> None:
    make(default_headers={"Authorization": "Basic abc"}).complete("hi")

    assert [value for name, value in last_request(mock_server).headers if name == "authorization"] == ["Basic abc"]


@pytest.mark.parametrize("slash", ["", "/"])
def test_base_url_keeps_its_path_with_and_without_a_slash(make: Make, mock_server: MockServer, slash: str) -> None:
    mock_server.script(Answer(text="fine"))
    make(base_url=f"{mock_server.root_url}/gateway/v2{slash}").complete("hi")

    assert last_request(mock_server).path == "/gateway/v2/chat/completions"


# ---- config and model ----


def test_config_is_sent_and_its_unset_fields_are_not(make: Make, mock_server: MockServer) -> None:
    config = CompletionConfig(model="c", temperature=0.0, stop=["x"], extra={"top_k": 1})
    face = make(model=None, config=config)
    face.complete("hi")

    assert last_request(mock_server).json() == {
        "model": "c",
        "messages": [{"role": "user", "content": "hi"}],
        "temperature": 0.0,
        "stop": ["x"],
        "top_k": 1,
    }


def test_the_nearest_word_wins(make: Make, mock_server: MockServer) -> None:
    face = make(model="client", config=CompletionConfig(temperature=0.1, top_p=0.1, seed=1, extra={"a": 1, "b": 1}))
    call = CompletionConfig(model="call", temperature=0.2, top_p=0.2, extra={"a": 2})
    face.complete("hi", config=call, temperature=0.3)

    sent = last_request(mock_server).json()
    del sent["messages"]
    assert sent == {"model": "call", "temperature": 0.3, "top_p": 0.2, "seed": 1, "a": 2, "b": 1}

    face.complete("hi", config=call, model="argument")
    assert last_request(mock_server).json()["model"] == "argument"
    face.complete("hi")
    assert last_request(mock_server).json()["model"] == "client"


def test_the_clients_config_reaches_create_and_batches_too(make: Make, mock_server: MockServer) -> None:
    face = make(config=CompletionConfig(seed=7))
    face.create()
    face.batch_complete(["a"])

    assert [request.json()["seed"] for request in mock_server.requests] == [7, 7]


def test_config_is_frozen_and_says_what_is_set() -> None:
    config = CompletionConfig(model="m", max_tokens=0)
    assert config.to_dict() == {"model": "m", "max_tokens": 0}
    assert CompletionConfig().to_dict() == {}
    with pytest.raises(AttributeError):
        config.model = "other"  # type: ignore[misc]


@pytest.mark.parametrize("model", [None, "", "  "])
def test_a_missing_model_is_refused(make: Make, mock_server: MockServer, model: str | None) -> None:
    face = make(model=model)
    for call in (lambda: face.complete("hi"), lambda: face.batch_complete(["hi"]), lambda: face.create()):
        with pytest.raises(ConfigurationError, match="model="):
            call()
    assert nothing_was_sent(mock_server)


def test_stream_false_is_what_a_call_does_anyway(face: Face, mock_server: MockServer) -> None:
    assert face.complete("hi", stream=False) == "echo: hi"
    assert "stream" not in mock_server.requests[0].json()


def test_parts_of_an_answer_are_picklable_and_equal_by_value(face: Face, mock_server: MockServer) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    mock_server.script(Answer(body={"choices": [{"index": 0, "message": message}], "usage": usage}))
    choice = (response := face.create()).choices[0]
    tool_call = choice.message.tool_calls[0]
    for part in (choice, choice.message, response.usage, tool_call, tool_call.function):
        copy = pickle.loads(pickle.dumps(part))
        assert copy == part
        assert copy.to_dict() == part.to_dict()


def test_a_choice_shows_its_own_part_of_the_body_behind_one_that_says_nothing(
    face: Face, mock_server: MockServer
) -> None:
    spoken = {"index": 1, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}
    mock_server.script(Answer(body={"choices": [{"index": 0}, spoken]}))
    assert face.create().choices[0].to_dict() == spoken


def test_streaming_is_refused_clearly_wherever_it_is_asked_for(make: Make, mock_server: MockServer) -> None:
    face = make()
    streaming = make(config=CompletionConfig(extra={"stream": True}))
    for call in (
        lambda: face.complete("hi", stream=True),
        lambda: face.batch_complete(["hi"], stream=True),
        lambda: face.create(extra_body={"stream": True}),
        lambda: face.complete("hi", config=CompletionConfig(extra={"stream": True})),
        lambda: streaming.complete("hi"),
    ):
        with pytest.raises(ConfigurationError, match="stream"):
            call()
    assert nothing_was_sent(mock_server)


def test_messages_cannot_be_given_twice(face: Face, mock_server: MockServer) -> None:
    messages = [{"role": "user", "content": "other"}]
    for call in (
        lambda: face.complete("hi", messages=messages),
        lambda: face.batch_complete(["hi"], messages=messages),
        lambda: face.create(extra_body={"messages": messages}),
        lambda: face.complete("hi", config=CompletionConfig(extra={"messages": messages})),
    ):
        with pytest.raises(ConfigurationError, match="messages"):
            call()
    assert nothing_was_sent(mock_server)


# ---- records ----


def test_a_record_shows_the_answer(face: Face, mock_server: MockServer) -> None:
    mock_server.script(
        Answer(status=503, headers={"retry-after-ms": "1"}),
        Answer(body=RICH, headers={"x-request-id": "req_1", "X-Extra": "1"}),
    )
    response = face.create()

    assert (response.id, response.object, response.created, response.model) == (
        "chatcmpl-1",
        "chat.completion",
        1700000000,
        "m-2024",
    )
    first, second = response.choices
    assert (first.index, first.finish_reason, first.message.role) == (0, "stop", "assistant")
    assert (first.message.content, first.message.refusal, first.message.tool_calls) == ("first é", None, None)
    assert (second.index, second.finish_reason) == (1, "length")
    assert (second.message.content, second.message.refusal) == (None, "no")
    assert response.text == "first é"
    assert response.usage is not None
    usage = response.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (3, 5, 8)
    assert (response.request_id, response.attempts) == ("req_1", 2)
    assert (response.headers["x-request-id"], response.headers["x-extra"]) == ("req_1", "1")
    assert response.elapsed > 0
    assert response.queue_time >= 0
    assert mock_server.stats.requests == 2


def test_unknown_fields_are_kept(face: Face, mock_server: MockServer) -> None:
    mock_server.script(Answer(body=RICH))
    response = face.create()

    assert response.to_dict() == RICH
    assert list(response.to_dict()) == list(RICH)
    assert response.system_fingerprint == "fp_1"
    assert response.vendor.cost.usd == 0.25
    assert response.vendor["flags"] == [1, None, True]
    assert response.choices[0].logprobs.content[0].token == "x"
    assert response.choices[0].message.reasoning_content == "hmm"
    assert response.choices[1].to_dict() == RICH["choices"][1]  # type: ignore[index]
    assert response.usage is not None
    assert response.usage.prompt_tokens_details.cached_tokens == 2
    assert response.usage.to_dict() == RICH["usage"]
    for record in (response, response.choices[0], response.choices[0].message, response.usage, response.vendor):
        with pytest.raises(AttributeError, match="absent"):
            _ = record.absent


def test_a_record_is_frozen(face: Face) -> None:
    response = face.create()
    for record in (response, response.choices[0], response.choices[0].message, response.usage):
        with pytest.raises(AttributeError):
            record.id = "other"  # type: ignore[misc, union-attr]


def test_a_server_that_counts_no_tokens_has_no_usage(face: Face, mock_server: MockServer) -> None:
    mock_server.script(Answer(body=TOOLS))
    response = face.create()

    assert response.usage is None
    assert (response.id, response.created, response.model) == ("", 0, "")


def test_tool_calls_are_read_and_go_back_with_their_message(face: Face, mock_server: MockServer) -> None:
    mock_server.script(Answer(body=TOOLS))
    response = face.create(tools=[{"type": "function", "function": {"name": "f"}}])
    message = response.choices[0].message

    assert message.tool_calls is not None
    first, second = message.tool_calls
    assert (first.id, first.type, first.function.name, first.function.arguments) == (
        "call_1",
        "function",
        "f",
        '{"x": 1}',
    )
    assert second.function.arguments == "{"
    original = TOOLS["choices"][0]["message"]
    assert [call.to_dict() for call in message.tool_calls] == original["tool_calls"]  # type: ignore[index]
    assert first.function.to_dict() == {"name": "f", "arguments": '{"x": 1}'}

    result = {"role": "tool", "tool_call_id": first.id, "content": "2"}
    face.create([{"role": "user", "content": "hi"}, message, result])
    face.complete([{"role": "user", "content": "hi"}, {"role": "assistant", "tool_calls": [first]}, result])
    sent = [request.json()["messages"] for request in mock_server.requests[1:]]
    assert sent[0] == [{"role": "user", "content": "hi"}, original, result]
    assert sent[1][1]["tool_calls"] == [original["tool_calls"][0]]  # type: ignore[index]


def test_complete_gives_an_empty_text_for_an_answer_without_one(face: Face, mock_server: MockServer) -> None:
    mock_server.script(Answer(body=TOOLS))
    assert face.complete("hi") == ""


def test_a_record_survives_pickling_and_copying(face: Face, mock_server: MockServer) -> None:
    mock_server.script(Answer(body=RICH, headers={"x-request-id": "req_1", "x-twice": "1"}))
    response = face.create()

    for other in (pickle.loads(pickle.dumps(response)), copy.deepcopy(response), copy.copy(response)):
        assert isinstance(other, ChatCompletion)
        assert (other, hash(other), repr(other)) == (response, hash(response), repr(response))
        assert other.to_dict() == RICH
        assert (other.headers, other.request_id) == (response.headers, "req_1")
        assert other.attempts == 1
        assert other.elapsed == pytest.approx(response.elapsed)


def test_reprs_show_what_was_said(face: Face, mock_server: MockServer) -> None:
    mock_server.script(Answer(body=RICH), Answer(body=TOOLS))
    text = repr(face.create())
    for part in ("chatcmpl-1", "m-2024", "first é", "prompt_tokens=3", "finish_reason"):
        assert part in text
    assert "call_1" in repr(face.create())


@pytest.mark.mock_server(models=("b", "a"))
def test_models_are_listed_in_the_servers_order(face: Face, mock_server: MockServer) -> None:
    models = face.models()

    assert [model.id for model in models] == ["b", "a"]
    assert len(models) == 2
    assert all(model.created > 0 and model.owned_by for model in models.data)
    seen = last_request(mock_server)
    assert (seen.method, seen.path, seen.body) == ("GET", "/v1/models", b"")
    assert seen.header("authorization") == f"Bearer {KEY}"


def test_models_are_asked_for_again_after_a_failure(face: Face, mock_server: MockServer) -> None:
    mock_server.script(Answer(status=500), Answer(body={"data": []}))
    assert len(face.models()) == 0
    assert mock_server.stats.requests == 2


def test_stats_count_what_was_done(face: Face, mock_server: MockServer) -> None:
    mock_server.script(Answer(status=500), Answer(body=RICH), Answer(status=400))
    face.complete("hi")
    with pytest.raises(APIStatusError):
        face.complete("hi")
    face.batch_complete(["a", "b"])

    stats = face.client.stats()
    assert (stats.requests, stats.attempts, stats.succeeded, stats.failed) == (4, 5, 3, 1)
    assert (stats.in_flight, stats.max_in_flight) == (0, 2)
    assert stats.prompt_tokens >= 3 + 2
    assert mock_server.stats.requests == stats.attempts


# ---- with_options ----


def test_with_options_shares_the_pool_and_the_counters(face: Face, mock_server: MockServer) -> None:
    face.complete("a")
    others = [face.with_options(timeout=5), face.with_options(max_retries=0), face.with_options(model="n")]
    for other in others:
        other.complete("b")
    others[0].with_options(max_concurrency=1).complete("c")

    assert mock_server.stats.connections == 1
    assert {client.client.stats().requests for client in (face, *others)} == {5}
    assert [request.json()["model"] for request in mock_server.requests] == ["m", "m", "m", "n", "m"]


def test_with_options_changes_what_is_given_only(make: Make, mock_server: MockServer) -> None:
    face = make(max_retries=0, timeout=None, default_headers={"X-A": "1"}, config=CompletionConfig(seed=1))
    retrying = face.with_options(max_retries=1)
    mock_server.script(Answer(status=500), Answer(status=500), Answer(text="fine"))

    with pytest.raises(APIStatusError):
        face.complete("hi")
    assert retrying.complete("hi") == "fine"
    assert last_request(mock_server).header("x-a") == "1"
    assert last_request(mock_server).header("authorization") == f"Bearer {KEY}"
    assert last_request(mock_server).json()["seed"] == 1

    mock_server.script(Answer(fault="hang_before", times=2))
    for hasty in (face.with_options(timeout=0.05), retrying.with_options(timeout=0.05)):
        with pytest.raises(DeadlineExceeded):
            hasty.complete("hi")
    assert face.with_options(timeout=NOT_GIVEN, config=CompletionConfig(top_p=1)).complete("hi") == "echo: hi"
    assert "seed" not in last_request(mock_server).json()


def test_with_options_goes_to_another_server(face: Face, mock_server: MockServer) -> None:
    with MockServer(reply="other") as elsewhere:
        other = face.with_options(base_url=elsewhere.base_url, api_key="sk-other-456789")
        assert other.complete("hi") == "other"
        assert other.client.base_url == elsewhere.base_url
        assert elsewhere.requests[0].header("authorization") == "Bearer sk-other-456789"
        assert face.with_options(base_url=elsewhere.base_url).complete("hi") == "other"
        assert elsewhere.requests[1].header("authorization") == f"Bearer {KEY}"
    assert nothing_was_sent(mock_server)
    assert face.complete("hi") == "echo: hi"


def test_another_host_has_a_window_of_its_own_and_another_path_or_key_does_not(mock_server: MockServer) -> None:
    mock_server.when("hang", Answer(fault="hang_before", times=0))
    with (
        MockServer() as elsewhere,
        ThreadPoolExecutor() as threads,
        Client(api_key=KEY, base_url=mock_server.base_url, model="m", max_concurrency=1, timeout=2) as client,
    ):
        held = threads.submit(client.complete, "hang")
        until(lambda: mock_server.stats.in_flight == 1)
        assert client.with_options(base_url=elsewhere.base_url).complete("hi") == "echo: hi"
        for same in (
            client.with_options(api_key="sk-other-456789", queue_timeout=0.05),
            client.with_options(base_url=mock_server.root_url + "/other/v1", queue_timeout=0.05),
        ):
            with pytest.raises(QueueTimeoutError):
                same.complete("hi")
        assert isinstance(held.exception(), DeadlineExceeded)


def test_with_options_puts_a_rate_limiter_in_and_takes_it_out(face: Face, mock_server: MockServer) -> None:
    limited = face.with_options(rate_limiter=RateLimiter(tokens_per_minute=10))
    with pytest.raises(InputTooLargeError):
        limited.complete("a prompt that is more than ten tokens long by any count at all")
    assert nothing_was_sent(mock_server)
    assert limited.with_options(rate_limiter=None).complete("hi") == "echo: hi"
    assert limited.with_options(timeout=9).client.stats().failed == 1


# ---- keys ----


def test_the_argument_wins_over_the_environment(
    make: Make, mock_server: MockServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-environment")
    monkeypatch.setenv("OPENAI_BASE_URL", mock_server.base_url)
    make(base_url=None).complete("hi")
    make(base_url=None, api_key=None).complete("hi")
    make(api_key=None, base_url=mock_server.root_url + "/v1/").complete("hi")

    keys = [request.header("authorization") for request in mock_server.requests]
    assert keys == [f"Bearer {KEY}", "Bearer sk-environment", "Bearer sk-environment"]


def test_an_environment_key_never_goes_to_a_foreign_host(
    make: Make, mock_server: MockServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-environment")
    face = make(api_key=None)
    face.complete("hi")
    monkeypatch.setenv("OPENAI_BASE_URL", "https://gateway.test/v1")
    make(api_key=None).complete("hi")

    assert [request.header("authorization") for request in mock_server.requests] == [None, None]


@pytest.mark.parametrize(
    "disguise",
    ["http://127.0.0.1:{port}\\@api.openai.com/v1", "http:\\\\127.0.0.1:{port}\\@api.openai.com\\v1"],
)
def test_an_environment_key_is_not_fooled_by_a_disguised_host(
    make: Make, mock_server: MockServer, monkeypatch: pytest.MonkeyPatch, disguise: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-environment")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://api.openai.com/v1")
    mock_server.script(Answer(text="fine", times=0))
    try:
        make(api_key=None, base_url=disguise.format(port=mock_server.port)).complete("hi")
    except MillstreamError:
        pass
    assert [request.header("authorization") for request in mock_server.requests] in ([], [None])


def test_with_options_to_another_host_drops_an_environment_key(
    make: Make, mock_server: MockServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-environment")
    monkeypatch.setenv("OPENAI_BASE_URL", mock_server.base_url)
    face = make(api_key=None, base_url=None)
    with MockServer() as elsewhere:
        away = face.with_options(base_url=elsewhere.base_url)
        away.complete("hi")
        away.with_options(timeout=9).complete("hi")
        away.with_options(api_key="sk-given-0123").with_options(base_url=elsewhere.base_url + "/").complete("hi")
        keys = [request.header("authorization") for request in elsewhere.requests]
    assert keys == [None, None, "Bearer sk-given-0123"]

    face.with_options(timeout=9).complete("hi")
    face.with_options(base_url=mock_server.root_url + "/v1/").complete("hi")
    assert [request.header("authorization") for request in mock_server.requests] == ["Bearer sk-environment"] * 2


def test_a_local_server_needs_no_key(make: Make, mock_server: MockServer) -> None:
    make(api_key=None).complete("hi")
    assert last_request(mock_server).header("authorization") is None


@pytest.mark.parametrize("face", [Client, AsyncClient])
def test_openai_without_a_key_is_refused_at_once(face: type[Client | AsyncClient]) -> None:
    with pytest.raises(ConfigurationError, match="OPENAI_API_KEY"):
        face(model="m")
    with pytest.raises(ConfigurationError, match="OPENAI_API_KEY"):
        face(model="m", default_headers={"X-Trace": "1"})
    assert face(model="m", default_headers={"Authorization": "Bearer of-my-gateway"})


def test_blanks_around_a_key_are_dropped(make: Make, mock_server: MockServer) -> None:
    make(api_key=f" {KEY}\n").complete("hi")
    assert last_request(mock_server).header("authorization") == f"Bearer {KEY}"


# ---- life ----


def test_a_closed_client_refuses_calls(face: Face, mock_server: MockServer) -> None:
    face.complete("hi")
    derived = face.with_options(timeout=9)
    face.close()
    face.close()

    assert face.client.closed
    for call in (
        lambda: face.complete("hi"),
        lambda: face.batch_complete(["hi"]),
        lambda: face.create(),
        lambda: face.models(),
        lambda: derived.complete("hi"),
    ):
        with pytest.raises(ClientClosedError, match="closed"):
            call()
    assert mock_server.stats.requests == 1


async def test_context_managers_close(mock_server: MockServer) -> None:
    arguments: dict[str, Any] = {"api_key": KEY, "base_url": mock_server.base_url, "model": "m"}
    with Client(**arguments) as blocking:
        assert not blocking.closed
        assert blocking.complete("in a running loop") == "echo: in a running loop"
    async with AsyncClient(**arguments) as awaited:
        assert await awaited.complete("hi") == "echo: hi"
    explicit = AsyncClient(**arguments)
    await explicit.aclose()
    assert [client.closed for client in (blocking, awaited, explicit)] == [True, True, True]


def test_closing_closes_idle_connections(face: Face, mock_server: MockServer) -> None:
    face.complete("hi")
    assert mock_server.stats.open_connections == 1
    face.close()
    until(lambda: mock_server.stats.open_connections == 0)


def test_a_forgotten_client_closes_its_connections(make: Make, mock_server: MockServer) -> None:
    client = Client(api_key=KEY, base_url=mock_server.base_url, model="m")
    client.complete("hi")
    del client
    gc.collect()
    until(lambda: mock_server.stats.open_connections == 0)


def test_repr_names_server_and_model_but_not_the_key(face: Face, mock_server: MockServer) -> None:
    kind = type(face.client).__name__
    assert repr(face.client) == f"{kind}(base_url='{mock_server.base_url}', model='m')"


def test_a_client_cannot_be_pickled_and_says_so(face: Face) -> None:
    for attempt in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError, match="cannot be pickled; make one in each process"):
            attempt(face.client)


def test_a_client_made_at_import_time_works_later(mock_server: MockServer) -> None:
    code = """
import asyncio, sys, threading
from millstream import AsyncClient, Client
client = AsyncClient(api_key="k", base_url=sys.argv[1], model="m")
blocking = Client(api_key="k", base_url=sys.argv[1], model="m")
assert threading.active_count() == 1 and len(__import__("os").listdir("/proc/self/task")) == 1
print(asyncio.run(client.complete("a")), blocking.complete("b"), asyncio.run(client.complete("c")))
"""
    done = run_python(code, mock_server.base_url)
    assert (done.stdout, done.stderr) == ("echo: a echo: b echo: c\n", "")
    assert mock_server.stats.requests == 3


# ---- bad inputs: everything raises before anything is sent ----


@pytest.mark.parametrize("prompts", ["bare", b"bare", None, 7, {"a": "b"}])
def test_prompts_that_are_no_list_are_a_type_error(face: Face, mock_server: MockServer, prompts: Any) -> None:
    with pytest.raises(TypeError, match="prompts"):
        face.batch_complete(prompts)
    assert nothing_was_sent(mock_server)


@pytest.mark.parametrize("prompt", [None, b"bytes", 7, {"role": "user", "content": "hi"}, object()])
def test_a_prompt_of_the_wrong_type_is_a_type_error_that_names_it(
    face: Face, mock_server: MockServer, prompt: Any
) -> None:
    with pytest.raises(TypeError, match="prompt must be a string or a list of messages"):
        face.complete(prompt)
    with pytest.raises(TypeError, match=r"prompts\[1\] must be a string or a list of messages"):
        face.batch_complete(["fine", prompt], return_exceptions=True)
    assert nothing_was_sent(mock_server)


@pytest.mark.parametrize("messages", ["hello", None, 7])
def test_messages_of_the_wrong_type_are_a_type_error(face: Face, mock_server: MockServer, messages: Any) -> None:
    with pytest.raises(TypeError, match="messages must be"):
        face.create(messages)
    assert nothing_was_sent(mock_server)


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"temperature": float("nan")}, r"request\.temperature is NaN"),
        ({"a": {"b": [0, float("inf")]}}, r"request\.a\.b\[1\] is inf"),
        ({"user": "\ud83d"}, r"request\.user has a lone surrogate"),
        ({"a": {1: 2}}, r"request\.a has a key that is no string"),
        ({"a": nested(200)}, "nested deeper than 128"),
        ({"a": object()}, r"request\.a is of type object"),
        ({"a": b"bytes"}, r"request\.a is of type bytes"),
        ({"a": {1, 2}}, r"request\.a is of type set"),
    ],
)
def test_fields_that_json_cannot_carry_are_refused_by_name(
    face: Face, mock_server: MockServer, fields: dict[str, Any], says: str
) -> None:
    for call in (
        lambda: face.complete("hi", **fields),
        lambda: face.batch_complete(["hi"], **fields),
        lambda: face.create(**fields),
    ):
        with pytest.raises(ConfigurationError, match=says):
            call()
    assert nothing_was_sent(mock_server)


@pytest.mark.parametrize("method", ["to_dict", "model_dump"])
@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt()])
def test_what_an_objects_own_code_raises_is_the_callers_to_see(
    face: Face, mock_server: MockServer, method: str, error: BaseException
) -> None:
    def fail(_: object) -> None:
        raise error

    odd = type("Odd", (), {method: fail})()
    with pytest.raises(type(error)) as caught:
        face.complete("hi", a=[odd])
    assert caught.value is error
    assert nothing_was_sent(mock_server)


def test_prompts_that_no_server_can_read_are_refused_by_name(face: Face, mock_server: MockServer) -> None:
    with pytest.raises(ConfigurationError, match="prompt has a lone surrogate"):
        face.complete("\ud83d")
    with pytest.raises(ConfigurationError, match="system has a lone surrogate"):
        face.complete("hi", system="\ud83d")
    with pytest.raises(ConfigurationError, match=r"prompts\[1\] has a lone surrogate"):
        face.batch_complete(["a", "\ud83d"], return_exceptions=True)
    with pytest.raises(ConfigurationError, match=r"prompts\[0\]\[0\]\.content has a lone surrogate"):
        face.batch_complete([[{"role": "user", "content": "\ud83d"}]])
    with pytest.raises(ConfigurationError, match="prompt is an empty list of messages"):
        face.complete([])
    cycle: list[Any] = []
    cycle.append(cycle)
    with pytest.raises(ConfigurationError, match="nested deeper"):
        face.complete(cycle)
    assert nothing_was_sent(mock_server)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"timeout": 0}, "timeout"),
        ({"timeout": -1.0}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"timeout": float("inf")}, "timeout"),
        ({"connect_timeout": 0}, "connect_timeout"),
        ({"max_retries": -1}, "max_retries"),
        ({"max_concurrency": 0}, "max_concurrency"),
        ({"max_concurrency": -5}, "max_concurrency"),
        ({"max_concurrency": "64"}, "max_concurrency"),
        ({"hedge_after": 0}, "hedge_after"),
        ({"hedge_after": "p99"}, "hedge_after"),
        ({"default_headers": {"X-A": "1\r\nX-B: 2"}}, "x-a"),
        ({"default_headers": {"X A": "1"}}, "header name"),
        ({"default_headers": {"Host": "h"}}, "host"),
        ({"default_headers": {"Content-Length": "0"}}, "content-length"),
        ({"default_headers": {"Transfer-Encoding": "chunked"}}, "transfer-encoding"),
        ({"api_key": ""}, "api_key"),
        ({"api_key": "sk-\r\nX-B: 2"}, "api_key"),
        ({"api_key": "sk-é"}, "api_key"),
        ({"base_url": ""}, "base_url"),
        ({"base_url": "api.openai.com/v1"}, "base_url"),
        ({"base_url": "ftp://h/v1"}, "base_url"),
        ({"base_url": "https://user:secret@h/v1"}, "base_url"),
        ({"base_url": "https://h/v1?key=secret"}, "base_url"),
        ({"base_url": "http://gateway.test/v1"}, "allow_http"),
        ({"base_url": "http://gateway.test/v1", "api_key": None, "default_headers": {"x-api-key": "s"}}, "allow_http"),
    ],
)
def test_bad_options_are_refused_by_name(
    make: Make, mock_server: MockServer, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigurationError, match=says) as caught:
        make(**options)
    assert "secret" not in str(caught.value)
    with pytest.raises(ValueError):
        make(**options)
    if "allow_http" not in says and "connect_timeout" not in options and options.get("base_url") != "":
        face = make()
        with pytest.raises(ConfigurationError, match=says):
            face.with_options(**options)
    assert nothing_was_sent(mock_server)


@pytest.mark.parametrize(
    "options",
    [
        {"timeout": "3"},
        {"timeout": (1, 2)},
        {"max_retries": "2"},
        {"max_retries": 1.5},
        {"max_concurrency": [64]},
        {"api_key": b"k"},
    ],
)
def test_options_of_the_wrong_type_are_a_type_error(make: Make, options: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        make(**options)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"timeout": 0}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"extra_headers": {"X-A": "1\r\nX-B: secret"}}, "x-a"),
        ({"extra_headers": {"host": "h"}}, "host"),
        ({"prompt": "again"}, "prompt|argument"),
    ],
)
def test_bad_arguments_of_a_call_are_refused_by_name(
    face: Face, mock_server: MockServer, arguments: dict[str, Any], says: str
) -> None:
    for call in (lambda: face.create(**arguments), lambda: face.batch_complete(["hi"], **arguments)):
        with pytest.raises(ConfigurationError, match=says) as caught:
            call()
        assert "secret" not in str(caught.value)
    assert nothing_was_sent(mock_server)


@pytest.mark.parametrize("max_concurrent", [0, -1])
def test_max_concurrent_must_be_positive(face: Face, mock_server: MockServer, max_concurrent: int) -> None:
    with pytest.raises(ConfigurationError, match="max_concurrent"):
        face.batch_complete(["hi"], max_concurrent=max_concurrent)
    assert nothing_was_sent(mock_server)


def test_a_key_in_a_calls_own_header_is_not_sent_over_an_open_network(make: Make) -> None:
    face = make(api_key=None, base_url="http://gateway.test/v1", max_retries=0)
    for name in ("Authorization", "X-API-Key", "api-key"):
        with pytest.raises(ConfigurationError, match="allow_http"):
            face.complete("hi", extra_headers={name: "Bearer sk-secret-012345"})


def test_a_generator_of_prompts_is_taken(face: Face, mock_server: MockServer) -> None:
    answers = face.batch_complete(f"item {number}" for number in range(2000))

    assert answers == [f"echo: item {number}" for number in range(2000)]
    assert mock_server.stats.requests == 2000


def test_a_prompt_may_be_large(face: Face, mock_server: MockServer) -> None:
    prompt = "ü" * 2_000_000
    assert face.complete(prompt) == "echo: " + prompt
    assert json.loads(last_request(mock_server).body)["messages"][0]["content"] == prompt


def test_fields_of_a_model_that_are_not_openais_are_kept(face: Face, mock_server: MockServer) -> None:
    card = {"id": "m", "object": "model", "created": 5, "max_model_len": 4096, "permission": [{"allow": {"a": True}}]}
    mock_server.script(Answer(body={"object": "list", "data": [card, {"id": "n"}]}))
    first, second = face.models()
    assert (first.id, first.created, first.owned_by, first.max_model_len) == ("m", 5, "", 4096)
    assert first.permission[0].allow.a is True
    assert first.to_dict() == {**card, "owned_by": ""}
    assert type(first.to_dict()["permission"][0]) is dict
    assert second.to_dict() == {"id": "n", "created": 0, "owned_by": ""}
    with pytest.raises(AttributeError, match="max_model_len"):
        _ = second.max_model_len
    for model in (pickle.loads(pickle.dumps(first)), copy.deepcopy(first)):
        assert (model, hash(model), model.max_model_len) == (first, hash(first), 4096)


def test_calls_of_custom_tools_are_read(face: Face, mock_server: MockServer) -> None:
    custom = {"id": "c1", "type": "custom", "custom": {"name": "grep", "input": "-r x ."}}
    function = {"id": "c2", "type": "function", "function": {"name": "f", "arguments": "{}"}, "extra": {"a": 1}}
    other = {"id": "c3", "type": "mcp", "mcp": {"server": "s"}}
    message = {"role": "assistant", "content": None, "tool_calls": [{"broken": 1}, custom, function, other]}
    mock_server.script(Answer(body={"choices": [{"index": 0, "message": message}]}))
    calls = face.create().choices[0].message.tool_calls
    assert calls is not None
    assert [call.to_dict() for call in calls] == [custom, function, other]
    first, second, third = [pickle.loads(pickle.dumps(call)) for call in calls]
    assert [first, second, third] == calls
    assert (first.type, first.function, first.custom.name, first.custom.input) == ("custom", None, "grep", "-r x .")
    assert first.custom.to_dict() == custom["custom"]
    assert pickle.loads(pickle.dumps(first.custom)) == first.custom
    assert (second.custom, second.function.name, second.function.to_dict()) == (None, "f", function["function"])
    assert (second.extra.a, third.mcp.server, third.function, third.custom) == (1, "s", None, None)
    assert "grep" in repr(first)
    assert "mcp" in repr(third)
