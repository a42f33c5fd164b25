"""Event streams as servers really send them, and what is right to make of each.

A text: the whole answer. `Cut`: the text so far, and an error that carries it. `NONE`: nothing of an answer came, so it
is asked for again and then raised.
"""

from __future__ import annotations

from dataclasses import dataclass

NONE = None


@dataclass(frozen=True)
class Cut:
    text: str


def chunk(content: str = '"fine"', reason: str = "null", *, index: str = "0", more: str = "", top: str = "") -> str:
    """One chunk; every argument is JSON text."""
    delta = f'{{"content":{content}{more}}}'
    choice = f'{{"index":{index},"delta":{delta},"finish_reason":{reason}}}'
    return f'{{"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{choice}]{top}}}'


END = '{"id":"c","created":1,"model":"m","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}'
DONE = "[DONE]"
REPLACED = "\N{REPLACEMENT CHARACTER}"


def events(*data: str, line: str = "\n", field: str = "data: ") -> bytes:
    return "".join(f"{field}{each}{line}{line}" for each in data).encode()


def whole(*data: str) -> bytes:
    """These events, the reason of the end and the end mark."""
    return events(*data, END, DONE)


FRAMING: dict[str, tuple[bytes, str | Cut | None]] = {
    "LF": (whole(chunk()), "fine"),
    "CRLF": (events(chunk(), END, DONE, line="\r\n"), "fine"),
    "CR": (events(chunk(), END, DONE, line="\r"), "fine"),
    "all line ends": (
        b"data: %b\r\n\ndata: %b\r\rdata: %b\n\r\ndata: [DONE]\n\n"
        % tuple(each.encode() for each in (chunk('"fi"'), chunk('"ne"'), END)),
        "fine",
    ),
    "a byte order mark": (b"\xef\xbb\xbf" + whole(chunk()), "fine"),
    "no blank after the colon": (events(chunk(), END, DONE, field="data:"), "fine"),
    "two blanks after the colon": (events(chunk(), END, field="data:  ") + events(DONE), "fine"),
    "data over several lines": (
        b'data: {"choices":[{"index":0,\ndata: "delta":{"content":"fine"}}]}\n\n' + whole(),
        "fine",
    ),
    "comments": (b": OPENROUTER PROCESSING\n\n" + events(chunk()) + b":\n\n: x\n" + whole(), "fine"),
    "a comment within an event": (f"data: {chunk()}\n: hi\n\n".encode() + whole(), "fine"),
    "names, ids and times": (f"event: message\nid: 1\nretry: 3000\ndata: {chunk()}\n\n".encode() + whole(), "fine"),
    "an id with a NUL": (f"id: a\x00b\ndata: {chunk()}\n\n".encode() + whole(), "fine"),
    "a time that is no number": (f"retry: soon\ndata: {chunk()}\n\n".encode() + whole(), "fine"),
    "fields that nobody knows": (f"foo: bar\nbaz\ndata: {chunk()}\n\n".encode() + whole(), "fine"),
    "many empty lines": (b"\n\n\n" + events(chunk()) + b"\n\n\n\n" + whole(), "fine"),
    "events without data": (b"event: ping\n\n" + events(chunk()) + b"id: 7\n\n" + whole(), "fine"),
    "data without a word": (b"data\n\ndata:\n\n" + whole(chunk()), "fine"),
    "an event that does not end": (events(chunk(), END) + b"data: [DONE]", "fine"),
    "a last chunk that does not end": (events(chunk()) + f"data: {END}".encode(), "fine"),
    "a name in capitals is another field": (events(chunk('"bad"'), field="DATA: ") + whole(chunk()), "fine"),
    "a NUL in the text": (whole(chunk('"a\\u0000b"')), "a\x00b"),
    "line separators in the text": (
        whole(chunk('"a\u2028b\x85c\x0bd"'.replace("\x0b", "\\u000b"))),
        "a\u2028b\x85c\x0bd",
    ),
    "a byte that is not UTF-8": (whole(chunk('"a!b"')).replace(b"!", b"\xff"), f"a{REPLACED}b"),
    "an event of a megabyte": (whole(chunk('"' + "x" * (1 << 20) + '"')), "x" * (1 << 20)),
    "an event in 20,000 pieces": (whole(*[chunk('"x"')] * 20_000), "x" * 20_000),
}

