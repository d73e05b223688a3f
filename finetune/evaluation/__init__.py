"""The quality of a model and of its data: scores on a split, wrong labels, duplicates, and corrections.

Import `evaluate`, `data_quality`, `relabel`, `split_answers`.
"""
