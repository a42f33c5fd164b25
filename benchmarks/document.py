"""docs/benchmarks.md as a whole: a run replaces what it has measured, and leaves the rest.

The sections of scenarios that were not run stay as they are, and so do the rows of their targets and every section that
somebody wrote by hand, which come last.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

HEADING = re.compile(r"^## (.*)$", re.MULTILINE)
SCENARIO = re.compile(r"\(`(\w+)`\)$")
TARGETS = "Targets"

# Of a table's row: its scenario and what is claimed of it.
Claim = tuple[str, str]


def merged(old: str, new: str, scenarios: Sequence[str], claims: Sequence[Claim]) -> str:
    """Return the document ``new`` with what only ``old`` has.

    Args:
        old: The document so far; may be empty.
        new: What a run has written, complete for the scenarios that it has run.
        scenarios: Names of all there are, in the order of the document.
        claims: All there are, in order; a row of another is dropped.
    """
    introduction, kept, fresh = sections(new)[0], sections(old)[1], sections(new)[1]
    both = kept | fresh
    if rows := joined(kept.get(TARGETS, ""), fresh.get(TARGETS, ""), set(fresh), claims):
        both[TARGETS] = f"## {TARGETS}\n\n{rows}\n\n"
    places = {name: place for place, name in enumerate(["Machine", TARGETS, *scenarios])}
    ordered = sorted(both, key=lambda name: places.get(name, len(places)))
    return introduction + "\n\n".join(both[name].rstrip() for name in ordered) + "\n"


def sections(text: str) -> tuple[str, dict[str, str]]:
    """Return what stands before the first section, and each by its scenario's name, or else by its heading."""
    headings = list(HEADING.finditer(text))
    starts = [*(heading.start() for heading in headings), len(text)]
    found = {}
    for heading, (start, end) in zip(headings, pairwise(starts), strict=True):
        scenario = SCENARIO.search(heading[1])
        found[scenario[1] if scenario else heading[1]] = text[start:end]
    return text[: starts[0]], found


def joined(old: str, new: str, measured: set[str], claims: Sequence[Claim]) -> str:
    """Return the table of targets with the rows of ``new``, and those of ``old`` whose scenarios were not measured."""
    kept = {claim: row for claim, row in rows_of(old).items() if claim[0] not in measured}
    rows = kept | rows_of(new)
    header = next(iter((rows_of(new) or rows_of(old)).values()), None)
    if header is None:
        return ""
    return table(header, [rows[claim] for claim in claims if claim in rows])


def rows_of(text: str) -> dict[Claim, list[str]]:
    """Return the cells of a table's rows by their first two; its header is the first of them."""
    lines = [line for line in text.splitlines() if line.startswith("|") and not line.startswith("| --")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {(row[0], row[1]): row for row in rows}


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )
