"""Decoders in processes of their own: an image on which decoding hangs, crashes or uses up the memory harms nothing else.

A decoder is a fresh Python process that imports `decoding.decode` and little else. It reads requests from a socket and answers
each with pixels, a description or a reason. The kernel enforces its limits: an alarm ends it where it hangs, and it cannot use
more memory than the largest image needs. Before it reads its first byte it shuts itself in (see `confinement`): an image that
takes it over finds no environment, no network, no files and no other programs.
"""

import functools
import logging
import os
import queue
import resource
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, get_args

import numpy as np
from numpy.typing import NDArray

from featurize.decoding.confinement import confine
from featurize.decoding.decode import (
    Color,
    DecodeError,
    DecodingOptions,
    Fit,
    ImageInfo,
    Interpolation,
    Way,
    decode_sized,
    inspect_image,
)
from featurize.defaults import DECODE_TIMEOUT_S
from featurize.errors import JobError, first_line

_logger = logging.getLogger(__name__)

MAX_MEMORY_BYTES: Final = 3 << 30
"""Memory limit for decoding, in bytes: an image of `fitting.MAX_PIXELS` with transparency takes half of it."""

# Kind of request; height, width, channels; the fit: its shape, two sizes and filter; color; white; number of bytes.
_REQUEST = struct.Struct("<BIIBBIIBBdQ")
_SHORTER_SIDE, _BOTH_SIDES, _CROP, _PAD = 1, 2, 3, 4  # the shape of a fit, and with it:
_ROUNDED, _ALIASED, _DRAFT = 8, 16, 32
_NO_FIT = (0, 0, 0, 0)
_ANSWER = struct.Struct(
    "<BIIQ"
)  # kind of answer, width and height of the image in its file, number of bytes that follow
_WANT_PIXELS, _WANT_INFO = 1, 2
_PIXELS, _INFO, _REASON = 1, 2, 3
_READY = struct.Struct("<5sH")  # what a decoder says first: a word, and the length of what it could not shut off
_READY_WORD = b"ready"
_PASSED_ON = ("LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX")
_MOST_TEXT_BYTES: Final = 1 << 26  # of a description; one with EXIF text of all tags has far less
_MOST_REASON_BYTES: Final = 4096
_GRACE_S = 10.0  # beyond twice the time for an image, after which a decoder that has switched off its alarm is ended
_TRIES = 2  # a decoder that was killed from outside succeeds the second time; a harmful image kills it again
_SERVE = (
    "import sys; from featurize.decoding.decoder_process import serve; "
    "serve(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))"
)


_UNTRUE = "decoding gave no answer that can be believed"


class _UntrueError(Exception):
    """An answer that no decoder gives, as long as no image has taken it over."""


