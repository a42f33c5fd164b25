"""What the rooms of docs/dev/architecture.md promise of each other, checked against the source."""

from __future__ import annotations

import ast
import inspect
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import millstream
import pytest
from millstream import exceptions, testing, types

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

pytestmark = pytest.mark.tree

ROOT = Path(__file__).resolve().parent.parent
ENGINE = ROOT / "src" / "engine"

# Which rooms of the engine a room may import. A lower row never imports an upper one; within the lowest row `error`
# is below the others, and `secret` is below `types`, and both are below what is made of them.
MAY_IMPORT: dict[str, set[str]] = {
    "error": set(),
    "sse": {"error"},
    "tokens": set(),
    "types": {"error", "secret"},
    "secret": {"error"},
    "service": {"error"},
    "config": {"error", "secret", "service"},
    "metrics": {"error", "secret", "types"},
    "multipart": set(),
    "disk": {"error"},
    "log": set(),
    "canonical": set(),
}
MAY_IMPORT |= {room: set(MAY_IMPORT) for room in ("provider", "limit", "retry", "transport")}
MAY_IMPORT |= {room: set(MAY_IMPORT) for room in ("keys", "stream", "cache")}
MAY_IMPORT["pipeline"] = set(MAY_IMPORT)
MAY_IMPORT["batch"] = set(MAY_IMPORT)
MAY_IMPORT |= {room: set(MAY_IMPORT) for room in ("jobs", "embed")}


def rust_files(folder: Path) -> list[Path]:
    files = sorted(folder.rglob("*.rs"))
    assert files, f"no Rust file under {folder}"
    return files


def code_of(path: Path) -> str:
    """The source without comments, without strings and without its tests."""
    text = path.read_text(encoding="utf-8")
    text = re.sub(r'"(?:[^"\\]|\\.)*"', '""', text)
    text = re.sub(r"//[^\n]*", "", text)
    return text.split("#[cfg(test)]")[0]


def split_imports(text: str) -> Iterator[str]:
    """Every path of every `use`, with its braces taken apart: `a::{b, c::d}` gives `a::b` and `a::c::d`."""

    def parts(tree: str) -> Iterator[str]:
        depth, start = 0, 0
        for place, character in enumerate(tree):
            depth += {"{": 1, "}": -1}.get(character, 0)
            if character == "," and depth == 0:
                yield tree[start:place]
                start = place + 1
        yield tree[start:]

    def expand(tree: str, prefix: str) -> Iterator[str]:
        for part in parts(tree):
            head, brace, rest = part.partition("{")
            if brace:
                yield from expand(rest.rsplit("}", 1)[0], prefix + head)
            elif part:
                yield prefix + part

    for use in re.findall(r"\buse\s+([^;]+);", text):
        yield from expand(re.sub(r"\s+", "", use), "")


def room_of(path: Path) -> str:
    return path.relative_to(ENGINE).parts[0].removesuffix(".rs")


def rooms_named_in(path: Path) -> set[str]:
    """The rooms of the engine that a file names, in a `use` or in a path."""
    code = code_of(path)
    # `mod.rs` is the module of its folder.
    depth = len(path.relative_to(ENGINE).parts) - (path.name == "mod.rs")
    named = set()
    for used in [*split_imports(code), *re.findall(r"\b(?:crate|super)(?:::\w+)+", code)]:
        if match := re.match(r"crate::engine::(\w+)", used):
            named.add(match[1])
        elif match := re.match(rf"(?:super::){{{depth}}}(\w+)", used):
            named.add(match[1])
    return named


def test_the_search_finds_imports_of_every_form(tmp_path: Path) -> None:
    text = "use a::{b, c::{d, e as f}, g};\npub use super::h::*;\nuse i;\n"
    assert list(split_imports(text)) == ["a::b", "a::c::d", "a::c::easf", "a::g", "super::h::*", "i"]
    rooms = {"config", "error", "keys", "limit", "provider", "retry", "transport"}
    assert rooms_named_in(ENGINE / "pipeline" / "mod.rs") >= rooms
    assert rooms_named_in(ENGINE / "provider" / "openai.rs") >= {"error", "types"}
    assert "provider" not in rooms_named_in(ENGINE / "provider" / "openai.rs")


