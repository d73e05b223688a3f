"""How good a model and its data are: scores on a split, wrong labels, duplicates, and corrections.

Import `evaluate`, `data_quality`, `relabel`.
"""
