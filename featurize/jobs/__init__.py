"""The two jobs of `featurize`: a data set to an images table, and images to a feature set.

Import `ingest`, `run`, and `run_task` for what `run` does in a Spark task.
"""
