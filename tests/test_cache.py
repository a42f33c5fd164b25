"""What a cache has is not asked again, over both clients; what the server saw says whether it was."""

from __future__ import annotations

import asyncio
import pickle
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import pytest
from helpers import KEY, until, until_async
from millstream import AsyncClient, BatchProcessor, Cache, ConfigurationError
from millstream.testing import Answer, MockServer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from helpers import Face

    Make = Callable[..., Face]


def seen(server: MockServer) -> int:
    return server.stats.requests


def start(script: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(script), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(script: str) -> str:
    """What a process says that runs it to its end."""
    process = start(script)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out


# ---- a client's cache ----


def test_what_was_answered_is_not_asked_again(make: Make, mock_server: MockServer) -> None:
    face = make(cache="memory")
    first, again = face.create(), face.create()

    assert (first.cached, first.attempts) == (False, 1)
    assert (again.cached, again.attempts) == (True, 0)
    assert again.to_dict() == first.to_dict()
    assert face.complete("hi") == first.text
    assert seen(mock_server) == 1
    assert pickle.loads(pickle.dumps(again)).cached


def test_a_batch_asks_each_question_once(make: Make, mock_server: MockServer) -> None:
    face = make(cache="memory")
    prompts = [f"question {number % 5}" for number in range(50)]

    assert face.batch_complete(prompts) == [f"echo: {prompt}" for prompt in prompts]
    assert face.batch_complete(prompts) == [f"echo: {prompt}" for prompt in prompts]
    assert seen(mock_server) == 5
    assert face.client.stats().succeeded == 100


def test_a_cache_is_shared_by_the_clients_it_is_given_to_and_counts(make: Make, mock_server: MockServer) -> None:
    cache = Cache(max_bytes=1_000_000)
    one, other = make(cache=cache), make(cache=cache)
    one.complete("hi", model="gpt-4o-mini")
    other.complete("hi", model="gpt-4o-mini")
    make().complete("hi", model="gpt-4o-mini")
    assert seen(mock_server) == 2

    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.stored, stats.entries, stats.hit_rate) == (1, 1, 1, 1, 0.5)
    assert stats.bytes > 0
    assert stats.saved_prompt_tokens > 0
    assert stats.saved_completion_tokens > 0
    assert stats.saved_dollars is not None
    assert stats.saved_dollars > 0
    priced = cache.stats(prices={"gpt-4o-mini": (1_000_000, 0)})
    assert priced.saved_dollars == stats.saved_prompt_tokens
    assert cache.stats(prices={"gpt-4o-mini": None}).saved_dollars is None

    cache.clear()
    assert cache.stats().entries == 0
    other.complete("hi", model="gpt-4o-mini")
    assert seen(mock_server) == 3


def test_a_derived_client_has_its_parents_cache_or_another_or_none(make: Make, mock_server: MockServer) -> None:
    face = make(cache="memory")
    face.complete("hi")
    for changes, requests in (({"timeout": 5}, 0), ({"cache": None}, 1), ({"cache": Cache()}, 1)):
        before = seen(mock_server)
        face.run(face.client.with_options(**changes).complete("hi"))
        assert seen(mock_server) - before == requests, changes


def test_each_key_has_its_own_answers_unless_they_are_shared(make: Make, mock_server: MockServer) -> None:
    for shared, requests in ((False, 2), (True, 1)):
        cache, before = Cache(shared=shared), seen(mock_server)
        for key in (KEY, "sk-other-0123456789"):
            make(cache=cache, api_key=key).complete("hi")
        assert seen(mock_server) - before == requests


def test_a_call_with_a_token_of_its_own_is_another_tenants(mock_server: MockServer) -> None:
    async def ask() -> None:
        cache = Cache()
        for token in ("sk-one-0123456789", "sk-two-0123456789", "sk-one-0123456789"):
            async with AsyncClient(
                api_key=lambda token=token: token, base_url=mock_server.base_url, model="m", cache=cache
            ) as client:
                await client.complete("hi")

    asyncio.run(ask())
    assert seen(mock_server) == 2


