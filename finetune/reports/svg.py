"""Plots of a report as inline SVG, without scripts or images, coloured by classes of the style sheet.

A plot is drawn 360 units wide, the width of a phone; on wider screens it is scaled up as a whole.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

from finetune.scores.calibration import CalibrationBin

WIDTH, HEIGHT = 360, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 14, 46
_CHARACTER = 7.4  # units: the greatest width of a 12-unit digit in common fonts
_ROOMY = 40  # characters of a label that is alone
_MAX_MARKERS = 40  # with more, markers merge into a thick line

Format = Callable[[float], str]


@dataclass(frozen=True)
class Line:
    """A curve: its points from left to right, and the style class that colours it."""

    name: str
    style: str
    points: list[tuple[float, float]]


@dataclass(frozen=True)
class Dot:
    """A value at a position on x, its interval, and its note."""

    x: float
    y: float
    note: str
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Scale:
    """A map from data to units along one axis."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        """The position of `value`, in units."""
        low, high, at = (
            (math.log(v) for v in (self.low, self.high, value)) if self.is_log else (self.low, self.high, value)
        )
        return self.start + (self.end - self.start) * (at - low) / (high - low)


@dataclass
class Plot:
    """An SVG plot that is being drawn."""

    title: str
    x: Scale
    y: Scale
    parts: list[Markup] = field(default_factory=list)

    def add(self, text: str, **values: object) -> None:
        """Adds an element; values are escaped, numbers rounded to a tenth of a unit."""
        safe = {key: f"{v:.1f}" if isinstance(v, float) else escape(str(v)) for key, v in values.items()}
        self.parts.append(Markup(text.format(**safe)))

    def text(self, x: float, y: float, content: str, *, anchor: str = "middle", style: str = "tick") -> None:
        """Adds a line of text."""
        self.add(
            '<text x="{x}" y="{y}" text-anchor="{anchor}" class="{style}">{content}</text>',
            x=float(x),
            y=float(y),
            anchor=anchor,
            style=style,
            content=content,
        )

    def render(self) -> Markup:
        """The complete SVG."""
        head = Markup('<svg class="plot" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
            WIDTH, HEIGHT, self.title
        )
        return head + Markup("").join(self.parts) + Markup("</svg>")


def percent(value: float, digits: int = 0) -> str:
    """A share as text, such as ``87 %``, with a non-breaking space."""
    return f"{100 * value:.{digits}f}\u00a0%"


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from `low` to `high`, about `most` at most, spaced by 1, 2 or 5 times a power of ten.

    Source: P. S. Heckbert, "Nice numbers for graph labels", Graphics Gems, 1990.
    """
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def line_plot(
    title: str, lines: Sequence[Line], *, x_label: str, y_format: Format, mark: float | None = None
) -> Markup:
    """Curves over epochs.

    Args:
        mark: The x of a vertical line, for the epoch that was kept.
    """
    points = [point for line in lines for point in line.points]
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    x = Scale(first - 0.5, last + 0.5, _LEFT, WIDTH - _RIGHT) if first == last else _x_scale(first, last)
    plot = Plot(title, x, _y_scale([y for _, y in points]))
    whole = [tick for tick in ticks(first, last) if tick == int(tick)] if last > first else [first]
    _draw_axes(plot, [(tick, f"{tick:g}") for tick in whole], x_label, y_format)
    if mark is not None:
        plot.add(
            '<line class="mark" x1="{x}" x2="{x}" y1="{a}" y2="{b}"/>', x=plot.x(mark), a=plot.y.end, b=plot.y.start
        )
    for line in lines:
        _draw_line(plot, line, y_format)
    return plot.render()


def calibration_plot(bins: Sequence[CalibrationBin]) -> Markup:
    """Accuracy over confidence, with intervals; on the diagonal both are equal."""
    plot = Plot("Accuracy over confidence", Scale(0, 1, _LEFT, WIDTH - _RIGHT), Scale(0, 1, HEIGHT - _BOTTOM, _TOP))
    _draw_axes(plot, [(tick, percent(tick)) for tick in (0.0, 0.25, 0.5, 0.75, 1.0)], "confidence", percent)
    plot.add(
        '<line class="ideal" x1="{a}" y1="{b}" x2="{c}" y2="{d}"/>', a=plot.x(0), b=plot.y(0), c=plot.x(1), d=plot.y(1)
    )
    for part in bins:
        note = f"confidence {percent(part.confidence, 1)}, accuracy {percent(part.accuracy, 1)}, {part.rows} images"
        _draw_dot(plot, Dot(part.confidence, part.accuracy, note, part.interval), "validation")
    return plot.render()


