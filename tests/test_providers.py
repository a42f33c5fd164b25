"""Every provider behind one face: what goes over the wire, what comes back, and whose key goes where."""

from __future__ import annotations

import json
import pickle
import sys
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import millstream
import pytest
from helpers import KEY, last_request
from millstream import (
    APIResponseValidationError,
    AsyncClient,
    AuthenticationError,
    Client,
    CompletionConfig,
    ConfigurationError,
    Endpoint,
    NotFoundError,
    OverloadedError,
    StreamInterruptedError,
    create_client,
    create_from_config,
)
from millstream.testing import Answer, MockServer, Streaming

if TYPE_CHECKING:
    from collections.abc import Callable

    from helpers import Face

    Make = Callable[..., Face]

WIRE = Path(__file__).parent / "data" / "wire"


def label(case: dict[str, Any]) -> str:
    return f"{case['provider']}: {case.get('claim') or case['names']}"


def cases(name: str) -> list[dict[str, Any]]:
    read: list[dict[str, Any]] = json.loads((WIRE / name).read_text("utf-8"))
    assert read
    return read


OVERLOADED = '{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}'

ANSWERS = {
    "anthropic": {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude",
        "content": [{"type": "text", "text": "fine"}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 3, "output_tokens": 1},
    }
}
OPENAI_ANSWER = {
    "id": "1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "fine"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4},
}


def answer(provider: str) -> Answer:
    return Answer(body=json.dumps(ANSWERS.get(provider, OPENAI_ANSWER)))


def options(provider: str) -> dict[str, Any]:
    return {"provider": provider} | ({"api_version": "2024-10-21"} if provider == "azure" else {})


# ---- over the wire ----


@pytest.mark.parametrize(
    ("provider", "path", "key"),
    [
        ("openai", "/v1/chat/completions", ("authorization", f"Bearer {KEY}")),
        ("mistral", "/v1/chat/completions", ("authorization", f"Bearer {KEY}")),
        ("anthropic", "/v1/messages", ("x-api-key", KEY)),
        ("azure", "/v1/openai/deployments/m/chat/completions", ("api-key", KEY)),
    ],
)
def test_a_request_goes_where_the_provider_wants_it_with_the_key_where_it_looks(
    make: Make, mock_server: MockServer, provider: str, path: str, key: tuple[str, str]
) -> None:
    mock_server.script(answer(provider))
    assert make(**options(provider)).complete("hi") == "fine"

    request = last_request(mock_server)
    assert request.path.partition("?")[0] == path
    assert request.header(key[0]) == key[1]
    others = {"authorization", "x-api-key", "api-key"} - {key[0]}
    assert [request.header(name) for name in others] == [None, None]
    assert request.header("anthropic-version") == ("2023-06-01" if provider == "anthropic" else None)


def test_the_header_and_the_version_can_be_chosen(make: Make, mock_server: MockServer) -> None:
    mock_server.script(answer("anthropic"))
    make(provider="anthropic", auth="bearer", api_version="2026-10-21").complete("hi")

    request = last_request(mock_server)
    assert (request.header("authorization"), request.header("x-api-key")) == (f"Bearer {KEY}", None)
    assert request.header("anthropic-version") == "2026-10-21"


@pytest.mark.parametrize(
    "case", cases("provider_requests.json"), ids=lambda case: f"{case['provider']}: {case['claim']}"
)
def test_a_request_is_written_in_the_providers_format(mock_server: MockServer, case: dict[str, Any]) -> None:
    mock_server.script(answer(case["provider"]))
    with Client(api_key=KEY, base_url=mock_server.base_url, model="m", **options(case["provider"])) as client:
        ask = dict(case["ask"])
        client.chat.completions.create(messages=ask.pop("messages"), extra_body=ask)

    assert last_request(mock_server).json() == case["sent"]


