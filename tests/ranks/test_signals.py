"""Tests of finetune.ranks.signals, with real signals to this process."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from finetune.ranks.signals import stop_on_signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_to_stop_within_the_block_alone(number: signal.Signals) -> None:
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    with stop_on_signals(signal.SIGTERM, signal.SIGINT) as is_asked_to_stop:
        assert not is_asked_to_stop()
        os.kill(os.getpid(), number)
        assert is_asked_to_stop()
        os.kill(os.getpid(), number)  # as when a launcher repeats it
        assert is_asked_to_stop()
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_signal_that_is_not_named_keeps_its_effect() -> None:
    with stop_on_signals(signal.SIGTERM) as is_asked_to_stop, pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    assert not is_asked_to_stop()


def test_every_signal_is_handed_on() -> None:
    received: list[int] = []
    with stop_on_signals(signal.SIGTERM, on_signal=received.append):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    assert received == [signal.SIGTERM, signal.SIGTERM]


def test_the_second_signal_interrupts_where_it_is_to_end_the_process() -> None:
    with stop_on_signals(signal.SIGTERM, signal.SIGINT, second_ends=True) as is_asked_to_stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert is_asked_to_stop()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_the_second_sigterm_ends_the_process_where_it_is_to() -> None:
    code = (
        "import os, signal; from finetune.ranks.signals import stop_on_signals\n"
        "with stop_on_signals(signal.SIGTERM, second_ends=True) as is_asked_to_stop:\n"
        "    os.kill(os.getpid(), signal.SIGTERM); print(is_asked_to_stop(), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM); print('still here', flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGTERM
    assert done.stdout == "True\n"


def test_another_thread_leaves_the_handlers_as_they_are() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen: list[object] = []

    def work() -> None:
        with stop_on_signals(signal.SIGTERM) as is_asked_to_stop:
            seen.extend([signal.getsignal(signal.SIGTERM), is_asked_to_stop()])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before, False]
