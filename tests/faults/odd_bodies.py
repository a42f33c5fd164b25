"""Bodies as servers really send them: odd ones that are answers, and some that look like answers and are none.

The right reading is written beside each. A text: that is the answer, of one request. `NONE`: no answer, whatever its
status says; it is asked for again and then raised.
"""

from __future__ import annotations

import gzip

NONE = None


def answer(content: str = '"fine"', *, choice: str = "", message: str = "", top: str = "") -> bytes:
    """A chat completion; every argument is JSON text."""
    return (
        '{"id":"c","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":'
        f'"assistant","content":{content}{message}}},"finish_reason":"stop"{choice}}}]{top}}}'
    ).encode("utf-8", "surrogatepass")


def of_message(message: str) -> bytes:
    return f'{{"choices":[{{"message":{message}}}]}}'.encode()


def of_choices(choices: str) -> bytes:
    return f'{{"choices":{choices}}}'.encode()


def top(field: str) -> bytes:
    return answer(top="," + field)


REPLACED = "�"

TEXTS: dict[str, tuple[bytes, str | None]] = {
    "a lone high surrogate": (answer('"a\\ud83d"'), "a" + REPLACED),
    "a lone low surrogate": (answer('"\\ude00b"'), REPLACED + "b"),
    "a pair the wrong way round": (answer('"\\ude00\\ud83d"'), REPLACED * 2),
    "a high surrogate before a letter": (answer('"\\ud83dx"'), REPLACED + "x"),
    "a high surrogate before another escape": (answer('"\\ud83d\\n"'), REPLACED + "\n"),
    "a pair": (answer('"\\ud83d\\ude00"'), "😀"),
    "what only looks like a surrogate": (answer('"\\\\ud83d"'), "\\ud83d"),
    "a lone surrogate in a name": (answer(top=',"\\ud83d":1'), "fine"),
    "a NUL": (answer('"a\\u0000b"'), "a\x00b"),
    "line separators": (answer('"a b\x85c"'), "a b\x85c"),
    "every control character": (
        answer('"' + "".join(f"\\u{n:04x}" for n in range(32)) + '"'),
        bytes(range(32)).decode(),
    ),
    "an escaped slash": (answer('"a\\/b"'), "a/b"),
    "an escaped letter": (answer('"\\u0066ine"'), "fine"),
    "a byte that is not UTF-8": (answer('"a!b"').replace(b"!", b"\xff"), f"a{REPLACED}b"),
    "half a character": (answer('"a!"').replace(b"!", b"\xf0\x9f\x98"), "a" + REPLACED),
    "an overlong character": (answer('"!"').replace(b"!", b"\xc0\xaf"), REPLACED * 2),
    "a surrogate in bytes": (answer('"!"').replace(b"!", b"\xed\xa0\xbd"), REPLACED * 3),
    "Latin-1": (answer('"caf!"').replace(b"!", b"\xe9"), "caf" + REPLACED),
    "a byte order mark": (b"\xef\xbb\xbf" + answer(), "fine"),
    "blanks around it": (b" \r\n\t" + answer() + b"\r\n\r\n ", "fine"),
    "four thousand blanks before it": (b"\n" * 4000 + answer(), "fine"),
    "a megabyte of text": (answer('"' + "x" * (1 << 20) + '"'), "x" * (1 << 20)),
    "an empty text": (answer('""'), ""),
    "no text": (answer("null"), ""),
    "parts of text": (answer('[{"type":"text","text":"fi"},{"type":"text","text":"ne"}]'), "fine"),
    "parts that are strings": (answer('["fi","ne"]'), "fine"),
    "a part of an unknown type": (answer('[{"type":"thinking","thinking":[]},{"type":"text","text":"fine"}]'), "fine"),
    "no parts": (answer("[]"), ""),
    "text as an object": (answer('{"type":"text","text":"fine"}'), "fine"),
}

