"""Tests of `featurize similar`: the right images, of rows and of files, as table, JSON and page; and what is refused."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.models.report_folders import HOSTILE, make_features
from helpers.project import ROOT
from helpers.tables.building import Built, read_rows, stacked
from helpers.tables.feature_sets import image_ids, make_clusters, write_feature_set
from helpers.tables.publishing import write_manifest
from PIL import Image
from typer.testing import CliRunner

from featurize.__main__ import app
from featurize.errors import JobError, UsageError
from featurize.similar.nearest import METRICS, Metric
from featurize.similar.search import find_similar

MIB = 1 << 20
PEAK = """
import sys
from featurize.memory import peak_memory_bytes
from featurize.similar.search import find_similar
found = find_similar(sys.argv[1], "photos/00000.png", k=10)
print(found.rows, peak_memory_bytes())
"""


def similar(*arguments: str) -> Any:
    result = CliRunner().invoke(app, ["similar", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


@pytest.mark.parametrize("metric", METRICS)
def test_the_nearest_of_a_row_are_those_of_all_other_rows(tmp_path: Path, metric: Metric) -> None:
    features, label_index = make_clusters(200, spread=3.0, seed=3)
    write_feature_set(tmp_path, features, label_index)
    found = find_similar(str(tmp_path), "photos/00017.png", k=12, metric=metric)
    rows = features.astype(np.float64)
    if metric == "cosine":
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        distances = 1 - rows @ rows[17]
    else:
        distances = np.linalg.norm(rows - rows[17], axis=1)
    order = [row for row in np.argsort(distances) if row != 17][:12]
    assert [image.path for image in found.images] == [f"photos/{row:05d}.png" for row in order]
    assert [image.image_id for image in found.images] == [image_ids(200)[row] for row in order]
    np.testing.assert_allclose([image.distance for image in found.images], distances[order], atol=1e-9)
    assert [image.label for image in found.images] == [("ant", "bee", "cat")[label_index[row]] for row in order]
    assert (found.rows, found.query.row is not None) == (200, True)


def test_a_row_is_known_by_its_id_and_only_some_splits_are_looked_in(tmp_path: Path) -> None:
    features, label_index = make_clusters(60)
    write_feature_set(tmp_path, features, label_index)
    by_path = find_similar(str(tmp_path), "photos/00008.png", k=3, splits=["test", "validation"])
    by_id = find_similar(str(tmp_path), image_ids(60)[8], k=3, splits=["test", "validation"])
    assert by_id.images == by_path.images
    assert {image.split for image in by_id.images} <= {"test", "validation"}
    assert by_id.rows == 24
    assert find_similar(str(tmp_path), "photos/00008.png", k=1000).images[-1].distance > 0.5


def test_features_that_are_pixels_are_compared_too(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 4, 5, 3), dtype=np.uint8)
    pixels[31] = pixels[5] // 2 + 1
    write_feature_set(tmp_path, pixels, np.arange(40) % 3)
    assert find_similar(str(tmp_path), "photos/00005.png", k=1).images[0].path == "photos/00031.png"


def test_equal_images_are_at_distance_0_and_the_image_itself_is_left_out(tmp_path: Path) -> None:
    features, label_index = make_clusters(50)
    features[40] = features[3]
    write_feature_set(tmp_path, features, label_index)
    found = find_similar(str(tmp_path), "photos/00003.png", k=49)
    assert found.images[0].path == "photos/00040.png"
    assert found.images[0].distance == pytest.approx(0, abs=1e-12)
    assert "photos/00003.png" not in {image.path for image in found.images}
    assert len(found.images) == 49


@pytest.mark.spark
def test_a_file_goes_through_the_backbone_that_made_the_features(built: Built, photos: Path, tmp_path: Path) -> None:
    """A picture of its own, and copies: one with the bytes of a row, and one that was changed after the features were made."""
    rows = read_rows(built.folder)
    new = tmp_path / "new.png"
    Image.new("RGB", (50, 40), (200, 60, 60)).save(new)
    found = find_similar(str(built.folder), str(new), k=60, metric="euclidean")
    assert found.query.row is None
    np.testing.assert_allclose(found.query.features, [200, 60, 60], atol=1e-4)
    distances = np.sort(np.linalg.norm(stacked(rows) - np.array([200, 60, 60]), axis=1))
    np.testing.assert_allclose([image.distance for image in found.images], distances, rtol=1e-4)
    assert found.images[0].label == "red"

    copy = shutil.copy(photos / "green" / "004.png", tmp_path / "copy.png")
    of_copy = find_similar(str(built.folder), str(copy), k=3)
    assert of_copy.query.row is not None
    assert of_copy.query.row.path.endswith("/green/004.png")
    assert of_copy.images == find_similar(str(built.folder), str(photos / "green" / "004.png"), k=3).images


@pytest.mark.spark
def test_a_file_that_changed_since_is_not_taken_for_its_row(built: Built, tmp_path: Path) -> None:
    moved = tmp_path / "set"
    shutil.copytree(built.folder, moved)
    path = Path(read_rows(moved).index[0].removeprefix("file://"))
    content = path.read_bytes()
    try:
        Image.new("RGB", (30, 30), (9, 9, 9)).save(path)
        assert find_similar(str(moved), str(path), k=1).query.row is None
    finally:
        path.write_bytes(content)
    assert find_similar(str(moved), str(path), k=1).query.row is not None


@pytest.mark.spark
def test_a_backbone_that_has_changed_is_refused(built: Built, tmp_path: Path) -> None:
    moved, other = tmp_path / "set", tmp_path / "other.keras"
    shutil.copytree(built.folder, moved)
    manifest = built.manifest
    from helpers.models.networks import small_network

    shutil.copy(small_network(tmp_path), other)
    backbone = {**manifest.recipe["backbone"], "name": str(other)}
    write_manifest(str(moved), manifest.model_copy(update={"recipe": {**manifest.recipe, "backbone": backbone}}))
    picture = tmp_path / "new.png"
    Image.new("RGB", (30, 30), (1, 2, 3)).save(picture)
    with pytest.raises(UsageError, match="has changed since it made the features"):
        find_similar(str(moved), str(picture))


def test_faults_are_named(tmp_path: Path) -> None:
    features, label_index = make_clusters(30)
    features[4] = 0
    write_feature_set(tmp_path / "set", features, label_index)
    url = str(tmp_path / "set")
    with pytest.raises(UsageError, match=r"'nothing.png' is neither a file nor the image_id or path of a row"):
        find_similar(url, "nothing.png")
    with pytest.raises(UsageError, match="is a folder; one image is required"):
        find_similar(url, str(tmp_path))
    with pytest.raises(UsageError, match="no rows in split 'trian'; it has test, train, validation"):
        find_similar(url, "photos/00001.png", splits=["trian"])
    with pytest.raises(UsageError, match="not a feature set"):
        find_similar(str(tmp_path), "photos/00001.png")
    with pytest.raises(JobError, match="cannot be compared by cosine"):
        find_similar(url, "photos/00004.png")
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(JobError, match="is not a readable image"):
        find_similar(url, str(tmp_path / "broken.jpg"))
    assert len(find_similar(url, "photos/00004.png", metric="euclidean").images) == 10


def test_the_command_prints_json_or_a_table_and_writes_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The names of the classes are hostile; the page fetches nothing."""
    make_features(tmp_path, n_classes=5, rows=120)
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "deep" / "similar.html"
    said = similar(image_ids(120)[7], "--features", "set", "-k", "9", "--json")
    document = json.loads(said.stdout)
    assert [image["rank"] for image in document["images"]] == list(range(1, 10))
    assert (document["rows"], document["html"], document["computed"]) == (120, None, False)
    table = similar(image_ids(120)[7], "--features", "set", "-k", "9", "--output", str(page)).stdout
    assert len(table.splitlines()) >= 10
    assert document["images"][0]["path"] in table
    html = page.read_text()
    assert "default-src 'none'" in html
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!data:image/jpeg;base64,|#)""", html)
    assert not re.findall(r"@import|url\(|https?://|<script", html)
    assert HOSTILE not in html
    assert html.count('<img src="data:image/jpeg;base64,') == 10
    places = [html.index(f'title="{image["path"]}"') for image in document["images"]]
    assert places == sorted(places)


