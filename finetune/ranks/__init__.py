"""Ranks that train together: launching, averaging, watching each other. Horovod is imported here and nowhere else.

Import `communicator` for what a rank can do, `horovod_ranks` to open the ranks from one of them, `spark_ranks` to launch them on
Spark, `signals` to learn that a process is asked to stop.
"""