@pytest.mark.parametrize(
    "case", cases("provider_refusals.json"), ids=lambda case: f"{case['provider']}: {case['names']}"
)
def test_what_cannot_be_asked_is_refused_by_its_name_and_not_sent(
    mock_server: MockServer, case: dict[str, Any]
) -> None:
    ask = {"messages": [{"role": "user", "content": "hi"}], **case["ask"]}
    with Client(api_key=KEY, base_url=mock_server.base_url, model="m", **options(case["provider"])) as client:
        with pytest.raises(ConfigurationError) as caught:
            client.chat.completions.create(**ask)

    assert case["names"] in str(caught.value)
    assert mock_server.stats.requests == 0


@pytest.mark.parametrize(
    "case", cases("provider_answers.json"), ids=lambda case: f"{case['provider']}: {case['claim']}"
)
def test_an_answer_is_read_as_a_chat_completion(mock_server: MockServer, case: dict[str, Any]) -> None:
    mock_server.script(Answer(body=json.dumps(case["body"])))
    with Client(api_key=KEY, base_url=mock_server.base_url, model="m", **options(case["provider"])) as client:
        response = client.chat.completions.create(messages=[{"role": "user", "content": "hi"}])

    means = case["means"] or case["body"]
    assert response.to_dict() == means
    assert response.text == (means["choices"][0]["message"]["content"] or "")
    assert json.loads(response.raw_body) == case["body"]
    again = pickle.loads(pickle.dumps(response))
    assert (again, again.raw_body) == (response, response.raw_body)


def test_a_batch_refuses_a_message_in_its_place(make: Make, mock_server: MockServer) -> None:
    mock_server.script(*[answer("anthropic")] * 2)
    audio = [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]
    first, second, third = make(provider="anthropic").batch_complete(["a", audio, "b"], return_exceptions=True)

    assert (first, third) == ("fine", "fine")
    assert isinstance(second, ConfigurationError)
    assert "audio" in str(second)


def test_a_conversation_with_tools_goes_round(make: Make, mock_server: MockServer) -> None:
    asked = next(case for case in cases("provider_answers.json") if "calls stand" in case["claim"])["body"]
    mock_server.script(Answer(body=json.dumps(asked)), answer("anthropic"))
    face = make(provider="anthropic")
    response = face.create()
    calls = response.choices[0].message.tool_calls
    assert calls is not None
    assert calls[0].function.name == "f"
    result = {"role": "tool", "tool_call_id": calls[0].id, "content": "42"}
    assert face.create([{"role": "user", "content": "hi"}, response.choices[0].message, result]).text == "fine"

    assert last_request(mock_server).json()["messages"][1]["content"] == asked["content"]


@pytest.mark.parametrize("provider", ["openai", "azure", "anthropic", "mistral"])
def test_a_stream_of_any_provider_adds_up_to_its_whole_answer(make: Make, provider: Any) -> None:
    with MockServer(dialect=provider) as server:
        azure = {"base_url": server.root_url, "api_version": "2024-10-21"} if provider == "azure" else {}
        face = make(**{"provider": provider, "base_url": server.base_url, **azure})
        calls = [("weather", {"city": "Paris"})]
        for answer in ({"text": "one two three"}, {"tool_calls": calls}, {"text": "cut", "finish_reason": "length"}):
            server.script(Answer(**answer), Answer(**answer))
            whole = face.create()
            stream = face.run(
                face.client.chat.completions.create(messages=[{"role": "user", "content": "hi"}], stream=True)
            )
            chunks, error = face.read(stream)
            assert error is None
            said, choice = stream.response.choices[0], whole.choices[0]
            assert "".join(chunk.text for chunk in chunks) == whole.text == stream.text
            assert said.finish_reason == choice.finish_reason
            assert [
                (call.function.name, json.loads(call.function.arguments)) for call in said.message.tool_calls or ()
            ] == [(call.function.name, json.loads(call.function.arguments)) for call in choice.message.tool_calls or ()]
            assert stream.usage == whole.usage
        server.script(Answer(text="one two three", stream=Streaming(fault="close", after=4)))
        pieces, error = face.read(face.client.stream_complete("hi"))
        assert isinstance(error, StreamInterruptedError)
        assert error.partial == "".join(pieces) != ""


