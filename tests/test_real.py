"""The main job against a real language model. Small: it answers about four requests of 8 tokens a second."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import pydantic
import pytest
from millstream import (
    APIConnectionError,
    AsyncClient,
    AuthenticationError,
    BadRequestError,
    Client,
    LengthFinishReasonError,
)
from real_server import RealServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.real

# A prompt and a word that this model's first 8 tokens of answer hold at temperature 0.
KNOWN_ANSWERS = {
    "What is the capital of Japan?": "Tokyo",
    "What is the first month of the year?": "January",
    "What is the opposite of hot?": "cold",
    "Who wrote Hamlet?": "Shakespeare",
    "Say hello in French.": "Bonjour",
}
PROMPTS = [
    "Name a colour.",
    *KNOWN_ANSWERS,
    "What is two plus two?",
    "Name an animal that barks.",
    "Name a planet.",
    "Name a fruit that is yellow.",
    "Name a big ocean.",
    "What is the capital of France?",
]


def client_for(
    server: RealServer, *, api_key: str = "unused", max_retries: int = 2, timeout: float = 60
) -> AsyncClient:
    return AsyncClient(
        api_key=api_key, base_url=server.base_url, model=server.model, timeout=timeout, max_retries=max_retries
    )


@pytest.fixture
async def client(real_server: RealServer) -> AsyncIterator[AsyncClient]:
    async with client_for(real_server) as client:
        yield client


async def test_batch_answers_every_prompt_in_order(client: AsyncClient) -> None:
    answers = await client.batch_complete(PROMPTS, max_tokens=8, temperature=0)

    assert len(answers) == len(PROMPTS)
    assert all(answer.strip() for answer in answers)
    by_prompt = dict(zip(PROMPTS, answers, strict=True))
    assert [prompt for prompt, word in KNOWN_ANSWERS.items() if word not in by_prompt[prompt]] == []


async def test_batch_counts_requests_and_the_servers_usage(client: AsyncClient) -> None:
    await client.batch_complete(PROMPTS, max_tokens=8, temperature=0)

    stats = client.stats()
    assert (stats.requests, stats.failed, stats.in_flight) == (len(PROMPTS), 0, 0)
    assert stats.attempts >= stats.requests
    # Each prompt is wrapped in a chat template, so it is more tokens than words.
    assert stats.prompt_tokens > sum(len(prompt.split()) for prompt in PROMPTS)
    assert len(PROMPTS) <= stats.completion_tokens <= 8 * len(PROMPTS)


async def test_batch_is_deterministic_at_temperature_zero(client: AsyncClient) -> None:
    first = await client.batch_complete(PROMPTS[:6], max_tokens=8, temperature=0)
    second = await client.batch_complete(PROMPTS[:6], max_tokens=8, temperature=0)

    assert first == second


async def test_prompt_longer_than_the_context_is_a_bad_request_sent_once(client: AsyncClient) -> None:
    with pytest.raises(BadRequestError) as caught:
        await client.complete("word " * 2000, max_tokens=8)

    assert caught.value.status_code == 400
    assert caught.value.attempts == 1
    assert caught.value.type == "exceed_context_size_error"
    assert (client.stats().requests, client.stats().attempts, client.stats().failed) == (1, 1, 1)


async def test_one_failing_prompt_does_not_disturb_the_others(client: AsyncClient) -> None:
    prompts = ["Name a planet.", "word " * 2000, "Name a colour."]
    answers = await client.batch_complete(prompts, max_tokens=8, temperature=0, return_exceptions=True)

    assert [type(answer) for answer in answers] == [str, BadRequestError, str]


async def test_chat_completion_has_the_fields_of_the_answer(client: AsyncClient, real_server: RealServer) -> None:
    response = await client.chat.completions.create(
        model=real_server.model,
        messages=[
            {"role": "system", "content": "You answer in one word."},
            {"role": "user", "content": "What is the capital of Japan?"},
        ],
        max_tokens=8,
        temperature=0,
    )

    choice = response.choices[0]
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason in {"stop", "length"}
    assert response.model == real_server.model
    assert response.usage is not None
    assert response.usage.prompt_tokens > 10
    assert 1 <= response.usage.completion_tokens <= 8
    assert response.usage.total_tokens == response.usage.prompt_tokens + response.usage.completion_tokens


async def test_models_list_names_the_model(client: AsyncClient, real_server: RealServer) -> None:
    models = await client.models.list()

    assert [model.id for model in models.data] == [real_server.model]


def test_blocking_client_gets_the_same_answers(real_server: RealServer) -> None:
    prompts = list(KNOWN_ANSWERS)[:3]
    with Client(api_key="unused", base_url=real_server.base_url, model=real_server.model) as client:
        answers = client.batch_complete(prompts, max_tokens=8, temperature=0)

    for prompt, answer in zip(prompts, answers, strict=True):
        assert KNOWN_ANSWERS[prompt] in answer


@pytest.mark.usefixtures("real_server_available")
async def test_wrong_key_is_an_authentication_error_sent_once() -> None:
    with RealServer(parallel=1, api_keys=["right-key"]) as server:
        async with client_for(server, api_key="wrong-key") as client:
            with pytest.raises(AuthenticationError) as caught:
                await client.complete("Name a planet.", max_tokens=2)
            assert caught.value.status_code == 401
            assert "wrong-key" not in f"{caught.value!s} {caught.value!r}"
            assert client.stats().attempts == 1
        async with client_for(server, api_key="right-key") as client:
            assert await client.complete("Name a planet.", max_tokens=2)


@pytest.mark.usefixtures("real_server_available")
async def test_server_killed_mid_batch_fails_the_rest_and_does_not_hang() -> None:
    prompts = [f"Write a long story about the number {number}." for number in range(12)]
    with RealServer(parallel=2) as server:
        # An outage is ridden out for as long as one item may take.
        async with client_for(server, max_retries=1, timeout=8) as client:
            batch = asyncio.ensure_future(
                client.batch_complete(prompts, max_tokens=16, temperature=0, return_exceptions=True)
            )
            async with asyncio.timeout(60):
                while client.stats().completion_tokens == 0:  # until one answer has come
                    assert not batch.done()
                    await asyncio.sleep(0.02)
            server.kill()
            async with asyncio.timeout(20):
                answers = await batch

    answered = [answer for answer in answers if isinstance(answer, str)]
    failed = [answer for answer in answers if isinstance(answer, BaseException)]
    assert len(answers) == len(prompts)
    assert len(answered) >= 1
    assert len(failed) >= 1
    # Also those whose deadline came while they waited for the server to return.
    assert all(isinstance(error, APIConnectionError) for error in failed)


@dataclass
class Capital:
    """A capital city."""

    country: Literal["France", "Japan", "Italy"]
    large: bool


class CapitalModel(pydantic.BaseModel):
    country: Literal["France", "Japan", "Italy"]
    large: bool


@pytest.mark.parametrize("model", [Capital, CapitalModel])
async def test_answers_are_values_of_a_type(client: AsyncClient, model: type[Capital | CapitalModel]) -> None:
    questions = [f"What is the capital of {country}?" for country in ("France", "Japan", "Italy")]

    values = await client.batch_complete(
        questions, response_model=model, max_tokens=150, temperature=0, return_exceptions=True
    )
    answer = await client.chat.completions.parse(
        messages=[{"role": "user", "content": "What is the capital of Japan?"}],
        response_format=model,
        max_tokens=150,
        temperature=0,
    )

    assert [type(value) for value in values] == [model] * 3, values
    assert isinstance(answer.choices[0].message.parsed, model)
    assert answer.choices[0].message.parsed.country in {"France", "Japan", "Italy"}
    # The server holds the model to the schema, so nothing had to be asked again.
    assert answer.failed_tries == ()
    assert client.stats().requests == 4


async def test_a_value_cut_at_its_length_limit_is_an_error_of_its_own(client: AsyncClient) -> None:
    with pytest.raises(LengthFinishReasonError) as caught:
        await client.complete("Name a city.", response_model=Capital, max_tokens=3, temperature=0)

    assert caught.value.completion.choices[0].finish_reason == "length"


async def test_anthropics_messages_and_openais_completions_say_the_same(real_server: RealServer) -> None:
    texts, usages = [], []
    for provider in ("openai", "anthropic"):
        async with AsyncClient(
            provider=provider, api_key="unused", base_url=real_server.base_url, model=real_server.model, timeout=60
        ) as client:
            for messages in (
                [{"role": "user", "content": "What is the capital of Japan?"}],
                [
                    {"role": "system", "content": "You answer in one word."},
                    {"role": "user", "content": "Say hello in French."},
                ],
            ):
                response = await client.chat.completions.create(
                    messages=messages, max_tokens=8, temperature=0, stop=["\n"]
                )
                assert response.usage is not None
                usages.append((response.usage.prompt_tokens, response.usage.completion_tokens))
                texts.append((response.text, response.choices[0].finish_reason))
    assert texts[:2] == texts[2:]
    assert usages[:2] == usages[2:]
    assert "Tokyo" in texts[0][0]
