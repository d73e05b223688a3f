"""Tests of the tables that results show of themselves."""

from finetune.api.tables import Summary

HOSTILE = "[red]<script>alert(1)</script> & 'x'"


def test_text_is_shown_as_it_is_and_html_is_escaped() -> None:
    summary = Summary(HOSTILE, [(HOSTILE, HOSTILE)], [HOSTILE, "n"], [(HOSTILE, "7")], numbers=(1,), more=1200)
    assert summary.as_text().count(HOSTILE) == 5
    html = summary.as_html()
    assert "<script>" not in html
    assert html.count("[red]&lt;script&gt;alert(1)&lt;/script&gt; &amp; &#x27;x&#x27;") == 5
    assert "and 1,200 more" in html
    assert "and 1,200 more" in summary.as_text()


def test_what_is_empty_is_left_out() -> None:
    assert Summary("alone").as_text() == "alone"
    assert Summary("alone").as_html() == "<div><p><strong>alone</strong></p></div>"
