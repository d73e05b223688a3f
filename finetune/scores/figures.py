"""Figures of a report: the confusion matrix and the course of a training.

Figures are made with matplotlib's `Figure` and never with pyplot, whose global state is neither thread-safe nor
headless. Class names are drawn literally: `parse_math=False` keeps a "$" in one from being read as TeX.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, PercentFormatter

from finetune.scores.metrics import IntArray, check_confusion_matrix

MAX_CLASSES_WITH_COUNTS = 15
MAX_CLASSES_WITH_ALL_LABELS = 110
MAX_LABEL_CHARACTERS = 24

PAD_IN = 0.12
LABEL_PITCH_IN = 0.14  # Least height of a line of 7 point text.
COLOUR_BAR_IN = 0.95  # Width of the bar, its gap, its ticks and its name.

# Blue and vermilion stay apart under every common colour blindness. Source: Okabe and Ito, "Color Universal Design",
# 2008, https://jfly.uni-koeln.de/color/.
TRAINING_COLOUR = "#0072B2"
VALIDATION_COLOUR = "#D55E00"


def plot_confusion_matrix(matrix: IntArray, classes: Sequence[str], *, title: str) -> Figure:
    """Draws a confusion matrix that stays readable from 2 classes to some hundreds.

    Colour is the share of the true class (the row), so that rare classes are as visible as common ones. It follows the square
    root, so that an error of 1 % is still visible. Cells without rows are white. Up to `MAX_CLASSES_WITH_COUNTS`
    classes, cells show their counts; up to `MAX_CLASSES_WITH_ALL_LABELS`, the figure grows until every label fits;
    beyond, every n-th class is labelled and the figure says so.

    Args:
        matrix: int (n_classes, n_classes), rows = true, columns = predicted, at least 0 and not all 0.
        classes: The class labels, in the order of `label_index`; long ones are shortened in the middle.
        title: Text above the figure, followed by the accuracy and the number of rows.

    Returns:
        A figure at most 20 inches a side.

    Raises:
        ValueError: The matrix is not a confusion matrix or has another number of classes than `classes`.
    """
    check_confusion_matrix(matrix, classes)
    layout = _Layout(tuple(_elide(label) for label in classes), title)
    figure = Figure(figsize=(layout.width_in, layout.height_in), facecolor="white")
    axes = figure.add_axes(layout.box(layout.axes_left_in, layout.axes_in))
    image = _draw_cells(axes, matrix)
    _draw_class_axes(axes, layout)
    _draw_colour_bar(figure, image, layout)
    if layout.n_classes <= MAX_CLASSES_WITH_COUNTS:
        _draw_counts(axes, matrix, layout.cell_in)
    rows = int(matrix.sum())
    notes = [f"accuracy {np.trace(matrix) / rows:.2%} of {rows:,} rows"]
    if layout.label_step > 1:
        notes.append(f"{layout.n_classes} classes, one label in {layout.label_step} shown")
    _draw_heading(figure, layout, notes)
    return figure


def plot_history(history: Sequence[Mapping[str, float]], *, title: str, best_epoch: int | None = None) -> Figure:
    """Draws loss and accuracy over the epochs of a training, side by side.

    Args:
        history: Per epoch: "epoch" (1-based), "loss" (nats), "accuracy" in [0, 1] and, where the epoch was validated,
            "validation_loss" and "validation_accuracy". Other keys are ignored.
        title: Text above the panels.
        best_epoch: The "epoch" to mark as the one kept, if any.

    Returns:
        A figure of 10 by 4.5 inches.

    Raises:
        ValueError: There are no epochs, one lacks a key, or `best_epoch` is not one of them.
    """
    _check_history(history, best_epoch)
    figure = Figure(figsize=(10, 4.5), facecolor="white", layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
    figure.suptitle(_wrap(title, 13, 9.5), fontsize=13, parse_math=False)
    loss_axes, accuracy_axes = figure.subplots(1, 2)
    for axes, key, name in ((loss_axes, "loss", "loss (nats)"), (accuracy_axes, "accuracy", "accuracy")):
        _draw_curve(axes, history, key, "training", TRAINING_COLOUR)
        _draw_curve(axes, history, f"validation_{key}", "validation", VALIDATION_COLOUR)
        if best_epoch is not None:
            axes.axvline(best_epoch, color="0.35", linestyle=":", linewidth=1.5, label=f"best epoch ({best_epoch})")
        _style_history_axes(axes, [entry["epoch"] for entry in history], name)
    accuracy_axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    handles, labels = loss_axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=10)
    return figure


def render_png(figure: Figure, *, dpi: int = 150) -> bytes:
    """Renders a figure to the bytes of a PNG file; the same figure gives the same bytes.

    Args:
        figure: Any figure.
        dpi: Pixels per inch, at least 1.

    Returns:
        The PNG file, `dpi` times the figure's inches in pixels.
    """
    if dpi < 1:
        raise ValueError(f"`dpi` must be at least 1. Got {dpi}.")
    buffer = io.BytesIO()
    # Without the software's name, which would change the bytes with matplotlib's version.
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


@dataclass(frozen=True)
class _Layout:
    """The positions of a confusion matrix's parts, in inches from the lower left, found by measuring the texts."""

    labels: tuple[str, ...]
    title: str

    @property
    def n_classes(self) -> int:
        return len(self.labels)

    @cached_property
    def cell_in(self) -> float:
        if self.n_classes <= MAX_CLASSES_WITH_COUNTS:
            # Wide enough for short labels side by side, and always for seven-digit counts.
            widest = min(1.6, 11 / self.n_classes)
            return max(0.6, 2.8 / self.n_classes, min(widest, _text_width_in(self.labels, 9) + 0.15))
        if self.n_classes <= MAX_CLASSES_WITH_ALL_LABELS:
            return max(LABEL_PITCH_IN, 7.0 / self.n_classes)
        return MAX_CLASSES_WITH_ALL_LABELS * LABEL_PITCH_IN / self.n_classes

    @property
    def axes_in(self) -> float:
        return self.cell_in * self.n_classes

    @property
    def label_step(self) -> int:
        return max(1, int(np.ceil(LABEL_PITCH_IN / self.cell_in - 1e-9)))

    @property
    def label_points(self) -> float:
        # A line of DejaVu Sans is 1.17 times its size high; 1.4 leaves some space.
        return float(np.clip(self.cell_in * self.label_step * 72 / 1.4, 7, 9))

    @cached_property
    def label_width_in(self) -> float:
        return _text_width_in(self.labels[:: self.label_step], self.label_points)

    @property
    def labels_lie(self) -> bool:
        """Whether the column labels fit side by side; otherwise they are drawn upright."""
        return self.label_step == 1 and self.label_width_in + 0.1 <= self.cell_in

    @property
    def left_in(self) -> float:
        return 0.45 + self.label_width_in + PAD_IN

    @property
    def bottom_in(self) -> float:
        return 0.45 + (0.15 if self.labels_lie else self.label_width_in) + PAD_IN

    @property
    def width_in(self) -> float:
        return max(5.0, self.left_in + self.axes_in + COLOUR_BAR_IN + PAD_IN)

    @cached_property
    def heading(self) -> str:
        return _wrap(self.title, 13, self.width_in - 2 * PAD_IN)

    @property
    def top_in(self) -> float:
        return 0.5 + 0.24 * (self.heading.count("\n") + 1)

    @property
    def height_in(self) -> float:
        return self.bottom_in + self.axes_in + self.top_in

    @property
    def axes_left_in(self) -> float:
        """The left edge of the cells: a small matrix under a wide heading is centred."""
        return self.left_in + (self.width_in - self.left_in - self.axes_in - COLOUR_BAR_IN - PAD_IN) / 2

    def box(self, left_in: float, width_in: float) -> tuple[float, float, float, float]:
        """A box of the height of the cells, in figure fractions: left, bottom, width, height."""
        bottom, height = self.bottom_in / self.height_in, self.axes_in / self.height_in
        return left_in / self.width_in, bottom, width_in / self.width_in, height


