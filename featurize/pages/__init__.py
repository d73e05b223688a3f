"""HTML pages that open without a network, and the thumbnails in them.

Import `html` and `thumbnails`.
"""