def test_a_room_imports_only_rooms_below_it() -> None:
    seen = set()
    for path in rust_files(ENGINE):
        room = room_of(path)
        if room == "mod":
            continue
        assert room in MAY_IMPORT, f"{path.name}: a room that this test does not know"
        seen.add(room)
        wrong = rooms_named_in(path) - MAY_IMPORT[room] - {room}
        assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}"
    assert seen == set(MAY_IMPORT)


def test_pyo3_is_named_only_in_the_rooms_of_python() -> None:
    named = {path.relative_to(ROOT / "src").parts[0] for path in rust_files(ROOT / "src") if "pyo3" in code_of(path)}
    assert named == {"py"}


def test_the_http_client_is_named_only_in_the_transport() -> None:
    clients = re.compile(r"\b(hyper|hyper_util|hyper_rustls|reqwest)::")
    named = {room_of(path) for path in rust_files(ENGINE) if clients.search(code_of(path))}
    assert named == {"transport"}


@pytest.mark.parametrize(
    "forbidden",
    [
        r"std::time::Instant",
        r"\bstd::time::\{[^}]*\bInstant\b",
        r"\bstd::thread\b(?!::available_parallelism\b)",
        r"\be?print(ln)?!",
        r"\bdbg!",
        r"\bunsafe\b",
    ],
)
def test_the_engine_has_one_clock_no_threads_and_prints_nothing(forbidden: str) -> None:
    for path in rust_files(ENGINE):
        assert not re.search(forbidden, code_of(path)), f"{forbidden} in {path.relative_to(ROOT)}"


# Whoever adds a file here says in it, above each block, why nothing that safe Rust promises is broken.
MAY_BE_UNSAFE = {"py/embeddings.rs"}


def test_nothing_is_unsafe_but_what_proves_that_it_is_not() -> None:
    found = set()
    for path in rust_files(ROOT / "src"):
        # Without strings; comments are looked at here.
        text = re.sub(r'"(?:[^"\\]|\\.)*"', '""', path.read_text(encoding="utf-8"))
        lines = text.splitlines()
        for number, line in enumerate(lines):
            code = line.split("//")[0]
            if not re.search(r"\bunsafe\b", code):
                continue
            found.add(str(path.relative_to(ROOT / "src")))
            above = []
            for earlier in reversed(lines[:number]):
                if not earlier.strip().startswith(("//", "#[")):
                    break
                above.append(earlier.strip())
            # A block says why it is right; a function says what its caller must see to.
            proof = "/// # Safety" if re.search(r"\bunsafe (extern|fn)\b", code) else "// SAFETY: "
            assert any(comment.startswith(proof) for comment in above), f"{path.name}:{number + 1}: {line.strip()}"
            assert re.search(r"\bunsafe (fn|extern|\{)", code), f"{path.name}:{number + 1}: of no form that is known"
    assert found == MAY_BE_UNSAFE
    lints = (ROOT / "Cargo.toml").read_text(encoding="utf-8")
    assert 'unsafe_code = "deny"' in lints, "so that each exception is written down where it is made"


def test_what_is_released_checks_its_arithmetic_and_can_catch_a_panic() -> None:
    release = tomllib.loads((ROOT / "Cargo.toml").read_text(encoding="utf-8"))["profile"]["release"]
    assert release["overflow-checks"] is True
    assert release["panic"] == "unwind"


