"""Charts as inline SVG, drawn by pygal where it is installed (``pip install 'archiver[report]'``).

Its scripts are taken out again: they would be loaded from elsewhere, and what they show of a point as a tooltip is the
point's title here, which browsers show by themselves. Colours are the page's, so that one chart is good for light and
dark.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from archiver.jobs.report.text import age_text, bytes_text, plain

if TYPE_CHECKING:
    from pygal.graph.graph import Graph

COLORS = 5  # --series-1 and --rank-1, and so on, are in the page's style
_TICKS = 5
_DOTS = 60  # more points than that are a line without dots
_LABEL = 40  # characters
_ROOM = 60  # for half of the last label
_DAY = 86400
_BARS = 250  # there is room for
_BAR_SHARE = 0.8  # of the room that there is for a bar
_WIDTH, _HEIGHT, _ROW = 820, 260, 34

Point = tuple[int, int]  # Unix seconds, a value
Draw = Callable[[], str]


def has_charts() -> bool:
    try:
        import pygal  # noqa: F401
    except ImportError:
        return False
    return True


def size_lines(series: Sequence[tuple[str, Sequence[Point]]], name: str) -> str:
    """Sizes over time, a line for each of ``series``."""
    from pygal import XY

    most = max(len(points) for _, points in series)
    chart = XY(_config(show_dots=most <= _DOTS, show_legend=len(series) > 1))
    for label, points in series:
        chart.add(_shortened(label), list(points))
    _axes(chart, [point for _, points in series for point in points])
    return _svg(chart, name)


def size_bars(label: str, points: Sequence[Point], name: str) -> str:
    """Sizes at moments, a bar for each."""
    from pygal import Histogram

    gaps = sorted(after[0] - before[0] for before, after in pairwise(points))
    width = _DAY // 2
    if gaps:  # bars that can be seen, also where a few runs follow each other closely
        width = max(int(gaps[len(gaps) // 2] * _BAR_SHARE), (points[-1][0] - points[0][0]) // _BARS, 1)
    chart = Histogram(_config(show_legend=False))
    chart.add(label, [(size, moment - width // 2, moment + width // 2) for moment, size in points])
    _axes(chart, [(moment + sign * width // 2 * bool(gaps), size) for moment, size in points for sign in (-1, 1)])
    return _svg(chart, name)


def shares(rows: Sequence[str], parts: Sequence[tuple[str, Sequence[int]]], name: str) -> str:
    """For each row how its bytes are divided into ``parts``, from the best to the worst."""
    from pygal import HorizontalStackedBar

    chart = HorizontalStackedBar(_config(_ROW * len(rows) + 110, colors="rank"))
    chart.x_labels = [_shortened(row) for row in reversed(rows)]
    for label, sizes in parts:
        chart.add(label, list(reversed(sizes)))
    most = max((sum(sizes[row] for _, sizes in parts) for row in range(len(rows))), default=0)
    chart.y_labels = _labelled(size_ticks(most))
    chart.value_formatter = _bytes
    return _svg(chart, name)


def durations(steps: Sequence[tuple[str, float]], name: str) -> str:
    """How long each step took."""
    from pygal import HorizontalBar

    chart = HorizontalBar(_config(_ROW * len(steps) + 60, show_legend=False))
    chart.x_labels = [_shortened(step) for step, _ in reversed(steps)]
    chart.add("time", [seconds for _, seconds in reversed(steps)])
    chart.value_formatter = age_text
    chart.margin_right = _ROOM
    chart.y_labels = duration_ticks(max((seconds for _, seconds in steps), default=0))
    return _svg(chart, name)


def size_ticks(most: int) -> list[int]:
    """Round numbers of bytes from 0 to at least ``most``."""
    unit = 1 << (10 * ((max(most, 1).bit_length() - 1) // 10))
    steps = [step * scale * unit // 10 for scale in (1, 10, 100, 1000) for step in (1, 2, 5)]
    return [int(tick) for tick in _ticks(most, [step for step in steps if step])]


def _labelled(ticks: Sequence[int]) -> list[dict[str, Any]]:
    """All in the unit of the largest one."""
    return [{"value": tick, "label": bytes_text(tick, like=ticks[-1])} for tick in ticks]


def duration_ticks(most: float) -> list[float]:
    """Round numbers of seconds from 0 to at least ``most``."""
    return _ticks(
        most, (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600, 1200, 3600, 7200, 4 * 3600, 12 * 3600, _DAY)
    )


def _ticks(most: float, steps: Sequence[float]) -> list[float]:
    step = next((step for step in steps if step * _TICKS >= most), steps[-1])
    return [step * count for count in range(max(math.ceil(most / step), 1) + 1)]


def time_ticks(first: int, last: int) -> list[int]:
    """Moments from the first to the last, the whole days among them when there are several."""
    if last - first < 2 * _DAY:
        return [first, last] if last > first else [first]
    step = max(-(-(last - first) // _DAY // (_TICKS + 1)), 1) * _DAY
    return [*range(first, last - step // 2, step), last]


def _axes(chart: Graph, points: Sequence[Point]) -> None:
    moments = [moment for moment, _ in points]
    first, last = min(moments), max(moments)
    if first == last:
        first, last = first - _DAY, last + _DAY
    chart.xrange = (first, last)
    chart.margin_right = _ROOM
    chart.x_labels = time_ticks(first, last)
    form = "%d %b %Y" if last - first >= 2 * _DAY else "%d %b %H:%M"
    chart.x_value_formatter = lambda moment: time.strftime(form, time.localtime(moment))
    ticks = size_ticks(max(size for _, size in points))
    chart.y_labels = _labelled(ticks)
    chart.value_formatter = _bytes
    chart.range = (0, ticks[-1])


def _bytes(size: float) -> str:
    return bytes_text(int(size))


def _shortened(text: str) -> str:
    """Of a path its end tells more."""
    text = plain(text)
    return text if len(text) <= _LABEL else "…" + text[1 - _LABEL :]


def _config(height: int = _HEIGHT, *, colors: str = "series", show_dots: bool = True, show_legend: bool = True) -> Any:
    from pygal import Config
    from pygal.style import Style

    series = [f"var(--{colors}-{number})" for number in range(1, COLORS + 1)]
    config = Config()
    config.style = Style(
        background="transparent",
        plot_background="transparent",
        foreground="var(--text)",
        foreground_strong="var(--text)",
        foreground_subtle="var(--faint)",
        guide_stroke_color="var(--grid)",
        major_guide_stroke_color="var(--grid)",
        guide_stroke_dasharray="none",
        major_guide_stroke_dasharray="none",
        colors=series,
        value_colors=["var(--text)"] * COLORS,
        font_family="inherit",
        label_font_size=13,
        major_label_font_size=13,
        legend_font_size=13,
        opacity=".9",
        opacity_hover="1",
        stroke_width="2",
        transition="0s",
    )
    config.js = []
    config.title = None
    config.width, config.height = _WIDTH, height
    config.legend_at_bottom, config.legend_box_size = True, 11
    config.show_dots, config.dots_size = show_dots, 3
    config.show_legend, config.truncate_legend, config.truncate_label = show_legend, -1, -1
    config.margin = 8
    config.explicit_size = False
    config.no_data_text = ""
    return config


def _svg(chart: Graph, name: str) -> str:
    """``name`` is the chart's id in the page, and what it shows in words."""
    chart.uuid = "".join(char if char.isalnum() else "-" for char in name.lower())
    root = chart.render_tree()
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag is ElementTree.Comment or child.tag in ("script", "title"):
                parent.remove(child)
            elif child.tag == "desc":
                if "value" in child.get("class", "").split():
                    ElementTree.SubElement(parent, "title").text = child.text
                parent.remove(child)
    root.attrib.update({"role": "img", "aria-label": name})
    return ElementTree.tostring(root, encoding="unicode")
