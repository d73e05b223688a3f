"""The functions that users call: they make images tables and feature sets, and read, search and query them.

``import featurize`` offers them. `calls` has `run` and `ingest`; `features`, `images` and `similar_images` have what they and
others return; `views` registers tables in Spark SQL. The two jobs behind `calls` are `ingest` and `run`, with `run_task` for
what `run` does in a Spark task.
"""