def test_every_build_is_of_the_locked_crates() -> None:
    """`cargo fmt` and `cargo install --locked` build nothing of ours; examples say what they run in a comment."""
    calls = 0
    for path in (ROOT / "Makefile", *(ROOT / "tools").glob("*"), *(ROOT / "benchmarks").rglob("*.py")):
        if not path.is_file() or path.suffix not in ("", ".py", ".sh"):
            continue
        text = path.read_text(encoding="utf-8").replace("\\\n", " ")
        # As a shell line of the Makefile, and as a list of words in Python.
        for line in re.findall(r"^\t.*\bcargo .*|^.*\"cargo\",.*", text, re.MULTILINE):
            if re.search(r"cargo fmt|\$\(call step", line):
                continue
            calls += 1
            assert "--locked" in line or "fuzz" in line, f"{path.relative_to(ROOT)}: {line.strip()}"
    assert calls >= 6


def test_the_mock_and_the_engine_know_nothing_of_each_other() -> None:
    for path in rust_files(ROOT / "src" / "mock"):
        assert not re.search(r"\bengine\b", code_of(path)), path.name
    for path in rust_files(ENGINE):
        assert not re.search(r"\bmock\b|\bpy::", code_of(path)), path.name


def test_every_rust_file_says_what_it_is() -> None:
    for path in rust_files(ROOT / "src"):
        assert path.read_text(encoding="utf-8").startswith("//! "), path.relative_to(ROOT)


def test_what_the_engine_promises_is_in_the_page_about_it() -> None:
    page = (ROOT / "docs" / "dev" / "architecture.md").read_text(encoding="utf-8")
    for room in MAY_IMPORT:
        assert re.search(rf"^  {room}(\.rs|/) ", page, re.MULTILINE), room


# ---- the Python face ----


def python_files() -> list[Path]:
    files = sorted((ROOT / "python").rglob("*.py"))
    assert len(files) > 5
    return files


@pytest.mark.parametrize("module", [millstream, exceptions, testing, types], ids=lambda module: module.__name__)
def test_all_is_sorted_and_names_what_is_public(module: ModuleType) -> None:
    names = module.__all__
    assert len(set(names)) == len(names)
    # As ruff sorts: constants, then classes, then the rest.
    assert names == sorted(names, key=lambda name: (0 if name.isupper() else 1 if name[:1].isupper() else 2, name))
    own = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and not inspect.ismodule(value)
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__.split(".")[0] == "millstream"
    }
    assert own <= set(names) | {"TYPE_CHECKING"}, own - set(names)
    assert all(hasattr(module, name) for name in names)


def test_the_error_tree_is_public_whole() -> None:
    assert set(exceptions.__all__) <= set(millstream.__all__)


def public_members(kind: type) -> Iterator[tuple[str, object]]:
    for name, member in vars(kind).items():
        if not name.startswith("_") and (callable(member) or inspect.isdatadescriptor(member)):
            yield name, member.__func__ if isinstance(member, (staticmethod, classmethod)) else member


def test_every_public_name_has_a_docstring() -> None:
    """Those of the native module are written where its types are: in its stub."""
    documented = 0
    for module in (millstream, exceptions, testing, types):
        for name in module.__all__:
            value = getattr(module, name)
            if not inspect.isclass(value):
                continue
            if value.__module__.endswith("._millstream"):
                continue
            assert value.__doc__, name
            documented += 1
            fields = getattr(value, "__dataclass_fields__", {})
            for member_name, member in public_members(value):
                if member_name not in fields:
                    assert inspect.getdoc(member), f"{name}.{member_name}"
                    documented += 1
    assert documented > 50


def test_both_clients_are_documented_in_the_same_words() -> None:
    """Written out for both, since editors read the source and not what is made of it."""
    pairs = [
        (millstream.AsyncClient, millstream.Client),
        (type(millstream.AsyncClient.chat.fget(None).completions), type(millstream.Client.chat.fget(None).completions)),  # type: ignore[attr-defined]
        *(
            (type(vars(millstream.AsyncClient)[name].fget(None)), type(vars(millstream.Client)[name].fget(None)))
            for name in ("models", "embeddings", "responses", "completions")
        ),
    ]
    compared = set()
    for awaited, blocking in pairs:
        for name, member in public_members(awaited):
            if name != "aclose":
                assert inspect.getdoc(getattr(blocking, name)) == inspect.getdoc(member), name
                compared.add(name)
    methods = {"complete", "batch_complete", "stream_complete", "stream_many", "gather", "test_connection", "close"}
    embedding = {"embed", "embed_one", "embed_stream"}
    namespaces = {"chat", "completions", "embeddings", "models", "responses", "with_raw_response"}
    assert compared == methods | embedding | namespaces | {
        "create",
        "parse",
        "list",
        "post",
        "get",
        "upload",
        "download",
    }


