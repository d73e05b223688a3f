"""The weights of a keras.applications network: ImageNet's, seeded random ones, or a file checked by its digest."""

import contextlib
import socket
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from featurize import storage
from featurize.digests import sha256_file
from featurize.engines.keras_memory import check_keras_memory
from featurize.errors import JobError, UsageError, first_line
from featurize.recipes.backbone_section import BackboneSettings

if TYPE_CHECKING:
    import keras

DOWNLOAD_TIMEOUT_S = 20.0
"""How long a download of weights may get no answer."""
_ENDINGS = (".h5", ".keras")


@dataclass(frozen=True)
class WeightsReport:
    """The weights that a network was given, in words, and the digest of the file that they came in."""

    description: str
    file_sha256: str | None = None
    notice: str | None = None


def give_weights(make: Callable[..., "keras.Model"], settings: BackboneSettings) -> tuple["keras.Model", WeightsReport]:
    """The network of the keras.applications constructor `make`, with the weights that `settings` name.

    Raises:
        UsageError: A file of weights is missing, has another digest or does not fit.
        JobError: ImageNet weights are not in Keras's cache and cannot be downloaded.
    """
    wanted = settings.weights or "imagenet"
    if wanted == "random":
        return _random_network(make, settings.seed), WeightsReport(f"random, seed {settings.seed}")
    if wanted == "imagenet":
        return _imagenet_network(make, settings.name), WeightsReport("imagenet")
    if wanted == "imagenet_or_random":
        try:
            return _imagenet_network(make, settings.name), WeightsReport("imagenet")
        except JobError:
            notice = (
                f"ImageNet weights for {settings.name} are not in Keras's cache and cannot be downloaded here: "
                f"using RANDOM weights (seed {settings.seed}). The features mean little; the run is only a demonstration."
            )
            return _random_network(make, settings.seed), WeightsReport(f"random, seed {settings.seed}", notice=notice)
    return _network_from_file(make, settings, wanted)


def _imagenet_network(make: Callable[..., "keras.Model"], name: str) -> "keras.Model":
    """The network with the weights that Keras distributes for it, from its cache or by its download, checked by its digest."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_S)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # for Keras's progress bar
            return make(weights="imagenet")
    except JobError:
        raise
    except Exception as error:
        raise JobError(
            f"ImageNet weights for {name} are not in Keras's cache and could not be downloaded: {first_line(error)}. "
            "Give a file: `backbone.weights` = its path, `backbone.weights_sha256` = its digest."
        ) from error
    finally:
        socket.setdefaulttimeout(before)


def _random_network(make: Callable[..., "keras.Model"], seed: int) -> "keras.Model":
    import keras

    keras.utils.set_random_seed(seed)
    return make(weights=None)


def _network_from_file(
    make: Callable[..., "keras.Model"], settings: BackboneSettings, url: str
) -> tuple["keras.Model", WeightsReport]:
    if not url.endswith(_ENDINGS):
        raise UsageError(
            f"`backbone.weights` must be imagenet, imagenet_or_random, random, or a file ending in .h5 or .keras. Got {url!r}."
        )
    if not storage.exists(url):
        raise UsageError(f"`backbone.weights`: there is no file {storage.absolute_url(url)}.")
    with tempfile.TemporaryDirectory(prefix="firn-") as folder:
        local = Path(folder) / Path(url).name
        storage.download(url, local)
        digest = sha256_file(local)
        if settings.weights_sha256 not in (None, digest):
            raise UsageError(f"`backbone.weights_sha256` is {settings.weights_sha256}; {url} has SHA-256 {digest}.")
        try:
            network = _load_into(make, local)
        except (ValueError, OSError, KeyError, TypeError) as error:
            raise UsageError(f"`backbone.weights`: {url} does not fit {settings.name}: {first_line(error)}") from error
    return network, WeightsReport(f"{Path(url).name}, SHA-256 {digest}", file_sha256=digest)


def _load_into(make: Callable[..., "keras.Model"], path: Path) -> "keras.Model":
    """The network with the weights in a local file; a file written without the classifier gives a network without it."""
    network = make(weights=None)
    try:
        return _load(network, path)
    except (ValueError, KeyError):
        bare = make(weights=None, include_top=False, input_shape=network.input.shape[1:])
        with contextlib.suppress(ValueError, KeyError):
            return _load(bare, path)
        raise  # the error for the whole network explains the fault


def _load(network: "keras.Model", path: Path) -> "keras.Model":
    if path.suffix == ".keras":
        from keras import saving

        check_keras_memory(path)
        network.set_weights(saving.load_model(path, compile=False, safe_mode=True).get_weights())
    else:
        network.load_weights(path)
    return network