FIELDS: dict[str, tuple[bytes, str | None]] = {
    "no field but what is needed": (of_message('{"content":"fine"}'), "fine"),
    "null wherever it can be": (
        b'{"id":null,"object":null,"created":null,"model":null,"usage":null,"system_fingerprint":null,"error":null,'
        b'"choices":[{"index":null,"logprobs":null,"finish_reason":null,"error":null,"message":{"role":null,'
        b'"content":"fine","refusal":null,"tool_calls":null,"function_call":null,"audio":null,"annotations":null}}]}',
        "fine",
    ),
    "an id that is a number": (top('"id":7'), "fine"),
    "a time that is a text": (top('"created":"2026-11-22"'), "fine"),
    "a time with a fraction": (top('"created":1763800000.25'), "fine"),
    "a time beyond 64 bits": (top('"created":' + "9" * 30), "fine"),
    "a negative time": (top('"created":-1'), "fine"),
    "a model that is an object": (top('"model":{}'), "fine"),
    "a role that is a number": (of_message('{"role":5,"content":"fine"}'), "fine"),
    "a role of its own": (of_message('{"role":"model","content":"fine"}'), "fine"),
    "an index that is a text": (answer(choice=',"index":"0"'), "fine"),
    "a negative index": (answer(choice=',"index":-1'), "fine"),
    "an index out of range": (answer(choice=',"index":99999999999999999999'), "fine"),
    "a reason that is a number": (answer(choice=',"finish_reason":5'), "fine"),
    "a reason that nobody knows": (answer(choice=',"finish_reason":"tired"'), "fine"),
    "probabilities that are a number": (answer(choice=',"logprobs":5'), "fine"),
    "probabilities that are NaN": (answer(choice=',"logprobs":{"content":[{"logprob":NaN}]}'), "fine"),
    "probabilities that are infinite": (answer(choice=',"logprobs":{"content":[{"logprob":-Infinity}]}'), "fine"),
    "NaN, with an odd type besides": (answer(choice=',"finish_reason":5,"logprobs":[NaN,Infinity,"NaN"]'), "fine"),
    "a number beyond a double": (top('"x":1e400,"y":-1e999'), "fine"),
    "a number beyond a double where one is read": (top('"created":1e400'), "fine"),
    "a number of a thousand digits": (top('"x":' + "1" * 1000), "fine"),
    "no usage": (answer(), "fine"),
    "usage that is a text": (top('"usage":"none"'), "fine"),
    "usage that is a list": (top('"usage":[]'), "fine"),
    "usage without a number": (top('"usage":{}'), "fine"),
    "usage of texts": (top('"usage":{"prompt_tokens":"12","completion_tokens":"3","total_tokens":"15"}'), "fine"),
    "usage with fractions": (top('"usage":{"prompt_tokens":1.5,"completion_tokens":2.5,"total_tokens":4}'), "fine"),
    "negative usage": (top('"usage":{"prompt_tokens":-5,"completion_tokens":-1,"total_tokens":-6}'), "fine"),
    "usage beyond 64 bits": (
        top('"usage":{"prompt_tokens":18446744073709551616,"completion_tokens":1e30,"total_tokens":1e300}'),
        "fine",
    ),
    "the largest usage there is": (
        top(
            '"usage":{"prompt_tokens":18446744073709551615,"completion_tokens":18446744073709551615,'
            '"total_tokens":18446744073709551615}'
        ),
        "fine",
    ),
    "usage that does not add up": (
        top('"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":99}'),
        "fine",
    ),
    "tool calls that are no list": (answer(message=',"tool_calls":{}'), "fine"),
    "tool calls that are texts": (answer(message=',"tool_calls":["a",null,5]'), "fine"),
    "a call without a name": (answer(message=',"tool_calls":[{"function":{}}]'), "fine"),
    "arguments as an object": (answer(message=',"tool_calls":[{"function":{"name":"f","arguments":{"a":1}}}]'), "fine"),
    "an empty error": (top('"error":{}'), "fine"),
    "an error without a word": (top('"error":""'), "fine"),
    "no error, in one word": (top('"error":false'), "fine"),
    "the content twice": (answer('"bad","content":"fine"'), "fine"),
    "the choices twice": (
        b'{"choices":[{"message":{"content":"bad"}}],"choices":[{"message":{"content":"fine"}}]}',
        "fine",
    ),
    "an unknown field twice": (top('"x":1,"x":2'), "fine"),
    "an empty name": (top('"":1'), "fine"),
    "a field of half a megabyte": (top('"x":"' + "y" * (1 << 19) + '"'), "fine"),
    "ten thousand fields": (top(",".join(f'"x{n}":{n}' for n in range(10_000))), "fine"),
    "a hundred levels": (top('"x":' + "[" * 100 + "]" * 100), "fine"),
    "a hundred and twenty choices": (
        of_choices(
            "["
            + ",".join(f'{{"index":{n},"message":{{"content":"{"fine" if n == 0 else n}"}}}}' for n in range(120))
            + "]"
        ),
        "fine",
    ),
    "a choice that is null before a good one": (of_choices('[null,{"message":{"content":"fine"}}]'), "fine"),
}

