"""`report`: a model or a sweep on one page."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path

from featurize import storage
from finetune.api.model import Model
from finetune.api.names import HasUrl, folder_of, url_of
from finetune.reports.context import report_context
from finetune.reports.judge import Judgement, Target, find_target, judge
from finetune.reports.page import render_report
from finetune.reports.plain import plain_report

_HEIGHT = 720  # pixels of the page in a notebook


@dataclass(frozen=True, repr=False, eq=False)
class Report:
    """A report: in a notebook it shows the page, in a shell its text.

    Attributes:
        target: what it is about.
        judged: the models' predictions for the split.
        title: the heading; None: the name of the folder.
        check_data: whether to look for label errors and duplicates; None: if the features take at most 1 GiB.
        url: where the page was written; None: nowhere.
    """

    target: Target
    judged: Judgement
    title: str | None = None
    check_data: bool | None = None
    url: str | None = None

    @cached_property
    def html(self) -> str:
        """The page, which needs no network."""
        return render_report(report_context(self.target, self.judged, title=self.title, check_data=self.check_data))

    @property
    def text(self) -> str:
        """Mistakes and scores as plain text."""
        return plain_report(self.judged)

    def save(self, output: str | Path) -> str:
        """Writes the page; returns its URL."""
        url = storage.absolute_url(str(output))
        storage.write_bytes(url, self.html.encode())
        return url

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        style = f"width: 100%; height: {_HEIGHT}px; border: 1px solid #ccc"
        return f'<iframe srcdoc="{escape(self.html)}" title="report" style="{style}"></iframe>'


def report(
    model_or_sweep: Model | HasUrl | str | Path,
    output: str | Path | None = None,
    *,
    split: str = "test",
    compare: Sequence[Model | str | Path] = (),
    title: str | None = None,
    check_data: bool | None = None,
) -> Report:
    """Makes a report of a model or a sweep: verdict, curves, confusion, mistakes with their images, and lineage.

    Args:
        model_or_sweep: a `Model` or a `Sweep`; or a folder of either, the id of a run, ``name@alias`` or ``zk://host:port/path``.
        output: the HTML file to write; default: none.
        split: the split to judge by: ``train``, ``validation`` or ``test``.
        compare: other models to compare with.
        title: the heading; default: the name of the folder.
        check_data: whether to look for label errors and duplicates; default: if the features take at most 1 GiB.

    Raises:
        UsageError: there is no such model or sweep, it was trained on other classes, or the split has no rows.
        JobError: files are damaged.
    """
    named = model_or_sweep
    url = folder_of(named) if isinstance(named, str | Path) else url_of(named)
    target = find_target(url, [folder_of(other) for other in compare])
    written = None if output is None else storage.absolute_url(str(output))
    made = Report(target, judge(target, split), title, check_data, written)
    if written is not None:
        made.save(written)
    return made