def _draw_cells(axes: Axes, matrix: IntArray) -> AxesImage:
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    # The colour map without its palest quarter: the smallest share must differ from an empty cell, which is white.
    colours = ListedColormap(colormaps["YlGnBu"](np.linspace(0.25, 1, 256))).with_extremes(bad="white")
    return axes.imshow(
        np.where(share > 0, share, np.nan), cmap=colours, norm=PowerNorm(0.5, vmin=0, vmax=1), aspect="auto"
    )


def _draw_class_axes(axes: Axes, layout: _Layout) -> None:
    ticks = np.arange(0, layout.n_classes, layout.label_step)
    labels = layout.labels[:: layout.label_step]
    for axis, rotation in ((axes.xaxis, 0 if layout.labels_lie else 90), (axes.yaxis, 0)):
        axis.set_major_locator(FixedLocator(ticks.tolist()))
        axis.set_ticks(ticks, labels, fontsize=layout.label_points, rotation=rotation, parse_math=False)
        axis.set_tick_params(length=2, pad=2)
    axes.set_xlabel("predicted", fontsize=11)
    axes.set_ylabel("true", fontsize=11)
    if layout.label_step == 1:
        edges = np.arange(layout.n_classes - 1) + 0.5
        width = 0.8 if layout.n_classes <= MAX_CLASSES_WITH_COUNTS else 0.3
        axes.hlines(edges, -0.5, layout.n_classes - 0.5, color="0.85", linewidth=width)
        axes.vlines(edges, -0.5, layout.n_classes - 0.5, color="0.85", linewidth=width)


