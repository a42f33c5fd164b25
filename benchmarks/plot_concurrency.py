"""Draw docs/concurrency.svg from the CSV of `cargo run --no-default-features --example concurrency`, on standard input.

Plain SVG, so that no plotting library is needed.
"""

from __future__ import annotations

import csv
import sys
from itertools import groupby
from pathlib import Path

SCENES = ["8 slots", "32 slots", "200 slots", "slots 32, 8, 64", "refuses above 20", "unlimited, 50 ms"]
WIDTH, HEIGHT, GAP, LEFT, TOP = 400, 170, 60, 50, 40
LINES = [("slots", "#999999", "6 4"), ("throughput", "#2a9d8f", ""), ("limit", "#264653", ""), ("p95", "#e76f51", "")]


def panel(name: str, rows: list[dict[str, str]], x: int, y: int) -> list[str]:
    seconds = len(rows)
    settled = [float(row["limit"]) for row in rows[seconds // 5 :]]
    most = max(float(row["slots"]) for row in rows if float(row["slots"]) < 10_000 or name.startswith("unlimited"))
    most = 1.6 * max(most, *settled) if most < 10_000 else 1.15 * max(settled)
    longest = max(4.0, *(float(row["p95"]) * 1.2 for row in rows[seconds // 5 :])) if "unlimited" not in name else 0.4
    shapes = [
        f'<text x="{x}" y="{y - 8}" font-weight="bold">{name}</text>',
        f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#cccccc"/>',
        f'<text x="{x - 5}" y="{y + 8}" text-anchor="end">{most:.0f}</text>',
        f'<text x="{x - 5}" y="{y + HEIGHT}" text-anchor="end">0</text>',
        f'<text x="{x + WIDTH + 4}" y="{y + 8}" fill="#e76f51">{longest:.1f} s</text>',
        f'<text x="{x + WIDTH}" y="{y + HEIGHT + 14}" text-anchor="end">{seconds} s</text>',
    ]
    for column, colour, dashes in LINES:
        if column == "throughput" and name.startswith("unlimited"):
            continue
        scale = longest if column == "p95" else most
        points = []
        for row in rows:
            value = min(float(row[column]) / scale, 1.0)
            points.append(f"{x + WIDTH * int(row['second']) / seconds:.1f},{y + HEIGHT * (1 - value):.1f}")
        shapes.append(
            f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}" stroke-width="1.3" '
            f'stroke-dasharray="{dashes}"/>'
        )
    return shapes


def main() -> None:
    rows = list(csv.DictReader(sys.stdin))
    scenes = {name: list(group) for name, group in groupby(rows, key=lambda row: row["scene"])}
    shapes = []
    for place, name in enumerate(SCENES):
        x = LEFT + (place % 2) * (WIDTH + 2 * GAP)
        y = TOP + 30 + (place // 2) * (HEIGHT + GAP)
        shapes += panel(name, scenes[name], x, y)
    labels = [
        ("limit", "limit"),
        ("throughput", "answers per second"),
        ("slots", "slots"),
        ("p95", "p95 of the latency"),
    ]
    colours = {column: colour for column, colour, _ in LINES}
    legend = "".join(f'<tspan fill="{colours[column]}" dx="18">{label}</tspan>' for column, label in labels)
    width, height = 2 * WIDTH + 3 * GAP + LEFT, TOP + 30 + 3 * (HEIGHT + GAP)
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="11"><rect width="100%" height="100%" fill="white"/>'
        f'<text x="{LEFT - 18}" y="24" font-size="14">{legend}</text>{"".join(shapes)}</svg>\n'
    )
    Path("docs/concurrency.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
