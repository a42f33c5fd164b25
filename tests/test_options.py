"""What a client and a single call can be told besides the request: query, organization, tokens, retries."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from helpers import last_request
from millstream import AsyncClient, AuthenticationError, Client, ConfigurationError, RateLimitError
from millstream.testing import Answer

if TYPE_CHECKING:
    from conftest import Make
    from helpers import Face
    from millstream.testing import MockServer

CALLS: dict[str, Any] = {
    "complete": lambda face, **options: face.complete("hi", **options),
    "batch": lambda face, **options: face.batch_complete(["hi"], **options),
    "create": lambda face, **options: face.create(**options),
    "stream": lambda face, **options: face.read(face.create(stream=True, **options)),
    "lazy stream": lambda face, **options: face.read(face.client.stream_complete("hi", **options)),
    "streams": lambda face, **options: face.read(face.client.stream_many(["hi"], **options)),
    "post": lambda face, **options: face.run(face.client.post("x", {}, **options)),
    "responses": lambda face, **options: face.run(face.client.responses.create(input="hi", **options)),
    "completions": lambda face, **options: face.run(face.client.completions.create(prompt="hi", **options)),
    "embeddings": lambda face, **options: face.run(face.client.embeddings.create(input="hi", **options)),
}


@pytest.fixture(params=CALLS)
def call(request: pytest.FixtureRequest) -> Any:
    return CALLS[request.param]


def query_of(server: MockServer) -> str:
    return last_request(server).path.partition("?")[2]


def test_a_query_of_the_client_and_of_the_call(make: Make, mock_server: MockServer, call: Any) -> None:
    face = make(default_query={"a": 1, "b": "x y", "c": True, "d": None})

    call(face)
    assert query_of(mock_server) == "a=1&b=x+y&c=true"
    call(face, extra_query={"b": "z", "e": ["1", "2"]})
    assert query_of(mock_server) == "a=1&c=true&b=z&e%5B%5D=1&e%5B%5D=2"
    call(face.with_options(timeout=9))
    assert query_of(mock_server) == "a=1&b=x+y&c=true"
    call(face.with_options(default_query={"q": "r"}))
    assert query_of(mock_server) == "q=r"


def test_retries_of_one_call(make: Make, mock_server: MockServer, call: Any) -> None:
    face = make(max_retries=2)
    refused = Answer(status=429, headers={"retry-after-ms": "1"}, times=1)

    mock_server.script(refused)
    try:
        result = call(face, max_retries=0)
    except RateLimitError as error:
        result = ([], error)
    assert isinstance(result[1], RateLimitError)
    assert len(mock_server.requests) == 1
    mock_server.script(refused)
    call(face, max_retries=1)
    assert len(mock_server.requests) == 3


def test_refused_options(face: Face, mock_server: MockServer, call: Any) -> None:
    with pytest.raises(ConfigurationError, match="max_retries must be at least 0"):
        call(face, max_retries=-1)
    with pytest.raises(TypeError, match="extra_query must be a dict"):
        call(face, extra_query="a=b")
    assert not mock_server.requests


def test_organization_and_project_are_headers(make: Make, mock_server: MockServer) -> None:
    face = make(organization="org-1", project="proj-1")
    face.complete("hi")
    assert last_request(mock_server).header("openai-organization") == "org-1"
    assert last_request(mock_server).header("openai-project") == "proj-1"
    other = face.with_options(project="proj-2", default_headers={"OpenAI-Organization": "org-2"})
    other.complete("hi")
    assert last_request(mock_server).header("openai-organization") == "org-2"
    assert last_request(mock_server).header("openai-project") == "proj-2"


ENVIRONMENT = {
    "OPENAI_ORG_ID": "org-e",
    "OPENAI_PROJECT_ID": "proj-e",
    "OPENAI_CUSTOM_HEADERS": "X-One: 1\n X-Two : a:b \nnonsense\n",
}


def test_headers_of_the_environment_go_to_their_own_host(
    make: Make, mock_server: MockServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OPENAI_BASE_URL", mock_server.base_url)
    face = make(default_headers={"X-One": "mine"})

    face.complete("hi")

    names = ("openai-organization", "openai-project", "x-one", "x-two")
    assert [last_request(mock_server).header(name) for name in names] == ["org-e", "proj-e", "mine", "a:b"]


def test_headers_of_the_environment_go_to_no_other_host(
    make: Make, mock_server: MockServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    elsewhere = make(base_url="http://127.0.0.1:1/v1")
    for face in (make(), elsewhere.with_options(base_url=mock_server.base_url)):
        face.complete("hi")
        assert [last_request(mock_server).header(name) for name in ("openai-organization", "x-two")] == [None, None]


def test_they_do_not_follow_a_client_to_another_host(
    make: Make, mock_server: MockServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    face = make(base_url="http://127.0.0.1:1/v1", organization="org-mine").with_options(base_url=mock_server.base_url)

    face.complete("hi")

    names = ("openai-organization", "openai-project", "x-two")
    assert [last_request(mock_server).header(name) for name in names] == ["org-mine", None, None]


class Tokens:
    """A function for ``api_key`` that counts."""

    def __init__(self) -> None:
        self.given = 0

    def __call__(self) -> str:
        self.given += 1
        return f"token-{self.given}"

    async def wait(self) -> str:
        await asyncio.sleep(0)
        return self()


def keys_of(server: MockServer) -> list[str | None]:
    return [(request.header("authorization") or "").removeprefix("Bearer ") for request in server.requests]


def test_a_function_gives_each_call_its_token(make: Make, mock_server: MockServer, call: Any) -> None:
    tokens = Tokens()
    face = make(api_key=tokens)
    assert tokens.given == 0

    call(face)
    call(face.with_options(timeout=9), extra_headers={"X-A": "b"})

    assert keys_of(mock_server) == ["token-1", "token-2"]
    assert last_request(mock_server).header("x-a") == "b"


def test_all_attempts_of_a_call_use_one_token(make: Make, mock_server: MockServer) -> None:
    mock_server.script(Answer(status=503, headers={"retry-after-ms": "1"}))

    make(api_key=Tokens()).complete("hi")

    assert keys_of(mock_server) == ["token-1", "token-1"]


@pytest.mark.parametrize("name", sorted(CALLS.keys() - {"batch", "streams"}))
def test_a_refused_token_is_asked_for_once_more(make: Make, mock_server: MockServer, name: str) -> None:
    mock_server.script(Answer(status=401, times=1))
    CALLS[name](make(api_key=Tokens()))
    assert keys_of(mock_server) == ["token-1", "token-2"]

    mock_server.script(Answer(status=401, times=2))
    face = make(api_key=Tokens())
    if name == "lazy stream":  # it is handed out before it fails
        assert isinstance(CALLS[name](face)[1], AuthenticationError)
    else:
        with pytest.raises(AuthenticationError):
            CALLS[name](face)
    assert keys_of(mock_server)[2:] == ["token-1", "token-2"]


@pytest.mark.parametrize("name", ["lazy stream", "streams"])
def test_a_stream_asks_for_its_token_when_it_is_first_read(make: Make, mock_server: MockServer, name: str) -> None:
    tokens = Tokens()
    face = make(api_key=tokens)
    messages: list[Any] = [{"role": "user", "content": "one"}]
    prompts: list[Any] = [messages]
    if name == "lazy stream":
        stream = face.client.stream_complete(messages)
    else:
        stream = face.client.stream_many(prompts)
    messages.append({"role": "user", "content": "two"})
    prompts.append("three")
    assert (tokens.given, stream.closed) == (0, False)

    pieces, error = face.read(stream)

    assert (error, tokens.given, len(mock_server.requests)) == (None, 1, 1)
    assert "".join(piece if isinstance(piece, str) else piece[1] for piece in pieces) == "echo: one"
    assert not stream.closed


def test_what_is_wrong_with_a_stream_is_said_before_its_token_is_asked_for(make: Make) -> None:
    tokens = Tokens()
    face = make(api_key=tokens)
    with pytest.raises(TypeError, match="prompt"):
        face.client.stream_complete(5)
    with pytest.raises(TypeError, match="prompts"):
        face.client.stream_many("hi")
    assert tokens.given == 0


def test_a_stream_that_is_closed_before_it_is_read_asks_for_no_token(make: Make, mock_server: MockServer) -> None:
    tokens = Tokens()
    face = make(api_key=tokens)
    stream = face.client.stream_complete("hi")
    face.run(stream.close())

    assert face.read(stream) == ([], None)
    assert (stream.closed, tokens.given, mock_server.requests) == (True, 0, [])


def test_a_stream_whose_token_cannot_be_had_fails_with_the_reason(make: Make, mock_server: MockServer) -> None:
    def broken() -> str:
        raise OSError("the vault is sealed")

    for name in ("lazy stream", "streams"):
        pieces, error = CALLS[name](make(api_key=broken))
        assert (pieces, str(error)) == ([], "the vault is sealed")
    assert not mock_server.requests


def test_models_are_listed_with_a_token(make: Make, mock_server: MockServer) -> None:
    make(api_key=Tokens()).models()

    assert keys_of(mock_server) == ["token-1"]


def test_an_async_function_is_awaited(mock_server: MockServer) -> None:
    async def main() -> None:
        tokens = Tokens()
        async with AsyncClient(api_key=tokens.wait, base_url=mock_server.base_url, model="m") as client:
            await client.complete("hi")
            await client.batch_complete(["hi"])
            message = {"role": "user", "content": "hi"}
            await (await client.chat.completions.create(messages=[message], stream=True)).get_final()
            assert await client.stream_complete("hi").get_final()
            assert [piece async for piece in client.stream_many(["hi"])]
            await (await client.responses.create(input="hi", stream=True)).get_final()

    asyncio.run(main())
    assert keys_of(mock_server) == [f"token-{number}" for number in range(1, 7)]


def test_a_stream_that_is_closed_while_its_token_is_asked_for_sends_nothing(mock_server: MockServer) -> None:
    async def main() -> None:
        asked, answer = asyncio.Event(), asyncio.Event()

        async def token() -> str:
            asked.set()
            await answer.wait()
            return "token"

        async with AsyncClient(api_key=token, base_url=mock_server.base_url, model="m") as client:
            stream = client.stream_many(["hi"])
            reading = asyncio.create_task(anext(stream, None))
            await asked.wait()
            with pytest.raises(RuntimeError, match="another task"):
                await anext(stream)
            await stream.aclose()
            answer.set()
            assert await reading is None
            assert stream.closed

    asyncio.run(main())
    assert not mock_server.requests


def test_a_blocking_client_refuses_an_async_function(mock_server: MockServer) -> None:
    with Client(api_key=Tokens().wait, base_url=mock_server.base_url, model="m") as client:
        message = {"role": "user", "content": "hi"}
        for call in (
            lambda: client.complete("hi"),
            lambda: client.batch_complete(["hi"]),
            lambda: client.chat.completions.create(messages=[message], stream=True),
            lambda: client.stream_complete("hi").get_final(),
            lambda: next(client.stream_many(["hi"])),
        ):
            with pytest.raises(ConfigurationError, match="AsyncClient"):
                call()
    assert not mock_server.requests


def test_a_token_must_be_a_text(make: Make, mock_server: MockServer) -> None:
    with pytest.raises(TypeError, match=r"api_key\(\) must return a str, not int"):
        make(api_key=lambda: 7).complete("hi")
    assert not mock_server.requests


def test_a_key_in_place_of_the_function(make: Make, mock_server: MockServer) -> None:
    face = make(api_key=Tokens())
    face.with_options(api_key="plain").complete("hi")
    make(api_key="plain").with_options(api_key=Tokens()).complete("hi")

    assert keys_of(mock_server) == ["plain", "token-1"]
