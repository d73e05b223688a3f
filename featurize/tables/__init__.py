"""The published tables: their schemas, manifests and readers. Everything that other tools read is defined here.

Import `documents`, `manifests`, `row_groups`, `row_edits`, `corrections`, `predictions` and `schemas`.
"""
