"""A trained model as a folder on disk, and the backbone that made its features.

Import `folder` to save and load models, `backbone` for the network that images go through first.
"""
