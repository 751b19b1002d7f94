"""Execution rates of the gated blocks, or of a cascade's members, on the test images, as bars."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from markupsafe import Markup

from hybridprune.report.html import svg

HEIGHT = 250


def draw(runs: Sequence[Sequence[float]], members: bool = False) -> Markup:
    """A bar for each gated block, its mean rate over the runs, and a dot for each run; ``runs`` are lists of rates.

    Of a cascade the bars are its ``members``, from the second one on.
    """
    assert runs and all(len(rates) == len(runs[0]) for rates in runs)
    blocks = len(runs[0])
    slot = max(22.0, min(64.0, 640 / blocks))
    y = svg.Scale(0, 1, HEIGHT - 52, 34)
    # Blocks are numbered from 0, and block 0 has no gate; members from 1.
    start, name = (2, "member") if members else (1, "block")
    x = svg.Scale(start - 0.5, start + blocks - 0.5, 64, 64 + blocks * slot)
    parts = [
        svg.axes(x, y, "member" if members else "gated block", "executed, share of the test images", None, svg.percent)
    ]
    means = [statistics.mean(column) for column in zip(*runs, strict=True)]
    for block, rate in enumerate(means, start=start):
        title = svg.tag("title", f"{name} {block}: {svg.percent(rate)}")
        bar = {"x": x(block) - 0.36 * slot, "width": 0.72 * slot, "rx": 2}
        outline = svg.tag("rect", y=y(1), height=y(0) - y(1), class_="had", **bar)
        filling = svg.tag("rect", y=y(rate), height=y(0) - y(rate), class_="kept", **bar)
        parts.append(svg.tag("g", title, outline, filling))
        if slot >= 30 or block % 2:
            parts.append(svg.text(x(block), y.start + 19, str(block), "middle", "tick"))
        if len(runs) > 1:
            parts += [svg.marker("o", x(block), y(rates[block - start]), 2.5, "run seed") for rates in runs]
    listed = ", ".join(f"{name} {block} {svg.percent(rate)}" for block, rate in enumerate(means, start=start))
    return svg.figure(max(x.end + 24, 330), HEIGHT, f"Execution rates on the test images: {listed}.", *parts)
