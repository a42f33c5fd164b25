"""Arguments that are wrong are refused before anything is sent, by their names."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import inspect
import pickle
import traceback
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import helpers
import pytest
from helpers import KEY, run_python
from millstream import (
    AdaptiveBatchPolicy,
    AsyncClient,
    Client,
    CompletionConfig,
    ConfigurationError,
    RateLimiter,
    RetryPolicy,
    Timeout,
    _misspelt,
    create_client,
    create_from_config,
)
from millstream._providers import environment_key
from millstream.testing import Answer, MockServer, Streaming

if TYPE_CHECKING:
    from collections.abc import Callable

    from helpers import Face

    Make = Callable[..., Face]

OF_A_CLIENT = [
    ("model", 5, "a str"),
    ("config", {}, "CompletionConfig"),
    ("timeout", "5", "a number of seconds"),
    ("connect_timeout", "5", "a number of seconds"),
    ("queue_timeout", "10", "a number of seconds"),
    ("max_retries", "3", "an int"),
    ("max_retries", 1.5, "an int"),
    ("retry", 3, "RetryPolicy"),
    ("max_concurrency", "10", None),
    ("max_concurrency", 1.5, "an int"),
    ("rate_limiter", 60, "RateLimiter"),
    ("hedge_after", [], "a number of seconds"),
    ("fallback_models", "m", "a list of names"),
    ("fallback_models", 5, "a list of names"),
    ("default_headers", ["x"], "a dict of names and values"),
    ("api_key", 5, "a str"),
    ("api_key", b"sk-0123456789", "a str"),
    ("idempotency_key", "yes", "True or False"),
    ("http2", 1, "True or False"),
    ("allow_http", None, "True or False"),
    ("endpoints", 5, "a list of Endpoint"),
    ("provider", 5, "a str"),
    ("auth", 5, "a str"),
    ("api_version", 5, "a str"),
]

# Of the constructor alone.
OWN = ("provider", "auth", "api_version", "http2", "allow_http", "endpoints", "connect_timeout")


@pytest.mark.parametrize(("name", "value", "wanted"), OF_A_CLIENT)
def test_a_client_names_the_argument_of_the_wrong_type(make: Make, name: str, value: Any, wanted: str | None) -> None:
    # A word where a number or "auto" may stand is of the right type.
    refused = ConfigurationError if wanted is None else TypeError
    with pytest.raises(refused, match=f"^{name} must be .*{wanted or 'auto'}"):
        make(**{"api_key": KEY, name: value} if name != "endpoints" else {name: value})


@pytest.mark.parametrize(("name", "value", "wanted"), [each for each in OF_A_CLIENT if each[2] and each[0] not in OWN])
def test_so_does_with_options(face: Face, name: str, value: Any, wanted: str) -> None:
    with pytest.raises(TypeError, match=f"^{name} must be .*{wanted}"):
        face.with_options(**{name: value})


OF_A_CALL = [
    ("model", 5, "a str"),
    ("system", 5, "a str"),
    ("config", {}, "CompletionConfig"),
    ("timeout", "5", "a number of seconds"),
    ("queue_timeout", "10", "a number of seconds"),
    ("priority", "high", "an int"),
    ("priority", None, "an int"),
    ("extra_headers", 5, "a dict of names and values"),
    ("extra_headers", ["x"], "a dict of names and values"),
]


@pytest.mark.parametrize(("name", "value", "wanted"), OF_A_CALL)
def test_a_call_names_the_argument_of_the_wrong_type(
    face: Face, mock_server: MockServer, name: str, value: Any, wanted: str
) -> None:
    for call in (lambda: face.complete("hi", **{name: value}), lambda: face.batch_complete(["hi"], **{name: value})):
        with pytest.raises(TypeError, match=f"^{name} must be .*{wanted}"):
            call()
    if name not in ("system", "config"):
        with pytest.raises(TypeError, match=f"^{name} must be .*{wanted}"):
            face.create(**{name: value})
    assert mock_server.stats.requests == 0


def test_a_batch_names_its_own_too(face: Face) -> None:
    with pytest.raises(TypeError, match=r"^max_concurrent must be an int or None, not str"):
        face.batch_complete(["hi"], max_concurrent="10")


@pytest.mark.parametrize(
    ("make_it", "name"),
    [
        (lambda: Timeout("5"), "timeout.total"),  # type: ignore[arg-type]
        (lambda: Timeout(idle="5"), "timeout.idle"),  # type: ignore[arg-type]
        (lambda: RetryPolicy(max_retries="3"), "max_retries"),  # type: ignore[arg-type]
        (lambda: RetryPolicy(max_retries=None), "max_retries"),  # type: ignore[arg-type]
        (lambda: RetryPolicy(base_delay="1"), "base_delay"),  # type: ignore[arg-type]
        (lambda: RetryPolicy(statuses=503), "statuses"),  # type: ignore[arg-type]
        (lambda: RateLimiter(requests_per_minute="60"), "requests_per_minute"),  # type: ignore[arg-type]
        (lambda: RateLimiter(requests_per_minute=60).try_acquire("1"), "requests"),  # type: ignore[arg-type]
        (lambda: RateLimiter(requests_per_minute=60).acquire_blocking(max_wait="1"), "max_wait"),  # type: ignore[arg-type]
        (lambda: RateLimiter(requests_per_minute=60).acquire_blocking(priority="1"), "priority"),  # type: ignore[arg-type]
        (lambda: AdaptiveBatchPolicy(initial_batch_size="1"), "initial_batch_size"),  # type: ignore[arg-type]
        (lambda: AdaptiveBatchPolicy().record("1", 1.0, 1, 0), "size"),  # type: ignore[arg-type]
        (lambda: MockServer(requests_per_minute="60"), "requests_per_minute"),  # type: ignore[arg-type]
        (lambda: MockServer(port="80"), "port"),  # type: ignore[arg-type]
    ],
)
def test_the_other_classes_do_too(make_it: Callable[[], object], name: str) -> None:
    with pytest.raises(TypeError, match=f"^{name} must be "):
        make_it()


@pytest.mark.parametrize(
    ("make_it", "name"),
    [
        (lambda: MockServer(requests_per_minute=-1), "requests_per_minute"),
        (lambda: MockServer(keys={"k": {"tokens_per_minute": -1}}), "tokens_per_minute"),
        (lambda: MockServer(port=70_000), "port"),
        (lambda: MockServer(slots=-1), "slots"),
        (lambda: Client(api_key=KEY, max_retries=2**70), "max_retries"),
        (lambda: Client(api_key=KEY, model="m").complete("hi", priority=2**31), "priority"),
        (lambda: RetryPolicy(max_retries=-(2**70)), "max_retries"),
    ],
)
def test_a_number_out_of_range_is_named(make_it: Callable[[], object], name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{name} must be at "):
        make_it()


class Number:
    """Like one of numpy's."""

    def __index__(self) -> int:
        return 3

    def __float__(self) -> float:
        return 3.0


