"""Many trainings: every setting with every seed, none trained twice.

Import `plan` and `run`; `folder` reads the results.
"""
