"""Every file of the corpus against two other decoders: libvips, and OpenCV, which ignores profiles.

The table of docs/formats.md is `helpers.images.differences`; print it with

    python tests/decoding/test_differential.py
"""

import numpy as np
import pytest
from helpers.images.corpus import corpus
from helpers.images.differences import EXPLAINED, LIBVIPS, OPENCV, UNEXPLAINED, Difference, rows
from helpers.images.other_decoders import Pixels, UnreadError, by_libvips, by_opencv
from helpers.project import ROOT

from featurize.decoding.decode import FORMATS, Color, decode_image, inspect_image

FILES = dict(corpus())
WAYS: tuple[tuple[str, Color], ...] = ((LIBVIPS, "srgb"), (LIBVIPS, "raw"), (OPENCV, "raw"))


def differs_by(name: str, decoder: str, color: Color) -> float | None:
    """The largest difference of a sample, in levels of 255; None where the other decoder does not read the file."""
    content = FILES[name]
    info = inspect_image(content)
    ours = decode_image(content, height=info.height, width=info.width, color=color)
    try:
        theirs = _decoded(name, decoder, color)
    except UnreadError:
        return None
    return 255.0 if ours.shape != theirs.shape else float(np.abs(ours - theirs).max())


def _decoded(name: str, decoder: str, color: Color) -> Pixels:
    if decoder == LIBVIPS:
        return by_libvips(FILES[name], color=color)
    return by_opencv(FILES[name], is_turned="orientation" in name)


def explanation(name: str, decoder: str, color: Color) -> Difference | None:
    found = [entry for entry in EXPLAINED if entry.is_about(name, decoder, color)]
    assert len(found) <= 1
    return found[0] if found else None


@pytest.mark.parametrize(("decoder", "color"), WAYS)
@pytest.mark.parametrize("name", FILES)
def test_other_decoders_give_the_same_pixels_or_it_is_explained(name: str, decoder: str, color: Color) -> None:
    explained, found = explanation(name, decoder, color), differs_by(name, decoder, color)
    if explained is None:
        assert found is not None
        assert found <= UNEXPLAINED
    elif explained.most is None:
        assert found is None
    else:
        assert found is not None
        assert UNEXPLAINED < found <= explained.most


@pytest.mark.parametrize("entry", EXPLAINED, ids=lambda entry: f"{entry.decoder}: {entry.files}")
def test_an_explanation_is_needed_and_as_narrow_as_can_be(entry: Difference) -> None:
    for pattern in entry.names:
        assert any(
            Difference(entry.decoder, "", (pattern,), None, "").is_about(name, entry.decoder, "raw") for name in FILES
        )
    ways = [(name, color) for name in FILES for decoder, color in WAYS if entry.is_about(name, decoder, color)]
    found = [differs_by(name, entry.decoder, color) for name, color in ways]
    if entry.most is None:
        assert set(found) == {None}
    else:  # with room for processors that round otherwise
        assert entry.most - 3 <= max(by for by in found if by is not None) <= entry.most


def test_the_corpus_has_all_formats_that_others_read_and_is_the_same_each_time() -> None:
    assert {inspect_image(content).format for content in FILES.values()} == {*FORMATS, "MPO"} - {"HEIF", "JXL"} - {
        "MPO"
    }
    assert dict(corpus()) == FILES
    assert len(FILES) == len(list(corpus())) > 150


def test_the_documentation_has_the_table() -> None:
    assert "\n".join(rows()) in (ROOT / "docs" / "formats.md").read_text()


if __name__ == "__main__":
    print("\n".join(rows()))
