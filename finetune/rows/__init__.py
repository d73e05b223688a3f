"""The rows of feature sets for training: splits in memory or from disk, batches, shuffling, and selection by query.

Import `loader` for a training's data, `splits` for arrays, `row_query` for rows selected by `where`.
"""
