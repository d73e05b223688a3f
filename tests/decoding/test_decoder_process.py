"""Decoder processes: what they give is what the decoder gives, whoever asks."""

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers.images.decoders import BROKEN, FILES, decode, is_running, pid_of

from featurize.decoding.decode import DecodeError, decode_sized, inspect_image
from featurize.decoding.decoder_process import Decoder, DecoderPool

# The decoder ignores these itself, but pytest sets its own filters for every test.


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    decoder = Decoder()
    yield decoder
    decoder.close()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(("height", "width", "channels"), [(24, 40, 3), (13, 5, 1)])
def test_pixels_and_sizes_are_those_of_the_decoder_itself(
    decoder: Decoder, name: str, height: int, width: int, channels: int
) -> None:
    decode(decoder, FILES[name], height, width, channels)


@pytest.mark.parametrize("name", FILES)
def test_descriptions_are_those_of_the_decoder_itself(decoder: Decoder, name: str) -> None:
    assert decoder.inspect(FILES[name]) == inspect_image(FILES[name])


@pytest.mark.parametrize("name", BROKEN)
def test_reasons_are_those_of_the_decoder_itself(decoder: Decoder, name: str) -> None:
    with pytest.raises(DecodeError) as expected:
        decode_sized(BROKEN[name], height=4, width=4)
    for attempt in (
        lambda: decoder.decode(BROKEN[name], height=4, width=4, channels=3),
        lambda: decoder.inspect(BROKEN[name]),
    ):
        with pytest.raises(DecodeError) as raised:
            attempt()
        assert str(raised.value) == str(expected.value)


def test_two_hundred_broken_images_do_not_end_it(decoder: Decoder) -> None:
    decode(decoder)
    process, picker = pid_of(decoder), random.Random(1)
    for _ in range(200):
        content = bytearray(picker.choice([*FILES.values(), *BROKEN.values()])[:3000])
        for position in picker.choices(range(len(content)), k=5) if content else ():
            content[position] = picker.randrange(256)
        try:
            decode(decoder, bytes(content))
        except DecodeError:
            pass
    decode(decoder)
    assert pid_of(decoder) == process


# Pools


def test_a_pool_lends_each_decoder_to_one_thread_at_a_time() -> None:
    pool, lock = DecoderPool(2), threading.Lock()
    lent: list[Decoder] = []
    most = 0

    def borrow(number: int) -> None:
        nonlocal most
        with pool.lend() as decoder:
            with lock:
                assert decoder not in lent
                lent.append(decoder)
                most = max(most, len(lent))
            try:
                decode(decoder, list(FILES.values())[number % 5], height=number % 7 + 1)
            finally:
                with lock:
                    lent.remove(decoder)
            if number % 3 == 0:
                raise DecodeError("an image that is no image")  # gives it back all the same

    with ThreadPoolExecutor(8) as threads:
        results = [threads.submit(borrow, number) for number in range(60)]
    assert sum(result.exception() is not None for result in results) == 20
    assert all(isinstance(result.exception(), DecodeError | None) for result in results)
    assert most == 2
    processes = pool.pids
    pool.close()
    assert not any(is_running(process) for process in processes)
