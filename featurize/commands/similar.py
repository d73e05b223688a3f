"""The command `featurize similar`: the images of a feature set that are most similar to one image."""

from typing import Annotated, Literal

import typer

from featurize.commands.options import JsonOption, print_result, reported_errors


def similar_command(
    image: Annotated[str, typer.Argument(help="An image file or its URL, or the image_id or path of a row.")],
    features: Annotated[str, typer.Option(help="URL of the feature set to search.")],
    k: Annotated[int, typer.Option("--k", "-k", min=1, max=10_000, help="Number of images to find.")] = 10,
    metric: Annotated[Literal["cosine", "euclidean"], typer.Option(help="The distance between features.")] = "cosine",
    column: Annotated[
        str | None, typer.Option(help="The column of features to compare, of a set with several.")
    ] = None,
    split: Annotated[list[str] | None, typer.Option(help="A split to search; repeatable. Default: all splits.")] = None,
    output: Annotated[str | None, typer.Option(help="The HTML file to write, with thumbnails.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Finds the k nearest images of a feature set, exactly: every row is compared."""
    with reported_errors():
        import featurize
        from featurize.console import make_console, say

        similar = featurize.find_similar(features, image, k=k, metric=metric, splits=split, column=column)
        url = similar.write_page(output) if output is not None else None
        if url is not None:
            say(f"{url}: the {len(similar.images)} nearest of {similar.rows:,} images.")
        if not as_json:
            make_console().print(similar, highlight=False)
        print_result({**similar.as_dict(), "html": url}, as_json=as_json)
