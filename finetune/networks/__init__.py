"""Keras networks: heads, ConvNets, unfrozen backbones and users' own networks, with their inputs and randomness.

Import `build` to make a network, `forward` to get its probabilities.
"""
