"""Search for the images of a feature set that are most similar to a given one.

Import `search` for a feature set, `nearest` for arrays, `page` for the answer as HTML.
"""
