"""A hundred thousand small files: read directly, or packed once by `featurize ingest`.

    python benchmarks/small_files.py --files 100000                                 # on the local disk
    python benchmarks/small_files.py --files 100000 --storage hdfs://namenode:8020/tmp

Prints one JSON object: seconds to list, to ingest, and to run both ways with the backbone `pixels`, which takes almost no time,
so that reading and decoding are measured.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pyspark.sql import SparkSession

from featurize import storage
from featurize.building.session import open_session
from featurize.jobs.ingest import ingest
from featurize.jobs.run import featurize
from featurize.recipes.recipe import FeaturizeRecipe
from featurize.recipes.toml_settings import check_settings
from featurize.sources.cards import Card
from featurize.sources.opening import open_source
from featurize.sources.scenes import SCENE_CLASSES, draw_scene, encode_scene

SIDE = 64  # pixels; the files have about 2 kB
DISTINCT = 200
Result = TypeVar("Result")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--storage", help="folder for everything; default: a temporary one on the local disk")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="firn-") as temporary:
        url = storage.join_url(arguments.storage or temporary, "small_files")
        try:
            with open_session("firn benchmark") as spark:
                print(json.dumps(measure(spark, url, arguments.files)))
        finally:
            storage.remove(url)


def measure(spark: SparkSession, url: str, files: int) -> dict[str, Any]:
    writing, total_bytes = timed(lambda: write_files(f"{url}/files", files))
    write_files(f"{url}/few-files", DISTINCT)
    run(spark, f"{url}/few-files", f"{url}/warm-up")  # starts Spark's Python and the decoders
    listing, _ = timed(lambda: open_source(f"{url}/files", None))
    from_files, result = timed(lambda: run(spark, f"{url}/files", f"{url}/from-files"))
    card = check_settings(
        Card, {"name": "small", "title": "Small files", "licence": "none", "layout": "folders"}, origin="benchmark"
    )
    ingesting, _ = timed(lambda: ingest(spark, card, f"{url}/images", source=f"{url}/files"))
    table_listing, _ = timed(lambda: open_source(f"{url}/images", None))
    from_table, same = timed(lambda: run(spark, f"{url}/images", f"{url}/from-table"))
    if result.manifest.row_count != same.manifest.row_count:
        raise SystemExit("the two ways do not give the same number of rows")
    return {
        "files": files,
        "bytes": total_bytes,
        "storage": url.split("://", 1)[0],
        "writing_files_s": writing,
        "listing_files_s": listing,
        "run_from_files_s": from_files,
        "read_from_files_s": round(result.timings.read, 2),
        "ingest_s": ingesting,
        "listing_table_s": table_listing,
        "run_from_table_s": from_table,
        "read_from_table_s": round(same.timings.read, 2),
        "files_per_second": round(files / from_files, 1),
        "table_rows_per_second": round(files / from_table, 1),
        "runs_until_ingest_pays": round(ingesting / max(from_files - from_table, 1e-9), 1),
    }


def timed(work: Callable[[], Result]) -> tuple[float, Result]:
    started = time.perf_counter()
    result = work()
    return round(time.perf_counter() - started, 2), result


def write_files(url: str, files: int) -> int:
    """Writes small JPEG files, all with different bytes; returns their total size in bytes."""
    labels = [SCENE_CLASSES[index % len(SCENE_CLASSES)] for index in range(DISTINCT)]
    scenes = [
        encode_scene(draw_scene(label, seed=1, index=index, height=SIDE, width=SIDE))
        for index, label in enumerate(labels)
    ]

    def write(index: int) -> int:
        content = scenes[index % DISTINCT] + index.to_bytes(8, "big")  # decoders ignore bytes after the end of a JPEG
        filesystem, path = storage.open_filesystem(f"{url}/{labels[index % DISTINCT]}/{index:07d}.jpg")
        with filesystem.open(path, "wb") as file:
            file.write(content)
        return len(content)

    for label in set(labels):
        filesystem, path = storage.open_filesystem(f"{url}/{label}")
        filesystem.makedirs(path, exist_ok=True)
    with ThreadPoolExecutor(32) as pool:
        return sum(pool.map(write, range(files), chunksize=100))


def run(spark: SparkSession, source: str, target: str) -> Any:
    settings = {
        "images": {"source": source},
        "backbone": {"name": "pixels", "height": SIDE, "width": SIDE},
        "features": {"url": target},
    }
    result, _ = featurize(spark, check_settings(FeaturizeRecipe, settings, origin="benchmark"))
    return result


if __name__ == "__main__":
    main()
