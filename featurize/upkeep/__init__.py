"""The upkeep of tables that grow: shards are merged, files of old versions removed, tables of Firn 0.1 made Delta tables.

Commands and notebooks call `versions.vacuum` and `versions.upgrade`; `compaction.compact_table` serves `finetune compact`.
"""
