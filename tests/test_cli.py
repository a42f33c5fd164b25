"""The command ``millstream``, as a shell runs it: processes of their own against a mock server."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import click
import pytest
from helpers import KEY, last_request, until
from millstream import Prices
from millstream.cli import main
from millstream.cli._app import app
from millstream.cli._exit import in_options
from millstream.cli._options import leaves
from millstream.testing import Answer, MockServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Cli = subprocess.CompletedProcess[str]
COMMAND = [sys.executable, "-m", "millstream.cli"]
PATIENCE_S = 60


def run(*arguments: str | Path, stdin: str | None = None, **environment: str) -> Cli:
    given: dict[str, Any] = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        **given,
    )


def call(*arguments: str | Path, **environment: str) -> Cli:
    """The same in this process, for what takes no signals: an interpreter's start takes half a second."""
    texts = [str(each) for each in arguments]
    out, error = io.StringIO(), io.StringIO()
    with mock.patch.dict(os.environ, environment), redirect_stdout(out), redirect_stderr(error):
        code = main(texts)
    return subprocess.CompletedProcess(texts, code, out.getvalue(), error.getvalue())


def take_interrupts() -> None:
    """Whoever started the tests may have told them to ignore Ctrl-C, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def started(*arguments: str | Path, **environment: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=take_interrupts,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def here(mock_server: MockServer) -> list[str]:
    return ["--base-url", mock_server.base_url, "--model", "m"]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(name: str, *lines: Any) -> Path:
        path = tmp_path / name
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
        return path

    return write


# ---- help ----


def commands() -> dict[str, click.Command]:
    return dict(leaves(app))


def test_the_commands_are_those_we_think() -> None:
    alone = {"ask", "check", "completion", "embed", "run", "serve-mock", "stats"}
    groups = {"batch": {"cancel", "fetch", "status", "submit"}, "cache": {"clear", "export", "stats"}}
    assert commands().keys() == alone | {f"{group} {name}" for group, names in groups.items() for name in names}
    for arguments, names in (([], {*alone, *groups}), *(([group], names) for group, names in groups.items())):
        done = run(*arguments, "--help")
        assert done.returncode == 0
        assert all(f"  {name} " in done.stdout for name in names)


def examples(text: str) -> list[list[str]]:
    return [
        shlex.split(found) for found in re.findall(r"^.*?(?<!\S)millstream (\w.*?)(?: [|>].*)?$", text, re.MULTILINE)
    ]


@pytest.mark.parametrize("name", ["", *commands()])
def test_the_examples_of_the_help_name_options_that_there_are(name: str) -> None:
    text = (commands()[name] if name else app).help or ""
    assert "Examples:" in text
    found = examples(text.partition("Examples:")[2])
    assert found
    for arguments in found:
        (called,) = [each for each in commands() if arguments[: len(each.split())] == each.split()]
        command = commands()[called]
        command.make_parser(click.Context(command)).parse_args(arguments[len(called.split()) :])


def test_every_option_says_what_it_does() -> None:
    options = [
        option for command in commands().values() for option in command.params if isinstance(option, click.Option)
    ]
    assert len(options) > 40
    assert all(option.help for option in options)


@pytest.mark.tree
def test_the_page_is_what_the_help_says() -> None:
    tool = Path(__file__).resolve().parent.parent / "tools" / "cli_docs.py"
    command = [sys.executable, "-W", "ignore", str(tool), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert (done.returncode, done.stderr) == (0, "")


def test_without_click_one_line_says_what_to_install() -> None:
    code = "import sys; sys.modules['click'] = None; from millstream.cli import main; sys.exit(main(['--help']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == (
        "millstream: the command line needs click and rich: pip install 'millstream[cli]'"
    )
    assert "Traceback" not in done.stderr


def test_the_script_is_installed() -> None:
    from importlib.metadata import entry_points

    (script,) = entry_points(group="console_scripts", name="millstream")
    assert callable(script.load())


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_can_complete(shell: str) -> None:
    done = run("completion", shell)
    assert done.returncode == 0
    assert f"_MILLSTREAM_COMPLETE={shell}_complete" in done.stdout


def test_commands_and_options_are_completed() -> None:
    def completed(words: str) -> str:
        number = str(len(words.split(" ")) - 1)
        return run(_MILLSTREAM_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=number).stdout

    assert "plain,serve-mock" in completed("millstream ser")
    assert "plain,--budget-usd" in completed("millstream run --budg")


@pytest.mark.parametrize(
    "arguments",
    [
        ["nothing"],
        ["ask", "x", "--retries", "many"],
        ["ask", "x", "--timeout", "soon"],
        ["ask", "x", "--rpm", "0"],
        ["ask", "x", "--param", "novalue"],
        ["ask", "x", "--stream", "--json"],
        ["ask", "x", "--api-key", KEY],
        ["ask", "x", "--profile", "p"],
        ["ask", "x", "--config", "absent.toml"],
        ["ask", "x", "--api-key-env", "ABSENT", "--model", "m"],
        ["ask", "x", "--base-url", "ftp://x", "--model", "m"],
        ["ask", "x", "--base-url", "http://127.0.0.1:1/v1"],
        ["check", "absent.jsonl"],
        ["stats"],
        ["serve-mock", "--fault", "earthquake"],
        ["serve-mock", "--fault", "200"],
    ],
    ids=" ".join,
)
def test_bad_usage_is_two_and_says_why(arguments: list[str]) -> None:
    done = call(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Error: " in done.stderr
    assert "Traceback" not in done.stderr


def test_there_is_no_option_for_a_key() -> None:
    names = {name for command in commands().values() for option in command.params for name in option.opts}
    assert not {name for name in names if "key" in name} - {"--api-key-env"}


# ---- ask ----


def test_ask_prints_the_answer(here: list[str]) -> None:
    done = run("ask", "one two", *here)
    assert (done.returncode, done.stdout) == (0, "echo: one two\n")


def test_ask_reads_stdin(here: list[str]) -> None:
    for arguments in (["ask"], ["ask", "-"]):
        done = run(*arguments, *here, stdin="of a pipe")
        assert (done.returncode, done.stdout) == (0, "echo: of a pipe\n")
    for nothing in (None, " \n"):
        assert run("ask", *here, stdin=nothing).returncode == 2


def test_ask_streams(here: list[str], mock_server: MockServer) -> None:
    done = run("ask", "one two", "--stream", *here)
    assert (done.returncode, done.stdout) == (0, "echo: one two\n")
    assert json.loads(last_request(mock_server).body)["stream"] is True


def test_ask_sends_what_the_options_say(here: list[str], mock_server: MockServer) -> None:
    more = ["--system", "Be brief.", "--param", "temperature=0", "--param", "user=me", "--param", 'stop=["x"]']
    for extra in ([], ["--stream"]):
        assert run("ask", "hi", *here, *more, *extra).returncode == 0
        body = json.loads(last_request(mock_server).body)
        assert (body["model"], body["temperature"], body["user"], body["stop"]) == ("m", 0, "me", ["x"])
        assert body["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]


def test_ask_prints_the_whole_answer_as_json(here: list[str]) -> None:
    done = run("ask", "hi", *here, "--json")
    assert json.loads(done.stdout)["choices"][0]["message"]["content"] == "echo: hi"


@pytest.mark.parametrize("extra", [[], ["--stream"]])
def test_usage_tells_the_cost_and_an_unknown_price_is_unknown(here: list[str], extra: list[str]) -> None:
    done = run("ask", "hi", *here, "--usage", *extra)
    assert done.stdout == "echo: hi\n"
    assert re.search(r"m · \d+ \+ \d+ tokens · cost unknown · .* s, attempts: 1", done.stderr)
    assert "$" not in done.stderr
    known = run("ask", "hi", *here[:2], "--model", "gpt-4o-mini", "--usage", *extra)
    assert re.search(r"cost \$0\.0000\d", known.stderr)


def test_ask_that_fails_is_one_and_shows_no_prompt(here: list[str], mock_server: MockServer) -> None:
    mock_server.script(Answer(status=400))
    done = run("ask", "the secret plan", *here)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith("Error: 400 ")
    assert "secret plan" not in done.stderr


def test_retries_are_as_many_as_told(here: list[str], mock_server: MockServer) -> None:
    mock_server.script(Answer(status=503, times=0))
    assert run("ask", "hi", *here, "--retries", "1").returncode == 1
    assert mock_server.stats.requests == 2


def test_ctrl_c_ends_ask_with_130(here: list[str], mock_server: MockServer) -> None:
    mock_server.script(Answer(fault="hang_before"))
    with started("ask", "hi", *here) as process:
        until(lambda: mock_server.stats.in_flight == 1, PATIENCE_S)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 130
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


# ---- keys and configuration files ----


def key_of(server: MockServer) -> str | None:
    return {name.lower(): value for name, value in last_request(server).headers}.get("authorization")


def test_the_key_is_that_of_the_variable_that_is_named(here: list[str], mock_server: MockServer) -> None:
    assert run("ask", "hi", *here, "--api-key-env", "MY_KEY", MY_KEY=KEY).returncode == 0
    assert key_of(mock_server) == f"Bearer {KEY}"


def test_the_vendors_key_goes_to_no_other_host(here: list[str], mock_server: MockServer) -> None:
    assert run("ask", "hi", *here, OPENAI_API_KEY=KEY).returncode == 0
    assert key_of(mock_server) is None


def test_a_configuration_files_key_goes_to_its_own_server_alone(
    write: Callable[..., Path], mock_server: MockServer
) -> None:
    own = write("c.json", {"base_url": mock_server.base_url, "model": "m", "api_key": KEY})
    assert run("ask", "hi", "--config", own).returncode == 0
    assert key_of(mock_server) == f"Bearer {KEY}"
    with MockServer() as other:
        assert run("ask", "hi", "--config", own, "--base-url", other.base_url).returncode == 0
        assert key_of(other) is None
        arguments = ["--config", own, "--base-url", other.base_url, "--api-key-env", "OTHER"]
        assert run("ask", "hi", *arguments, OTHER="sk-other-0123").returncode == 0
        assert key_of(other) == "Bearer sk-other-0123"


def test_a_profile_goes_over_the_file_and_the_command_line_over_both(
    write: Callable[..., Path], mock_server: MockServer
) -> None:
    file = write(
        "c.toml",
        f'base_url = "{mock_server.base_url}"',
        'model = "of the file"',
        '[options]\nsystem = "of the file"',
        "[options.param]\ntemperature = 0",
        '[profiles.p]\nmodel = "of the profile"',
        '[profiles.p.options]\nsystem = "of the profile"',
    )

    def sent(*arguments: str, **environment: str) -> tuple[str, str, float]:
        done = run("ask", "hi", *arguments, **environment)
        assert done.returncode == 0, done.stderr
        body = json.loads(last_request(mock_server).body)
        return body["model"], body["messages"][0]["content"], body["temperature"]

    config = ["--config", str(file)]
    assert sent(*config) == ("of the file", "of the file", 0)
    assert sent(*config, "--profile", "p") == ("of the profile", "of the profile", 0)
    over = ["--model", "x", "--system", "y", "--param", "temperature=1"]
    assert sent("--profile", "p", *config, *over) == ("x", "y", 1)
    assert sent(MILLSTREAM_CONFIG=str(file), MILLSTREAM_PROFILE="p") == ("of the profile", "of the profile", 0)


def test_api_options_of_the_file_hold_and_the_command_line_goes_over_them(
    write: Callable[..., Path], mock_server: MockServer
) -> None:
    file = write("c.json", {"base_url": mock_server.base_url, "model": "m", "api": {"MAX_RETRIES": 0, "MAX_TOKENS": 7}})
    mock_server.script(Answer(status=503, times=3))
    assert run("ask", "hi", "--config", file).returncode == 1
    assert mock_server.stats.requests == 1
    assert run("ask", "hi", "--config", file, "--retries", "2").returncode == 0
    assert json.loads(last_request(mock_server).body)["max_tokens"] == 7


@pytest.mark.tree
def test_the_configuration_files_of_the_page_and_of_the_help_are_valid(write: Callable[..., Path]) -> None:
    page = (Path(__file__).resolve().parent.parent / "docs" / "cli.md").read_text(encoding="utf-8")
    (of_page,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    of_help = re.split("A configuration file:", commands()["run"].help or "")[1].partition("\b")[0]
    in_file = write("in.jsonl", {"prompt": "x"})
    for text in (of_page, of_help):
        done = call("check", in_file, "--config", write("c.toml", text), "--profile", "local")
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        assert "by 500 requests/min" in done.stdout


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"modle": "m"}, "modle"),
        ({"rpm": 5}, "put it into the section options"),
        ({"options": {"rmp": 5}}, "options.rmp is not an option"),
        ({"options": {"rpm": "many"}}, "'many' is no number"),
        ({"options": 3}, "options must be a section"),
        ({"options": {"param": 3}}, "options.param must be a section"),
        ({"profiles": {"q": {}}}, "profile 'p' is not there; profiles are q"),
        ({"profiles": {"p": 3}}, "profiles must be a section of sections"),
        ({"model": 3}, "model must be a str"),
        ("[1]", "must hold a mapping"),
        ("{", "is not JSON"),
    ],
)
def test_what_is_wrong_in_a_configuration_file_is_named(
    write: Callable[..., Path], content: dict[str, Any] | str, complaint: str
) -> None:
    done = call(
        "ask", "hi", "--config", write("c.json", content), *(["--profile", "p"] if "profiles" in content else [])
    )
    assert done.returncode == 2
    assert complaint in done.stderr


# ---- check ----

CHAT = {"messages": [{"role": "user", "content": "x" * 384}]}
LINES = [
    {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "gpt-4o-mini", **CHAT}},
    {"custom_id": "b", "body": {"model": "gpt-4o-mini", **CHAT, "max_tokens": 50}},
    {"custom_id": "c", "params": {"model": "claude-haiku-4-5", **CHAT, "max_tokens": 50}},
    {"prompt": "x" * 400},
    CHAT,
    {"model": "gpt-4o-mini", **CHAT, "metadata": {}},
    {"model": "text-embedding-3-small", "input": "x" * 400},
]


def test_check_takes_every_form_of_a_line_and_sends_nothing(
    write: Callable[..., Path], here: list[str], mock_server: MockServer
) -> None:
    done = call("check", write("in.jsonl", *LINES, ""), *here[:2], "--model", "gpt-4o-mini", "--json")
    facts = json.loads(done.stdout)
    assert (done.returncode, facts["requests"], facts["bad_lines"], facts["problems"]) == (0, 7, 0, [])
    assert facts["models"] == {"gpt-4o-mini": 5, "claude-haiku-4-5": 1, "text-embedding-3-small": 1}
    assert facts["prompt_tokens"] == 704
    assert mock_server.stats.connections == 0


def test_check_bounds_the_cost_by_what_answers_may_be(write: Callable[..., Path]) -> None:
    line = {"prompt": "x" * 4000, "max_tokens": 500}
    file = write("in.jsonl", *[line] * 10)
    facts = json.loads(call("check", file, "--model", "gpt-4o-mini", "--json").stdout)
    price = Prices().of("gpt-4o-mini")
    assert price is not None
    assert facts["answer_tokens"] == 5000
    assert facts["cost_usd"] == pytest.approx(price.cost(10_040, 5000))
    guessed = json.loads(call("check", file, "--model", "gpt-4o-mini", "--json", "--answer-tokens", "100").stdout)
    assert guessed["cost_usd"] == pytest.approx(price.cost(10_040, 1000))


def test_a_vendors_batch_costs_half(write: Callable[..., Path]) -> None:
    file, out = write("in.jsonl", *LINES[1:3]), write("out.jsonl", answered(1))
    for command in (["check", file], ["stats", out]):
        whole, half = (json.loads(call(*command, "--json", *extra).stdout)["cost_usd"] for extra in ([], ["--batch"]))
        assert 0 < half == pytest.approx(whole / 2)


def test_check_says_what_it_cannot_know(write: Callable[..., Path]) -> None:
    file = write("in.jsonl", {"prompt": "hi"})
    done = call("check", file, "--model", "mine")
    assert done.returncode == 0
    assert "unknown: no price of mine" in done.stdout
    assert "unknown for 1 without max_tokens" in done.stdout
    assert "unknown: give --rpm" in done.stdout
    assert "$" not in done.stdout
    facts = json.loads(call("check", file, "--model", "mine", "--json").stdout)
    assert (facts["cost_usd"], facts["answer_tokens"], facts["seconds"]) == (None, None, None)


def test_check_takes_prices_of_ones_own(write: Callable[..., Path]) -> None:
    prices = write("p.json", {"mine*": {"input": 10, "output": 100}})
    file = write("in.jsonl", {"prompt": "x" * 4_000_000, "max_tokens": 10_000})
    for arguments, environment in ((["--prices", prices], {}), ([], {"MILLSTREAM_PRICES": str(prices)})):
        done = call("check", file, "--model", "mine-1", *arguments, **environment)
        assert "at most $11.00: prompts $10.00, answers $1.00" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "seconds"),
    [
        (["--rpm", "10"], 60 * 9),
        (["--rpm", "100"], 0),
        (["--tpm", "1k"], 60 * 49),
        (["--max-concurrency", "4", "--latency", "2s"], 50),
        (["--rpm", "10", "--tpm", "1k", "--max-concurrency", "4", "--latency", "2s"], 60 * 49),
    ],
)
def test_check_estimates_the_time_from_the_limits(
    write: Callable[..., Path], arguments: list[str], seconds: float
) -> None:
    file = write("in.jsonl", *[{"prompt": "hi", "max_tokens": 500}] * 100)
    facts = json.loads(call("check", file, "--model", "mine", "--json", *arguments).stdout)
    assert facts["seconds"] == pytest.approx(seconds)


def test_check_names_bad_lines_by_their_number_and_counts_the_others(write: Callable[..., Path]) -> None:
    bad = ["nope", "[1]", {"custom_id": 3, "prompt": "x"}, {"body": 3}, {"url": "http://x", "body": {}}, {"x": 1}]
    bad += [{"prompt": "x", "base_url": "http://evil"}, {"prompt": "x", "API_KEY": "k"}, {"method": "GET", "body": {}}]
    bad += [{"custom_id": "", "prompt": "x"}, {"prompt": []}, {"body": {"model": "m"}}, {"prompt": "x", "model": 3}]
    file = write("in.jsonl", {"prompt": "fine"}, *bad)
    done = call("check", file, "--model", "mine")
    assert done.returncode == 1
    assert re.findall(rf"^{re.escape(str(file))}:(\d+): \S", done.stdout, re.MULTILINE) == [
        str(number) for number in range(2, 15)
    ]
    assert re.search(r"requests +1\n", done.stdout)
    assert call("check", file, "--model", "mine", "--strict").returncode == 2


def test_check_wants_a_model_for_lines_that_name_none(write: Callable[..., Path]) -> None:
    done = call("check", write("in.jsonl", {"prompt": "x"}, {"prompt": "x", "model": "m"}))
    assert done.returncode == 1
    assert "in.jsonl:1: it names no model" in done.stdout


def test_a_custom_id_twice_is_refused_with_both_lines(write: Callable[..., Path]) -> None:
    done = call("check", write("in.jsonl", *[{"custom_id": name, "prompt": "x"} for name in "aba"]), "--model", "m")
    assert done.returncode == 2
    assert "in.jsonl:3: custom_id 'a' is that of line 1" in done.stdout


def test_check_is_a_command_of_a_shell_too(write: Callable[..., Path]) -> None:
    done = run("check", write("in.jsonl", "nope"), "--model", "m")
    assert done.returncode == 1
    assert "in.jsonl:1: it is no JSON object" in done.stdout


# ---- stats ----


def answered(latency_ms: float, model: str = "gpt-4o-mini", **extra: Any) -> dict[str, Any]:
    usage = {"prompt_tokens": 1000, "completion_tokens": 100}
    body = {"model": model, "usage": usage}
    more = {"line": 1, "attempts": 2, "queue_ms": 1.0, "latency_ms": latency_ms, "cached": False, "key_id": "abcd"}
    response = {"status_code": 200, "request_id": "r", "body": body}
    return {"id": "1", "custom_id": "x", "response": response, "error": None, "millstream": {**more, **extra}}


def failed(code: str) -> dict[str, Any]:
    return {"id": "1", "custom_id": "x", "response": None, "error": {"code": code, "message": "no"}}


def refused(status: int, **error: str) -> dict[str, Any]:
    return {**failed(""), "error": None, "response": {"status_code": status, "body": {"error": error}}}


def test_stats_count_outcomes_codes_tokens_cost_and_latencies(write: Callable[..., Path]) -> None:
    file = write(
        "out.jsonl",
        *[answered(10.0 * number) for number in range(1, 101)],
        failed("timeout"),
        failed("timeout"),
        refused(400, code="too_long"),
        refused(500),
        '{"torn',
    )
    facts = json.loads(call("stats", file, "--json").stdout)
    assert (facts["answered"], facts["failed"], facts["unreadable_lines"]) == (100, 4, 1)
    assert facts["error_codes"] == {"timeout": 2, "400 too_long": 1, "500": 1}
    assert (facts["prompt_tokens"], facts["completion_tokens"], facts["attempts"]) == (100_000, 10_000, 200)
    price = Prices().of("gpt-4o-mini")
    assert price is not None
    assert facts["cost_usd"] == pytest.approx(price.cost(100_000, 10_000))
    expected = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "max": 1.0}
    assert facts["latency_seconds"] == pytest.approx(expected)
    assert facts["keys"] == {"abcd": 100}

    text = call("stats", file).stdout
    for said in ("answered", "timeout", "400 too_long", "p95", "0.950 s", "$0.02", "█"):
        assert said in text
    bars = re.findall(r"<= [\d.]+ m?s +(\d+) ", text)
    assert sum(map(int, bars)) <= 100
    assert len(bars) >= 10


def test_stats_take_bare_lines_and_anthropics_words_and_several_files(write: Callable[..., Path]) -> None:
    bare = answered(1)
    del bare["millstream"]
    bare["response"]["body"]["usage"] = {"input_tokens": 3, "output_tokens": 4}
    files = [write("a.jsonl", bare), write("b.jsonl", failed("connection_error"))]
    facts = json.loads(call("stats", *files, "--json").stdout)
    assert (facts["answered"], facts["failed"], facts["prompt_tokens"], facts["completion_tokens"]) == (1, 1, 3, 4)
    assert facts["latency_seconds"] == {}
    assert call("stats", *files).returncode == 0


def test_stats_show_an_unknown_price_as_unknown_and_not_as_nothing(write: Callable[..., Path]) -> None:
    file = write("out.jsonl", answered(1, model="mine"))
    assert json.loads(call("stats", file, "--json").stdout)["cost_usd"] is None
    text = call("stats", file).stdout
    assert "unknown for 1 answers of mine" in text
    assert "$" not in text
    mixed = call("stats", write("mixed.jsonl", answered(1, model="mine"), answered(1))).stdout
    assert re.search(r"\$0\.\d+, unknown for 1 answers", mixed)


def test_stats_of_an_empty_file_are_all_nothing(write: Callable[..., Path]) -> None:
    done = call("stats", write("out.jsonl"))
    assert done.returncode == 0
    assert "answered" in done.stdout


# ---- run ----


def prompts(count: int, **fields: Any) -> list[dict[str, Any]]:
    return [{"custom_id": f"item-{index}", "prompt": f"number {index}", **fields} for index in range(count)]


def lines_of(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    assert text == "" or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def answers_of(path: Path) -> dict[str, str]:
    return {
        line["custom_id"]: line["response"]["body"]["choices"][0]["message"]["content"]
        for line in lines_of(path)
        if line["response"] is not None and line["response"]["status_code"] == 200
    }


def expected(count: int) -> dict[str, str]:
    return {f"item-{index}": f"echo: number {index}" for index in range(count)}


def asked(server: MockServer) -> list[str]:
    return [json.loads(request.body)["messages"][-1]["content"] for request in server.requests]


def test_run_answers_every_line_and_says_so(write: Callable[..., Path], tmp_path: Path, here: list[str]) -> None:
    out = tmp_path / "out.jsonl"
    done = run("run", write("in.jsonl", *prompts(20)), "-o", out, *here)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert answers_of(out) == expected(20)
    assert re.search(
        r"20 answered · 0 failed · [\d,.k]+ \+ [\d,.k]+ tokens · cost unknown · \d+:\d\d$", done.stderr.strip()
    )
    assert "number" not in done.stderr


def test_the_same_command_again_asks_for_nothing(
    write: Callable[..., Path], tmp_path: Path, here: list[str], mock_server: MockServer
) -> None:
    out = tmp_path / "out.jsonl"
    arguments = ["run", write("in.jsonl", *prompts(5)), "-o", out, *here]
    assert run(*arguments).returncode == 0
    before = out.read_bytes()
    done = run(*arguments)
    assert done.returncode == 0
    assert "0 answered · 0 failed · 5 done before" in done.stderr
    assert out.read_bytes() == before
    assert mock_server.stats.requests == 5
    refused = run(*arguments, "--no-resume")
    assert (refused.returncode, "Continue it with --resume, or" in refused.stderr) == (2, True)
    assert out.read_bytes() == before


def test_run_sends_what_the_options_say(
    write: Callable[..., Path], tmp_path: Path, here: list[str], mock_server: MockServer
) -> None:
    more = ["--system", "Be brief.", "--param", "temperature=0", "--ordered", "--bare"]
    done = run("run", write("in.jsonl", *prompts(10)), "-o", tmp_path / "out.jsonl", *here, *more)
    assert done.returncode == 0, done.stderr
    for request in mock_server.requests:
        body = json.loads(request.body)
        assert (body["model"], body["temperature"], body["messages"][0]["content"]) == ("m", 0, "Be brief.")
    lines = lines_of(tmp_path / "out.jsonl")
    assert [line["custom_id"] for line in lines] == list(expected(10))
    assert not any("millstream" in line for line in lines)


def test_failures_are_one_go_to_their_file_and_are_asked_again_on_demand(
    write: Callable[..., Path], tmp_path: Path, here: list[str], mock_server: MockServer
) -> None:
    mock_server.when("number 3", Answer(status=400))
    out, errors = tmp_path / "out.jsonl", tmp_path / "errors.jsonl"
    arguments = ["run", write("in.jsonl", *prompts(5)), "-o", out, "--errors", errors, *here]
    done = run(*arguments)
    assert done.returncode == 1
    assert "4 answered · 1 failed" in done.stderr
    assert len(answers_of(out)) == 4
    assert [line["custom_id"] for line in lines_of(errors)] == ["item-3"]
    assert run(*arguments, "--retry-failed").returncode == 0
    assert answers_of(out) == expected(5)
    assert lines_of(errors) == []


def test_bad_lines_are_named_and_do_not_stop_the_others(
    write: Callable[..., Path], tmp_path: Path, here: list[str], mock_server: MockServer
) -> None:
    file, out = write("in.jsonl", *prompts(3), "nope"), tmp_path / "out.jsonl"
    refused = run("run", file, "-o", out, *here, "--strict")
    assert refused.returncode == 2
    assert mock_server.stats.requests == 0
    done = run("run", file, "-o", out, *here)
    assert done.returncode == 1
    assert "in.jsonl:4: " in done.stderr
    assert answers_of(out) == expected(3)


def test_run_refuses_a_custom_id_twice_as_check_does(
    write: Callable[..., Path], tmp_path: Path, here: list[str], mock_server: MockServer
) -> None:
    file = write("in.jsonl", *prompts(3), *prompts(1))
    done = run("run", file, "-o", tmp_path / "out.jsonl", *here)
    assert done.returncode == call("check", file, *here).returncode == 2
    assert re.search(r"\b1 and .*\b4\b.*item-0", done.stderr), done.stderr
    assert mock_server.stats.requests == 0


def test_check_and_run_agree_on_what_is_a_bad_line(write: Callable[..., Path], tmp_path: Path, here: list[str]) -> None:
    bad = ["nope", "[1]", {"custom_id": 3, "prompt": "x"}, {"body": 3}, {"url": "http://x", "body": {}}, {"x": 1}]
    bad += [{"prompt": "x", "API_KEY": "k"}, {"custom_id": "", "prompt": "x"}, {"prompt": []}, {"body": {"model": "m"}}]
    file = write("in.jsonl", *LINES[:2], *LINES[3:], *bad)
    facts = json.loads(call("check", file, *here, "--json").stdout)
    summary = json.loads(run("run", file, "-o", tmp_path / "out.jsonl", *here, "--json").stdout)
    assert summary["bad_lines"] == facts["bad_lines"] == len(bad)
    assert [problem[1:] for problem in summary["problems"]] == [[*each.values()] for each in facts["problems"]]
    assert summary["ok"] == facts["requests"] == 6


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_lets_what_is_on_the_wire_end_and_the_same_command_goes_on(
    write: Callable[..., Path], tmp_path: Path, number: signal.Signals, code: int
) -> None:
    out = tmp_path / "out.jsonl"
    with MockServer(latency=0.3) as server:
        arguments = ["run", write("in.jsonl", *prompts(60)), "-o", out, "--model", "m", "--max-concurrency", "4"]
        arguments += ["--base-url", server.base_url]
        with started(*arguments) as process:
            until(lambda: server.stats.answered >= 4, PATIENCE_S)
            process.send_signal(number)
            assert process.wait(PATIENCE_S) == code
            assert process.stderr is not None
            said = process.stderr.read()
        assert "stopping" in said
        assert "interrupted; the same command again goes on from here" in said
        # What was on the wire has ended and is written, nothing else was begun.
        done = len(lines_of(out))
        assert 4 <= done < 60
        assert server.stats.requests == server.stats.answered == done
        assert run(*arguments).returncode == 0
        assert answers_of(out) == expected(60)
        assert sorted(asked(server)) == sorted(f"number {index}" for index in range(60))


def test_a_second_ctrl_c_does_not_wait(write: Callable[..., Path], tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with MockServer() as server:
        server.when("number 3", Answer(fault="hang_before"))
        arguments = ["run", write("in.jsonl", *prompts(5)), "-o", out, "--model", "m", "--base-url", server.base_url]
        with started(*arguments, "--grace", "1h") as process:
            until(lambda: server.stats.answered == 4 and server.stats.in_flight == 1, PATIENCE_S)
            process.send_signal(signal.SIGINT)
            assert process.stderr is not None
            while "stopping" not in process.stderr.readline():
                assert process.poll() is None
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE_S) == 130
    assert len(answers_of(out)) == 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--max-errors", "2"], "as many failures as --max-errors allows"),
        (["--max-error-rate", "0.5"], "as large a share of failures"),
        (["--deadline", "200ms"], "--deadline is over"),
        (["--budget-tokens", "1"], "the budget is used up"),
        (["--budget-usd", "0.000001", "--model", "gpt-4o-mini"], "the budget is used up"),
    ],
)
def test_a_rule_ends_the_run_with_one_and_says_which(
    write: Callable[..., Path], tmp_path: Path, options: list[str], said: str
) -> None:
    with MockServer(latency=0.02) as server:
        if "error" in options[0]:
            server.outage(400)
        where = ["--base-url", server.base_url, "--model", "m", "--max-concurrency", "2"]
        done = run("run", write("in.jsonl", *prompts(400)), "-o", tmp_path / "out.jsonl", *where, *options)
        assert done.returncode == 1, done.stderr
        assert said in done.stderr
        assert server.stats.requests < 400


def test_a_refused_key_ends_the_run_unless_told_otherwise(write: Callable[..., Path], tmp_path: Path) -> None:
    file = write("in.jsonl", *prompts(50))
    with MockServer(api_key="sk-right-012345") as server:
        where = ["--base-url", server.base_url, "--model", "m", "--max-concurrency", "1"]
        done = run("run", file, "-o", tmp_path / "a.jsonl", *where)
        assert done.returncode == 1
        assert "no request can succeed" in done.stderr
        assert server.stats.requests < 50


def test_a_budget_in_dollars_needs_a_price(write: Callable[..., Path], tmp_path: Path, here: list[str]) -> None:
    done = run("run", write("in.jsonl", *prompts(1)), "-o", tmp_path / "out.jsonl", *here, "--budget-usd", "1")
    assert done.returncode == 2
    assert "--budget-usd needs the price of 'm', which is not known: give --prices in dollars" in done.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Continue it with resume=True, or", "Continue it with --resume, or"),
        ("give prices={'m': (input, output)} in dollars", "give --prices in dollars"),
        ("budget_usd needs it, not max_errors", "--budget-usd needs it, not --max-errors"),
        ("set stop_on_fatal=False and model= to", "set --no-stop-on-fatal and --model to"),
        ('provider="anthropic"; the model', "--provider; the model"),
        ('timeout=Timeout(first_byte=1) and "base_url"', 'timeout=Timeout(first_byte=1) and "base_url"'),
    ],
)
def test_a_refusal_names_options(text: str, said: str) -> None:
    assert in_options(text, app.commands["run"]) == said


def test_a_stream_is_no_file(write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = write("in.jsonl", *prompts(1))
    for arguments in (["run", "-", "-o", "out"], ["run", file, "-o", "-"], ["check", "-"], ["batch", "submit", "-"]):
        refused = call(*arguments, "--model", "m")
        assert (refused.returncode, "- is no file" in refused.stderr) == (2, True), arguments
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_the_summary_as_json(write: Callable[..., Path], tmp_path: Path, here: list[str]) -> None:
    done = run(
        "run", write("in.jsonl", *prompts(3)), "-o", tmp_path / "o.jsonl", *here[:2], "--model", "gpt-4o-mini", "--json"
    )
    summary = json.loads(done.stdout)
    assert (summary["total"], summary["ok"], summary["failed"], summary["stopped"]) == (3, 3, 0, None)
    price = Prices().of("gpt-4o-mini")
    assert price is not None
    assert summary["cost"] == pytest.approx(price.cost(summary["prompt_tokens"], summary["completion_tokens"]))


def test_an_output_that_cannot_be_written_is_an_error_in_words(
    write: Callable[..., Path], tmp_path: Path, here: list[str]
) -> None:
    done = run("run", write("in.jsonl", *prompts(1)), "-o", tmp_path / "absent" / "out.jsonl", *here)
    assert done.returncode in (1, 2)
    assert "absent" in done.stderr
    assert "Traceback" not in done.stderr


def test_progress_is_shown_in_a_terminal_and_elsewhere_on_demand(
    write: Callable[..., Path], tmp_path: Path, here: list[str]
) -> None:
    file = write("in.jsonl", *prompts(7))
    assert "7/7" not in run("run", file, "-o", tmp_path / "a.jsonl", *here).stderr
    assert "7/7 (100 %)" in run("run", file, "-o", tmp_path / "b.jsonl", *here, "--progress").stderr
    reader, writer = os.openpty()
    try:
        arguments = [*COMMAND, "run", str(file), "-o", str(tmp_path / "c.jsonl"), *here]
        environment = os.environ | {"COLUMNS": "120", "TERM": "xterm"}
        subprocess.run(arguments, stdin=subprocess.DEVNULL, stderr=writer, env=environment, timeout=PATIENCE_S)
        assert "7/7 (100 %)" in os.read(reader, 100_000).decode()
    finally:
        os.close(reader)
        os.close(writer)


def test_what_a_run_wrote_is_what_stats_read(write: Callable[..., Path], tmp_path: Path, here: list[str]) -> None:
    out = tmp_path / "out.jsonl"
    summary = json.loads(run("run", write("in.jsonl", *prompts(10), "nope"), "-o", out, *here, "--json").stdout)
    facts = json.loads(call("stats", out, "--json").stdout)
    assert (facts["answered"], facts["failed"]) == (10, 1)
    assert facts["error_codes"] == {"invalid_request_line": 1}
    assert (facts["prompt_tokens"], facts["attempts"]) == (summary["prompt_tokens"], 10)
    assert facts["latency_seconds"]["max"] < 60


# ---- batch ----


@pytest.mark.parametrize("via", ["openai", "anthropic", "mistral"])
def test_a_file_goes_through_a_vendors_batch_api(
    write: Callable[..., Path], tmp_path: Path, mock_server: MockServer, via: str
) -> None:
    out = tmp_path / "out.jsonl"
    where = ["--base-url", mock_server.base_url, "--provider", via]
    file = write("in.jsonl", *prompts(5, max_tokens=20))
    submit = ["batch", "submit", file, "-o", out, *where, "--model", "m"]
    done = call(*submit)
    assert done.returncode == 0, done.stderr
    assert str(out) in done.stdout
    again = call(*submit)
    assert again.stdout == done.stdout

    waited = call("batch", "status", out, *where, "--wait", "--max-poll", "1s", "--json")
    facts = json.loads(waited.stdout)
    assert (facts["via"], facts["items"], facts["completed"], facts["done"]) == (via, 5, 5, True)
    assert "5/5 · 0 failed" in waited.stderr

    fetched = run("batch", "fetch", out, *where)
    assert fetched.returncode == 0, fetched.stderr
    assert "5 answered · 0 failed · 0 to come" in fetched.stdout
    assert {line["custom_id"] for line in lines_of(out)} == set(expected(5))
    assert json.loads(call("stats", out, "--json").stdout)["answered"] == 5
    assert call("batch", "cancel", out, *where).returncode == 0


def test_the_vendor_of_a_job_need_not_be_said_again(
    write: Callable[..., Path], tmp_path: Path, mock_server: MockServer
) -> None:
    out = tmp_path / "out.jsonl"
    where = ["--base-url", mock_server.base_url]
    file = write("in.jsonl", *prompts(2, max_tokens=20))
    assert call("batch", "submit", file, "-o", out, *where, "--provider", "anthropic", "--model", "m").returncode == 0
    assert json.loads(call("batch", "status", out, *where, "--json").stdout)["via"] == "anthropic"


def test_fetch_is_one_while_answers_are_missing_or_failed(
    write: Callable[..., Path], tmp_path: Path, here: list[str]
) -> None:
    out = tmp_path / "out.jsonl"
    assert call("batch", "submit", write("in.jsonl", *prompts(2), "nope"), "-o", out, *here).returncode == 0
    done = call("batch", "fetch", out, *here[:2], "--wait", "--json")
    assert done.returncode == 1
    facts = json.loads(done.stdout)
    assert (facts["ok"], facts["failed"], facts["bad_lines"]) == (2, 1, 1)


@pytest.mark.parametrize("command", ["status", "fetch", "cancel"])
def test_a_job_that_is_not_there_is_bad_usage(tmp_path: Path, here: list[str], command: str) -> None:
    done = call("batch", command, tmp_path / "out.jsonl", *here[:2])
    assert done.returncode == 2
    assert "there is no batch job" in done.stderr


def test_a_custom_id_twice_is_not_submitted(
    write: Callable[..., Path], here: list[str], mock_server: MockServer
) -> None:
    done = call("batch", "submit", write("in.jsonl", *prompts(2), *prompts(1)), *here)
    assert done.returncode == 2
    assert "item-0" in done.stderr
    assert mock_server.stats.requests == 0


# ---- serve-mock ----


def served(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    found = re.match(r"listening on (\S+)", process.stdout.readline())
    assert found
    return found[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_mock_answers_until_it_is_told_to_stop(number: signal.Signals) -> None:
    with started("serve-mock", "--port", "0", "--reply", "at your service") as process:
        url = served(process)
        assert run("ask", "hi", "--base-url", url, "--model", "m").stdout == "at your service\n"
        process.send_signal(number)
        assert process.wait(PATIENCE_S) == 0
        assert process.stdout is not None
        assert process.stdout.read().startswith("1 requests, 0 faults")


def test_serve_mock_misbehaves_as_often_as_told() -> None:
    with started("serve-mock", "--port", "0", "--fault-rate", "1", "--fault", "503", "--fault", "500") as process:
        done = run("ask", "hi", "--base-url", served(process), "--model", "m", "--retries", "0")
        assert done.returncode == 1
        assert re.search("Error: 50[03]", done.stderr)


def test_a_port_that_is_taken_is_refused() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run("serve-mock", "--port", str(port))
    assert done.returncode == 2
    assert f"port {port} cannot be had" in done.stderr
