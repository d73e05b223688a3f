"""The name under which Spark pipelines that 0.1 saved ask for their stage."""

from finetune.prediction.transformer import ImageClassifier

__all__ = ["ImageClassifier"]