def test_an_answer_that_anthropic_only_streams_is_streamed_unseen(make: Make) -> None:
    with MockServer(dialect="anthropic") as server:
        face = make(provider="anthropic", base_url=server.base_url)
        assert face.complete("short", max_tokens=21_000) == "echo: short"
        assert face.complete("long", max_tokens=30_000) == "echo: long"
        assert face.batch_complete(["a", "b"], max_tokens=30_000) == ["echo: a", "echo: b"]
        assert [request.json().get("stream") for request in server.requests] == [None, True, True, True]
        # Nobody has seen anything of it, so it is asked again wherever it breaks.
        server.script(Answer(text="one two three", stream=Streaming(fault="close", after=4)))
        whole = face.create(max_tokens=30_000)
        assert (whole.text, whole.attempts) == ("echo: hi", 2)
        assert whole.usage is not None


def test_an_error_is_of_the_class_that_its_type_says(make: Make) -> None:
    body = (WIRE / "anthropic_overloaded.json").read_bytes()
    refused = json.dumps({"type": "error", "error": {"type": "authentication_error", "message": "invalid x-api-key"}})
    with MockServer(dialect="anthropic") as server:
        server.script(
            Answer(status=529, body=body, headers={"request-id": "req_7"}),
            Answer(status=401, body=refused, headers={"request-id": "req_8"}),
        )
        face = make(provider="anthropic", max_retries=0, base_url=server.base_url)
        with pytest.raises(OverloadedError) as overloaded:
            face.complete("hi")
        assert (overloaded.value.request_id, overloaded.value.type) == ("req_7", "overloaded_error")
        with pytest.raises(AuthenticationError, match="invalid x-api-key"):
            face.complete("hi")


@pytest.mark.parametrize("provider", ["anthropic", "azure"])
def test_a_key_that_the_server_echoes_is_in_no_error(make: Make, mock_server: MockServer, provider: str) -> None:
    mock_server.script(Answer(status=401, body=json.dumps({"error": {"message": f"who is {KEY}?"}})))
    with pytest.raises(AuthenticationError, match="who is") as caught:
        make(**options(provider)).complete("hi")
    assert KEY not in str(vars(caught.value)) + str(caught.value)


def test_a_derived_client_speaks_to_its_endpoints_as_they_are_spoken_to(make: Make, mock_server: MockServer) -> None:
    mock_server.script(*[answer("azure")] * 2)
    endpoint = Endpoint(mock_server.root_url, KEY, provider="azure", api_version="v")
    face = make(endpoints=[endpoint]).with_options(default_headers={"x-a": "1"})
    face.complete("hi")
    face.with_options(base_url=mock_server.root_url + "/gateway").complete("hi")

    assert [request.header("api-key") for request in mock_server.requests] == [KEY] * 2
    assert last_request(mock_server).path.startswith("/gateway/openai/deployments/m/chat/completions?api-version=v")


def test_an_answer_that_is_none_says_so(make: Make, mock_server: MockServer) -> None:
    mock_server.script(
        *[Answer(body='{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}')] * 3
    )
    with pytest.raises(APIResponseValidationError, match="Overloaded"):
        make(provider="anthropic").complete("hi")
    assert mock_server.stats.requests == 3


# ---- Azure ----


