"""Delta Lake for Spark on a table of Firn's: it sees the published rows, and its VACUUM takes nothing that Firn needs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.project import ROOT
from helpers.services.fetching import fetched
from helpers.tables.feature_sets import image_ids, make_clusters, write_feature_set
from helpers.tables.publishing import write_manifest

import featurize
from featurize.building import staging
from featurize.digests import combine_digests
from featurize.tables.corrections import read_corrections
from featurize.tables.delta_log import CHECKPOINT_EVERY
from featurize.tables.manifests import add_counts
from featurize.tables.publication import read_published_features
from finetune.evaluation.relabel import relabel


@pytest.mark.spark
def test_spark_with_delta_sees_the_published_rows_and_leaves_what_firn_needs(tmp_path: Path) -> None:
    jars = ",".join(map(str, fetched("delta_jars.py")))
    url = str(tmp_path / "set")
    first = write_feature_set(Path(url), *make_clusters(60), shards=[range(20), range(20, 45), range(45, 60)])
    (tmp_path / "labels.csv").write_text(f"image_id,label\n{image_ids(60)[0]},cat\n")
    relabel(str(tmp_path / "labels.csv"), url, reason="a mistake", by="Ada")
    for number in range(CHECKPOINT_EVERY + 2):  # so that there is a checkpoint
        shards = first.shards[: 2 + number % 2]
        changes = {
            "shards": shards,
            "rows": add_counts(shard.rows for shard in shards),
            "content_digest": combine_digests(shard.content_digest for shard in shards),
        }
        write_manifest(url, first.model_copy(update=changes))
    manifest = read_published_features(url)
    frame = featurize.open_features(url).to_pandas()
    program = ROOT / "tests/helpers/services/delta_program.py"
    done = subprocess.run([sys.executable, str(program), jars, url], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["splits"] == {split: manifest.split_rows(split) for split in manifest.rows}
    assert answer["paths"] == sorted(frame["path"])
    assert answer["first"] == 60
    assert answer["types"]["features"] == "array<float>"
    assert set(answer["operations"]) == {"WRITE"}
    assert all((Path(url) / path).is_file() for path in staging.file_paths(manifest.shards))
    assert read_corrections(url).count == 1