def test_what_knows_itself_as_a_number_is_one(make: Make) -> None:
    face = make(max_retries=Number(), timeout=Number(), max_concurrency=Number())
    assert face.complete("hi", priority=Number(), queue_timeout=Number()) == "echo: hi"
    assert RateLimiter(requests_per_minute=60).try_acquire(Number()).requests == 3  # type: ignore[arg-type,union-attr]


# ---- misspelt ----


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("max_concurent", "max_concurrent"),
        ("time_out", "timeout"),
        ("retries", "max_retries"),
        ("sytem", "system"),
        ("prioritys", "priority"),
        ("extra_header", "extra_headers"),
    ],
)
def test_a_misspelt_argument_is_not_sent_to_the_server(
    face: Face, mock_server: MockServer, written: str, meant: str
) -> None:
    for call in (
        lambda: face.complete("hi", **{written: 5}),
        lambda: face.batch_complete(["hi"], **{written: 5}),
        lambda: face.create(**{written: 5}),
    ):
        with pytest.raises(ConfigurationError, match=rf"^{written}= .* did you mean {meant}=\?"):
            call()
    assert mock_server.stats.requests == 0


def test_an_argument_that_create_does_not_have_is_not_sent_either(face: Face) -> None:
    with pytest.raises(ConfigurationError, match=r"^system= is not a parameter of this call"):
        face.create(system="Be brief.")


