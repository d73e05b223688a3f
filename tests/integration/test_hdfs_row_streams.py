"""A feature set on a real HDFS, read whole and streamed, also when a DataNode or a file is lost."""

from pathlib import Path

import pytest
from helpers.services.hdfs_cluster import MiniHdfs
from helpers.tables.feature_sets import make_clusters, uneven_shards, write_feature_set

from featurize import storage
from featurize.errors import JobError
from finetune.rows.disk_rows import StreamData
from finetune.rows.splits import iterate_split, read_split

pytestmark = [pytest.mark.hdfs, pytest.mark.slow]
ROWS = 300


def rows_of_epoch(data: StreamData, *, size: int) -> list[list[int]]:
    """The row ids of each step, of all ranks together, sorted."""
    steps: list[list[int]] = [[] for _ in range(data.steps(32))]
    for rank in range(size):
        batches = data.batches(1, seed=0, global_batch_size=32, rank=rank, size=size)
        for step, (_, label_index, row_ids, _) in zip(steps, batches.as_numpy_iterator(), strict=True):
            step += row_ids[label_index >= 0].tolist()
    return [sorted(step) for step in steps]


def test_features_stream_from_hdfs_as_from_disk(hdfs: MiniHdfs, tmp_path: Path) -> None:
    features, label_index = make_clusters(ROWS)
    manifest = write_feature_set(
        tmp_path, features, label_index, splits=["train"] * ROWS, shards=uneven_shards(ROWS, 4), rows_per_group=8
    )
    url = f"{hdfs.url}/streamed features"
    hdfs.upload(tmp_path, url)
    here = StreamData(str(tmp_path), manifest, "train", shuffle_rows=64)
    there = StreamData(url, manifest, "train", shuffle_rows=64)
    wanted = rows_of_epoch(here, size=1)

    assert rows_of_epoch(there, size=2) == wanted
    whole = read_split(url, manifest, "train")
    assert sorted(whole.row_ids.tolist()) == sorted(row for step in wanted for row in step)
    assert sum(part.rows for part in iterate_split(url, manifest, "train")) == ROWS
    hdfs.kill_datanode(0)
    assert rows_of_epoch(there, size=1) == wanted

    storage.remove(storage.join_url(url, manifest.files[0].path))
    with pytest.raises(JobError, match=Path(manifest.files[0].path).name), there.failures():
        for _ in there.batches(2, seed=0, global_batch_size=32):
            pass