CHUNKS: dict[str, tuple[bytes, str | Cut | None]] = {
    "a lone surrogate": (whole(chunk('"a\\ud83d"')), "a" + REPLACED),
    "a pair over two chunks": (whole(chunk('"\\ud83d"'), chunk('"\\ude00"')), REPLACED * 2),
    "a role alone first": (whole(chunk("null", more=',"role":"assistant"'), chunk()), "fine"),
    "a role in every chunk": (whole(chunk(more=',"role":"assistant"')), "fine"),
    "empty texts": (whole(chunk('""'), chunk(), chunk('""')), "fine"),
    "no delta": (whole('{"choices":[{"index":0}]}', chunk()), "fine"),
    "a delta that is null": (whole('{"choices":[{"index":0,"delta":null}]}', chunk()), "fine"),
    "no choices": (whole('{"id":"c"}', chunk()), "fine"),
    "choices that are null": (
        whole('{"choices":null,"usage":{"prompt_tokens":1,"completion_tokens":1}}', chunk()),
        "fine",
    ),
    "Azure's word on the prompt": (
        whole('{"id":"","choices":[],"prompt_filter_results":[{"prompt_index":0}]}', chunk()),
        "fine",
    ),
    "a choice without an index": (whole('{"choices":[{"delta":{"content":"fine"}}]}'), "fine"),
    "an index that is a text": (whole(chunk(index='"0"')), "fine"),
    "usage before the end": (events(chunk(), '{"choices":[],"usage":{"total_tokens":2}}', END, DONE), "fine"),
    "usage after the end": (events(chunk(), END, '{"choices":[],"usage":{"total_tokens":2}}', DONE), "fine"),
    "usage of texts": (events(chunk(), END, '{"choices":[],"usage":{"total_tokens":"2"}}', DONE), "fine"),
    "the largest usage, twice": (
        events(
            chunk(),
            *[
                f'{{"choices":[],"usage":{{"prompt_tokens":{2**64 - 1},"completion_tokens":{2**64 - 1},'
                f'"total_tokens":{2**64 - 1}}}}}'
            ]
            * 2,
            END,
            DONE,
        ),
        "fine",
    ),
    "null wherever it can be": (
        whole(
            '{"id":null,"object":null,"created":null,"model":null,"usage":null,"error":null,"choices":[{"index":0,'
            '"logprobs":null,"finish_reason":null,"delta":{"role":null,"content":"fine","refusal":null,"tool_calls":null}}]}'
        ),
        "fine",
    ),
    "an error without a word": (whole(chunk(top=',"error":""'), chunk('"!"', top=',"error":{}')), "fine!"),
    "NaN": (whole(chunk(top=',"x":NaN'), chunk('"!"', more=',"logprobs":[NaN,-Infinity]')), "fine!"),
    "a number beyond a double": (whole(chunk(top=',"x":1e999')), "fine"),
    "a time that is a text": (whole(chunk().replace('"created":1', '"created":"now"')), "fine"),
    "an id that is a number": (whole(chunk().replace('"id":"c"', '"id":7')), "fine"),
    "text in parts": (whole(chunk('[{"type":"text","text":"fine"}]')), "fine"),
    "a message in place of a delta": (whole('{"choices":[{"index":0,"message":{"content":"fine"}}]}'), "fine"),
    "a reason that nobody knows": (events(chunk(reason='"tired"')), "fine"),
    "a reason twice": (events(chunk(reason='"stop"'), END, DONE), "fine"),
    "the reason with the last text": (events(chunk(reason='"length"'), DONE), "fine"),
    "an end mark and no reason": (events(chunk(), DONE), "fine"),
    "a reason and no end mark": (events(chunk(), END), "fine"),
    "an end mark with blanks": (events(chunk(), END, "[DONE]  "), "fine"),
    "words after the end mark": (events(chunk(), END, DONE, chunk('"bad"')), "fine"),
    "garbage after the end mark": (events(chunk(), END, DONE) + b"\xff\x00 garbage", "fine"),
    "a hundred levels": (whole(chunk(top=',"x":' + "[" * 100 + "]" * 100)), "fine"),
    "a thousand tool calls": (
        whole(
            chunk(),
            *[chunk("null", more=f',"tool_calls":[{{"index":{n},"function":{{"name":"f"}}}}]') for n in range(1000)],
        ),
        "fine",
    ),
    "an index of a call out of range": (
        whole(chunk(), chunk("null", more=',"tool_calls":[{"index":4294967295,"function":{"name":"f"}}]')),
        "fine",
    ),
}

BROKEN: dict[str, tuple[bytes, str | Cut | None]] = {
    "nothing": (b"", NONE),
    "a comment alone": (b": hi\n\n", NONE),
    "an end mark alone": (events(DONE), NONE),
    "a page": (b"<html>502</html>\n\n", NONE),
    "a page as data": (events("<html>502</html>"), NONE),
    "null as data": (events("null", DONE), NONE),
    "a number as data": (events("5", DONE), NONE),
    "a list as data": (events("[]", DONE), NONE),
    "an error at once": (events('{"error":{"message":"overloaded","type":"server_error"}}'), NONE),
    "an error event at once": (b'event: error\ndata: {"message":"overloaded"}\n\n', NONE),
    "an error event of a text": (b"event: error\ndata: overloaded\n\n", NONE),
    "a role and no more": (events(chunk("null", more=',"role":"assistant"')), NONE),
    "cut after a chunk": (events(chunk()), Cut("fine")),
    "cut in a chunk": (events(chunk()) + events(chunk('"more"'))[:40], Cut("fine")),
    "cut in a character": (events(chunk()) + events(chunk('"\u00e9"'))[:-50], Cut("fine")),
    "an error after a chunk": (events(chunk(), '{"error":{"message":"overloaded","code":502}}'), Cut("fine")),
    "an error object after a chunk": (
        events(chunk(), '{"object":"error","message":"no memory","code":500}'),
        Cut("fine"),
    ),
    "a page after a chunk": (events(chunk(), "<html>502</html>"), Cut("fine")),
    "half a chunk as a whole event": (events(chunk(), chunk()[:30]), Cut("fine")),
    "a hundred thousand brackets": (events(chunk(), "[" * 100_000), Cut("fine")),
    "ten thousand tool calls": (
        whole(
            chunk(),
            *[chunk("null", more=f',"tool_calls":[{{"index":{n},"function":{{"name":"f"}}}}]') for n in range(10_001)],
        ),
        Cut("fine"),
    ),
    "ten thousand choices": (whole(chunk(), *[chunk('"x"', index=str(n)) for n in range(1, 10_002)]), Cut("fine")),
}

STREAMS: dict[str, tuple[bytes, str | Cut | None]] = {**FRAMING, **CHUNKS, **BROKEN}