def _draw_colour_bar(figure: Figure, image: AxesImage, layout: _Layout) -> None:
    bar_axes = figure.add_axes(layout.box(layout.axes_left_in + layout.axes_in + 0.15, 0.15))
    bar = figure.colorbar(image, cax=bar_axes, ticks=[0, 0.01, 0.05, 0.2, 0.5, 1], format=PercentFormatter(xmax=1))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.tick_params(labelsize=8, length=2, pad=2)
    bar.set_label("share of the true class", fontsize=9)


def _draw_counts(axes: Axes, matrix: IntArray, cell_in: float) -> None:
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    for true, predicted in zip(*np.nonzero(matrix), strict=True):
        count = f"{matrix[true, predicted]}"
        # A digit of DejaVu Sans is 0.64 times its size wide; the count takes 85 % of its cell at most.
        points = min(11.0, 0.85 * cell_in * 72 / (0.64 * len(count)))
        colour = "white" if share[true, predicted] > 0.3 else "black"
        axes.text(predicted, true, count, ha="center", va="center", fontsize=points, color=colour)


def _draw_heading(figure: Figure, layout: _Layout, notes: Sequence[str]) -> None:
    top = 1 - PAD_IN / layout.height_in
    figure.text(0.5, top, layout.heading, fontsize=13, ha="center", va="top", parse_math=False)
    bottom = (layout.bottom_in + layout.axes_in + 0.1) / layout.height_in
    figure.text(0.5, bottom, "; ".join(notes), fontsize=10, ha="center", va="bottom", color="0.25")


def _draw_curve(axes: Axes, history: Sequence[Mapping[str, float]], key: str, label: str, colour: str) -> None:
    points = [(entry["epoch"], entry[key]) for entry in history if key in entry]
    if points:
        marker = "." if len(points) <= 40 else ""  # Beyond some dozens, markers merge into a thick line.
        style = "--" if label == "validation" else "-"
        axes.plot(*zip(*points, strict=True), label=label, color=colour, linestyle=style, marker=marker, markersize=9)


def _style_history_axes(axes: Axes, epochs: Sequence[float], name: str) -> None:
    margin = max(0.5, 0.02 * (max(epochs) - min(epochs)))
    axes.set_xlim(min(epochs) - margin, max(epochs) + margin)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("epoch", fontsize=10)
    axes.set_ylabel(name, fontsize=10)
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _check_history(history: Sequence[Mapping[str, float]], best_epoch: int | None) -> None:
    if not history:
        raise ValueError("`history` must have at least one epoch. Got 0.")
    for index, entry in enumerate(history):
        if missing := [key for key in ("epoch", "loss", "accuracy") if key not in entry]:
            raise ValueError(
                f"`history` must have {missing[0]!r} in every epoch. Got {sorted(entry)} in entry {index}."
            )
    if best_epoch is not None and best_epoch not in {entry["epoch"] for entry in history}:
        raise ValueError(f"`best_epoch` must be an epoch of the history. Got {best_epoch}.")


def _elide(label: str) -> str:
    """Shortens a long label in the middle: its start and end (a model's year, a breed's name) tell most."""
    line = " ".join(label.split())
    if len(line) <= MAX_LABEL_CHARACTERS:
        return line
    kept = MAX_LABEL_CHARACTERS - 1
    return f"{line[: kept - kept // 2]}…{line[-(kept // 2) :]}"


def _wrap(text: str, points: float, width_in: float) -> str:
    """Breaks a text into lines that are at most `width_in` wide; breaks within a word only where it alone is wider."""
    most = int(4 * width_in * 72 / points)  # The narrowest letters are a quarter of their size wide.
    for characters in range(max(1, min(most, len(text))), 0, -1):
        lines = textwrap.wrap(text, characters) or [""]
        if _text_width_in(lines, points) <= width_in:
            break
    return "\n".join(lines)


def _text_width_in(lines: Sequence[str], points: float) -> float:
    """Width in inches of the widest line in the default font."""
    text = Figure(dpi=150).text(0, 0, "\n".join(lines), fontsize=points, parse_math=False)
    return text.get_window_extent().width / 150
