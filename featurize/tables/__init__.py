"""The published tables: their schemas, manifests and readers. All that other tools read of Firn is defined here.

Import `documents`, `manifests`, `row_groups`, `row_edits`, `corrections`, `predictions` and `schemas`.
"""
