"""Feature sets on a real HDFS: read whole and streamed, also when a DataNode or a file is lost; corrected and queried."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from deltalake import DeltaTable
from helpers.services.hdfs_cluster import MiniHdfs
from helpers.tables.feature_sets import image_ids, make_clusters, uneven_shards, write_feature_set

from featurize import storage
from featurize.errors import JobError
from featurize.recipes.recipe import FeaturesSettings
from featurize.tables.corrections import read_corrections
from featurize.tables.manifests import ShardRecord
from featurize.tables.publication import publish, read_published_features
from featurize.upkeep.versions import vacuum
from finetune.evaluation.relabel import relabel
from finetune.rows.disk_rows import StreamData
from finetune.rows.row_query import read_selected
from finetune.rows.splits import iterate_split, read_split

pytestmark = [pytest.mark.hdfs, pytest.mark.slow]
STREAMED = 300
CORRECTED = 60


def rows_of_epoch(data: StreamData, *, size: int) -> list[list[int]]:
    """The row ids of each step, of all ranks together, sorted."""
    steps: list[list[int]] = [[] for _ in range(data.steps(32))]
    for rank in range(size):
        batches = data.batches(1, seed=0, global_batch_size=32, rank=rank, size=size)
        for step, (_, label_index, row_ids, _) in zip(steps, batches.as_numpy_iterator(), strict=True):
            step += row_ids[label_index >= 0].tolist()
    return [sorted(step) for step in steps]


def test_features_stream_from_hdfs_as_from_disk(hdfs: MiniHdfs, tmp_path: Path) -> None:
    features, label_index = make_clusters(STREAMED)
    manifest = write_feature_set(
        tmp_path,
        features,
        label_index,
        splits=["train"] * STREAMED,
        shards=uneven_shards(STREAMED, 4),
        rows_per_group=8,
    )
    url = f"{hdfs.url}/streamed features"
    hdfs.upload(tmp_path, url)
    here = StreamData(str(tmp_path), manifest, "train", shuffle_rows=64)
    there = StreamData(url, manifest, "train", shuffle_rows=64)
    wanted = rows_of_epoch(here, size=1)

    assert rows_of_epoch(there, size=2) == wanted
    whole = read_split(url, manifest, "train")
    assert sorted(whole.row_ids.tolist()) == sorted(row for step in wanted for row in step)
    assert sum(part.rows for part in iterate_split(url, manifest, "train")) == STREAMED
    hdfs.kill_datanode(0)
    assert rows_of_epoch(there, size=1) == wanted

    storage.remove(storage.join_url(url, manifest.files[0].path))
    with pytest.raises(JobError, match=Path(manifest.files[0].path).name), there.failures():
        for _ in there.batches(2, seed=0, global_batch_size=32):
            pass


def test_corrections_land_on_hdfs_and_a_query_sees_tables_there(hdfs: MiniHdfs, tmp_path: Path) -> None:
    features, label_index = make_clusters(CORRECTED)
    ids, wanted = image_ids(CORRECTED), np.roll(label_index, 1)
    write_feature_set(tmp_path / "set", features, label_index, splits=["train"] * CORRECTED)
    classes = ("ant", "bee", "cat")
    tables = tmp_path / "tables"
    tables.mkdir()
    for number in range(4):
        lines = [f"{ids[row]},{classes[wanted[row]]}\n" for row in range(number, CORRECTED, 4)]
        (tables / f"{number}.csv").write_text("image_id,label\n" + "".join(lines))
    (tables / "grades.csv").write_text(
        "image_id,grade\n" + "".join(f"{ids[row]},{row % 3}\n" for row in range(CORRECTED))
    )
    url = f"{hdfs.url}/corrected features"
    hdfs.upload(tmp_path / "set", url)
    hdfs.upload(tables, f"{hdfs.url}/tables")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: relabel(f"{hdfs.url}/tables/{number}.csv", url, reason="seen"), range(4)))
    log = read_corrections(url)
    assert sorted(set(log.entries["number"].to_pylist())) == [1, 2, 3, 4]
    settings = FeaturesSettings(url=url, where="grade > 0", labels=f"{hdfs.url}/tables/grades.csv")
    manifest = read_selected(settings)
    data = read_split(url, manifest, "train")
    rows = [int(path[7:12]) for path in data.paths.to_pylist()]
    assert sorted(rows) == [row for row in range(CORRECTED) if row % 3]
    np.testing.assert_array_equal(data.label_index, wanted[rows])


def test_of_writers_that_publish_at_once_one_wins_and_other_readers_see_its_rows(
    hdfs: MiniHdfs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = write_feature_set(tmp_path / "set", *make_clusters(60), shards=[range(20), range(20, 45), range(45, 60)])
    url = f"{hdfs.url}/versions"
    for path in sorted(file.path for shard in made.shards for file in shard.all_files):
        storage.upload(tmp_path / "set" / path, f"{url}/{path}")
    publish(url, made, after=None)

    def write(shard: ShardRecord) -> str:
        changes = {"shards": [shard], "rows": shard.rows, "content_digest": shard.content_digest}
        try:
            publish(url, made.model_copy(update=changes), after=base)
        except JobError as error:
            return str(error)
        return ""

    for number in range(1, 4):
        base = read_published_features(url)
        with ThreadPoolExecutor(3) as pool:
            answers = list(pool.map(write, made.shards))
        assert answers.count("") == 1
        assert sum(f"another job published version {number}" in answer for answer in answers) == 2
        assert read_published_features(url).version.number == number
    monkeypatch.setenv("HADOOP_CONF_DIR", str(hdfs.conf_dir))
    for version in range(4):
        uris = DeltaTable(url, version=version).file_uris()
        listed = [f"{url}/{file.path}" for file in read_published_features(url, version).files]
        assert sorted(uri.rpartition("/data/")[2] for uri in uris) == sorted(
            path.rpartition("/data/")[2] for path in listed
        )
    (done,) = vacuum(url, older_than="0s", dry_run=True)
    assert (done.version, done.oldest) == (3, 3)
