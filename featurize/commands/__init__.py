"""The command line of `featurize`: commands parse their options, call a function of the package and print what it returns.

Import `options` for what the commands of both packages share.
"""
