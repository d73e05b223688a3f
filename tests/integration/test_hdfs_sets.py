"""Corrections and queries for training sets where everything lies on a real HDFS."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from helpers.services.hdfs_cluster import MiniHdfs
from helpers.tables.feature_sets import image_ids, make_clusters, write_feature_set

from featurize.recipes.recipe import FeaturesSettings
from featurize.tables.corrections import read_corrections
from finetune.evaluation.relabel import relabel
from finetune.rows.row_query import read_selected
from finetune.rows.splits import read_split

pytestmark = [pytest.mark.hdfs, pytest.mark.slow]
ROWS = 60


def test_corrections_land_on_hdfs_and_a_query_sees_tables_there(hdfs: MiniHdfs, tmp_path: Path) -> None:
    features, label_index = make_clusters(ROWS)
    ids, wanted = image_ids(ROWS), np.roll(label_index, 1)
    write_feature_set(tmp_path / "set", features, label_index, splits=["train"] * ROWS)
    classes = ("ant", "bee", "cat")
    tables = tmp_path / "tables"
    tables.mkdir()
    for number in range(4):
        lines = [f"{ids[row]},{classes[wanted[row]]}\n" for row in range(number, ROWS, 4)]
        (tables / f"{number}.csv").write_text("image_id,label\n" + "".join(lines))
    (tables / "grades.csv").write_text("image_id,grade\n" + "".join(f"{ids[row]},{row % 3}\n" for row in range(ROWS)))
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
    assert sorted(rows) == [row for row in range(ROWS) if row % 3]
    np.testing.assert_array_equal(data.label_index, wanted[rows])
