"""What reaches a hub and is no rank, or no honest one: it harms nothing but its own connection."""

import queue
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from helpers.services.hub_peers import LONG_S, LOOPBACK, Between, Peer, heard_until_closed, is_closed, stranger_at
from helpers.services.processes import wait_until

from featurize.errors import JobError
from finetune.ranks import hub as hub_module
from finetune.ranks import hub_messages
from finetune.ranks.hub import Hub
from finetune.ranks.hub_messages import HELLO_BYTES, MAX_FRAME_BYTES, Address, enter, say_error
from finetune.ranks.rank_watch import Watch

Told = list[dict[str, float]]


@pytest.fixture
def told() -> Told:
    return []


@pytest.fixture
def hub(told: Told, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub of two ranks, which says more often than others that it lives."""
    monkeypatch.setattr(hub_messages, "_BEAT_S", 0.1)
    options = {"name": "the hub", "timeout_s": LONG_S, "host": LOOPBACK}
    with Hub(2, on_verdict=lambda message, says_it: None, on_told=told.append, **options) as hub:  # type: ignore[arg-type]
        yield hub


def assert_lives(hub: Hub, *peers: Peer) -> None:
    """The hub still hears its ranks and speaks to them, and has blamed nobody."""
    for peer in peers:
        peer.hears_beat()
        peer.say(doing="epoch 1", reports=1)
        peer.hears_beat()
    assert hub.verdict is None


NOISE = {
    "an empty list": b"[]\n",
    "a number": b"1\n",
    "a frame without a key": struct.pack("!I16s", 2, b"") + b"{}",
    "a huge length": b"\xff" * 20,
    "a web browser": b"GET / HTTP/1.1\r\n\r\n",
    "a lot": bytes(1 << 20),
    "a nest": b"[" * 100_000,
    "the hello of another version": b"firn hub 1\n" + bytes(32),
}


@pytest.mark.parametrize("noise", NOISE)
def test_a_stranger_is_sent_away_and_the_ranks_do_not_notice(hub: Hub, noise: str) -> None:
    ranks = [Peer(hub, 0), Peer(hub, 1)]
    connection = socket.create_connection(hub.address(LOOPBACK), timeout=LONG_S)
    with connection:
        try:
            connection.sendall(NOISE[noise])
        except ConnectionError:  # it closed it while this was still talking
            pass
        assert is_closed(connection)
    assert_lives(hub, *ranks)


def test_a_stranger_that_goes_in_the_middle_of_a_word_is_forgotten(hub: Hub) -> None:
    rank = Peer(hub, 0)
    for content in (b"", b"firn", b"firn hub 2\n" + bytes(31), b"firn hub 2\n" + bytes(32)):
        stranger_at(hub, content).close()
    with stranger_at(hub, b"firn hub 2\n" + bytes(32)) as guesses:
        guesses.sendall(bytes(32))
        assert is_closed(guesses)
    assert_lives(hub, rank)
    wait_until(lambda: not hub._strangers, "the end of all strangers", timeout_s=LONG_S)


def test_a_recorded_connection_is_worth_nothing_again(hub: Hub) -> None:
    between = Between(hub)
    honest = Peer(between.address, 0, key=hub.key)
    honest.hears("hub")
    recorded = bytes(between.to_hub)
    with stranger_at(hub, recorded) as again:
        assert len(heard_until_closed(again)) <= 64  # the hub's number and proof, and not that it is in
    with stranger_at(hub, recorded[:HELLO_BYTES]) as again:
        assert len(again.recv(1000)) == 64
        again.sendall(recorded[HELLO_BYTES:])
        assert heard_until_closed(again) == b""
    assert_lives(hub, honest)


def test_the_key_does_not_go_over_the_connection(hub: Hub) -> None:
    between = Between(hub)
    Peer(between.address, 0, key=hub.key).hears("hub")
    for said in (between.to_hub, between.from_hub):
        assert hub.key not in said
        assert hub.key.hex().encode() not in said


def test_what_is_changed_on_the_way_is_not_believed(hub: Hub) -> None:
    other, between = Peer(hub, 1), Between(hub)
    watched = Peer(between.address, 0, key=hub.key)
    watched.hears("hub")
    between.changes = True
    watched.say(doing="epoch 1", reports=12)  # arrives as 13
    assert "rank 0 (process 100 on host-b) is gone" in other.hears("verdict")["verdict"]


def test_a_frame_that_comes_twice_ends_its_connection(hub: Hub) -> None:
    other, between = Peer(hub, 1), Between(hub)
    watched = Peer(between.address, 0, key=hub.key)
    watched.hears("hub")
    between.repeats = True
    watched.say(told={"loss": 1.0})
    assert "rank 0 (process 100 on host-b), last" not in other.hears("verdict")["verdict"]


def test_a_length_without_a_limit_is_refused_before_anything_is_kept(hub: Hub) -> None:
    other, huge = Peer(hub, 1), Peer(hub, 0)
    huge.hears("hub")
    huge.connection.sendall(struct.pack("!I16s", MAX_FRAME_BYTES + 1, bytes(16)))
    assert other.hears("verdict")["verdict"].startswith("rank 0 ")
    with pytest.raises(ValueError, match="more than 1048576"):
        other.say(doing="x" * MAX_FRAME_BYTES)


def test_half_a_frame_keeps_nobody_waiting(hub: Hub) -> None:
    half, other = Peer(hub, 0), Peer(hub, 1)
    half.hears("hub")
    half.connection.sendall(struct.pack("!I16s", 100, bytes(16)) + b"{")
    assert_lives(hub, other)


@pytest.mark.parametrize(
    "message",
    [{}, {"rank": "two"}, {"rank": 2, "pid": 1, "host": "b"}, {"rank": -1, "pid": 1, "host": "b"}, {"rank": [0]}],
)
def test_who_knows_the_key_and_is_no_rank_is_sent_away(hub: Hub, message: dict[str, object]) -> None:
    rank = Peer(hub, 0)
    with socket.create_connection(hub.address(LOOPBACK), timeout=LONG_S) as connection:
        frames = enter(connection, hub.key)
        frames.send(message)
        assert is_closed(connection)
    assert_lives(hub, rank)


def test_a_second_rank_of_the_same_number_does_not_take_its_place(hub: Hub) -> None:
    first = Peer(hub, 0)
    first.hears("hub")
    second = Peer(hub, 0)
    assert is_closed(second.connection)
    assert_lives(hub, first)


@pytest.mark.parametrize(
    "message", [{"told": 5}, {"told": {"loss": "low"}}, {"reports": {}}, {"leave": "boom"}, {"reports": 3}]
)
def test_a_rank_that_talks_nonsense_is_gone_and_the_hub_is_not(hub: Hub, message: dict[str, object]) -> None:
    other, mad = Peer(hub, 1), Peer(hub, 0)
    mad.hears("hub")
    mad.say(**message)
    assert other.hears("verdict")["verdict"].startswith("rank 0 ")
    other.hears_beat()


def test_an_error_of_who_shows_what_ranks_tell_is_no_fault_of_a_rank(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: queue.Queue[dict[str, float]] = queue.Queue()

    def show(facts: dict[str, float]) -> None:
        shown.put(facts)
        raise OSError("standard error is closed")

    monkeypatch.setattr(hub, "_on_told", show)
    rank = Peer(hub, 0)
    rank.say(told={"loss": 0.5})
    assert shown.get(timeout=LONG_S) == {"loss": 0.5}
    assert_lives(hub, rank)


# Many of them


def test_two_hundred_silent_strangers_take_no_rank_its_place(hub: Hub) -> None:
    with ExitStack() as strangers:
        silent = [strangers.enter_context(stranger_at(hub)) for _ in range(200)]
        rank = Watch(0, hub.address(LOOPBACK), key=hub.key, timeout_s=LONG_S)
        wait_until(lambda: 0 in hub._ranks, "rank 0", timeout_s=LONG_S)
        assert len(hub._strangers) <= hub_module._MOST_STRANGERS
        assert is_closed(silent[0])
        rank.leave()
    hub.wait_for_ends(LONG_S)
    assert hub.verdict is None


def test_a_silent_stranger_is_sent_away_in_time(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "_PATIENCE_S", 0.5)
    with stranger_at(hub, b"firn hub 2\n") as silent:
        assert is_closed(silent)
    assert_lives(hub, Peer(hub, 0))


# The rank's side


@pytest.mark.parametrize("answer", [bytes(64), b"\xff" * 64], ids=["zeros", "ones"])
def test_a_rank_obeys_no_hub_that_does_not_know_the_key(answer: bytes) -> None:
    with socket.create_server((LOOPBACK, 0)) as listener:
        answer_one(listener, answer)
        with pytest.raises(JobError, match=r"^what answers rank 1 at .* is not the hub of this job\.$"):
            Watch(1, Address(*listener.getsockname()), key=bytes(32), timeout_s=LONG_S)


def answer_one(listener: socket.socket, answer: bytes) -> None:
    def run() -> None:
        accepted, _ = listener.accept()
        accepted.recv(1000)
        accepted.sendall(answer)

    threading.Thread(target=run, daemon=True).start()


def test_a_rank_with_another_key_is_told_so(hub: Hub) -> None:
    with pytest.raises(JobError, match="is not the hub of this job"):
        Watch(1, hub.address(LOOPBACK), key=bytes(32), timeout_s=LONG_S)


def test_what_a_rank_has_said_moves_no_terminal_and_shows_no_password(capfd: pytest.CaptureFixture[str]) -> None:
    say_error("rank 1: \x1b[2J https://ada:secret@host/x is gone\nerror: and this is no other message")
    shown = "error: rank 1: \\x1b[2J https://ada:***@host/x is gone\n  error: and this is no other message\n"
    assert capfd.readouterr().err == shown
