"""Ours are caught by openai-python's names, where it is imported; and it is needed nowhere.

Each test has processes of its own: classes that were joined stay so.
"""

from __future__ import annotations

import base64
import importlib.util
from typing import TYPE_CHECKING

import pytest
from helpers import run_python
from millstream.testing import Answer

if TYPE_CHECKING:
    from millstream.testing import MockServer

needs_openai = pytest.mark.skipif(importlib.util.find_spec("openai") is None, reason="openai is not installed")

# What a program without openai sees, wherever the tests run.
WITHOUT_OPENAI = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "openai":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
"""

EVERY_ERROR = """
import millstream
from millstream import exceptions

def make(name):
    kind = getattr(exceptions, name)
    try:
        return kind("text")
    except TypeError:
        return kind("text", None)

EVERY = {name: make(name) for name in exceptions.__all__}
"""


def passes(code: str, *arguments: str) -> str:
    """What code that must end well prints."""
    done = run_python(code, *arguments)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


@needs_openai
def test_each_error_is_openais_of_that_name() -> None:
    out = passes(
        "import openai"
        + EVERY_ERROR
        + """
named_alike = 0
for name, error in EVERY.items():
    assert isinstance(error, exceptions.MillstreamError)
    if name != "MillstreamError":
        assert isinstance(error, openai.OpenAIError), name
    if theirs := getattr(openai, name, None):
        assert isinstance(error, theirs), name
        named_alike += 1
for name in openai._exceptions.__all__:
    if hasattr(exceptions, name):
        assert issubclass(getattr(exceptions, name), getattr(openai, name)), name
print(named_alike)
"""
    )
    assert int(out) >= 15


@needs_openai
@pytest.mark.parametrize("first", ["import openai, millstream", "import millstream, openai"])
def test_an_except_clause_written_for_openai_catches_ours(mock_server: MockServer, first: str) -> None:
    refused = {"error": {"message": "slow down", "code": "c"}}
    mock_server.script(
        # The first: one on a connection that was used before is silently sent again.
        Answer(fault="reset_before"),
        Answer(status=400, body={}),
        Answer(fault="hang_before"),
        # The last, for it holds everyone who comes after.
        Answer(status=429, body=refused, headers={"x-request-id": "req_1"}),
    )
    out = passes(
        first
        + """
import builtins, sys, traceback
client = millstream.Client(api_key="sk-test", base_url=sys.argv[1], model="m", max_retries=0, timeout=20)
try:
    client.complete("hi")
except openai.APIConnectionError as error:
    assert isinstance(error, builtins.ConnectionError) and not isinstance(error, openai.APITimeoutError)
try:
    client.complete("hi")
except openai.APIStatusError as error:
    assert isinstance(error, openai.BadRequestError)
try:
    client.complete("hi", timeout=0.05)
except openai.APITimeoutError as error:
    assert isinstance(error, builtins.TimeoutError)
try:
    client.complete("hi")
except openai.RateLimitError as error:
    assert type(error) is millstream.RateLimitError
    assert (error.status_code, error.code, error.request_id, error.body["message"]) == (429, "c", "req_1", "slow down")
    assert "slow down" in str(error) and repr(error) == f"RateLimitError({str(error)!r})"
    assert traceback.format_exc().splitlines()[-1] == f"millstream.exceptions.RateLimitError: {error}"
    assert not hasattr(error, "response")
try:
    client.complete("hi", timeout=-1)
except openai.OpenAIError as error:
    assert isinstance(error, ValueError)
print("caught")
""",
        mock_server.base_url,
    )
    assert out == "caught\n"


@needs_openai
def test_an_answer_cut_at_its_length_is_openais_error_too(mock_server: MockServer) -> None:
    mock_server.script(Answer(text='{"a": ', finish_reason="length"))
    out = passes(
        """
import dataclasses, openai, millstream, sys
@dataclasses.dataclass
class A:
    a: int
client = millstream.Client(api_key="sk-test", base_url=sys.argv[1], model="m")
try:
    client.chat.completions.parse(messages=[{"role": "user", "content": "hi"}], response_format=A)
except openai.LengthFinishReasonError as error:
    print(error.completion.choices[0].finish_reason)
""",
        mock_server.base_url,
    )
    assert out == "length\n"


@needs_openai
def test_a_pickle_knows_nothing_of_openai() -> None:
    pickled = passes(
        "import base64, openai, pickle"
        + EVERY_ERROR
        + """
EVERY["RateLimitError"].retry_after = 2.0
assert isinstance(EVERY["RateLimitError"], openai.RateLimitError)
print(base64.b64encode(pickle.dumps(EVERY)).decode())
"""
    ).strip()
    assert b"openai" not in base64.b64decode(pickled)
    read = """
import base64, pickle, sys
for name, error in pickle.loads(base64.b64decode(sys.argv[1])).items():
    assert type(error).__name__ == name and str(error) == "text"
    last = error
    if name == "RateLimitError":
        assert error.retry_after == 2.0
"""
    passes(WITHOUT_OPENAI + read + 'assert "openai" not in sys.modules', pickled)
    passes("import openai" + read + "assert isinstance(error, openai.APIError)", pickled)


def test_without_openai_nothing_is_missing() -> None:
    passes(
        WITHOUT_OPENAI
        + EVERY_ERROR
        + """
assert exceptions.RateLimitError.__mro__[-3:] == (Exception, BaseException, object)
assert exceptions.APIError.__bases__ == (exceptions.MillstreamError,)
assert "openai" not in sys.modules and "millstream._openai_errors" not in sys.modules
"""
    )


@needs_openai
def test_an_openai_that_is_installed_but_not_used_is_not_imported() -> None:
    passes(EVERY_ERROR + 'import sys; assert "openai" not in sys.modules and "httpx" not in sys.modules')


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"RateLimitError": "'not a class'", "APIError": "object"},
        {"APIError": "millstream.RateLimitError", "RateLimitError": "millstream.APIError"},
    ],
    ids=["empty", "no exceptions", "upside down"],
)
def test_any_module_of_that_name_leaves_our_errors_what_they_are(attributes: dict[str, str]) -> None:
    """One half imported, a test's fake, another project's file."""
    names = "".join(
        f"fake.{name} = {value if ' ' not in value else repr(value)}\n" for name, value in attributes.items()
    )
    passes(
        "import sys, types, millstream\nfake = types.ModuleType('openai')\n"
        + names
        + "sys.modules['openai'] = fake"
        + EVERY_ERROR
        + """
assert all(isinstance(error, exceptions.MillstreamError) for error in EVERY.values())
assert str(EVERY["RateLimitError"]) == "text"
"""
    )


def test_names_that_come_later_are_found_then() -> None:
    """An error is made by another thread while openai is being imported."""
    passes(
        """
import sys, types
from millstream import RateLimitError
fake = sys.modules["openai"] = types.ModuleType("openai")
RateLimitError("early")
class APIStatusError(Exception): ...
class TheirRateLimitError(APIStatusError):
    def __init__(self, message, *, response): ...
fake.APIStatusError, fake.RateLimitError = APIStatusError, TheirRateLimitError
assert isinstance(RateLimitError("late"), TheirRateLimitError)
"""
    )