FIELDS = {"top_k": 1, "cache_prompt": True, "models": ["m"], "stop": "x", "min_p": 0.1, "user": "u"}


def test_fields_of_servers_go_through_untouched(face: Face, mock_server: MockServer) -> None:
    face.complete("hi", **FIELDS)
    face.complete("hi", config=CompletionConfig(extra={"sytem": 1, **FIELDS}))
    face.create(extra_body={"sytem": 1, "time_out": 2, "retries": 3, **FIELDS})
    sent = [request.json() for request in mock_server.requests]
    assert all(FIELDS.items() <= body.items() for body in sent)
    assert [body.get("sytem") for body in sent] == [None, 1, 1]


def test_a_field_of_a_server_that_has_a_name_of_ours_goes_by_extra_body(face: Face, mock_server: MockServer) -> None:
    routing = {"provider": {"order": ["a"]}, "priority": 3}
    with pytest.raises(ConfigurationError, match="provider= is not a parameter of this call"):
        face.create(provider={"order": ["a"]})
    face.create(extra_body=routing)
    face.complete("hi", config=CompletionConfig(extra=routing))
    assert all(routing.items() <= request.json().items() for request in mock_server.requests)


# What servers take besides OpenAI's fields, by their own sources and documents.
VENDORS = {
    "vllm": """top_k min_p min_tokens repetition_penalty length_penalty use_beam_search best_of stop_token_ids
        include_stop_str_in_output ignore_eos skip_special_tokens spaces_between_special_tokens truncate_prompt_tokens
        truncation_side watermarking prompt_logprobs logprob_token_ids allowed_token_ids bad_words echo
        add_generation_prompt continue_final_message add_special_tokens documents chat_template chat_template_kwargs
        media_io_kwargs mm_processor_kwargs structured_outputs request_id session_id return_tokens_as_token_ids
        return_token_ids return_prompt_text cache_salt kv_transfer_params ec_transfer_params vllm_xargs
        thinking_token_budget include_reasoning guided_json guided_regex guided_choice guided_grammar
        guided_decoding_backend guided_whitespace_pattern structural_tag logits_processors""",
    "sglang": """regex ebnf stop_regex no_stop_trim lora_path session_params separate_reasoning stream_reasoning
        return_hidden_states custom_logit_processor custom_params rid""",
    "llama.cpp": """top_k min_p top_n_sigma xtc_probability xtc_threshold typical_p dynatemp_range dynatemp_exponent
        repeat_last_n repeat_penalty dry_multiplier dry_base dry_allowed_length dry_penalty_last_n dry_sequence_breakers
        mirostat mirostat_tau mirostat_eta n_predict n_keep n_discard n_indent n_probs n_cmpl n_cache_reuse min_keep
        grammar grammar_lazy grammar_triggers json_schema preserved_tokens chat_format reasoning_format reasoning_budget
        reasoning_in_content thinking_forced_open samplers timings_per_token post_sampling_probs backend_sampling lora
        id_slot cache_prompt return_tokens return_progress t_max_predict_ms response_fields parse_tool_calls""",
    "anthropic": """thinking stop_sequences top_k cache_control container context_management mcp_servers output_config
        betas inference_geo speed compaction fallbacks diagnostics user_profile_id workspace_id billing_policy""",
    "mistral": "safe_prompt random_seed prompt_mode guardrails top_k min_tokens repetition_penalty",
    "groq": """reasoning_format include_reasoning search_settings exclude_domains include_domains citation_options
        compound_custom disable_tool_validation documents""",
    "openrouter": """top_k top_a min_p repetition_penalty transforms models route reasoning plugins usage
        include_reasoning image_config session_id trace debug""",
    "others": """context_length_exceeded_behavior prompt_truncate_len raw_output perf_metrics_in_response safety_model
        search_mode search_domain_filter search_recency_filter return_images return_related_questions disable_search
        search_parameters deferred enable_search search_options enable_thinking thinking_budget incremental_output
        result_format do_sample tool_stream keep_alive options think raw num_ctx num_predict safety_settings""",
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("vendor", VENDORS)
def test_no_field_that_a_server_has_is_taken_for_a_misspelling(
    face: Face, mock_server: MockServer, vendor: str
) -> None:
    fields = dict.fromkeys(VENDORS[vendor].split(), 1)
    face.complete("hi", **fields)
    assert fields.items() <= mock_server.requests[0].json().items()


def forget(*names: str) -> None:
    """As if nobody had been told of them yet."""
    _misspelt._warned.difference_update(names)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("temprature", "temperature"),
        ("max_token", "max_tokens"),
        ("maxTokens", "max_tokens"),
        ("max_output_tokens", "max_completion_tokens"),
        ("top-p", "top_p"),
        ("presense_penalty", "presence_penalty"),
        ("respone_format", "response_format"),
        ("reasoning_efort", "reasoning_effort"),
        ("streaming", "stream"),
    ],
)
def test_a_misspelt_field_is_sent_with_one_warning(
    face: Face, mock_server: MockServer, written: str, meant: str
) -> None:
    def ask() -> None:
        face.complete("hi", **{written: 5})
        face.complete("hi", **{written: 5})
        face.batch_complete(["hi"], **{written: 5})
        face.create(**{written: 5})

    forget(written)
    with pytest.warns(UserWarning, match=rf"^{written}= .* did you mean {meant}=\?.* extra_body=") as caught:
        ask()
    assert [warning.filename for warning in caught] == [helpers.__file__]  # whoever calls the client
    assert [request.json()[written] for request in mock_server.requests] == [5] * 4


