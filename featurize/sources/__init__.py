"""Sources of images: class folders, images tables, IDX files, drawn scenes, and the cards that describe data sets.

Import `opening` to open any source, `listing` for the definition of a source.
"""
