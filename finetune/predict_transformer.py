"""The module from which Spark pipelines that Firn 0.1 saved load `ImageClassifier`."""

from finetune.prediction.transformer import ImageClassifier

__all__ = ["ImageClassifier"]
