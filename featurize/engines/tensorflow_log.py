"""The log that TensorFlow writes to standard error, reduced to errors."""

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
"""Held while standard error is redirected, and while a process that inherits it is started."""
_NOTE = re.compile(
    rb"^(I\d{4} \d\d:\d\d:.*|WARNING: All log messages before absl::InitializeLog\(\).*)\n", re.MULTILINE
)


def show_errors_only() -> None:
    """Makes TensorFlow log errors only; call it before the import. If `TF_CPP_MIN_LOG_LEVEL` is set, it stays (0: log all)."""
    os.environ.setdefault(LEVEL, _ERRORS)


def start_xla() -> None:
    """Starts XLA in this process, without its notes, unless it was started before.

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
    """Holds back standard error, that of C++ too, and at the end, also after an error, shows it without TensorFlow's notes.

    TensorFlow's graph compilers log through their own copy of Abseil, which no variable and no function of TensorFlow controls.
    If `TF_CPP_MIN_LOG_LEVEL` is 0, their notes are shown too.
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
