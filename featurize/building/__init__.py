"""How Spark makes a table: plans of shards, workers, a staging folder, and publication in one step.

Import `build` to make a table, `worker` and `shard_files` for what runs in a task, `session` for Spark itself.
"""