class Decoder:
    """A decoder process, for one thread at a time. It starts with the first image, and again after a crash.

    Args:
        timeout_s: Seconds that one image may take.
        max_memory_bytes: Memory for decoding, beyond what the process uses when it starts.
    """

    def __init__(self, *, timeout_s: float = DECODE_TIMEOUT_S, max_memory_bytes: int = MAX_MEMORY_BYTES) -> None:
        self._timeout_s, self._max_memory_bytes = timeout_s, max_memory_bytes
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    @property
    def pid(self) -> int | None:
        """The number of the process; None before the first image, and after the process has died or was closed."""
        return None if self._process is None else self._process.pid

    def decode(
        self,
        content: bytes,
        *,
        height: int,
        width: int,
        channels: int,
        fit: Fit | None = None,
        color: Color = "srgb",
        white: float | None = None,
    ) -> tuple[NDArray[np.uint8], tuple[int, int]]:
        """Decodes an image with `decode.decode_sized` in the decoder process.

        Raises:
            DecodeError: The reasons of `decode.decode_sized`; or decoding took too long, or its process died, twice.
            JobError: No decoder can be started.
        """
        colours = get_args(Color).index(color), white or 0.0
        request = _REQUEST.pack(_WANT_PIXELS, height, width, channels, *_packed(fit), *colours, len(content))
        size, payload = self._ask(request, content, _PIXELS, n_bytes=height * width * channels)
        return np.frombuffer(payload, np.uint8).reshape(height, width, channels), size

    def inspect(self, content: bytes) -> ImageInfo:
        """Describes an image with `decode.inspect_image` in the decoder process; raises the errors of `decode`."""
        _, payload = self._ask(_REQUEST.pack(_WANT_INFO, 0, 0, 0, *_NO_FIT, 0, 0.0, len(content)), content, _INFO)
        try:
            return ImageInfo.from_json(payload.decode())
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            self.close()
            raise DecodeError(_UNTRUE) from error

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._bury()

    def _ask(
        self, request: bytes, content: bytes, answer: int, *, n_bytes: int | None = None
    ) -> tuple[tuple[int, int], bytearray]:
        """The size of the image in its file, and the answer: of the kind `answer`, and of `n_bytes` if that is given.

        Raises:
            DecodeError: the decoder answers with a reason, or with something else, or has died twice.
        """
        reason = ""
        for _ in range(_TRIES):
            connection = self._socket or self._start()
            try:
                connection.sendall(request)
                connection.sendall(content)
                kind, width, height, length = _ANSWER.unpack(_receive(connection, _ANSWER.size))
                is_text = kind == _REASON or n_bytes is None
                if kind not in (answer, _REASON) or (length > _MOST_TEXT_BYTES if is_text else length != n_bytes):
                    raise _UntrueError
                payload = _receive(connection, length)
                if kind != _REASON:
                    return (width, height), payload
            except TimeoutError:  # by its own alarm it would have ended before
                self.close()
                reason = self._too_long
            except _UntrueError:
                self.close()
                reason = _UNTRUE
            except OSError:  # the other process has ended
                reason = self._bury()
            else:
                raise DecodeError(payload[:_MOST_REASON_BYTES].decode(errors="replace"))
        raise DecodeError(reason)

    @property
    def _too_long(self) -> str:
        return f"decoding took longer than {self._timeout_s:g} s"

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        # What Python needs to start, and nothing else: no password or token that this process has.
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        environment["OPENBLAS_NUM_THREADS"] = "1"  # it is not needed here, and every thread would reserve memory
        self._socket = ours
        limits = [str(self._timeout_s), str(self._max_memory_bytes)]
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", _SERVE, str(theirs.fileno()), *limits],
                    pass_fds=[theirs.fileno()],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                )
            _, length = _READY.unpack(_receive(ours, _READY.size))
            _say_unconfined(_receive(ours, length).decode())
            ours.settimeout(2 * self._timeout_s + _GRACE_S)
        except OSError as error:
            pipe = self._process.stderr if self._process is not None else None
            complaint = pipe.read().decode(errors="replace") if pipe is not None else ""
            self._bury()
            lines = complaint.strip().splitlines() or [first_line(error)]
            raise JobError(f"no decoder process can be started with {sys.executable}: {lines[-1]}") from error
        return ours

    def _bury(self) -> str:
        """Waits for a dying process to end, and returns the cause of its death."""
        process, self._process = self._process, None
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if process is None:
            return "the decoder has ended"
        status = process.wait()
        if process.stderr is not None:
            process.stderr.close()
        if status == -signal.SIGALRM:
            return self._too_long
        return (
            f"decoding crashed its process: {signal.Signals(-status).name if status < 0 else f'exit status {status}'}"
        )


@functools.cache  # once in each process, whatever number of decoders it starts
def _say_unconfined(missing: str) -> None:
    if missing:
        _logger.warning("decoders of images are less shut in than they should be: %s.", missing)


