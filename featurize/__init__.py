"""Images to features: frozen backbones on Spark, features in Parquet."""

__version__ = "0.1.0"