def test_azures_version_is_in_the_query_and_comes_from_the_environment(
    make: Make, mock_server: MockServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigurationError, match="OPENAI_API_VERSION"):
        make(provider="azure")
    monkeypatch.setenv("OPENAI_API_VERSION", "2025-01-01")
    mock_server.script(*[answer("azure")] * 2)
    make(provider="azure", base_url=mock_server.root_url).complete("hi", model="my deployment")
    path = "/openai/deployments/my%20deployment/chat/completions"
    assert last_request(mock_server).path.startswith(path)

    make(provider="azure", base_url=mock_server.root_url + "/openai/v1/").complete("hi")
    assert last_request(mock_server).path == "/openai/v1/chat/completions"
    assert last_request(mock_server).json()["model"] == "m"


def test_an_endpoint_of_azure_stands_beside_one_of_openai(make: Make, mock_server: MockServer) -> None:
    with MockServer() as other:
        mock_server.script(Answer(status=401), answer("openai"))
        azure = Endpoint(
            other.root_url, "sk-azure-0123", provider="azure", api_version="v", model_map={"m": "deployment"}
        )
        other.script(answer("azure"))
        face = make(endpoints=[Endpoint(mock_server.base_url, KEY), azure])
        assert face.complete("hi") == "fine"

        request = last_request(other)
        assert request.path.startswith("/openai/deployments/deployment/chat/completions")
        assert (request.header("api-key"), request.header("authorization")) == ("sk-azure-0123", None)
    assert repr(azure).endswith(', provider="azure", weight=1, rpm=None, tpm=None)')
    with pytest.raises(ConfigurationError, match="one format"):
        make(endpoints=[azure, Endpoint(mock_server.base_url, KEY, provider="anthropic")])


# ---- who is asked ----


@pytest.mark.parametrize(
    ("model", "provider", "name"),
    [
        ("anthropic:claude-x", "anthropic", "claude-x"),
        ("mistral/mistral-small", "mistral", "mistral-small"),
        ("openai:gpt-x", "openai", "gpt-x"),
        ("gpt-x", "openai", "gpt-x"),
        ("ft:gpt-x:org::id", "openai", "ft:gpt-x:org::id"),
        ("meta-llama/Llama-3", "openai", "meta-llama/Llama-3"),
    ],
)
def test_a_prefix_of_the_model_names_the_provider(model: str, provider: str, name: str) -> None:
    for client in (Client(api_key=KEY, model=model), Client(api_key=KEY, config=CompletionConfig(model=model))):
        assert client.provider == provider
        assert client.base_url.startswith(f"https://api.{provider}.")
    assert f"model={name!r}" in repr(Client(api_key=KEY, model=model))


