"""How Spark makes a table: plans of shards, workers, staging, and publication as a whole.

Import `build` to make a table, `worker` and `shard_files` for what runs in a task, `session` for Spark itself.
"""
