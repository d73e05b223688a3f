"""Ranks that train together: launching, averaging, watching each other. Horovod is imported here and nowhere else.

Import `communicator` for what a rank can do, `horovod_ranks` to open or launch ranks.
"""
