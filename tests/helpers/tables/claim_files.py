"""Claims of other jobs, for the tests."""

import json
import socket
import time
from pathlib import Path

from featurize.storage.claims import CLAIM_NAME
from featurize.storage.processes import identify_process


def hold_claim(folder: Path) -> None:
    """Claims `folder` in the name of this very process, as a job in progress does."""
    folder.mkdir(exist_ok=True)
    holder = {"token": "t", "host": socket.gethostname(), "user": "eve", "since": "now"}
    (folder / CLAIM_NAME).write_text(json.dumps({**holder, **identify_process(), "beat_at": time.time()}))
