"""A rank of a Horovod job, in its own process: started by `horovodrun`, or in a task of Spark by `spark_ranks`."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

from featurize.backbones.keras_network import set_threads
from featurize.backbones.lean_keras import leave_out_keras_extras
from featurize.console import warn
from featurize.errors import FirnError, JobError, SharedError, first_line
from finetune.ranks.communicator import Communicator, SingleRank
from finetune.ranks.hub import STANDSTILL_S
from finetune.ranks.hub_address import LOOPBACK, KeyOfRanks, find_hub, own_host
from finetune.ranks.hub_messages import Address, hub_key, process_name
from finetune.ranks.hub_process import HubProcess
from finetune.ranks.rank_watch import Watch
from finetune.ranks.shared_memory import CollectiveError, Place, SharedMemory

if TYPE_CHECKING:
    import numpy as np

TIMEOUT_S = 40.0
_GLOO_LATER_S = 15.0  # Gloo gives up without naming a rank; so the hub, which names it, must give up first
PEER_GONE = "another rank is gone; its own output says why."
HUB_VARIABLE = "FIRN_HUB"
_SHARED_MEMORY = "FIRN_SHARED_MEMORY"  # 0: ranks of one host use Horovod's collectives too
# The interval at which Horovod's threads communicate, idle or not. Its default of 1 ms takes a fifth of a core from each rank.
_CYCLE_MS = "5"


class HorovodRanks:
    """The ranks of a Horovod job that has been initialised. Those of one host reduce in memory that they share.

    Args:
        watch: the watch of this rank; None: nobody watches.
        memory: the memory that it shares with all other ranks; None: Horovod's own collectives are used.
    """

    def __init__(self, watch: Watch | None = None, memory: SharedMemory | None = None) -> None:
        import horovod.tensorflow as hvd

        self._hvd = hvd
        self._watch = watch
        self._memory = memory
        self.rank: int = hvd.rank()
        self.size: int = hvd.size()

    def sum(self, tensors: Sequence[Any]) -> list[Any]:
        """The sums of `tensors` over all ranks, in one collective."""
        import numpy as np

        return self._reduce(tensors, np.add, self._hvd.Sum)

    def minimum(self, tensors: Sequence[Any]) -> list[Any]:
        """The least value of each element of `tensors` over all ranks, in one collective."""
        import numpy as np

        return self._reduce(tensors, np.minimum, self._hvd.Min)

    def _reduce(self, tensors: Sequence[Any], reduction: "np.ufunc", horovods: Any) -> list[Any]:
        import tensorflow as tf

        tensors = [tf.convert_to_tensor(tensor) for tensor in tensors]
        shapes = [tensor.shape for tensor in tensors]
        memory = self._memory
        if memory is not None and tf.executing_eagerly():
            reduced = memory.reduce([tensor.numpy() for tensor in tensors], reduction)
        elif memory is not None:
            dtypes = [tensor.dtype for tensor in tensors]
            reduced = tf.numpy_function(lambda *arrays: memory.reduce(arrays, reduction), tensors, dtypes)
        else:
            flat = tf.concat([tf.reshape(tensor, [-1]) for tensor in tensors], 0)
            reduced = tf.split(self._hvd.allreduce(flat, op=horovods), [shape.num_elements() for shape in shapes])
        return [tf.reshape(part, shape) for part, shape in zip(reduced, shapes, strict=True)]

    def report(self, doing: str) -> None:
        """Says what this rank is doing, such as ``epoch 3, step 17``; the user sees it if this rank is lost."""
        if self._watch is not None:
            self._watch.report(doing)

    def tell(self, facts: Mapping[str, float]) -> None:
        """Tells the driver, if this is a rank on Spark: what a rank prints comes in pieces of 64 KiB, which is too late."""
        if self._watch is not None:
            self._watch.tell(facts)


def launched_by_horovodrun() -> bool:
    """Whether this process is a rank that `horovodrun` started."""
    return "HOROVOD_RANK" in os.environ and "HOROVOD_SIZE" in os.environ


@contextmanager
def open_ranks(
    *, distributed: bool, timeout_s: float = TIMEOUT_S, standstill_s: float = STANDSTILL_S
) -> Iterator[Communicator]:
    """The communicator of this process, whose TensorFlow gets its share of the cores.

    When a rank dies, stalls or leaves by an error, the processes of all other ranks are ended, wherever they wait; the hub
    (see `finetune.ranks.hub`) tells the user which rank it was.

    Args:
        distributed: whether this process is one of several ranks.
        timeout_s: seconds after which a rank that is not heard of counts as stalled.
        standstill_s: seconds after which ranks that live but report nothing new count as stuck. On Spark `run_on_spark`
            decides it.

    Raises:
        JobError: a collective failed, or the ranks do not find each other.
    """
    cores = len(os.sched_getaffinity(0))
    if not distributed:
        with suppress(RuntimeError):  # TensorFlow has begun to work here, as in a notebook: it keeps the threads it has
            set_threads(cores)
        yield SingleRank()
        return
    leave_out_keras_extras()
    with _watched(timeout_s, standstill_s) as watch:
        # The watch starts before the import of TensorFlow, which takes long: a rank that dies in it is noticed.
        import horovod.tensorflow as hvd
        import tensorflow as tf
        from horovod.common.exceptions import HorovodInternalError

        _set_gloo_timeout(timeout_s)
        memory = None
        try:
            _initialise(watch)
            set_threads(max(1, cores // hvd.local_size()))
            memory = _share_memory() if _may_share_memory() else None
            yield HorovodRanks(watch, memory)
        except (tf.errors.UnknownError, HorovodInternalError, CollectiveError) as error:  # as when a rank is gone
            watch.collective_failed(first_line(error))
            raise JobError(PEER_GONE) from error
        except Exception as error:
            _tell_hub(error, watch)
            raise
        except SystemExit as error:
            watch.blame(f"{process_name(f'rank {watch.rank}')} ended with exit status {error.code}.", says_it=False)
            raise
        finally:
            if memory is not None:
                memory.close()
            hvd.shutdown()


@contextmanager
def _watched(timeout_s: float, standstill_s: float) -> Iterator[Watch]:
    """The watch of this rank, and for rank 0 of horovodrun the hub."""
    rank, hub = int(os.environ["HOROVOD_RANK"]), None
    if HUB_VARIABLE in os.environ:
        address, key = Address.parse(os.environ[HUB_VARIABLE]), hub_key(_key_on_spark())
    elif rank == 0:
        shared = KeyOfRanks(on_one_host=_are_on_one_host())
        key, host = shared.key, LOOPBACK if _are_on_one_host() else own_host()
        size = int(os.environ["HOROVOD_SIZE"])
        hub = HubProcess(size, timeout_s=timeout_s, standstill_s=standstill_s, host=host, key=key)
        address = hub.address
        shared.publish(address)
    else:
        address, key = find_hub(rank, timeout_s=timeout_s)
    watch = Watch(rank, address, key=key, timeout_s=timeout_s)
    try:
        yield watch
    except SharedError:  # all ranks end by it
        _part(watch, hub)
        raise
    else:
        _part(watch, hub)
    # After any other error the hub stays a little longer than this process: it has ranks to end.


def _part(watch: Watch, hub: HubProcess | None) -> None:
    watch.leave()
    if hub is not None:
        hub.close()


def _tell_hub(error: Exception, watch: Watch) -> None:
    """Tells the hub the error by which this rank ends, unless all ranks end by it."""
    rank = process_name(f"rank {watch.rank}")
    if isinstance(error, SharedError):
        return
    if isinstance(error, FirnError):
        watch.blame(str(error), says_it=True)
    elif isinstance(error, OSError):  # the commands show this one too
        watch.blame(f"{rank} failed: {error}", says_it=True)
    else:
        watch.blame(f"{rank} failed: {type(error).__name__}: {first_line(error)}", says_it=False)


def _set_gloo_timeout(timeout_s: float) -> None:
    """Has Gloo give up later than the hub, or still later if the user says so."""
    name = "HOROVOD_GLOO_TIMEOUT_SECONDS"
    os.environ[name] = str(max(int(os.environ.get(name, "0")), round(timeout_s + _GLOO_LATER_S)))


def _key_on_spark() -> bytes:
    """The secret of this job that Spark has brought to the task of this rank, and the task to its process."""
    from horovod.runner.common.util import codec, secret

    key: bytes = codec.loads_base64(os.environ[secret.HOROVOD_SECRET_KEY])
    return key


def _are_on_one_host() -> bool:
    """Whether all ranks are on this host, as its launcher says."""
    return os.environ.get("HOROVOD_SIZE") == os.environ.get("HOROVOD_LOCAL_SIZE")


def _may_share_memory() -> bool:
    return _are_on_one_host() and os.environ.get(_SHARED_MEMORY, "1") != "0"


def _share_memory() -> SharedMemory | None:
    """The memory that all ranks share; None if one of them could not open it."""
    import horovod.tensorflow as hvd
    import tensorflow as tf

    memory = _open_memory() if hvd.rank() == 0 else None
    own = (0, 0, 0) if memory is None else astuple(memory.place)
    place = Place(*hvd.allreduce(tf.constant(own, tf.int64), op=hvd.Sum).numpy().tolist())
    if hvd.rank() != 0 and place.pid != 0:
        memory = _open_memory(place)
    all_have_it = hvd.allreduce(tf.constant(int(memory is not None)), op=hvd.Min).numpy()
    if memory is not None:
        memory.forget_place()
    return memory if all_have_it else None


def _open_memory(place: Place | None = None) -> SharedMemory | None:
    import horovod.tensorflow as hvd

    try:
        return SharedMemory(hvd.rank(), hvd.size(), place)
    except OSError as error:
        name = process_name(f"rank {hvd.rank()}")
        warn(f"{name} cannot share memory with the other ranks ({error}); Horovod's slower all-reduce is used.")
        return None


def _initialise(watch: Watch) -> None:
    import horovod.tensorflow as hvd

    if _may_share_memory():
        os.environ.setdefault("HOROVOD_CYCLE_TIME", _CYCLE_MS)
    try:
        hvd.init()
    except ValueError as error:  # as Horovod reports any failure here: it has written the cause to standard error
        watch.collective_failed(first_line(error))
        raise JobError(f"{process_name(f'rank {watch.rank}')}: {first_line(error)}") from error
