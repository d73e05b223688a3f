"""Progress: what is reported goes to the view that is chosen, and each view shows it in its way."""

import logging
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest
from helpers.project import ROOT
from helpers.terminals import run_in_terminal

from featurize.image_progress import ImageProgress, View, clock
from featurize.progress import (
    current_view,
    show_images,
    show_row,
    shown_in_notebook,
    shown_progress,
    stage,
    without_stages,
)
from featurize.progress_views import LogView

HALF = ImageProgress("images", done=1500, total=3000, rejected=2, rate=12.5, bound="decode")
HALF_LINE = "1,500 of 3,000 images (50%), 12.5 a second, 2:00 left, 2 rejected, bound by decode"
ROW = ({"epoch": "3", "loss": "0.25"}, "epoch 3 loss 0.25")


class DisplaysKept(nbclient.NotebookClient):  # type: ignore[misc]
    """Runs a notebook, and keeps each state of the outputs that are replaced."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.html: list[str] = []

    def process_message(self, msg: Any, cell: Any, cell_index: int) -> Any:
        if msg["msg_type"] in ("display_data", "update_display_data"):
            self.html.append(msg["content"]["data"]["text/html"])
        return super().process_message(msg, cell, cell_index)


REPORTS = """
import time
from featurize.image_progress import ImageProgress
from featurize.progress import show_images, show_row, shown_progress, stage
def report():
    stage("starting Spark")
    time.sleep(0.5)
    for done in (0, 700, 1500):
        show_images(ImageProgress("images", done, 3000, rejected=2, rate=12.5, bound="decode"))
        time.sleep(0.7)
"""


class Recorder:
    """A view that keeps what it is shown."""

    wants_images = True

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.is_closed = False

    def stage(self, text: str) -> None:
        self.seen.append(text)

    def show_images(self, progress: ImageProgress) -> None:
        self.seen.append(progress)

    def show_row(self, columns: Mapping[str, str], line: str) -> None:
        self.seen.append((columns, line))

    def close(self) -> None:
        self.is_closed = True


def report_all() -> None:
    stage("starting Spark")
    show_images(HALF)
    show_row(*ROW)


def fail_within(view: View) -> None:
    with shown_progress(view=view):
        report_all()
        raise ZeroDivisionError


def test_a_line_has_all_that_is_known() -> None:
    assert HALF.describe() == HALF_LINE
    assert ImageProgress("images", done=0, total=3000).describe() == "0 of 3,000 images (0%), 0 rejected"
    assert ImageProgress("images", done=0, total=0).describe() == "0 of 0 images (0%), 0 rejected"


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3661, "1:01:01")])
def test_seconds_as_a_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_reports_go_to_the_innermost_view_which_is_closed_whatever_happens() -> None:
    outer, inner = Recorder(), Recorder()
    before = current_view()
    with shown_progress(view=outer):
        with pytest.raises(ZeroDivisionError):
            fail_within(inner)
        assert (inner.is_closed, outer.is_closed) == (True, False)
        stage("publishing")
    assert inner.seen == ["starting Spark", HALF, ROW]
    assert outer.seen == ["publishing"]
    assert outer.is_closed
    assert current_view() is before


def test_the_stages_of_a_batch_are_hidden_and_its_images_are_not() -> None:
    view = Recorder()
    with shown_progress(view=view), without_stages():
        report_all()
    assert view.seen == ["", HALF, ROW]


def test_a_library_is_silent_and_logs(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    with shown_in_notebook():  # this is none
        assert not current_view().wants_images
        report_all()
        with caplog.at_level(logging.DEBUG, "featurize.progress"):
            assert current_view().wants_images
            report_all()
    assert [record.message for record in caplog.records] == ["starting Spark", HALF_LINE, ROW[1]]
    assert capsys.readouterr() == ("", "")


def test_with_json_there_is_neither_bar_nor_stage(capsys: pytest.CaptureFixture[str]) -> None:
    with shown_progress(as_json=True):
        assert not current_view().wants_images
        report_all()
    assert capsys.readouterr() == ("", f"{ROW[1]}\n")


def lines_of(view: View, capsys: pytest.CaptureFixture[str]) -> list[str]:
    with shown_progress(view=view):
        stage("starting workers")
        for _ in range(3):
            show_images(HALF)
        show_row(*ROW)
        stage("")
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()


def test_a_log_has_a_line_from_time_to_time(capsys: pytest.CaptureFixture[str]) -> None:
    always = [HALF_LINE] * 3
    for first_s, period_s, lines in ((0, 0, always), (0, 3600, always[:1]), (3600, 0, [])):
        view = LogView(first_s=first_s, period_s=period_s)
        assert lines_of(view, capsys) == ["starting workers", *lines, ROW[1]]


def test_without_a_terminal_the_first_line_is_late(capsys: pytest.CaptureFixture[str]) -> None:
    with shown_progress():
        report_all()
    assert capsys.readouterr() == ("", f"starting Spark\n{ROW[1]}\n")


def test_a_terminal_shows_one_line_that_moves(tmp_path: Path) -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{REPORTS}\nwith shown_progress(): report()\nprint('after')"
    )
    status, lines = run_in_terminal([sys.executable, "-c", program], cwd=tmp_path)
    assert status == 0
    assert any(re.fullmatch(r"\S starting Spark", line.strip()) for line in lines)
    bar = r"images ━+[╸╺]?━+ 1,500/3,000  12.5/s  2:00 left  2 rejected  bound by decode"
    assert any(re.fullmatch(bar, line.strip()) for line in lines)
    assert any(re.search(r"starting Spark ━+ 0/3,000 ", line) for line in lines)  # what happens before the first image
    assert lines[-1].strip() == "after"


def test_a_terminal_shows_rows_as_a_table_that_stays(tmp_path: Path) -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{REPORTS}\n"
        "with shown_progress():\n    for n in range(3): show_row({'epoch': f'{n}', 'loss': '0.25'}, 'a line')\n"
    )
    status, lines = run_in_terminal([sys.executable, "-c", program], cwd=tmp_path)
    assert status == 0
    assert [line.split() for line in lines[-4:]] == [["epoch", "loss"], ["0", "0.25"], ["1", "0.25"], ["2", "0.25"]]
    assert "a line" not in "".join(lines)


@pytest.mark.slow
def test_a_notebook_has_one_output_that_moves(tmp_path: Path) -> None:
    cells = [
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{REPORTS}",
        "with shown_progress(): report(); print('under way'); raise SystemError",
        "with shown_progress(): report(); stage('publishing'); show_row({'epoch': '0'}, 'a line')",
        "from featurize.progress import current_view, shown_in_notebook\n"
        "with shown_in_notebook(): print(type(current_view()).__name__)",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    displays = DisplaysKept(notebook, timeout=60, allow_errors=True, resources={"metadata": {"path": str(tmp_path)}})
    displays.execute()
    shown = displays.html
    assert "starting Spark" in shown[0]
    assert any('<progress value="1500" max="3000"' in html and HALF_LINE in html for html in shown)
    _, failed, ended, chosen = (cell.outputs for cell in notebook.cells)
    assert [output.output_type for output in failed] == ["display_data", "stream", "error"]
    assert failed[0].data["text/html"] == "<div></div>"
    assert [output.output_type for output in ended] == ["display_data"]
    assert "<th>epoch</th>" in ended[0].data["text/html"]
    assert chosen[0].text == "NotebookView\n"
