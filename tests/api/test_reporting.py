"""Tests of `finetune.report`."""

from html import unescape
from pathlib import Path

import pytest
from helpers.models.report_folders import HOSTILE

import finetune
from finetune.api.model import Model


def test_a_page_is_shown_in_a_notebook_and_text_in_a_shell(model: Model) -> None:
    made = finetune.report(model, check_data=False)
    assert made.url is None
    shown = made._repr_html_()
    assert shown.startswith("<iframe srcdoc=")
    assert HOSTILE not in made.html
    inside = shown.removeprefix('<iframe srcdoc="').partition('" title=')[0]
    assert '"' not in inside
    assert unescape(inside) == made.html
    assert repr(made) == made.text
    assert f"{model.evaluate().accuracy:.4f}" in made.text


def test_the_page_is_written_where_that_is_asked_for(model: Model, tmp_path: Path) -> None:
    made = model.report(tmp_path / "page.html", title="Owls & dogs", split="validation", check_data=False)
    assert made.url == f"file://{tmp_path}/page.html"
    written = (tmp_path / "page.html").read_text()
    assert written == made.html
    assert "Owls &amp; dogs" in written
    made.save(tmp_path / "copy.html")
    assert (tmp_path / "copy.html").read_text() == written


def test_what_is_neither_a_model_nor_a_sweep_is_named(tmp_path: Path) -> None:
    with pytest.raises(finetune.UsageError, match="is neither a model"):
        finetune.report(tmp_path)
