"""A few images of a source on the driver, decoded for a network: always the same, of all classes, none of the test split."""

import os
from collections.abc import Iterator
from functools import cached_property
from math import ceil

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from featurize.backbones.spec import BackboneSpec
from featurize.decoding.decode import DecodeError
from featurize.decoding.decoder_process import DecoderPool
from featurize.map_ahead import map_ahead
from featurize.sources.listing import Fetch, ImageReadError, ImageSource, PlannedImage, planned_images

_SEED = 7
_MOST_CLASSES = 200  # of a sample, so that each has several images

Pixels = NDArray[np.uint8]


class ImageSample:
    """Images outside the test split, in an order of chance in which classes take turns.

    Args:
        source: the images.
        spec: the network that they are decoded for.
        decode_timeout_s: seconds; an image that takes longer to decode is left out, as are all that cannot be read.
    """

    def __init__(self, source: ImageSource, spec: BackboneSpec, *, decode_timeout_s: float) -> None:
        self._source, self._spec, self._timeout_s = source, spec, decode_timeout_s

    def take(self, start: int, count: int) -> Iterator[tuple[str, Pixels]]:
        """About `count` images from the one with the number `start` on: the label and the pixels of each.

        They come in the order of the listing, in which storage is read fastest.
        """
        rows = np.sort(self._order[self._listed(start) : self._listed(start) + self._listed(count)])
        images = planned_images(self._source.listing.take(rows))
        threads = len(os.sched_getaffinity(0))
        decoders = DecoderPool(threads, timeout_s=self._timeout_s)
        try:
            items = zip(images, self._source.reader.open(images), strict=True)
            read = map_ahead(lambda item: self._load(*item, decoders), items, threads=threads, ahead=2 * threads)
            yield from (loaded for loaded in read if loaded is not None)
        finally:
            decoders.close()

    def _listed(self, count: int) -> int:
        """How many listed images give `count` that are not in the test split; which ones are only their bytes tell."""
        fractions = self._source.split_rule.fractions
        return ceil(count / (1.0 if fractions is None else max(1e-3, 1 - fractions.test)))

    @cached_property
    def _order(self) -> NDArray[np.int64]:
        """The rows of the listing that may be read, in the order of the sample."""
        listing = self._source.listing
        usable = pc.is_valid(listing["label"])
        if self._source.split_rule.fractions is None:
            usable = pc.and_(usable, pc.fill_null(pc.not_equal(listing["own_split"], "test"), True))
        random = np.random.default_rng(_SEED)
        rows = random.permutation(np.flatnonzero(usable.to_numpy()))
        names, labels = np.unique(listing["label"].take(rows).to_numpy().astype(str), return_inverse=True)
        rows, labels = self._of_some_classes(rows, labels, random.permutation(len(names))[:_MOST_CLASSES])
        by_class = np.argsort(labels, kind="stable")
        sizes = np.bincount(labels, minlength=len(names))
        turn = np.empty(len(rows), np.int64)  # the number of an image within its class
        turn[by_class] = np.arange(len(rows)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return rows[np.argsort(turn, kind="stable")]

    @staticmethod
    def _of_some_classes(
        rows: NDArray[np.int64], labels: NDArray[np.int64], classes: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        chosen = np.isin(labels, classes)
        return rows[chosen], labels[chosen]

    def _load(self, image: PlannedImage, fetch: Fetch, decoders: DecoderPool) -> tuple[str, Pixels] | None:
        """The label and the pixels of an image; None where it is in the test split, or cannot be read."""
        spec = self._spec
        try:
            content = fetch()
            image_id = self._source.reader.identify(image, content)
            if self._source.split_rule.assign(image_id, image.own_split) == "test":
                return None
            with decoders.lend() as decoder:
                pixels, _ = decoder.decode(content, **spec.decoding)
        except (ImageReadError, DecodeError):
            return None
        return str(image.label), pixels