@pytest.mark.parametrize("model", ["openai/gpt-oss-20b", "mistral:7b", "anthropic/claude-x", "openai:x"])
def test_a_server_of_ones_own_names_its_models_itself(
    make: Make, mock_server: MockServer, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    make(model=model).complete("hi")
    make().complete("hi", model=model)
    monkeypatch.setenv("OPENAI_BASE_URL", mock_server.base_url)
    make(base_url=None, model=model).complete("hi")

    assert [request.json()["model"] for request in mock_server.requests] == [model] * 3


def test_a_call_may_name_its_own_provider_and_no_other(make: Make, mock_server: MockServer) -> None:
    mock_server.script(answer("anthropic"))
    make(provider="anthropic").complete("hi", model="anthropic:claude-x")
    assert last_request(mock_server).json()["model"] == "claude-x"

    with Client(api_key=KEY) as client, pytest.raises(ConfigurationError, match=r"provider='mistral', model='m'"):
        client.complete("hi", model="mistral:m")


# ---- whose key ----


@pytest.mark.parametrize(
    ("provider", "url_variable", "key_variable", "header", "value"),
    [
        ("anthropic", "ANTHROPIC_BASE_URL", "ANTHROPIC_API_KEY", "x-api-key", "sk-environment"),
        ("anthropic", "ANTHROPIC_BASE_URL", "ANTHROPIC_AUTH_TOKEN", "authorization", "Bearer sk-environment"),
        ("azure", "AZURE_OPENAI_ENDPOINT", "AZURE_OPENAI_API_KEY", "api-key", "sk-environment"),
        ("azure", "AZURE_OPENAI_ENDPOINT", "AZURE_OPENAI_AD_TOKEN", "authorization", "Bearer sk-environment"),
    ],
)
def test_the_environment_names_the_server_and_the_key_for_it(
    make: Make,
    mock_server: MockServer,
    monkeypatch: pytest.MonkeyPatch,
    provider: str,
    url_variable: str,
    key_variable: str,
    header: str,
    value: str,
) -> None:
    monkeypatch.setenv(url_variable, mock_server.base_url)
    monkeypatch.setenv(key_variable, "sk-environment")
    mock_server.script(*[answer(provider)] * 3)
    face = make(api_key=None, base_url=None, **options(provider))
    face.complete("hi")
    assert last_request(mock_server).header(header) == value
    endpoint = Endpoint(mock_server.base_url, **options(provider))
    make(endpoints=[endpoint]).complete("hi")
    assert last_request(mock_server).header(header) == value
    face.with_options(api_key="sk-given-0123").complete("hi")
    assert "sk-given-0123" in str(last_request(mock_server).headers)
    assert "sk-environment" not in str(last_request(mock_server).headers)

    with MockServer() as foreign:
        foreign.script(*[answer(provider)] * 3)
        make(api_key=None, base_url=foreign.base_url, **options(provider)).complete("hi")
        face.with_options(base_url=foreign.base_url).complete("hi")
        make(endpoints=[Endpoint(foreign.base_url, **options(provider))]).complete("hi")
        assert len(foreign.requests) == 3
        assert "sk-environment" not in str([request.headers for request in foreign.requests])


def test_no_vendors_key_goes_to_another_vendor(
    make: Make, mock_server: MockServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_API_KEY", "MISTRAL_API_KEY", "AZURE_OPENAI_API_KEY"):
        monkeypatch.setenv(name, "sk-environment")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", mock_server.base_url)
    mock_server.script(answer("anthropic"))
    make(provider="anthropic", api_key=None, base_url=None).complete("hi")
    assert "sk-environment" not in str(last_request(mock_server).headers)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"provider": "anthropic"}, "ANTHROPIC_API_KEY or ANTHROPIC_AUTH_TOKEN"),
        ({"provider": "mistral"}, "MISTRAL_API_KEY"),
        ({"provider": "mistral", "base_url": "https://api.eu.mistral.ai"}, "MISTRAL_API_KEY"),
        ({"provider": "azure"}, "AZURE_OPENAI_ENDPOINT"),
        ({"provider": "azure", "base_url": "https://r.openai.azure.com", "api_version": "v"}, "AZURE_OPENAI_API_KEY"),
        ({"model": "anthropic:claude"}, "ANTHROPIC_API_KEY"),
    ],
)
def test_a_vendor_without_a_key_is_refused_at_once(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        Client(**arguments)


# ---- making clients ----


def test_a_client_is_made_by_its_providers_name() -> None:
    client = create_client("anthropic", api_key=KEY, model="m")
    assert isinstance(client, AsyncClient)
    assert (client.provider, client.base_url) == ("anthropic", "https://api.anthropic.com/v1")
    assert isinstance(create_client("mistral", async_mode=False, api_key=KEY), Client)
    with pytest.raises(ConfigurationError, match="gemini"):
        create_client("gemini", api_key=KEY)  # type: ignore[arg-type]


CONFIG = """
provider = "anthropic"
model = "claude-x"
base_url = "{base_url}"
api_key_env = "THEIR_KEY"

[api]
RATE_LIMIT_DELAY = 0.1
MAX_RETRIES = 3
BASE_DELAY = 2
TIMEOUT = 30
MAX_TOKENS = 4000
TEMPERATURE = 0.7
"""


def test_a_client_is_made_from_a_file(mock_server: MockServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(CONFIG.format(base_url=mock_server.base_url), encoding="utf-8")
    with pytest.raises(ConfigurationError, match="THEIR_KEY"):
        create_from_config(path)
    monkeypatch.setenv("THEIR_KEY", KEY)
    mock_server.script(*[answer("anthropic")] * 4)
    with create_from_config(path, async_mode=False) as client:
        assert client.batch_complete(["hi"] * 4) == ["fine"] * 4

    sent = mock_server.requests
    assert {(each.json()["model"], each.json()["max_tokens"], each.json()["temperature"]) for each in sent} == {
        ("claude-x", 4000, 0.7)
    }
    assert {each.header("x-api-key") for each in sent} == {KEY}
    starts = sorted(each.arrived for each in sent)
    assert starts[-1] - starts[0] > 0.25, "RATE_LIMIT_DELAY lies between any two"


def test_a_mapping_does_as_well_and_arguments_go_over_it(mock_server: MockServer) -> None:
    config = {"provider": "openai", "model": "a", "api_key": KEY, "base_url": mock_server.base_url, "api": None}
    with create_from_config(config, async_mode=False, model="b") as client:
        client.complete("hi")
    assert last_request(mock_server).json()["model"] == "b"
    assert isinstance(create_from_config(config), AsyncClient)


def test_a_profile_goes_over_the_file_section_by_section(
    mock_server: MockServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = {
        "base_url": mock_server.base_url,
        "model": "a",
        "api_key": "sk-of-the-file-0123",
        "api": {"MAX_TOKENS": 5, "TEMPERATURE": 1},
        "options": {"rpm": 5},
        "profiles": {"p": {"model": "b", "api_key_env": "THEIR_KEY", "api": {"TEMPERATURE": 0}}, "q": {}},
    }
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    monkeypatch.setenv("THEIR_KEY", KEY)
    for source in (config, path):
        with create_from_config(source, profile="p", async_mode=False) as client:
            client.complete("hi")
        sent = last_request(mock_server)
        body = sent.json()
        assert (body["model"], body["max_tokens"], body["temperature"]) == ("b", 5, 0)
        assert sent.header("authorization") == f"Bearer {KEY}"
        with create_from_config(source, async_mode=False) as client:
            client.complete("hi")
        assert last_request(mock_server).json()["model"] == "a"
    with pytest.raises(ConfigurationError, match="profile 'x' is not there; profiles are p, q"):
        create_from_config(config, profile="x")


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"profiles": 3}, "profiles must be"),
        ({"profiles": {"p": 3}}, "profiles must be"),
        ({"modle": "m"}, "modle"),
        ({"api": {"RETRIES": 3}}, r"api\.RETRIES"),
        ({"api": {"TIMEOUT": "30"}}, r"api\.TIMEOUT"),
        ({"api": {"MAX_RETRIES": 1.5}}, r"api\.MAX_RETRIES"),
        ({"api": {"RATE_LIMIT_DELAY": -1}}, r"api\.RATE_LIMIT_DELAY"),
        ({"api": 3}, "api must be"),
        ({"api_key": KEY, "api_key_env": "PATH"}, "api_key_env"),
        ("config.ini", r"\.toml"),
    ],
)
def test_a_wrong_configuration_is_refused_by_its_key(config: Any, named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        create_from_config(config)


def test_yaml_is_read_where_its_package_is(
    mock_server: MockServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps({"model": "m", "api_key": KEY, "base_url": mock_server.base_url}), encoding="utf-8")
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(ConfigurationError, match="pip install pyyaml"):
        create_from_config(path)

    # JSON is YAML.
    package = SimpleNamespace(safe_load=json.load, YAMLError=json.JSONDecodeError)
    monkeypatch.setitem(sys.modules, "yaml", package)
    with create_from_config(str(path), async_mode=False) as client:
        assert client.complete("hi") == "echo: hi"
    for text, named in (("- a", "not YAML"), ("[]", "a mapping of keys")):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigurationError, match=named):
            create_from_config(path)


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text("model = ", encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"broken\.toml is not TOML"):
        create_from_config(path)
    with pytest.raises(FileNotFoundError):
        create_from_config(tmp_path / "missing.toml")


