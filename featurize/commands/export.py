"""The command `featurize export`: metadata and predictions as documents for a search engine."""

import os
from typing import Annotated, Literal

import typer

from featurize.commands.options import JsonOption, print_result, reported_errors
from featurize.console import say


def export_command(
    output: Annotated[str, typer.Option(help="The folder to write.")],
    to: Annotated[Literal["opensearch", "solr"], typer.Option(help="The search engine.")] = "opensearch",
    images: Annotated[str | None, typer.Option(help="URL of an images table, for its metadata.")] = None,
    features: Annotated[str | None, typer.Option(help="URL of a feature set, if there is no images table.")] = None,
    predictions: Annotated[str | None, typer.Option(help="URL of predictions.")] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="The model of the predictions: a view such as champion, or the start of a model_id; default: latest."
        ),
    ] = None,
    index: Annotated[str, typer.Option(help="Name of the OpenSearch index.")] = "images",
    rows_per_file: Annotated[int, typer.Option(min=1, max=1_000_000, help="Most documents in a file.")] = 5000,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replaces what is at --output.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Writes a document for each image, as JSON lines for OpenSearch's bulk API or for Solr, and their schema."""
    with reported_errors():
        from featurize import storage
        from featurize.building.session import open_session
        from featurize.sql.documents import search_rows, write_documents
        from featurize.sql.tables import find_tables

        tables = find_tables(images=images, features=features, predictions=predictions)
        url = storage.absolute_url(output)
        with open_session("firn export", slots=len(os.sched_getaffinity(0)), java_computes=True) as session:
            written = write_documents(
                search_rows(session, tables, model=model),
                url,
                engine=to,
                index=index,
                rows_per_file=rows_per_file,
                overwrite=overwrite,
            )
        say(f"{url}: {written.documents:,} documents for {to} in {len(written.files)} files, and {written.schema}.")
        result = {"output": url, "engine": to, "documents": written.documents, "files": written.files}
        print_result({**result, "schema": written.schema}, as_json=as_json)
