"""The hub of `horovodrun`: a process that rank 0 starts, and that outlives rank 0 long enough to report its end.

It shares the standard error of rank 0, and `horovodrun` waits for the end of that before it ends the other ranks.
"""

import os
import signal
import subprocess
import sys
from contextlib import suppress

from featurize.errors import JobError
from finetune.ranks.hub import Hub
from finetune.ranks.hub_messages import Address, process_name, say_error

_END_S = 12.0  # after the end of rank 0, until the other ranks should have ended


class HubProcess:
    """The hub as a child of this process. It ends by itself, soon after this process at the latest.

    Args:
        size: the number of ranks.
        timeout_s: seconds after which a rank that is not heard of counts as stalled.
        standstill_s: seconds after which ranks that live but report nothing new count as stuck.
        host: the address to listen on.
        key: the secret by which hub and ranks know each other.

    Raises:
        JobError: it does not start.
    """

    def __init__(self, size: int, *, timeout_s: float, standstill_s: float, host: str, key: bytes) -> None:
        # By `-c` with this process's path: Firn may be in a zip, or in the working directory only.
        code = f"import sys; sys.path[:] = {sys.path!r}; from finetune.ranks.hub_process import serve; serve()"
        command = [sys.executable, "-c", code, str(size), str(timeout_s), str(standstill_s), host]
        ours, its = os.pipe()
        with os.fdopen(ours) as answer:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=its)
            os.close(its)
            with suppress(BrokenPipeError):  # it has ended: there is no answer
                self._tell(key.hex())
            line = answer.readline()
        if not line:
            raise JobError(
                f"the process that watches over the ranks did not start: exit status {self._process.wait()}."
            )
        self.address = Address.parse(line)

    def _tell(self, line: str) -> None:
        """Sends it a line through the pipe: others see the arguments of a process, but not what it reads."""
        if self._process.stdin is not None:
            self._process.stdin.write(f"{line}\n".encode())
            self._process.stdin.flush()

    def close(self) -> None:
        """Lets the hub end, with the other ranks or soon after; from then on they are not watched."""
        if self._process.stdin is not None:
            self._process.stdin.close()

    def poll(self) -> int | None:
        """Its exit status, or None while it runs."""
        return self._process.poll()


def serve() -> None:
    """The main function of the process, with the arguments of `HubProcess`: prints the address, then runs the hub."""
    size, timeout_s, standstill_s, host = sys.argv[1:]
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # meant for rank 0, whose end this process reports
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    key = bytes.fromhex(sys.stdin.readline())
    with Hub(
        int(size),
        name=process_name("the process that watches over the ranks"),
        timeout_s=float(timeout_s),
        standstill_s=float(standstill_s),
        on_verdict=_say_unless_said,
        host=host,
        key=key,
    ) as hub:
        print(hub.address(host), flush=True)
        sys.stdin.read()  # until rank 0 closes it or is gone
        hub.wait_for_ends(_END_S)


def _say_unless_said(message: str, rank_says_it: bool) -> None:
    if not rank_says_it:
        say_error(message)