def test_no_traceback_of_a_refused_configuration_shows_the_key() -> None:
    def refused(make: Callable[[], object]) -> str:
        try:
            make()
        except ConfigurationError as error:
            frames = traceback.TracebackException.from_exception(error, capture_locals=True).stack
            package = str(Path(millstream.__file__).parent)
            ours = [frame for frame in frames if frame.filename.startswith(package)]
            assert ours
            return str([frame.locals for frame in ours])
        raise AssertionError("it was taken")

    key = "sk-canary-0123456789"
    for shown in (
        refused(lambda: create_from_config({"api_key": key, "provider": "gemini"})),
        refused(lambda: create_from_config({}, api_key=[key], provider="gemini")),
        refused(lambda: create_from_config({"api_key": key, "profiles": {"p": {"api_key": key}}}, profile="q")),
        refused(lambda: create_client("gemini", api_key=key)),  # type: ignore[arg-type]
    ):
        assert key not in shown


def test_a_connection_is_tested_without_raising(make: Make, mock_server: MockServer) -> None:
    face = make(max_retries=0)
    assert face.run(face.client.test_connection()) is True
    assert last_request(mock_server).path == "/v1/models"
    mock_server.script(Answer(status=401), Answer(status=500))
    assert face.run(face.client.test_connection()) is False
    assert face.run(face.client.test_connection()) is False
    nobody = make(base_url="http://127.0.0.1:1/v1", max_retries=0)
    assert nobody.run(nobody.client.test_connection()) is False


