"""Tests of ranks.hub and ranks.rank_watch, over real connections; what happens to whole jobs is in integration."""

import queue
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers.services.hub_peers import LONG_S, LOOPBACK, Peer, let_in
from helpers.services.processes import wait_until

from featurize.errors import JobError
from finetune.ranks.hub import Hub
from finetune.ranks.hub_messages import Address, beat_interval
from finetune.ranks.hub_process import HubProcess
from finetune.ranks.rank_watch import Watch

TIMEOUT_S = 1.0
KEY = b"k" * 32
Verdicts = queue.Queue[tuple[str, bool]]


@pytest.fixture
def verdicts() -> Verdicts:
    return queue.Queue()


MakeHub = Callable[..., Hub]


@pytest.fixture
def make_hub(verdicts: Verdicts) -> Iterator[MakeHub]:
    hubs: list[Hub] = []

    def make(size: int, timeout_s: float = LONG_S, standstill_s: float = LONG_S) -> Hub:
        on_verdict = lambda message, says_it: verdicts.put((message, says_it))  # noqa: E731
        hubs.append(
            Hub(
                size,
                name="the hub",
                timeout_s=timeout_s,
                on_verdict=on_verdict,
                host=LOOPBACK,
                standstill_s=standstill_s,
            )
        )
        return hubs[-1]

    yield make
    for hub in hubs:
        hub.close()


def watch(hub: Hub, rank: int, *, timeout_s: float = LONG_S) -> tuple[Watch, "queue.Queue[str | None]"]:
    """A watch, and where it puts the message with which it would end this process."""
    ends: queue.Queue[str | None] = queue.Queue()
    return Watch(rank, hub.address(LOOPBACK), key=hub.key, timeout_s=timeout_s, end=ends.put), ends


def test_a_rank_whose_connection_ends_is_gone_and_the_others_are_ended(make_hub: MakeHub, verdicts: Verdicts) -> None:
    hub = make_hub(3)
    lost = Peer(hub, 2)
    lost.hears("hub")
    others = [watch(hub, rank) for rank in range(2)]
    lost.say(doing="epoch 3, step 17", reports=1)
    lost.close()
    assert verdicts.get(timeout=LONG_S) == (
        "rank 2 (process 102 on host-b), last in epoch 3, step 17 is gone: killed or crashed.",
        False,
    )
    assert [ends.get(timeout=LONG_S) for _, ends in others] == [None, None]
    assert hub.verdict is not None
    assert verdicts.empty()


def test_a_rank_that_is_silent_is_stalled_and_one_that_beats_for_as_long_is_not(
    make_hub: MakeHub, verdicts: Verdicts
) -> None:
    hub = make_hub(2, TIMEOUT_S)
    busy, ends = watch(hub, 0, timeout_s=TIMEOUT_S)
    busy.report("epoch 1, step 1")
    silent = Peer(hub, 1)
    started = time.monotonic()
    message, _ = verdicts.get(timeout=LONG_S)
    assert message == "rank 1 (process 101 on host-b) has not been heard of for 1 s: stalled."
    assert time.monotonic() - started >= 0.9 * TIMEOUT_S
    assert silent.hears("verdict") == {"verdict": message, "final": True}
    assert ends.get(timeout=LONG_S) is None


def test_a_rank_that_never_comes_is_named_once_another_has_come(make_hub: MakeHub, verdicts: Verdicts) -> None:
    hub = make_hub(4, TIMEOUT_S)
    here = [watch(hub, rank, timeout_s=TIMEOUT_S) for rank in (0, 2)]
    message, _ = verdicts.get(timeout=LONG_S)
    assert message == "rank 1 and rank 3 have not started: nothing was heard of them for 1 s."
    assert [ends.get(timeout=LONG_S) for _, ends in here] == [None, None]


def test_ranks_are_missed_only_after_their_launch(make_hub: MakeHub, verdicts: Verdicts) -> None:
    hub = make_hub(1, TIMEOUT_S)
    with pytest.raises(queue.Empty):
        verdicts.get(timeout=4 * TIMEOUT_S)
    hub.expect_ranks()
    assert verdicts.get(timeout=LONG_S)[0] == "rank 0 has not started: nothing was heard of it for 3 s."


def test_ranks_that_leave_in_order_leave_no_verdict(make_hub: MakeHub, verdicts: Verdicts) -> None:
    hub = make_hub(2, TIMEOUT_S)
    watches = [watch(hub, rank, timeout_s=TIMEOUT_S) for rank in range(2)]
    for left, _ in watches:
        left.leave()
    hub.wait_for_ends(LONG_S)
    with pytest.raises(queue.Empty):
        verdicts.get(timeout=2 * TIMEOUT_S)
    assert all(ends.empty() for _, ends in watches)


def test_a_rank_that_says_its_own_error_is_given_the_time_for_it(make_hub: MakeHub, verdicts: Verdicts) -> None:
    hub = make_hub(2)
    failing, other = Peer(hub, 1), Peer(hub, 0)
    other.hears("hub")
    failing.say(leave="the loss is nan.", says_it=True)
    assert verdicts.get(timeout=LONG_S) == ("the loss is nan.", True)
    assert other.hears("verdict") == {"verdict": "the loss is nan.", "final": False}
    failing.close()
    assert other.hears("verdict") == {"verdict": "the loss is nan.", "final": True}


