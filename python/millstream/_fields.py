"""Request fields by their names: OpenAI's of each path, and those of others that look like a misspelling of one."""

from __future__ import annotations

# As of openai-python 3.54, and `models` of OpenRouter.
REQUEST_FIELDS = frozenset(
    {
        "audio",
        "frequency_penalty",
        "function_call",
        "functions",
        "logit_bias",
        "logprobs",
        "max_completion_tokens",
        "max_tokens",
        "messages",
        "metadata",
        "modalities",
        "model",
        "models",
        "moderation",
        "n",
        "parallel_tool_calls",
        "prediction",
        "presence_penalty",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "reasoning_effort",
        "response_format",
        "safety_identifier",
        "seed",
        "service_tier",
        "stop",
        "store",
        "stream",
        "stream_options",
        "temperature",
        "tool_choice",
        "tools",
        "top_logprobs",
        "top_p",
        "user",
        "verbosity",
        "web_search_options",
    }
)
"""A chat's."""

PATH_FIELDS = {
    "responses": frozenset(
        {
            "access_programs",
            "background",
            "background_options",
            "context_management",
            "conversation",
            "image",
            "include",
            "input",
            "instructions",
            "max_output_tokens",
            "max_tool_calls",
            "metadata",
            "model",
            "moderation",
            "parallel_tool_calls",
            "previous_response_id",
            "prompt",
            "prompt_cache_key",
            "prompt_cache_options",
            "prompt_cache_retention",
            "reasoning",
            "safety_identifier",
            "service_tier",
            "store",
            "stream",
            "stream_options",
            "temperature",
            "text",
            "tool_choice",
            "tools",
            "top_logprobs",
            "top_p",
            "truncation",
            "user",
        }
    ),
    "completions": frozenset(
        {
            "best_of",
            "echo",
            "frequency_penalty",
            "logit_bias",
            "logprobs",
            "max_tokens",
            "model",
            "n",
            "presence_penalty",
            "prompt",
            "seed",
            "stop",
            "stream",
            "stream_options",
            "suffix",
            "temperature",
            "top_p",
            "user",
        }
    ),
    "embeddings": frozenset({"dimensions", "encoding_format", "input", "model", "user"}),
}
"""Those of the other paths."""

SERVERS_FIELDS = frozenset(
    {
        "fallbacks",  # Anthropic
        "min_tokens",  # vLLM, Mistral
        "parse_tool_calls",  # llama.cpp
        "reasoning_budget",  # llama.cpp
        "reasoning_format",  # llama.cpp, Groq
        "response_fields",  # llama.cpp
        "search_options",  # Alibaba
        "speed",  # Anthropic
        "top_a",  # OpenRouter
        "top_k",  # nearly all
    }
)
"""Of other servers: only those that are near a name of OpenAI's or an argument of ours."""
