"""Three curves of a soak, as plain SVG, so that no plotting library is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

WIDTH, HEIGHT, GAP, LEFT, TOP = 720, 110, 46, 50, 34
PANELS = [
    ("resident memory, MB", "#264653", lambda sample: sample.rss_kb / 1024),
    ("open files", "#2a9d8f", lambda sample: sample.open_files),
    ("p99 of single calls, ms", "#e76f51", lambda sample: sample.p99_ms),
]


def draw(samples: Sequence[Any], warm_up: int) -> str:
    """The samples over their requests; the windows of the warm-up are shaded."""
    last = samples[-1].requests
    shapes = []
    for place, (name, colour, value_of) in enumerate(PANELS):
        y = TOP + place * (HEIGHT + GAP)
        values = [float(value_of(sample)) for sample in samples]
        most = 1.25 * max(values)
        shaded = WIDTH * samples[warm_up].requests / last
        points = " ".join(
            f"{LEFT + WIDTH * sample.requests / last:.1f},{y + HEIGHT * (1 - value / most):.1f}"
            for sample, value in zip(samples, values, strict=True)
        )
        shapes += [
            f'<rect x="{LEFT}" y="{y}" width="{shaded:.1f}" height="{HEIGHT}" fill="#f0f0f0"/>',
            f'<rect x="{LEFT}" y="{y}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#cccccc"/>',
            f'<text x="{LEFT}" y="{y - 8}" font-weight="bold">{name}</text>',
            f'<text x="{LEFT - 5}" y="{y + 8}" text-anchor="end">{most:.0f}</text>',
            f'<text x="{LEFT - 5}" y="{y + HEIGHT}" text-anchor="end">0</text>',
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.3"/>',
        ]
    height = TOP + len(PANELS) * (HEIGHT + GAP)
    shapes.append(f'<text x="{LEFT + WIDTH}" y="{height - 26}" text-anchor="end">{last:,} requests</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 20} {height}" font-family="sans-serif" '
        f'font-size="11"><rect width="100%" height="100%" fill="white"/>{"".join(shapes)}</svg>\n'
    )
