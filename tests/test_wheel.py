"""What the installed wheel carries besides the package."""

from __future__ import annotations

import json
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def bill() -> dict[str, Any]:
    distribution = metadata.distribution("millstream")
    if '"editable":true' in (distribution.read_text("direct_url.json") or "").replace(" ", ""):
        pytest.skip("not installed from a wheel")
    files = [file for file in distribution.files or () if file.match("sboms/*.cyclonedx.json")]
    assert len(files) == 1, "one bill of materials"
    bill: dict[str, Any] = json.loads(Path(str(files[0].locate())).read_text(encoding="utf-8"))
    return bill


def test_a_bill_of_materials_names_every_crate_with_its_checksum_and_licence(bill: dict[str, Any]) -> None:
    assert bill["bomFormat"] == "CycloneDX"
    assert bill["metadata"]["component"]["name"] == "millstream"
    names = {component["name"] for component in bill["components"]}
    assert {"hyper", "pyo3", "ring", "rusqlite", "rustls", "tokio"} <= names
    for component in bill["components"]:
        assert component["hashes"], component["name"]
        assert component["licenses"], component["name"]
        assert component["purl"].startswith("pkg:cargo/"), component["name"]


@pytest.mark.tree
def test_the_bill_of_materials_is_of_the_locked_crates(bill: dict[str, Any]) -> None:
    locked = tomllib.loads((ROOT / "Cargo.lock").read_text(encoding="utf-8"))["package"]
    checksums = {(crate["name"], crate["version"]): crate.get("checksum") for crate in locked}
    assert all(checksum for (name, _), checksum in checksums.items() if name != "millstream"), "a crate without a hash"
    for component in bill["components"]:
        (said,) = (each["content"] for each in component["hashes"] if each["alg"] == "SHA-256")
        assert checksums[component["name"], component["version"]] == said


def test_the_wheel_asks_for_nothing_unless_the_command_line_is_wanted() -> None:
    required = metadata.requires("millstream") or []
    assert required
    assert all("extra == " in requirement for requirement in required), required