def sweep_plot(
    title: str,
    *,
    trials: Sequence[Dot],
    means: Sequence[Dot],
    labels: Sequence[tuple[float, str]],
    is_log: bool,
    y_format: Format,
) -> Markup:
    """A metric over the values of one swept parameter: every trial as a pale dot, and means with intervals.

    Args:
        trials: One dot for each trial.
        means: One dot with an interval for each value.
        labels: Positions on x and the text written there.
        is_log: Whether x is logarithmic.
    """
    at = [dot.x for dot in trials]
    first, last = min(at), max(at)
    if is_log:
        pad = (last / first) ** 0.08
        x = Scale(first / pad, last * pad, _LEFT, WIDTH - _RIGHT, is_log=True)
    else:
        pad = 0.08 * (last - first) or 0.5
        x = Scale(first - pad, last + pad, _LEFT, WIDTH - _RIGHT)
    heights = [dot.y for dot in trials] + [end for dot in means for end in dot.interval or ()]
    plot = Plot(f"{title}: the metric over its values", x, _y_scale(heights))
    _draw_axes(plot, _thinned(labels, x), title, y_format)
    for dot in trials:
        _draw_dot(plot, dot, "trial")
    if len(means) > 1:
        course = " ".join(f"{plot.x(dot.x):.1f},{plot.y(dot.y):.1f}" for dot in means)
        plot.add('<polyline class="training faint" points="{course}"/>', course=course)
    for dot in means:
        _draw_dot(plot, dot, "training")
    return plot.render()


def _x_scale(first: float, last: float) -> Scale:
    pad = 0.02 * (last - first)
    return Scale(first - pad, last + pad, _LEFT, WIDTH - _RIGHT)


def _y_scale(values: Sequence[float]) -> Scale:
    low, high = min(values), max(values)
    pad = 0.06 * (high - low) or 0.05 * abs(high) or 0.05
    return Scale(low - pad, high + pad, HEIGHT - _BOTTOM, _TOP)


def _draw_axes(plot: Plot, x_ticks: Sequence[tuple[float, str]], x_label: str, y_format: Format) -> None:
    bottom, right = float(HEIGHT - _BOTTOM), float(WIDTH - _RIGHT)
    for tick in ticks(plot.y.low, plot.y.high, 7):
        y = plot.y(tick)
        plot.add('<line class="grid" x1="{a}" x2="{b}" y1="{y}" y2="{y}"/>', a=float(_LEFT), b=right, y=y)
        plot.text(_LEFT - 6, y + 4, y_format(tick), anchor="end")
    for tick, label in x_ticks:
        width = len(label) * _CHARACTER / 2
        x = min(max(plot.x(tick), width), WIDTH - width)  # keeps a label at the edge inside
        plot.add('<line class="axis" x1="{x}" x2="{x}" y1="{a}" y2="{b}"/>', x=plot.x(tick), a=bottom, b=bottom + 4)
        plot.text(x, bottom + 18, label)
    plot.add('<line class="axis" x1="{a}" x2="{b}" y1="{y}" y2="{y}"/>', a=float(_LEFT), b=right, y=bottom)
    plot.text((_LEFT + right) / 2, HEIGHT - 8, x_label, style="label")


def _draw_line(plot: Plot, line: Line, y_format: Format) -> None:
    course = " ".join(f"{plot.x(x):.1f},{plot.y(y):.1f}" for x, y in line.points)
    plot.add('<polyline class="{style}" points="{course}"/>', style=line.style, course=course)
    radius = 3.0 if len(line.points) <= _MAX_MARKERS else 0.0
    for x, y in line.points:
        plot.add(
            '<g class="{style}"><circle class="marker" cx="{x}" cy="{y}" r="{radius}"/>'
            '<circle class="target" cx="{x}" cy="{y}" r="6"/><title>{note}</title></g>',
            style=line.style,
            x=plot.x(x),
            y=plot.y(y),
            radius=radius,
            note=f"{line.name}, epoch {x:g}: {y_format(y)}",
        )


def _draw_dot(plot: Plot, dot: Dot, style: str) -> None:
    if dot.interval is not None:
        plot.add(
            '<line class="{style} interval" x1="{x}" x2="{x}" y1="{low}" y2="{high}"/>',
            style=style,
            x=plot.x(dot.x),
            low=plot.y(dot.interval[0]),
            high=plot.y(dot.interval[1]),
        )
    plot.add(
        '<g class="{style}"><circle class="marker" cx="{x}" cy="{y}" r="4"/><title>{note}</title></g>',
        style=style,
        x=plot.x(dot.x),
        y=plot.y(dot.y),
        note=dot.note,
    )


def _thinned(labels: Sequence[tuple[float, str]], x: Scale) -> list[tuple[float, str]]:
    """`labels` without those that would overlap the one before; long ones are shortened."""
    kept, end = list[tuple[float, str]](), -math.inf
    room = max(6, int((x.end - x.start) / max(1, len(labels)) / _CHARACTER))
    places = sorted(labels)
    for (place, _), short in zip(places, shorten_apart([label for _, label in places], room), strict=True):
        half = len(short) * _CHARACTER / 2
        if x(place) - half > end:
            kept.append((place, short))
            end = x(place) + half + 6
    return kept


def shorten_apart(labels: Sequence[str], room: int) -> list[str]:
    """Labels of at most `room` characters, as far as possible different ones: without the words that all begin with, then cut at
    the end, or else at the start.
    """
    if all(len(label) <= room for label in labels) or room >= _ROOMY:
        return list(labels)
    shared = _shared_start(labels).rfind("_") + 1
    own = [label[shared:] for label in labels] if len(set(labels)) > 1 else list(labels)
    heads = [label if len(label) <= room else label[: room - 1] + "…" for label in own]
    tails = [label if len(label) <= room else "…" + label[1 - room :] for label in own]
    return tails if len(set(heads)) < len(set(tails)) else heads


def _shared_start(labels: Sequence[str]) -> str:
    """The characters with which all labels begin."""
    first, last = min(labels), max(labels)
    return first[: next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))]