NO_ANSWERS: dict[str, tuple[bytes, str | None]] = {
    name: (body, NONE)
    for name, body in {
        "nothing": b"",
        "blanks": b" \r\n ",
        "a NUL alone": b"\x00",
        "null alone": b"null",
        "true": b"true",
        "a number": b"0",
        "a text": b'"fine"',
        "OK": b"OK",
        "a page": b"<!DOCTYPE html><html><body>502 Bad Gateway</body></html>",
        "a page after blanks": b"\n\n  <html></html>",
        "XML": b'<?xml version="1.0"?><error/>',
        "an empty list": b"[]",
        "an empty object": b"{}",
        "an answer in a list": b"[" + answer() + b"]",
        "an answer as a text": b'"' + answer().replace(b'"', b'\\"') + b'"',
        "two answers": answer() + answer(),
        "an answer and garbage": answer() + b"x",
        "an answer and a NUL": answer() + b"\x00",
        "lines of answers": answer() + b"\n" + answer(),
        "a cut answer": answer()[:-1],
        "half an answer": answer()[: len(answer()) // 2],
        "an answer without its begin": answer()[1:],
        "single quotes": answer().replace(b'"', b"'"),
        "a comma too many": of_choices('[{"message":{"content":"fine"}},]'),
        "a comment": b"// hi\n" + answer(),
        "UTF-16": answer().decode().encode("utf-16"),
        "UTF-32": answer().decode().encode("utf-32"),
        "gzip without a word": gzip.compress(answer()),
        "an event stream": b'data: {"choices":[{"delta":{"content":"fine"}}]}\n\ndata: [DONE]\n\n',
        "a chunk of a stream": of_choices('[{"index":0,"delta":{"content":"fine"},"finish_reason":"stop"}]'),
        "a text completion": of_choices('[{"index":0,"text":"fine","finish_reason":"stop"}]'),
        "choices that are null": of_choices("null"),
        "choices that are a text": of_choices('"fine"'),
        "choices that are an object": of_choices('{"0":{"message":{"content":"fine"}}}'),
        "no choice": of_choices("[]"),
        "a choice that is null": of_choices("[null]"),
        "a choice that is a text": of_choices('["fine"]'),
        "a message that is null": of_message("null"),
        "a message that is a text": of_message('"fine"'),
        "a message without a word": of_message('{"role":"assistant"}'),
        "a text that is a number": answer("5"),
        "a text that is true": answer("true"),
        "a text that is an object without text": answer('{"a":1}'),
        "an error": b'{"error":{"message":"out of memory"}}',
        "an error that is a text": b'{"error":"out of memory"}',
        "an error beside an answer": top('"error":{"message":"out of memory"}'),
        "an error in the choice": of_choices(
            '[{"index":0,"message":{"role":"assistant","content":""},"finish_reason":"error",'
            '"error":{"code":502,"message":"upstream failed"}}]'
        ),
        "an error object of vLLM": b'{"object":"error","message":"out of memory","code":500}',
        "a word of FastAPI": b'{"detail":"Not Found"}',
        "a word of a gateway": b'{"message":"no Route matched with those values"}',
        "a hundred thousand brackets": b"[" * 100_000,
        "a hundred thousand objects": b'{"a":' * 100_000,
        "a hundred thousand levels in an answer that is cut": answer()[:-1] + b',"x":' + b"[" * 100_000,
    }.items()
}

ANSWERS: dict[str, tuple[bytes, str | None]] = {**TEXTS, **FIELDS, **NO_ANSWERS}

ERRORS: dict[str, tuple[bytes, str]] = {
    "OpenAI's": (b'{"error":{"message":"said","type":"t","code":"c","param":"p"}}', "said"),
    "Anthropic's": (b'{"type":"error","error":{"type":"t","message":"said"}}', "said"),
    "Gemini's, in a list": (b'[{"error":{"code":400,"message":"said","status":"INVALID_ARGUMENT"}}]', "said"),
    "Cloudflare's": (b'{"success":false,"errors":[{"code":5007,"message":"said"}]}', "said"),
    "FastAPI's": (b'{"detail":"said"}', "said"),
    "FastAPI's list": (b'{"detail":[{"loc":["body","model"],"msg":"said","type":"missing"}]}', "said"),
    "a flat message": (b'{"message":"said","request_id":"r"}', "said"),
    "a text": (b'{"error":"said"}', "said"),
    "with an error that is null": (b'{"error":null,"message":"said"}', "said"),
    "a message that is null": (b'{"error":{"message":null,"code":"said"}}', "400"),
    "a message that is an object": (b'{"error":{"message":{"a":"said"}}}', "400"),
    "a code that is a number": (b'{"error":{"message":"said","code":400}}', "said"),
    "a code that is a list": (b'{"error":{"message":"said","code":[1],"type":{},"param":5}}', "said"),
    "a lone surrogate": (b'{"error":{"message":"said \\ud83d"}}', "said " + REPLACED),
    "bytes that are not UTF-8": (b'{"error":{"message":"said \xff"}}', "said " + REPLACED),
    "control characters": (b'{"error":{"message":"said \\u0000\\u001b[31m\\r\\n"}}', "said \\u{0}\\u{1b}[31m\\r\\n"),
    "a message of 100 kB": (b'{"error":{"message":"said ' + b"x" * 100_000 + b'"}}', "said xxx"),
    "a byte order mark": (b'\xef\xbb\xbf{"error":{"message":"said"}}', "said"),
    "cut": (b'{"error":{"message":"sa', "400"),
    "a page": (b"<html><title>413</title></html>", "400"),
    "nothing": (b"", "400"),
    "null": (b"null", "400"),
    "a list of numbers": (b"[1,2]", "400"),
    "a number": (b"5", "400"),
    "NUL bytes": (b"\x00" * 1000, "400"),
    "a hundred thousand levels": (b'{"error":' * 100_000, "400"),
    "a megabyte of brackets": (b"[" * (1 << 20), "400"),
    "NaN": (b'{"error":{"message":"said","x":NaN}}', "said"),
}
