"""Links in sources of every kind, and names that rows and registries give: none of them leads outside."""

from pathlib import Path

import numpy as np
import pytest
from helpers.tables.feature_sets import write_feature_set
from helpers.tables.listings import put

from featurize.errors import JobError
from featurize.pages.thumbnails import read_thumbnails
from featurize.sources.listing import ImageReadError, planned_images
from featurize.sources.webhdfs_upload import _local_sizes
from finetune.registry.resolve import _copy_of, _may_open
from finetune.streams.folder import files_source


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A picture, and a link to another one outside."""
    put(tmp_path / "outside", "private.png")
    put(tmp_path / "photos", "a.png")
    (tmp_path / "photos" / "b.png").symlink_to(tmp_path / "outside" / "private.png")
    return tmp_path / "photos"


def test_an_upload_leaves_out_links_that_lead_out_of_the_folder(photos: Path) -> None:
    own, private = ((photos / name).stat().st_size for name in ("a.png", "b.png"))
    assert _local_sizes(photos, follow_links=False) == {"a.png": own}
    assert _local_sizes(photos, follow_links=True) == {"a.png": own, "b.png": private}


def test_a_link_that_arrives_in_a_stream_is_a_reject(photos: Path) -> None:
    url, files = f"file://{photos}", {f"file://{photos}/{name}": (1, "1:1") for name in ("a.png", "b.png")}
    source = files_source(url, files)
    first, second = source.reader.open(planned_images(source.listing))
    assert first() == (photos / "a.png").read_bytes()
    with pytest.raises(ImageReadError, match="leads out of the source"):
        second()
    followed = files_source(url, files, follow_links=True)
    assert [fetch() for fetch in followed.reader.open(planned_images(followed.listing))] == [
        (photos / name).read_bytes() for name in ("a.png", "b.png")
    ]


def test_thumbnails_are_read_from_the_source_of_the_set_and_from_nowhere_else(photos: Path, tmp_path: Path) -> None:
    manifest = write_feature_set(tmp_path / "set", np.eye(3, dtype=np.float32), np.arange(3))
    url, outside = f"file://{tmp_path}/set", f"file://{tmp_path}/outside/private.png"
    own, link = (f"file://{photos}/{name}.png" for name in "ab")
    paths = [own, link, outside, f"file://{photos}/../outside/private.png"]
    here = manifest.model_copy(update={"settings": {"source": {"layout": "folders", "source": f"file://{photos}"}}})
    assert set(read_thumbnails(here, paths, url=url)[0]) == {own}
    foreign = manifest.model_copy(
        update={"settings": {"source": {"layout": "images", "source": "hdfs://127.0.0.1:1/x"}}}
    )
    found, reason = read_thumbnails(foreign, paths, url=url)
    assert not found
    assert reason is not None
    assert "names 'hdfs://127.0.0.1:1/x', which is on another file system or host" in reason


@pytest.mark.parametrize(
    ("folder", "registry", "may_open"),
    [
        ("file:///models/x", "http://server:5000", True),
        ("/models/x", "http://server:5000", True),
        ("hdfs://127.0.0.1:1/x", "http://server:5000", False),
        ("hdfs://127.0.0.1:1/x", "sqlite:////own/mlflow.db", True),
        ("http://127.0.0.1:1/x", "http://server:5000", False),
    ],
)
def test_a_folder_that_a_shared_registry_names_is_looked_at_only_where_it_may_be(
    folder: str, registry: str, may_open: bool
) -> None:
    assert _may_open(folder, registry) == may_open


@pytest.mark.parametrize("model_id", ["../../evil", "/evil", "a/b", ".."])
def test_an_id_from_a_registry_is_no_path(model_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(JobError, match="the registry http://server has a run whose model id"):
        _copy_of("file:///x", model_id, "http://server", "lost")
    assert not list(tmp_path.iterdir())
