"""What TensorFlow writes to standard error of its own accord: errors only."""

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock

LEVEL = "TF_CPP_MIN_LOG_LEVEL"
_ERRORS = "2"
_starting = Lock()
standard_error = Lock()
"""Held by whoever holds back standard error for a while, and by whoever starts a process that inherits it."""
_NOTE = re.compile(
    rb"^(I\d{4} \d\d:\d\d:.*|WARNING: All log messages before absl::InitializeLog\(\).*)\n", re.MULTILINE
)


def show_errors_only() -> None:
    """Has TensorFlow log errors only, before it is imported; `TF_CPP_MIN_LOG_LEVEL`, if it is set, is left as it is (0: all)."""
    os.environ.setdefault(LEVEL, _ERRORS)


def start_xla() -> None:
    """Starts XLA in this process, without its notes, if it has not been started here before.

    XLA writes four lines when it compiles for the first time, in the middle of a training. So it compiles an addition here.
    """
    with _starting:
        _start_xla_once()


@cache
def _start_xla_once() -> None:
    import tensorflow as tf

    add = tf.function(lambda value: value + 1, jit_compile=True, autograph=False)
    with without_notes():
        add(tf.constant(0))


@contextmanager
def without_notes() -> Iterator[None]:
    """Holds back standard error, of C++ as well, and shows at the end, also after an error, what is more than TensorFlow's notes.

    Compilers of graphs log through an Abseil of their own, which no variable and no function of TensorFlow reaches. Where
    `TF_CPP_MIN_LOG_LEVEL` is 0 their notes are shown too.
    """
    if os.environ.get(LEVEL, "0") == "0":
        yield
        return
    with standard_error, tempfile.TemporaryFile(prefix="firn-") as held:
        sys.stderr.flush()
        shown = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(shown, 2)
            os.close(shown)
            held.seek(0)
            _write_all(_NOTE.sub(b"", held.read()))


def _write_all(text: bytes) -> None:
    while text:
        text = text[os.write(2, text) :]
