"""Tests of finetune.scores.figures: what is drawn is inside the figure, apart from each other, and right."""

from __future__ import annotations

import io
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.axis import Axis, Tick
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from numpy.typing import NDArray
from PIL import Image

from finetune.scores.figures import MAX_LABEL_CHARACTERS, plot_confusion_matrix, plot_history, render_png

SIZES = [1, 2, 4, 10, 15, 16, 40, 102, 110, 111, 257]
TITLE = "Held-out test split: ResNet50 features, linear head, learning rate 0.01, 20 epochs"


def make_matrix(n_classes: int) -> NDArray[np.int64]:
    """Counts (n_classes, n_classes) of a good model on classes of very different sizes."""
    random = np.random.default_rng(n_classes)
    matrix = np.diag(random.integers(20, 2_000_000, n_classes))
    errors = random.integers(0, n_classes, (2, 4 * n_classes))
    matrix[errors[0], errors[1]] += 3
    return matrix


def make_classes(n_classes: int) -> list[str]:
    names = ["cat", "hard-leaved pocket orchid", "WWWWWWWWWWWWWWWWWWWWWWWWWWWWWW", "US$ 5 and $x_1$", "ship"]
    return [names[index % len(names)] for index in range(n_classes)]


def make_history(epochs: int, **more: float) -> list[dict[str, float]]:
    return [{"epoch": n, "loss": 2 / n, "accuracy": 1 - 0.5 / n, "seconds": 3.0, **more} for n in range(1, epochs + 1)]


def drawn_texts(figure: Figure) -> list[tuple[str, Bbox]]:
    """Every text of the figure with the box of pixels it is drawn in, once the figure is laid out."""
    render_png(figure, dpi=100)
    figure.draw_without_rendering()
    # Axes keep ticks that they do not draw: those beyond the limits and those left from an earlier choice of ticks.
    tick_texts = {text for tick in figure.findobj(Tick) for text in tick.findobj(Text)}
    texts = [text for text in figure.findobj(Text) if text not in tick_texts]
    texts += [label for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for label in labels_in_view(axis)]
    shown = [text for text in texts if isinstance(text, Text) and text.get_visible() and text.get_text()]
    return [(text.get_text(), text.get_window_extent()) for text in shown]


def labels_in_view(axis: Axis) -> list[Text]:
    low, high = sorted(axis.get_view_interval())
    labels = zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True)
    return [label for location, label in labels if low - 1e-9 <= location <= high + 1e-9]


def assert_texts_are_inside_and_apart(figure: Figure) -> None:
    texts = drawn_texts(figure)
    assert texts
    for name, box in texts:
        assert box.x0 >= 0, name
        assert box.y0 >= 0, name
        assert box.x1 <= figure.bbox.x1, name
        assert box.y1 <= figure.bbox.y1, name
    for (name, box), (other_name, other) in combinations(texts, 2):
        overlap = min(box.x1, other.x1) - max(box.x0, other.x0), min(box.y1, other.y1) - max(box.y0, other.y0)
        assert min(overlap) <= 0, f"{name!r} overlaps {other_name!r}"


def texts_of(figure: Figure) -> list[str]:
    return [text for text, _ in drawn_texts(figure)]


def cells_of(figure: Figure) -> Axes:
    return figure.axes[0]


@pytest.mark.parametrize("n_classes", SIZES)
def test_confusion_matrix_texts_are_inside_and_apart(n_classes: int) -> None:
    figure = plot_confusion_matrix(make_matrix(n_classes), make_classes(n_classes), title=TITLE)
    assert_texts_are_inside_and_apart(figure)


@pytest.mark.parametrize("n_classes", [2, 4, 10, 102, 257, 1000])
def test_confusion_matrix_png_is_of_sensible_size(n_classes: int) -> None:
    png = render_png(plot_confusion_matrix(make_matrix(n_classes), make_classes(n_classes), title=TITLE))
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(png) < 3_000_000
    assert max(Image.open(io.BytesIO(png)).size) < 6000


def test_counts_of_millions_stay_in_their_cells() -> None:
    matrix = np.full((15, 15), 88_888_888)
    assert_texts_are_inside_and_apart(plot_confusion_matrix(matrix, list("abcdefghijklmno"), title="x"))


def test_every_one_of_102_labels_is_drawn_legibly() -> None:
    classes = [f"flower species {index}" for index in range(102)]
    axes = cells_of(plot_confusion_matrix(make_matrix(102), classes, title=TITLE))
    for axis in (axes.xaxis, axes.yaxis):
        assert [label.get_text() for label in axis.get_ticklabels()] == classes
        assert all(float(label.get_fontsize()) >= 7 for label in axis.get_ticklabels())


def test_thinned_labels_are_announced_and_stand_at_their_class() -> None:
    classes = [f"class {index}" for index in range(257)]
    figure = plot_confusion_matrix(make_matrix(257), classes, title=TITLE)
    assert any("257 classes, one label in 3 shown" in text for text in texts_of(figure))
    axis = cells_of(figure).yaxis
    for location, label in zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True):
        assert label.get_text() == classes[int(location)]


def test_counts_accuracy_and_axis_names_are_shown() -> None:
    matrix = np.array([[90, 10], [0, 900]])
    figure = plot_confusion_matrix(matrix, ["cat", "dog"], title="Pets")
    texts = texts_of(figure)
    assert {"90", "10", "900", "cat", "dog", "true", "predicted", "Pets"} <= set(texts)
    assert "0" not in texts  # An empty cell is empty.
    assert "accuracy 99.00% of 1,000 rows" in texts
    axes = cells_of(figure)
    assert {text.get_text(): text.get_position() for text in axes.texts}["10"] == (1, 0)  # Row true, column predicted.


