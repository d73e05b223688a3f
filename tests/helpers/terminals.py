"""Programs run in a terminal of their own, as a user sees them."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Sequence
from pathlib import Path

_ROWS, _COLUMNS = 30, 120
_CONTROLS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def run_in_terminal(command: Sequence[str], *, cwd: Path) -> tuple[int, list[str]]:
    """Runs a command in a terminal of 30 rows and 120 columns.

    Returns:
        Its exit status, and all lines that were drawn, each as often as it was, without colours.
    """
    own, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", _ROWS, _COLUMNS, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(
        command, cwd=cwd, stdin=theirs, stdout=theirs, stderr=theirs, env={**environment, "TERM": "xterm-256color"}
    )
    os.close(theirs)
    drawn = b""
    try:
        while part := os.read(own, 65536):
            drawn += part
    except OSError:  # the terminal's way to say that nobody writes to it any more
        pass
    os.close(own)
    text = _CONTROLS.sub("", drawn.decode())
    return process.wait(), [line for line in re.split(r"[\r\n]+", text) if line]
