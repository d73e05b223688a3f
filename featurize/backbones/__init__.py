"""Frozen pre-trained networks: given their weights, cut at a layer, and run at the precision that preserves their features.

Import `backbone`, `weights`, `precision`, and `rebuild` for the backbone of an existing feature set.
"""

from featurize.engines.tensorflow_log import show_errors_only

show_errors_only()