# ---- one call ----


def test_a_call_can_leave_the_cache_out_or_refresh_it(make: Make, mock_server: MockServer) -> None:
    face = make(cache="memory")
    mock_server.script(Answer(text="one"), Answer(text="two"), Answer(text="three"))

    assert face.complete("hi") == "one"
    assert face.complete("hi", cache=False) == "two"
    assert face.complete("hi") == "one"
    assert face.complete("hi", refresh=True) == "three"
    assert face.complete("hi") == "three"
    assert seen(mock_server) == 3


@pytest.mark.parametrize(
    ("arguments", "requests"),
    [
        ({}, 1),
        ({"temperature": 0}, 1),
        ({"temperature": 0.7}, 2),
        ({"temperature": 0.7, "cache": True}, 1),
        ({"temperature": 0.7, "sample_index": 3}, 1),
    ],
    ids=str,
)
def test_an_answer_of_chance_is_cached_only_when_asked_for(
    make: Make, mock_server: MockServer, arguments: dict[str, Any], requests: int
) -> None:
    face = make(cache="memory")
    face.create(**arguments)
    face.create(**arguments)
    assert seen(mock_server) == requests


def test_any_temperature_is_cached_where_the_cache_says_so(make: Make, mock_server: MockServer) -> None:
    face = make(cache=Cache(any_temperature=True))
    face.complete("hi", temperature=1)
    face.complete("hi", temperature=1)
    assert seen(mock_server) == 1


def test_samples_are_kept_apart(make: Make, mock_server: MockServer) -> None:
    face = make(cache="memory")
    mock_server.script(Answer(text="a"), Answer(text="b"))
    for _ in range(2):
        texts = [face.complete("hi", temperature=1, sample_index=sample) for sample in (0, 1)]
        assert texts == ["a", "b"]
    assert seen(mock_server) == 2


def test_everything_that_may_change_an_answer_makes_another_question(make: Make, mock_server: MockServer) -> None:
    face = make(cache="memory")
    for arguments in ({}, {"seed": 1}, {"model": "n"}, {"system": "s"}, {"max_tokens": 9}, {"top_k": 1}):
        face.complete("hi", **arguments)
    assert seen(mock_server) == 6
    face.complete("hi", timeout=7, priority=1, extra_headers={"x-trace": "1"})
    assert seen(mock_server) == 6


@pytest.mark.parametrize("reason", ["length", "content_filter"])
def test_an_answer_that_is_not_whole_is_kept_only_where_that_is_wanted(
    make: Make, mock_server: MockServer, reason: str
) -> None:
    mock_server.script(Answer(text="half", finish_reason=reason, times=0))
    for also_keep, requests in (((), 2), (("truncated", "filtered"), 1)):
        cache, before = Cache(also_keep=also_keep), seen(mock_server)
        face = make(cache=cache)
        face.complete("hi")
        face.complete("hi")
        assert seen(mock_server) - before == requests
        assert cache.stats().not_kept == (2 if requests == 2 else 0)


# ---- other calls ----


def test_streams_responses_completions_and_embeddings_are_cached(make: Make, mock_server: MockServer) -> None:
    face = make(cache="memory")
    client = face.client
    calls: list[Callable[[], Any]] = [
        lambda: face.read(client.stream_complete("hi there")),
        lambda: face.run(client.responses.create(input="hi")).output_text,
        lambda: face.run(client.completions.create(prompt="hi")).text,
        lambda: [each.embedding for each in face.run(client.embeddings.create(input=["a", "b"])).data],
    ]
    for number, call in enumerate(calls, 1):
        asked, kept = call(), call()
        if number == 1:
            asked, kept = "".join(asked[0]), "".join(kept[0])
        assert kept == asked
        assert seen(mock_server) == number


