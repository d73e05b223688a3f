"""Tests whether new images still look like the images that a model was trained on.

Import `check` for tables of predictions, `window` for arrays, `compare` for two models.
"""