class DecoderPool:
    """A pool of decoders, each lent to one thread at a time."""

    def __init__(self, size: int, *, timeout_s: float = DECODE_TIMEOUT_S) -> None:
        self.timeout_s = timeout_s
        self._decoders = [Decoder(timeout_s=timeout_s) for _ in range(size)]
        self._idle: queue.LifoQueue[Decoder] = queue.LifoQueue()
        for decoder in self._decoders:
            self._idle.put(decoder)

    @property
    def size(self) -> int:
        """How many threads may have a decoder at the same time."""
        return len(self._decoders)

    @property
    def pids(self) -> list[int]:
        """The numbers of the processes that have been started and not closed."""
        return [decoder.pid for decoder in self._decoders if decoder.pid is not None]

    @contextmanager
    def lend(self) -> Iterator[Decoder]:
        """Lends an idle decoder for the time of a `with` block."""
        decoder = self._idle.get()
        try:
            yield decoder
        finally:
            self._idle.put(decoder)

    def close(self) -> None:
        """Ends all processes."""
        for decoder in self._decoders:
            decoder.close()


def serve(descriptor: int, timeout_s: float, max_memory_bytes: int) -> None:
    """The main loop of a decoder process; it ends when the other end of the socket closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the worker; this process notices when the worker ends
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    _limit_memory(max_memory_bytes)
    connection = socket.socket(fileno=descriptor)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)  # hides C libraries' messages about damaged files; the reason repeats them
    missing = confine().encode()
    connection.sendall(_READY.pack(_READY_WORD, len(missing)) + missing)
    while True:
        try:
            want, height, width, channels, *packed, color, white, length = _REQUEST.unpack(
                _receive(connection, _REQUEST.size)
            )
            content = bytes(_receive(connection, length))
        except OSError:
            return
        signal.setitimer(signal.ITIMER_REAL, timeout_s)
        options: DecodingOptions = {
            "height": height,
            "width": width,
            "channels": channels,
            "fit": _unpacked(*packed),
            "color": get_args(Color)[color],
            "white": white or None,
        }
        kind, size, payload = _answer(want, content, options)
        signal.setitimer(signal.ITIMER_REAL, 0)
        connection.sendall(_ANSWER.pack(kind, *size, len(payload)))
        connection.sendall(payload)


def _answer(want: int, content: bytes, options: DecodingOptions) -> tuple[int, tuple[int, int], bytes | memoryview]:
    try:
        if want == _WANT_INFO:
            return _INFO, (0, 0), inspect_image(content).to_json().encode()
        pixels, size = decode_sized(content, **options)
        return _PIXELS, size, pixels.data.cast("B")
    except DecodeError as error:
        return _REASON, (0, 0), str(error).encode()


def _packed(fit: Fit | None) -> tuple[int, int, int, int]:
    if fit is None:
        return _NO_FIT
    match fit.resize:
        case int(side):
            shape, sizes = _SHORTER_SIDE, (side, 0)
        case (height, width):
            shape, sizes = _BOTH_SIDES, (height, width)
        case way:
            shape, sizes = (_CROP if way == "crop" else _PAD), (0, 0)
    shape |= _ROUNDED * (fit.offset == "round") | _ALIASED * (not fit.antialias) | _DRAFT * fit.draft
    return shape, *sizes, get_args(Interpolation).index(fit.interpolation)


def _unpacked(shape: int, first: int, second: int, interpolation: int) -> Fit | None:
    if not shape:
        return None
    sizes: dict[int, int | tuple[int, int] | Way] = {
        _SHORTER_SIDE: first,
        _BOTH_SIDES: (first, second),
        _CROP: "crop",
        _PAD: "pad",
    }
    return Fit(
        resize=sizes[shape & 7],
        interpolation=get_args(Interpolation)[interpolation],
        offset="round" if shape & _ROUNDED else "floor",
        antialias=not shape & _ALIASED,
        draft=bool(shape & _DRAFT),
    )


def _limit_memory(max_bytes: int) -> None:
    with open("/proc/self/statm", encoding="ascii") as file:
        present = int(file.read().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = present + max_bytes
    resource.setrlimit(resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def _receive(connection: socket.socket, length: int) -> bytearray:
    """Exactly `length` bytes.

    Raises:
        ConnectionError: The other process closed the connection before.
    """
    content = bytearray(length)
    view = memoryview(content)
    while view:
        received = connection.recv_into(view)
        if not received:
            raise ConnectionError("the other process has ended")
        view = view[received:]
    return content