@pytest.mark.parametrize(
    ("provider", "call", "has"),
    [
        ("anthropic", "responses", "use chat.completions.create;"),
        ("anthropic", "completions", "use chat.completions.create;"),
        ("anthropic", "embeddings", "use chat.completions.create;"),
        ("mistral", "responses", "use chat.completions.create and embeddings.create;"),
        ("mistral", "completions", "use chat.completions.create and embeddings.create;"),
    ],
)
def test_a_call_that_the_provider_does_not_have_is_refused(
    make: Make, mock_server: MockServer, provider: str, call: str, has: str
) -> None:
    endpoint = Endpoint(mock_server.base_url, KEY, provider=provider)
    for face in (make(provider=provider), make(endpoints=[endpoint])):
        given = {"prompt": "hi"} if call == "completions" else {"input": "hi"}
        for more in ({}, {"stream": True}):
            with pytest.raises(ConfigurationError, match=rf"^{provider} has no {call}\.create: {has}"):
                face.run(getattr(face.client, call).create(**given, **more))
        assert face.run(face.client.post("x", {})).to_dict()
    assert [request.path for request in mock_server.requests] == ["/v1/x"] * 2


@pytest.mark.parametrize(
    ("provider", "call", "path"),
    [
        ("mistral", "embeddings", "/v1/embeddings"),
        ("azure", "embeddings", "/openai/deployments/m/embeddings"),
        ("azure", "completions", "/openai/deployments/m/completions"),
        ("azure", "responses", "/openai/responses"),
    ],
)
def test_a_call_that_the_provider_has_goes_to_its_path(
    make: Make, mock_server: MockServer, provider: str, call: str, path: str
) -> None:
    root = mock_server.base_url.removesuffix("/v1")
    face = make(provider=provider, base_url=root, api_version="2024-10-21" if provider == "azure" else None)
    given = {"prompt": "hi"} if call == "completions" else {"input": "hi"}
    try:
        face.run(getattr(face.client, call).create(**given))
    except NotFoundError:
        pass  # the mock server has no Azure path of each; the request is what counts
    assert last_request(mock_server).path.partition("?")[0] == path