def test_the_warning_points_at_the_users_line(mock_server: MockServer) -> None:
    async def main() -> None:
        async with AsyncClient(api_key=KEY, base_url=mock_server.base_url, model="m") as client:
            await client.complete("hi", temprature=1)
            forget("temprature")
            await asyncio.gather(client.complete("hi", temprature=1))

    forget("temprature")
    with pytest.warns(UserWarning, match="temprature") as caught:
        asyncio.run(main())
    lines = Path(__file__).read_text("utf-8").splitlines()
    assert [warning.filename for warning in caught] == [__file__] * 2
    assert 'await client.complete("hi", temprature=1)' in lines[caught[0].lineno - 1]
    assert "asyncio.run(main())" in lines[caught[1].lineno - 1]  # a task has no caller


@pytest.mark.filterwarnings("error")
def test_what_is_meant_so_goes_without_a_warning(face: Face, mock_server: MockServer) -> None:
    forget("temprature")
    face.create(extra_body={"temprature": 1})
    face.complete("hi", config=CompletionConfig(extra={"temprature": 1}))
    assert [request.json()["temprature"] for request in mock_server.requests] == [1, 1]
    for _ in range(2):
        with pytest.raises(UserWarning, match="did you mean temperature="):
            face.complete("hi", temprature=1)
    assert len(mock_server.requests) == 2


