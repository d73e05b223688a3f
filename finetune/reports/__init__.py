"""Reports: a model or a sweep on one page, as HTML or as plain text.

Import `judge` to compute the figures, `page` and `plain` to write them.
"""
