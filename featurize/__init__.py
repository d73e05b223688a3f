"""Firn's images to features: frozen backbones on Spark, features in Parquet.

What a command does, one call does. Everything here is loaded when it is first used, so that ``import featurize`` takes neither
Spark nor TensorFlow nor pyarrow:

    import featurize

    features = featurize.run("flowers.toml", spark=spark, overrides={"images.source": "hdfs:///photos"})
    features = featurize.open_features("hdfs:///firn/flowers/features")
    frame = features.to_pandas(split="train", columns=["path", "label"])
    x, y = features.to_numpy("train")
    features.similar("rose.jpg", k=10)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from featurize.errors import FirnError, JobError, UsageError

if TYPE_CHECKING:
    from featurize.jobs.calls import add_column, ingest, run
    from featurize.jobs.features import Features, open_features
    from featurize.jobs.images import Images, open_images
    from featurize.jobs.similar_images import SimilarImages, find_similar
    from featurize.jobs.views import register_views
    from featurize.recipes.recipe import Recipe, read_recipe
    from featurize.tables.description import Description, describe
    from featurize.upkeep.versions import upgrade, vacuum

__version__ = "0.2.0"
__all__ = [
    "Description",
    "Features",
    "FirnError",
    "Images",
    "JobError",
    "Recipe",
    "SimilarImages",
    "UsageError",
    "add_column",
    "describe",
    "find_similar",
    "ingest",
    "open_features",
    "open_images",
    "read_recipe",
    "register_views",
    "run",
    "upgrade",
    "vacuum",
]
_MODULES = {
    "Description": "featurize.tables.description",
    "Features": "featurize.jobs.features",
    "Images": "featurize.jobs.images",
    "Recipe": "featurize.recipes.recipe",
    "SimilarImages": "featurize.jobs.similar_images",
    "add_column": "featurize.jobs.calls",
    "describe": "featurize.tables.description",
    "find_similar": "featurize.jobs.similar_images",
    "ingest": "featurize.jobs.calls",
    "open_features": "featurize.jobs.features",
    "open_images": "featurize.jobs.images",
    "read_recipe": "featurize.recipes.recipe",
    "register_views": "featurize.jobs.views",
    "run": "featurize.jobs.calls",
    "upgrade": "featurize.upkeep.versions",
    "vacuum": "featurize.upkeep.versions",
}


def __getattr__(name: str) -> Any:
    """Loads a name of `__all__` when it is first asked for (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