@pytest.mark.parametrize(
    ("written", "advice"),
    [
        ("progress", "stream_many"),
        ("on_error", "return_exceptions=True"),
        ("batch_size", "max_concurrent="),
        ("requests_per_minute", "rate_limiter=RateLimiter"),
    ],
)
def test_what_other_batches_have_is_told_apart(face: Face, written: str, advice: str) -> None:
    forget(written)
    with pytest.warns(UserWarning, match=rf"^{written}= .*{advice}"):
        face.batch_complete(["hi"], **{written: 1})


@pytest.mark.parametrize(
    ("call", "written", "meant"),
    [
        ("parse", "temprature", "temperature"),
        ("responses", "instruction", "instructions"),
        ("responses", "max_output_token", "max_output_tokens"),
        ("completions", "bestof", "best_of"),
        ("embeddings", "dimension", "dimensions"),
    ],
)
def test_other_calls_have_fields_of_their_own(
    face: Face, mock_server: MockServer, call: str, written: str, meant: str
) -> None:
    calls: dict[str, Callable[..., Any]] = {
        "parse": lambda **more: face.parse(response_format={"type": "object"}, **more),
        "responses": lambda **more: face.run(face.client.responses.create(input="hi", **more)),
        "completions": lambda **more: face.run(face.client.completions.create(prompt="hi", **more)),
        "embeddings": lambda **more: face.run(face.client.embeddings.create(input="hi", **more)),
    }
    mock_server.script(Answer(text="{}", times=1))
    forget(written)
    with pytest.warns(UserWarning, match=rf"^{written}= .* did you mean {meant}="):
        calls[call](**{written: 1})
    assert mock_server.requests[0].json()[written] == 1
    with pytest.raises(ConfigurationError, match=r"^max_retry= .* did you mean max_retries="):
        calls[call](max_retry=1)


@pytest.mark.skipif(find_spec("openai") is None, reason="openai is not installed")
def test_the_fields_are_those_of_openai_python() -> None:
    # In a process of its own: where openai is imported, our errors become its errors.
    code = """
from inspect import signature
import openai
from millstream._fields import PATH_FIELDS, REQUEST_FIELDS
client = openai.OpenAI(api_key="k")
calls = [
    (client.chat.completions.create, REQUEST_FIELDS - {"models"}),
    (client.responses.create, PATH_FIELDS["responses"]),
    (client.completions.create, PATH_FIELDS["completions"]),
    (client.embeddings.create, PATH_FIELDS["embeddings"]),
]
for call, fields in calls:
    theirs = signature(call).parameters.keys() - {"extra_headers", "extra_query", "extra_body", "timeout"}
    assert theirs == fields, theirs ^ fields
"""
    done = run_python(code)
    assert (done.returncode, done.stderr) == (0, "")


def test_difflib_is_not_imported_for_fields_of_openai(mock_server: MockServer) -> None:
    code = """
import sys
from millstream import Client
client = Client(api_key="k", base_url=sys.argv[1], model="m")
client.complete("hi", temperature=1, response_format={"type": "text"})
assert "difflib" not in sys.modules
client.complete("hi", top_k=1)
assert "difflib" in sys.modules
"""
    done = run_python(code, mock_server.base_url)
    assert (done.returncode, done.stderr) == (0, "")


# ---- what is made ----


