"""The two jobs of `featurize`: from a data set to an images table, and from images to a feature set.

Import `ingest`, `run`, and `run_task` for the work of `run` in a Spark task.
"""
