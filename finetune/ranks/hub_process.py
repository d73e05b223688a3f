"""The hub of `horovodrun`: a process that rank 0 starts, and that outlives rank 0 long enough to say how that ended.

It shares the standard error of rank 0, and `horovodrun` waits for the end of that before it ends the other ranks.
"""

import os
import signal
import subprocess
import sys

from featurize.errors import JobError
from finetune.ranks.hub import Hub
from finetune.ranks.hub_messages import Address, process_name, say_error

_END_S = 12.0  # after rank 0: to have the other ranks ended


class HubProcess:
    """The hub as a child of this process. It ends by itself, soon after this process if not before.

    Args:
        size: how many ranks there will be.
        timeout_s: a rank that is not heard of for so long is stalled.
        standstill_s: ranks that live and report nothing new for so long are stuck.
        host: the interface to listen on.

    Raises:
        JobError: it does not start.
    """

    def __init__(self, size: int, *, timeout_s: float, standstill_s: float, host: str) -> None:
        # By `-c` with this process's path: Firn may be in a zip, or in the working directory only.
        code = f"import sys; sys.path[:] = {sys.path!r}; from finetune.ranks.hub_process import serve; serve()"
        command = [sys.executable, "-c", code, str(size), str(timeout_s), str(standstill_s), host]
        ours, its = os.pipe()
        with os.fdopen(ours) as answer:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=its)
            os.close(its)
            line = answer.readline()
        if not line:
            raise JobError(
                f"the process that watches over the ranks did not start: exit status {self._process.wait()}."
            )
        self.address = Address.parse(line)

    def close(self) -> None:
        """Lets it end, when the other ranks do or soon after: then they are no longer watched."""
        if self._process.stdin is not None:
            self._process.stdin.close()

    def poll(self) -> int | None:
        """Its exit status, or None while it runs."""
        return self._process.poll()


def serve() -> None:
    """What the process does, with the arguments of `HubProcess`: the address to standard output, then the hub."""
    size, timeout_s, standstill_s, host = sys.argv[1:]
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # meant for rank 0, whose end this process has to tell
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Hub(
        int(size),
        name=process_name("the process that watches over the ranks"),
        timeout_s=float(timeout_s),
        standstill_s=float(standstill_s),
        on_verdict=_say_unless_said,
        host=host,
    ) as hub:
        print(hub.address(host), flush=True)
        sys.stdin.read()  # until rank 0 has no more use for it, or is gone
        hub.wait_for_ends(_END_S)


def _say_unless_said(message: str, rank_says_it: bool) -> None:
    if not rank_says_it:
        say_error(message)