def test_images_that_are_gone_are_told_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_features(tmp_path, n_classes=5, rows=60, pictures=False)
    monkeypatch.chdir(tmp_path)
    similar("photos/00007.png", "--features", "set", "--output", "similar.html")
    html = (tmp_path / "similar.html").read_text()
    assert "10 images could not be read" in html
    assert "<img" not in html


@pytest.mark.slow
def test_ten_times_the_rows_take_no_more_memory(tmp_path: Path) -> None:
    peaks = []
    for rows in (4_000, 40_000):
        features = np.random.default_rng(0).standard_normal((rows, 1024)).astype(np.float32)
        folder = tmp_path / str(rows)
        write_feature_set(folder, features, np.arange(rows) % 3, rows_per_group=512, splits=["train"] * rows)
        done = subprocess.run(
            [sys.executable, "-c", PEAK, str(folder)],
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
            capture_output=True,
            text=True,
            check=True,
        )
        seen, peak = map(int, done.stdout.split())
        assert seen == rows
        peaks.append(peak)
    assert peaks[1] - peaks[0] < 48 * MIB  # the features of the larger one have 160 MiB


@pytest.mark.realdata
def test_a_face_is_found_by_a_smaller_copy_of_it(real_data: Path, tmp_path: Path) -> None:
    """Real photographs through a real backbone: the copy, encoded anew, is nearest to the photograph that it was made of."""
    backbone = real_data.parent / "backbones" / "mobilenet_v1_imagenet.keras"
    folder = tmp_path / "photos"
    for label in ("Faces", "airplanes", "Motorbikes"):
        (folder / label).mkdir(parents=True)
        for path in sorted((real_data / "objects" / label).iterdir())[:8]:
            shutil.copy(path, folder / label)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'[images]\nsource = "{folder}"\n[backbone]\nname = "{backbone}"\npreprocessing = "none"\n'
        f'[features]\nurl = "{tmp_path / "set"}"\n'
    )
    subprocess.run([sys.executable, "-m", "featurize", "run", str(recipe)], check=True, capture_output=True, cwd=ROOT)
    original = sorted((folder / "airplanes").iterdir())[3]
    with Image.open(original) as image:
        image.convert("RGB").resize((image.width * 4 // 5, image.height * 4 // 5)).save(tmp_path / "c.jpg", quality=80)
    found = find_similar(str(tmp_path / "set"), str(tmp_path / "c.jpg"), k=8)
    assert found.query.row is None
    assert found.images[0].path.endswith(f"/airplanes/{original.name}")
    assert found.images[0].distance < 0.1 < found.images[1].distance
    assert [image.label for image in found.images[:5]].count("airplanes") >= 4
