"""A model or a sweep on one page, as HTML or as plain text.

Import `judge` to gather the figures, `page` and `plain` to write them.
"""