def test_rows_are_normalised_and_zero_cells_white() -> None:
    image = cells_of(plot_confusion_matrix(np.array([[1, 1], [0, 10_000]]), ["rare", "common"], title="")).images[0]
    shares: Any = image.get_array()
    assert shares.tolist() == [[0.5, 0.5], [None, 1.0]]
    colours: Any = image.to_rgba(shares)
    assert colours[1, 0].tolist() == [1.0, 1.0, 1.0, 1.0]
    palest: Any = image.to_rgba(np.array([1e-6]))
    assert palest[0, :3].min() < 0.8  # Even one row in a million is told from an empty cell.


def test_a_class_without_rows_is_an_empty_row() -> None:
    assert render_png(plot_confusion_matrix(np.array([[3, 1], [0, 0]]), ["a", "b"], title="x"))


def test_long_labels_are_elided_in_the_middle() -> None:
    name = "a flower with a name much longer than this figure can take, of 1987"
    axes = cells_of(plot_confusion_matrix(np.eye(2, dtype=np.int64), [name, "two\nlines"], title=""))
    long, short = (label.get_text() for label in axes.yaxis.get_ticklabels())
    assert len(long) == MAX_LABEL_CHARACTERS
    assert long.startswith("a flower")
    assert long.endswith("of 1987")
    assert short == "two lines"


@pytest.mark.parametrize("title", ["", "word " * 60, "W" * 200, "costs $5 or $6", "two\nlines"])
def test_any_title_fits(title: str) -> None:
    assert_texts_are_inside_and_apart(plot_confusion_matrix(make_matrix(2), ["a", "b"], title=title))
    assert_texts_are_inside_and_apart(plot_history(make_history(3), title=title))


def test_a_matrix_of_the_wrong_size_is_named() -> None:
    with pytest.raises(ValueError, match=r"`classes` must have one label per class, 2\. Got 3\."):
        plot_confusion_matrix(np.eye(2, dtype=np.int64), ["a", "b", "c"], title="")


@pytest.mark.parametrize("epochs", [1, 2, 7, 50, 1000])
def test_history_texts_are_inside_and_apart(epochs: int) -> None:
    history = make_history(epochs, validation_loss=0.3, validation_accuracy=0.9)
    figure = plot_history(history, title=TITLE, best_epoch=epochs)
    assert_texts_are_inside_and_apart(figure)
    assert {"training", "validation", f"best epoch ({epochs})"} <= set(texts_of(figure))


def test_history_draws_the_values_at_their_epochs() -> None:
    history: list[dict[str, float]] = [
        {"epoch": 1, "loss": 2.0, "accuracy": 0.5, "validation_loss": 2.5, "validation_accuracy": 0.4},
        {"epoch": 2, "loss": 1.0, "accuracy": 0.7},
        {"epoch": 3, "loss": 0.5, "accuracy": 0.9, "validation_loss": 1.5, "validation_accuracy": 0.6},
    ]
    loss_axes, accuracy_axes = plot_history(history, title="x", best_epoch=2).axes
    training, validation, best = (line.get_xydata() for line in loss_axes.lines)
    np.testing.assert_array_equal(training, [[1, 2.0], [2, 1.0], [3, 0.5]])
    np.testing.assert_array_equal(validation, [[1, 2.5], [3, 1.5]])
    np.testing.assert_array_equal(best, [[2, 0], [2, 1]])
    np.testing.assert_array_equal(accuracy_axes.lines[0].get_ydata(), [0.5, 0.7, 0.9])


def test_history_without_validation_has_no_such_curve() -> None:
    texts = texts_of(plot_history(make_history(4), title="x"))
    assert "training" in texts
    assert "validation" not in texts


def test_a_diverged_training_is_still_drawn() -> None:
    history = [*make_history(2), {"epoch": 3, "loss": float("nan"), "accuracy": 0.1}]
    history.append({"epoch": 4, "loss": float("inf"), "accuracy": 0.1})
    assert_texts_are_inside_and_apart(plot_history(history, title="x"))


def test_bad_histories_are_named() -> None:
    with pytest.raises(ValueError, match=r"`history` must have at least one epoch\. Got 0\."):
        plot_history([], title="")
    with pytest.raises(ValueError, match=r"`history` must have 'accuracy' in every epoch\. Got .* in entry 0\."):
        plot_history([{"epoch": 1, "loss": 1.0}], title="")
    with pytest.raises(ValueError, match=r"`best_epoch` must be an epoch of the history\. Got 9\."):
        plot_history(make_history(3), title="", best_epoch=9)


def test_render_png_follows_dpi_and_repeats_itself() -> None:
    figure = Figure(figsize=(2, 1))
    assert Image.open(io.BytesIO(render_png(figure, dpi=100))).size == (200, 100)
    assert render_png(figure) == render_png(figure)
    with pytest.raises(ValueError, match=r"`dpi` must be at least 1\. Got 0\."):
        render_png(figure, dpi=0)


def test_threads_draw_what_one_thread_draws() -> None:
    def draw(n_classes: int) -> bytes:
        return render_png(plot_confusion_matrix(make_matrix(n_classes), make_classes(n_classes), title=TITLE), dpi=60)

    sizes = [3, 5, 8, 12] * 2
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(draw, sizes)) == [draw(n_classes) for n_classes in sizes]


def test_pyplot_is_not_imported() -> None:
    code = "import sys, finetune.scores.figures; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
