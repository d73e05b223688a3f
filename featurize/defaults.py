"""Defaults shared by recipes, commands and functions; separate, so that a decoder process imports only what it needs."""

from typing import Final

DECODE_TIMEOUT_S: Final = 60.0
MAX_REJECT_FRACTION: Final = 0.05