def test_a_failed_collective_waits_for_its_cause(make_hub: MakeHub, verdicts: Verdicts) -> None:
    """Rank 0 hears from Horovod of a failure before the hub hears that rank 1 is gone."""
    hub = make_hub(2)
    first, lost = Peer(hub, 0), Peer(hub, 1)
    first.say(broken="Horovod has been shut down.")
    lost.close()
    assert verdicts.get(timeout=LONG_S)[0].startswith("rank 1 (process 101 on host-b) is gone")


@pytest.mark.parametrize(
    ("last_words", "message"),
    [
        (
            {"doing": "epoch 1, step 2", "reports": 1},
            "rank 1 (process 101 on host-b), last in epoch 1, step 2: did not enter the all-reduce in which the other "
            "ranks waited.",
        ),
        (
            {"leave": None, "says_it": False},
            "rank 1 (process 101 on host-b) has ended: did not enter the all-reduce in which the other ranks waited.",
        ),
        ({"broken": "timed out"}, "an all-reduce failed on every rank: timed out"),
    ],
)
def test_a_failed_collective_without_a_lost_rank(
    make_hub: MakeHub, verdicts: Verdicts, last_words: dict[str, object], message: str
) -> None:
    hub = make_hub(2)
    waiting, ends = watch(hub, 0)
    other = Peer(hub, 1)
    other.say(**last_words)
    waiting.collective_failed("timed out")
    assert ends.get(timeout=LONG_S) is None
    assert verdicts.get(timeout=LONG_S)[0] == message
    other.close()


def test_ranks_that_live_and_do_not_get_on_are_stuck(make_hub: MakeHub, verdicts: Verdicts) -> None:
    hub = make_hub(2, standstill_s=2.0)
    (ahead, ends), (behind, _) = watch(hub, 0), watch(hub, 1)
    ahead.report("epoch 1, step 1")
    ahead.report("epoch 1, step 2")
    with pytest.raises(queue.Empty):  # rank 1 has reported nothing yet: it may be one that never reports
        verdicts.get(timeout=4.0)
    behind.report("epoch 1, step 1")
    message, _ = verdicts.get(timeout=LONG_S)
    assert message.startswith("rank 1 (process ")
    assert message.endswith("last in epoch 1, step 1 has not made progress for 2 s, and the other ranks wait: stalled.")
    assert ends.get(timeout=LONG_S) is None


@pytest.mark.parametrize(
    ("dies", "what"), [(True, "is gone: killed or crashed."), (False, "has not been heard of for 1 s: stalled.")]
)
def test_a_rank_does_not_outlive_the_hub(dies: bool, what: str) -> None:
    with socket.create_server((LOOPBACK, 0)) as listener:
        ends: queue.Queue[str | None] = queue.Queue()
        with ThreadPoolExecutor(1) as thread:
            letting_in = thread.submit(let_in, listener, KEY)
            Watch(1, Address(*listener.getsockname()), key=KEY, timeout_s=TIMEOUT_S, end=ends.put)
            hub = letting_in.result()
        hub.send({"hub": "the driver (process 7 on host-a)"})
        if dies:
            hub.socket.close()
        assert ends.get(timeout=LONG_S) == f"the driver (process 7 on host-a) {what}"
        hub.socket.close()


def test_a_hub_that_does_not_answer_is_named() -> None:
    with socket.create_server((LOOPBACK, 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(JobError, match=rf"rank 3 cannot reach the hub at {LOOPBACK}:{port}"):
        Watch(3, Address(LOOPBACK, port), key=KEY, timeout_s=TIMEOUT_S)


def test_signals_are_passed_on(make_hub: MakeHub) -> None:
    hub = make_hub(1)
    peer = Peer(hub, 0)
    peer.hears("hub")
    hub.pass_on_signal(15)
    assert peer.hears("signal") == {"signal": 15}


@pytest.mark.parametrize(("timeout_s", "beat_s"), [(40.0, 1.0), (8.0, 1.0), (1.0, 0.125)])
def test_there_are_many_beats_in_a_timeout(timeout_s: float, beat_s: float) -> None:
    assert beat_interval(timeout_s) == beat_s


def test_the_process_of_the_hub_says_who_is_gone_and_ends(capfd: pytest.CaptureFixture[str]) -> None:
    hub = HubProcess(2, timeout_s=LONG_S, standstill_s=LONG_S, host=LOOPBACK, key=KEY)
    staying, lost = Peer(hub, 0, key=KEY), Peer(hub, 1, key=KEY)
    staying.hears("hub")
    lost.close()
    assert staying.hears("verdict")["final"]
    staying.close()
    hub.close()
    wait_until(lambda: hub.poll() is not None, "the end of the hub", timeout_s=LONG_S)
    assert hub.poll() == 0
    assert capfd.readouterr().err == "error: rank 1 (process 101 on host-b) is gone: killed or crashed.\n"


def test_the_process_of_the_hub_ends_with_its_parent(capfd: pytest.CaptureFixture[str]) -> None:
    hub = HubProcess(1, timeout_s=LONG_S, standstill_s=LONG_S, host=LOOPBACK, key=KEY)
    only = Peer(hub, 0, key=KEY)
    only.hears("hub")
    only.say(leave=None, says_it=False)
    hub.close()
    wait_until(lambda: hub.poll() is not None, "the end of the hub", timeout_s=LONG_S)
    assert hub.poll() == 0
    assert capfd.readouterr().err == ""