def test_any_other_path_is_cached_only_when_asked_for(make: Make, mock_server: MockServer) -> None:
    face = make(cache="memory")
    mock_server.script(Answer(body=b'{"results": [{"score": 1}]}', times=0))
    for arguments, requests in (({}, 2), ({"cache": True}, 1)):
        before = seen(mock_server)
        for _ in range(2):
            face.run(face.client.post("rerank", json={"query": "q"}, **arguments))
        assert seen(mock_server) - before == requests


def test_a_run_tells_what_was_cached_and_pays_nothing_for_it(mock_server: MockServer) -> None:
    async def run() -> None:
        client = AsyncClient(api_key=KEY, base_url=mock_server.base_url, model="m", cache="memory")
        async with client:
            await client.complete("a")
            results = await BatchProcessor(client).process_all(["a", "b"])
            assert [result.cached for result in results] == [True, False]
            assert results[0].usage is None
            assert results[0].text == "echo: a"

    asyncio.run(run())
    assert seen(mock_server) == 2


# ---- at the same time ----


def test_those_who_ask_the_same_at_once_are_one_request_and_each_may_leave() -> None:
    async def ask(server: MockServer) -> None:
        cache = Cache()
        async with AsyncClient(api_key=KEY, base_url=server.base_url, model="m", cache=cache) as client:
            asking = [asyncio.ensure_future(client.complete("hi")) for _ in range(20)]
            await until_async(lambda: seen(server) == 1)
            asking[0].cancel()
            done = await asyncio.gather(*asking, return_exceptions=True)
            assert isinstance(done[0], asyncio.CancelledError)
            assert done[1:] == ["echo: hi"] * 19
            stats = await cache.astats()
            assert (stats.misses, stats.shared) == (1, 19)

    with MockServer(latency=0.2) as server:
        asyncio.run(ask(server))
        assert seen(server) == 1


# ---- what is refused ----


@pytest.mark.parametrize(
    ("make_it", "error", "named"),
    [
        (lambda: Cache("nowhere"), ConfigurationError, "cache"),
        (lambda: Cache(ttl=0), ConfigurationError, "ttl"),
        (lambda: Cache(max_bytes=0), ConfigurationError, "max_bytes"),
        (lambda: Cache(also_keep=["all"]), ConfigurationError, "also_keep"),
        (lambda: Cache(shared=1), TypeError, "shared"),
        (lambda: Cache(7), TypeError, "cache"),
        (lambda: AsyncClient(api_key=KEY, model="m", cache=7), TypeError, "cache"),
        (lambda: pickle.dumps(Cache()), TypeError, "pickled"),
    ],
)
def test_what_is_no_cache_is_refused_by_its_name(
    make_it: Callable[[], Any], error: type[Exception], named: str
) -> None:
    with pytest.raises(error, match=named):
        make_it()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"cache": "memory"}, TypeError),
        ({"cache": False, "refresh": True}, ConfigurationError),
        ({"sample_index": -1}, ConfigurationError),
        ({"sample_index": "a"}, TypeError),
    ],
    ids=str,
)
def test_a_calls_words_are_checked(make: Make, arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        make(cache="memory").complete("hi", **arguments)


def test_a_call_cannot_ask_for_a_cache_that_is_not_there(face: Face, mock_server: MockServer) -> None:
    for arguments in ({"cache": True}, {"refresh": True}):
        with pytest.raises(ConfigurationError, match="give cache= to the client"):
            face.complete("hi", **arguments)
    face.complete("hi", cache=False)
    assert seen(mock_server) == 1


# ---- on disk ----


def test_a_cache_on_disk_is_there_for_the_next_process(mock_server: MockServer, tmp_path: Path) -> None:
    script = f"""
        import warnings; warnings.simplefilter("ignore")
        from millstream import Client
        client = Client(api_key={KEY!r}, base_url={mock_server.base_url!r}, model="m", cache={str(tmp_path / "c")!r})
        answers = [client.chat.completions.create(messages=[{{"role": "user", "content": str(n)}}]) for n in range(20)]
        print(sum(answer.cached for answer in answers), answers[-1].text)
    """
    said = [run(script).split(maxsplit=1) for _ in range(3)]
    assert said == [["0", "echo: 19\n"], ["20", "echo: 19\n"], ["20", "echo: 19\n"]]
    assert seen(mock_server) == 20
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "c").iterdir()}
    assert ((tmp_path / "c").stat().st_mode & 0o777, modes) == (0o700, {0o600})