def test_every_public_record_of_the_native_module_is_documented_in_its_stub() -> None:
    stub = ast.parse((ROOT / "python" / "millstream" / "_millstream.pyi").read_text(encoding="utf-8"))
    public = {*millstream.__all__, *types.__all__}
    documented = 0
    for node in stub.body:
        if not isinstance(node, ast.ClassDef) or node.name not in public:
            continue
        assert ast.get_docstring(node), node.name
        for member in node.body:
            if isinstance(member, ast.FunctionDef) and not member.name.startswith("_"):
                assert ast.get_docstring(member), f"{node.name}.{member.name}"
                documented += 1
    assert documented > 20


def test_the_package_imports_nothing_that_is_not_pythons_own() -> None:
    import sys

    for path in python_files():
        if path.name == "_pytest.py":
            continue  # the plugin, which pytest loads
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            for name in names:
                top = name.split(".")[0]
                if (path.name, top) == ("_structured.py", "pydantic"):
                    continue  # only for a type that needs it, see test_structured.py
                if (path.name, top) == ("_progress.py", "rich"):
                    continue  # where it is there, see test_progress.py
                if path.name == "_results.py" and top in ("pandas", "polars", "pyarrow"):
                    continue  # for who asks for such a table
                if path.parent.name == "cli" and top in ("click", "rich"):
                    continue  # the extra `cli`; without it one line says what to install
                assert top == "millstream" or top in sys.stdlib_module_names, f"{path.name} imports {name}"


# ---- the pages ----


def test_links_of_the_pages_lead_to_files_of_the_project() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    assert len(pages) >= 4
    links = 0
    for page in pages:
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
            if "://" in target:
                continue
            links += 1
            path = (page.parent / target).resolve()
            assert path.is_relative_to(ROOT), f"{page.name}: {target}"
            # `make bench` writes this one.
            assert path.exists() or path == ROOT / "docs" / "benchmarks.md", f"{page.name}: {target}"
    assert links >= 4


def test_the_readme_leads_to_every_page() -> None:
    linked = set(re.findall(r"\]\(([^)#\s]+)", (ROOT / "README.md").read_text(encoding="utf-8")))
    pages = {str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("*.md")}
    assert len(pages) > 5
    assert pages <= linked, pages - linked


def test_pages_and_sources_name_no_path_outside_of_the_project() -> None:
    looked_at = 0
    outside = re.compile(r"(?<![\w.$}~])(/(work|home|root|Users|mnt|srv)/\S*|\.\./\.\.\S*|\.\./shared\S*)")
    for pattern in ("*.md", "*.toml", "Makefile", "docs/**/*.md", "src/**/*.rs", "python/**/*.py*", "examples/*.py"):
        for path in ROOT.glob(pattern):
            if path.is_file() and path.suffix not in (".pyc", ".so"):
                looked_at += 1
                found = outside.search(path.read_text(encoding="utf-8"))
                assert not found, f"{path.relative_to(ROOT)} names {found and found[0]}"
    assert looked_at > 50


def test_the_tests_that_promises_are_shown_by_are_there() -> None:
    page = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:tests|src|fuzz)/[\w./]+)(?:::(\w+))?`", page)
    assert len(named) > 20
    for path, test in named:
        assert (ROOT / path).exists(), path
        if test:
            assert re.search(rf"\b(def|fn) {test}\(", (ROOT / path).read_text(encoding="utf-8")), f"{path}: {test}"
