"""Defaults that recipes, commands and functions share; of their own, so that a decoder process imports no more than it needs."""

from typing import Final

DECODE_TIMEOUT_S: Final = 60.0
MAX_REJECT_FRACTION: Final = 0.05