@pytest.mark.parametrize(
    ("make_it", "said"),
    [
        (
            lambda: Client(max_concurrent=3),
            r"Client\(\) has no argument max_concurrent=: did you mean max_concurrency=\?",
        ),
        (lambda: AsyncClient(apikey=KEY), r"AsyncClient\(\) has no argument apikey=: did you mean api_key=\?"),
        (lambda: Client(temperature=0), r"Client\(\) .* config=CompletionConfig\(temperature="),
        (lambda: Client(system="x"), r"Client\(\) has no argument system=: calls take it"),
        (lambda: Client(azure_endpoint="x"), r"azure_endpoint=: .* base_url="),
        (lambda: Client(rpm=60), r"rate_limiter=RateLimiter\("),
        (lambda: Client(nonsense=1), r"nonsense=: it takes api_key, base_url, .* allow_http$"),
        (lambda: Client(KEY), r"Client\(\) takes its arguments by name, as in Client\(api_key=\.\.\.\)"),
        (lambda: create_client("openai", api_key=KEY, timeoute=1), r"create_client\(\) .* timeout=\?"),
        (lambda: create_client("openai", api_key=KEY, asyncmode=1), r"create_client\(\) .* async_mode=\?"),
        (lambda: create_from_config({}, max_concurrent=1), r"create_from_config\(\) .* max_concurrency=\?"),
        (lambda: create_from_config({"modle": "m"}), r"^modle is not a key of the configuration: did you mean model\?"),
        (lambda: create_from_config({"api": {"TIMOUT": 1}}), r"did you mean api\.TIMEOUT\?"),
        (lambda: Client(api_key=KEY).with_options(max_concurrent=3), r"with_options\(\) .* max_concurrency=\?"),
        (
            lambda: Client(api_key=KEY).with_options(http2=True),
            r"with_options\(\) has no argument http2=: .* when it is made",
        ),
        (lambda: RetryPolicy(retries=3), r"RetryPolicy\(\) has no argument retries=: did you mean max_retries=\?"),
        (lambda: RetryPolicy(3), r"RetryPolicy\(\) takes its arguments by name"),
        (lambda: Timeout(60, read=1), r"Timeout\(\) has no argument read=: it takes total, connect, first_byte, idle"),
        (lambda: Timeout(60, 5), r"Timeout\(\) takes its arguments by name, as in Timeout\(connect="),
        (lambda: RateLimiter(request_per_minute=1), r"RateLimiter\(\) .* requests_per_minute=\?"),
        (lambda: CompletionConfig(temprature=0), r"CompletionConfig\(\) .* temperature=\?"),
        (lambda: CompletionConfig(top_k=1), r'extra=\{"top_k": \.\.\.\}'),
        (lambda: CompletionConfig(guided_json={}), r'extra=\{"guided_json": \.\.\.\}'),
        (lambda: MockServer(request_per_minute=1), r"MockServer\(\) .* requests_per_minute=\?"),
        (lambda: Answer(txt="x"), r"Answer\(\) .* text=\?"),
        (lambda: Streaming(chunk=1), r"Streaming\(\) .* chunks=\?"),
        (lambda: AdaptiveBatchPolicy(max_size=1), r"AdaptiveBatchPolicy\(\) .* max_batch_size=\?"),
    ],
)
def test_an_argument_that_is_not_there_is_named_with_what_was_meant(make_it: Callable[[], Any], said: str) -> None:
    with pytest.raises((TypeError, ConfigurationError), match=said) as caught:
        make_it()
    shown = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format())
    assert shown.count(KEY) == 0


def test_the_signature_is_still_the_constructors_own() -> None:
    for kind, name in (
        (Client, "max_concurrency"),
        (AsyncClient, "api_key"),
        (Timeout, "idle"),
        (RetryPolicy, "jitter"),
    ):
        assert name in inspect.signature(kind).parameters
    policy = RetryPolicy(max_retries=3)
    assert pickle.loads(pickle.dumps(policy)) == copy.copy(policy) == dataclasses.replace(RetryPolicy(), max_retries=3)


# ---- hosts ----


def test_the_default_port_is_the_same_host_and_another_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for one, other in [("https://h.test/v1", "https://h.test:443/v2"), ("http://h.test:80", "http://h.test/v1")]:
        for here, there in ((one, other), (other, one)):
            monkeypatch.setenv("OPENAI_BASE_URL", there)
            assert environment_key("openai", here, None) == ("OPENAI_API_KEY", None)
    monkeypatch.setenv("OPENAI_BASE_URL", "https://h.test/v1")
    for other in ("https://h.test:444/v1", "http://h.test:443/v1", "http://h.test/v1"):
        assert environment_key("openai", other, None) is None
