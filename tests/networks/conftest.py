"""Feature sets, a head and a trained unfrozen network, which the tests of unfreezing share."""

from pathlib import Path

import pytest
from helpers.models.unfrozen_place import Workplace, layered_network, make_recipe, train_alone
from helpers.tables.building import recipe
from pyspark.sql import SparkSession

from featurize.jobs.run import featurize


@pytest.fixture(scope="session")
def place(spark: SparkSession, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """Do not change what is in it, but for models beside the head."""
    place = Workplace(tmp_path_factory.mktemp("unfreezing"))
    layered_network(place.backbone)
    featurize(spark, recipe(photos, place.features, place.backbone, layer="maps"))
    featurize(spark, recipe(photos, place.pixels, "pixels", height=12, width=12))
    head = {"name": "mlp_head", "hidden": [8], "dropout": 0.2, "standardize": True, "url": str(place.head)}
    train_alone(make_recipe(place.features, head, epochs=6, learning_rate=0.01))
    return place


@pytest.fixture(scope="session")
def undisturbed(place: Workplace) -> Path:
    """The folder of an unfrozen network, trained in one go; do not change it."""
    train_alone(place.recipe(place.folder / "undisturbed"))
    return place.folder / "undisturbed"
