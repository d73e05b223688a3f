"""Where the files of a table lie, below its URL. `data` and `_delta_log` are what readers of Delta tables know.

Everything else that belongs to the table lies in `_firn`: programs that clean up Delta tables leave hidden folders alone.
"""

DATA = "data"
OWN = "_firn"
REJECTS = f"{OWN}/rejects"
"""Parquet files of the images that could not be read, and why."""
INDEX = f"{OWN}/index"
"""Parquet files of all images of each shard, for the next run."""
NETWORKS = f"{OWN}/networks"
"""What made the features, where that is nowhere else."""
CORRECTIONS = f"{OWN}/corrections"
"""The log of corrected labels."""
SNAPSHOTS = f"{OWN}/versions"
"""The shards of every hundredth version."""
SHARD_FOLDERS = (DATA, REJECTS, INDEX)
LEGACY_CORRECTIONS = "corrections"
LEGACY_SHARD_FOLDERS = ("rejects", "index")
"""Where tables of Firn 0.1 have these; the files stay there when the table becomes a Delta table."""
