"""What the ranks of `test_rank_faults` do: sums without end, until one of them meets its fault.

``horovodrun -np N --gloo python rank_program.py FOLDER FAULT RANK TIMEOUT_S``, or with the number of ranks behind that, the same
on Spark. Each rank writes FOLDER/pid-RANK when it starts and FOLDER/ready-RANK when it has summed for a while.
"""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import typer

from featurize.commands.options import reported_errors
from featurize.errors import JobError
from finetune.ranks.horovod_ranks import open_ranks
from finetune.ranks.hub_messages import beat_interval
from finetune.ranks.spark_ranks import run_on_spark

BEATS_BEFORE = 3  # after which the hub has heard what a rank does
STEPS_BETWEEN = 100  # between being ready and the fault, so that all are ready
STANDSTILL_S = 10.0


def loop(folder: str, fault: str, faulty: int, timeout_s: float) -> None:
    """Sums until a fault; `fault` is met by rank `faulty`."""
    rank = int(os.environ["HOROVOD_RANK"])
    Path(folder, f"pid-{rank}").write_text(str(os.getpid()))
    mine = fault if rank == faulty else ""
    if mine == "not started":
        time.sleep(1000)
    if mine == "killed early":
        os.kill(os.getpid(), signal.SIGKILL)
    with open_ranks(distributed=True, timeout_s=timeout_s, standstill_s=STANDSTILL_S) as ranks:
        import tensorflow as tf

        steps = tf.function(ranks.sum)
        (least,) = ranks.minimum([tf.constant(rank + 5.0)])
        assert float(least) == 5.0
        ready_at, meets_at = time.monotonic() + BEATS_BEFORE * beat_interval(timeout_s), None
        for step in range(10**9):
            ranks.report(f"epoch 3, step {step}")
            assert [float(total) for total in steps([tf.constant(1.0)])] == [ranks.size]
            if meets_at is None and time.monotonic() > ready_at:
                Path(folder, f"ready-{rank}").write_text("")
                meets_at = step + STEPS_BETWEEN
            if step == meets_at:
                meet(mine)
            time.sleep(0.005)


def meet(fault: str) -> None:
    """The faults that a rank brings upon itself."""
    if fault == "raises":
        raise ValueError("boom")
    if fault == "exits":
        sys.exit(3)
    if fault == "firn error":
        raise JobError("the features of cats are not finite.")
    if fault == "disk full":
        with open("/dev/full", "wb", buffering=0) as device:
            device.write(b"checkpoint")
    if fault == "absent":
        time.sleep(1000)


def main(folder: str, fault: str, faulty: str, timeout_s: str, num_proc: str = "") -> None:
    arguments: Any = (folder, fault, int(faulty), float(timeout_s))
    with reported_errors():
        if num_proc:
            run_on_spark(lambda: loop(*arguments), int(num_proc), timeout_s=float(timeout_s), standstill_s=STANDSTILL_S)
        else:
            loop(*arguments)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except typer.Exit as end:
        sys.exit(end.exit_code)
