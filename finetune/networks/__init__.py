"""Keras networks: heads, ConvNets, unfrozen backbones and users' own networks, with their inputs and randomness.

Import `build` to make a network, `forward` to get its probabilities.
"""

from featurize.engines.tensorflow_log import show_errors_only

show_errors_only()