def test_no_key_is_in_a_cache(make: Make, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "c")
    make(cache=cache).complete("a prompt that nobody needs to keep", extra_headers={"x-auth-token": "canary-0123456"})
    cache.flush()
    for path in (tmp_path / "c").iterdir():
        content = path.read_bytes()
        for secret in (KEY, "canary-0123456", 'a prompt that nobody needs to keep"}]'):
            assert secret.encode() not in content, path


@pytest.mark.parametrize("memory_bytes", [0, None])
def test_several_processes_share_a_cache_and_the_death_of_one_harms_nothing(
    tmp_path: Path, memory_bytes: int | None
) -> None:
    with MockServer(latency=0.001) as server:
        script = f"""
            import asyncio, random, sys, warnings; warnings.simplefilter("ignore")
            from millstream import AsyncClient, Cache
            async def main():
                cache = Cache({str(tmp_path / "c")!r}, memory_bytes={memory_bytes})
                client = AsyncClient(api_key={KEY!r}, base_url={server.base_url!r}, model="m", cache=cache)
                prompts = [f"question {{n % 100}}" for n in range(500)]
                random.shuffle(prompts)
                while True:
                    assert await client.batch_complete(prompts, max_concurrent=16) == [f"echo: {{p}}" for p in prompts]
                    print("round", flush=True)
                    if sys.argv[1] == "once":
                        break
            asyncio.run(main())
        """
        doomed = start(script, "forever")
        others = [start(script, "once") for _ in range(3)]
        assert doomed.stdout is not None
        assert doomed.stdout.readline() == "round\n"
        doomed.kill()
        for each in others:
            out, err = each.communicate(timeout=60)
            assert (each.returncode, out) == (0, "round\n"), err
        doomed.communicate(timeout=60)
        before = server.stats.requests
        # 100 questions, and those that several asked at once.
        assert before <= 400
        again = start(script, "once")
        assert (again.communicate(timeout=60)[0], again.returncode) == ("round\n", 0)
        assert server.stats.requests - before <= 100
        stats = Cache(tmp_path / "c").stats()
        assert (stats.entries, stats.broken) == (100, 0)


def test_a_damaged_cache_is_set_aside_with_a_warning_and_no_call_fails(
    make: Make, mock_server: MockServer, tmp_path: Path
) -> None:
    folder = tmp_path / "c"
    folder.mkdir(mode=0o700)
    (folder / "answers.sqlite").write_bytes(b"no database" * 1000)
    with pytest.warns(RuntimeWarning, match="set aside"):
        cache = Cache(folder)
    face = make(cache=cache)
    assert face.complete("hi") == face.complete("hi")
    assert seen(mock_server) == 1
    assert any(".damaged-" in path.name for path in folder.iterdir())


def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(ConfigurationError, match="written by others"):
        Cache(tmp_path / "open")
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(ConfigurationError, match="link"):
        Cache(tmp_path / "link")


def test_disk_is_the_users_folder_for_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert repr(Cache("disk")) == f"Cache({str(tmp_path / 'millstream')!r})"
    assert (tmp_path / "millstream" / "answers.sqlite").exists()


def test_an_answer_on_disk_lives_as_long_as_it_may(make: Make, mock_server: MockServer, tmp_path: Path) -> None:
    """In whole seconds, by the wall clock: nothing on disk knows a process's own."""
    cache = Cache(tmp_path / "c", ttl=1, memory_bytes=0)
    face = make(cache=cache)
    face.complete("hi")
    cache.flush()
    face.complete("hi")
    assert seen(mock_server) == 1

    def is_asked_again() -> bool:
        face.complete("hi")
        return seen(mock_server) == 2

    until(is_asked_again)
