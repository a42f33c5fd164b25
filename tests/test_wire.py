"""The bodies in `tests/data/wire`, answered by the mock and read through a client."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from millstream import BadRequestError, InsufficientQuotaError, MillstreamError, OverloadedError, RateLimitError
from millstream.testing import Answer, MockServer

if TYPE_CHECKING:
    from helpers import Face

WIRE = Path(__file__).parent / "data" / "wire"


@pytest.mark.parametrize("name", ["openai_chat.json", "llamacpp_chat.json"])
def test_an_answer_keeps_every_field_of_the_server(face: Face, mock_server: MockServer, name: str) -> None:
    body = (WIRE / name).read_bytes()
    mock_server.script(Answer(body=body))
    response, sent = face.create(), json.loads(body)
    assert response.to_dict() == sent
    assert response.text == sent["choices"][0]["message"]["content"]
    assert response.usage is not None
    assert response.usage.total_tokens == sent["usage"]["total_tokens"]
    assert response.usage.prompt_tokens_details.cached_tokens == 0


@pytest.mark.parametrize(
    ("name", "status", "kind"),
    [
        ("llamacpp_context_exceeded.json", 400, BadRequestError),
        ("openai_insufficient_quota.json", 429, InsufficientQuotaError),
        ("mistral_rate_limited.json", 429, RateLimitError),
        ("together_rate_limited.json", 429, RateLimitError),
        ("anthropic_spend_limit.json", 429, InsufficientQuotaError),
        ("deepseek_insufficient_balance.json", 402, InsufficientQuotaError),
        ("openai_slow_down.json", 429, RateLimitError),
        ("openai_overloaded.json", 503, OverloadedError),
        ("anthropic_overloaded.json", 529, OverloadedError),
        ("tei_overloaded.json", 429, RateLimitError),
    ],
)
def test_an_error_is_told_by_its_body(
    face: Face, mock_server: MockServer, name: str, status: int, kind: type[MillstreamError]
) -> None:
    body = (WIRE / name).read_bytes()
    mock_server.script(*[Answer(status=status, body=body)] * 3)
    with pytest.raises(kind) as caught:
        face.complete("hi")
    sent = json.loads(body)
    assert type(caught.value) is kind
    assert caught.value.body == sent.get("error", sent)
    final = kind in (BadRequestError, InsufficientQuotaError)
    assert mock_server.stats.requests == (1 if final else 3)
