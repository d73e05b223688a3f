"""The command `finetune compact`."""

from typing import Annotated

import typer

from featurize.commands.options import JsonOption, print_result, reported_errors
from featurize.console import say


def compact_command(
    output: Annotated[str, typer.Argument(help="The URL of the predictions of all models.")],
    least_images: Annotated[
        int, typer.Option(min=2, help="The number of images at which a shard is large enough to be left as it is.")
    ] = 100_000,
    as_json: JsonOption = False,
) -> None:
    """Merges the small shards that a stream leaves, one for each batch, into larger ones with the same rows."""
    with reported_errors():
        from featurize.storage.claims import claim_output
        from featurize.tables.predictions import partition_url, read_views
        from featurize.upkeep.compaction import compact_table
        from finetune.streams.drift_windows import read_position

        published, done = read_views(output), []
        for model_id in published.manifests:
            url = partition_url(published.url, model_id)
            with claim_output(url) as claim:
                position = read_position(published.url, model_id)
                kept = [position.through] if position is not None and position.through is not None else []
                made = compact_table(url, claim, least_images=least_images, kept=kept)
            say(f"model {model_id[:16]}: {made.rows:,} predictions in {made.after} shards; before, in {made.before}.")
            done.append({"model_id": model_id, "rows": made.rows, "shards_before": made.before, "shards": made.after})
        print_result({"predictions": published.url, "models": done}, as_json=as_json)
