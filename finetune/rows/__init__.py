"""The rows of feature sets for training: splits in memory or from disk, batches, shuffling, and selection by query.

Import `loader` for what a training reads, `splits` for arrays, `row_query` for rows selected by `where`.
"""
