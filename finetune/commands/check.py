"""`finetune check`: what is wrong with the images and labels of a feature set, on the screen and as CSV."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from featurize.commands.options import JsonOption, print_result, reported_errors
from featurize.console import make_console
from featurize.foreign_text import shown
from featurize.shortening import some_lines

if TYPE_CHECKING:
    from finetune.evaluation.data_quality import DataQuality
    from finetune.evaluation.duplicates import DuplicatePair

_ON_SCREEN = 20


def check_command(
    features: Annotated[str, typer.Argument(help="The URL of a feature set.")],
    output: Annotated[
        str | None, typer.Option(help="The folder for the two CSV files; default: the feature set's.")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0.0, max=1.0, help="The least similarity of near duplicates; default: chosen from the features."
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="The seed of the folds and of the heads that judge the labels.")
    ] = 42,
    column: Annotated[
        str | None, typer.Option(help="The column of features to judge by, of a set with several.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Lists probable label errors, and duplicates within and across splits."""
    with reported_errors():
        from finetune.api.checking import check_data

        found = check_data(features, seed=seed, threshold=threshold, output=output or features, column=column)
        screen = make_console(stderr=as_json)
        print_quality(found.quality, screen)
        for url in found.files.values():
            screen.print(shown(url), markup=False, highlight=False, soft_wrap=True)
        print_result({**found.quality.as_dict(), "files": dict(found.files)}, as_json=as_json)


def print_quality(quality: "DataQuality", screen: Console) -> None:
    """Prints the figures and the first findings of each kind."""
    found = quality.duplicates
    lines = ["Labels were not judged: training and validation have too few rows, or one class only."]
    if quality.rows_judged:
        lines = [
            f"{len(quality.label_errors)} of {quality.rows_judged} labels are probably wrong (estimated share "
            f"{quality.label_error_share:.1%}, out-of-fold accuracy {quality.out_of_fold_accuracy:.4f})."
        ]
    errors = (
        f"  {error.path}: {error.suggested} ({error.suggested_probability:.3f}), "
        f"not {error.given} ({error.given_probability:.3f})"
        for error in quality.label_errors
    )
    lines += some_lines(errors, _ON_SCREEN)
    lines.append(f"{found.n_exact} pairs of exact duplicates.")
    lines += some_lines((_line(pair) for pair in found.pairs if pair.is_exact), _ON_SCREEN)
    lines.append(f"{found.n_near} pairs of near duplicates across splits, of similarity {found.threshold:.4f} or more.")
    lines += some_lines((_line(pair) for pair in found.pairs if not pair.is_exact), _ON_SCREEN)
    lines += [
        f"{count} of {quality.rows[split]} images of {split} have a duplicate in {other}."
        for split, counts in found.leaks.items()
        for other, count in counts.items()
        if count
    ]
    for line in lines:
        screen.print(shown(line), markup=False, highlight=False, soft_wrap=True)


def _line(pair: "DuplicatePair") -> str:
    ends = (f"{pair.path} ({pair.split}, {pair.label})", f"{pair.other_path} ({pair.other_split}, {pair.other_label})")
    return f"  {'' if pair.is_exact else f'{pair.similarity:.4f} '}{' and '.join(ends)}"
