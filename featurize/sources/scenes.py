"""Four classes of landscape, drawn by arithmetic: the demo's data set, so that it needs no download.

Light, colour and layout are random in the same way for every class, and the mean colour is balanced away as a camera does. So the
class shows in shapes and textures: streaks of surf, smooth crests and ripples, trunks and leaves, ridges and crags.
"""

from __future__ import annotations

import functools
import io
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SCENE_CLASSES: Final[tuple[str, ...]] = ("beach", "desert", "forest", "mountain")

Plane = NDArray[np.float32]
"""float32 ``(height, width)``."""
Profile = NDArray[np.float32]
"""float32 ``(_PROFILE,)``: a value for every `x`."""
Colour = NDArray[np.float32]
"""float32 ``(3,)`` red, green, blue; about [0, 1]."""

_TILE: Final = 512
"""Side of a noise tile in texels; a power of two, so that wrapping is a mask."""
_TEXELS: Final = 256.0
"""Texels per image height. More than the default 160 rows: a tile is never magnified into visible squares."""
_PROFILE: Final = 1024
"""Samples of a one-dimensional profile; a power of two too."""
_REACH: Final = 1.3
"""A profile spans `x` in [-_REACH, _REACH]; beyond, it repeats."""
_AT: Final = np.linspace(-_REACH, _REACH, _PROFILE, dtype=np.float32)
"""The `x` of each sample of a profile."""
_JPEG_QUALITY: Final = 90


@dataclass(frozen=True)
class _View:
    """One camera: where each pixel looks, and what all classes share.

    Attributes:
        rng: Random generator of this image.
        x: float32 ``(height, width)``, to the right, tilted and perhaps mirrored; the middle is 0, a height is 1.
        y: float32 ``(height, width)``, downwards; the top is about 0, the bottom about 1.
        horizon: the `y` of the horizon, [0.08, 0.68].
        light: the side the light comes from, -1 or 1.
    """

    rng: np.random.Generator
    x: Plane
    y: Plane
    horizon: float
    light: float


def draw_scene(label: str, *, seed: int, index: int, height: int = 160, width: int = 160) -> NDArray[np.uint8]:
    """Draws one landscape; the same arguments give the same pixels in every process.

    Args:
        label: one of `SCENE_CLASSES`.
        seed: the data set's seed, >= 0.
        index: the image's number within its class, >= 0.
        height: rows, >= 16.
        width: columns, >= 16.

    Returns:
        uint8 ``(height, width, 3)`` RGB in [0, 255].

    Raises:
        ValueError: An argument is out of its range.
    """
    if label not in _PAINTERS:
        raise ValueError(f"`label` must be one of {', '.join(SCENE_CLASSES)}. Got {label!r}.")
    for name, value, least in (("seed", seed, 0), ("index", index, 0), ("height", height, 16), ("width", width, 16)):
        if value < least:
            raise ValueError(f"`{name}` must be >= {least}. Got {value}.")
    # A checksum, as Python's own hash of a text differs from process to process.
    entropy = np.random.SeedSequence([seed, zlib.crc32(label.encode()), index])
    view = _make_view(np.random.Generator(np.random.PCG64(entropy)), height, width)
    image = _sky(view)
    _PAINTERS[label](view, image)
    return _develop(view, image)


def encode_scene(pixels: NDArray[np.uint8]) -> bytes:
    """Encodes an image as JPEG; equal pixels give equal bytes.

    Args:
        pixels: uint8 ``(height, width, 3)`` RGB in [0, 255].

    Returns:
        The bytes of a JPEG file.
    """
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()


def _make_view(rng: np.random.Generator, height: int, width: int) -> _View:
    zoom = rng.uniform(0.75, 1.1)
    tilt = rng.normal(0.0, 0.05)
    rows = (np.arange(height, dtype=np.float32)[:, None] + 0.5) / height - 0.5
    columns = ((np.arange(width, dtype=np.float32)[None, :] + 0.5) - width / 2) / height
    x = zoom * (columns + tilt * rows)
    y = zoom * (rows - tilt * columns) + 0.5
    mirror, light = (float(side) for side in rng.choice((-1.0, 1.0), size=2))
    return _View(rng, mirror * x, y, rng.uniform(0.08, 0.68), light)


@functools.cache
def _tile(kind: str) -> Plane:
    """A seamless tile of Gaussian noise, float32 ``(_TILE, _TILE)``, mean 0, standard deviation 1.

    `cloud` has an amplitude that falls as frequency to the power -1.6; `grain` as -0.6; `leaf` is a band about a
    wavelength of nine texels; `slope_x` and `slope_y` are the gradient of a ridged landscape.
    """
    if kind.startswith("slope"):
        heights = -np.abs(_tile("cloud")) * 24 + _tile("leaf") * 0.25
        axis = 1 if kind == "slope_x" else 0
        slope = np.roll(heights, -2, axis=axis) - heights
        relief: Plane = slope / slope.std()
        return relief
    # Every tile has a fixed seed of its own: it is a constant of the module that is too large to write down.
    white = np.random.Generator(np.random.PCG64(zlib.crc32(kind.encode()))).normal(size=(_TILE, _TILE))
    frequency = np.hypot(np.fft.fftfreq(_TILE)[:, None], np.fft.rfftfreq(_TILE)[None, :])
    frequency[0, 0] = np.inf
    if kind == "leaf":
        gain = np.exp(-(np.log2(frequency.clip(1e-6, 1) * 9.0) ** 2))
    else:
        gain = frequency ** {"cloud": -1.6, "grain": -0.6}[kind]
    noise = np.fft.irfft2(np.fft.rfft2(white) * gain, s=(_TILE, _TILE))
    tile: Plane = ((noise - noise.mean()) / noise.std()).astype(np.float32)
    return tile


def _sample(view: _View, kinds: tuple[str, ...], u: Plane, v: Plane) -> list[Plane]:
    """Reads noise at `u`, `v` (in image heights), all kinds at one random offset."""
    offset_u, offset_v = view.rng.integers(0, _TILE, size=2)
    texel = ((v * _TEXELS).astype(np.int32) + offset_v & _TILE - 1) * _TILE
    texel += (u * _TEXELS).astype(np.int32) + offset_u & _TILE - 1
    return [_tile(kind).ravel()[texel] for kind in kinds]


def _noise(view: _View, kind: str, u: Plane, v: Plane) -> Plane:
    return _sample(view, (kind,), u, v)[0]


def _curve(view: _View, roughness: float, octaves: int) -> Profile:
    """A random profile in [-1, 1]: sine waves, each an octave higher than the last and `roughness` of its height."""
    profile = np.zeros(_PROFILE, np.float32)
    for octave in range(octaves):
        frequency, phase = 2.0**octave * view.rng.uniform(1.4, 2.6), view.rng.uniform(0, 2 * np.pi)
        profile += roughness**octave * np.sin(frequency * _AT * 2 + phase)
    return profile / np.float32(np.abs(profile).max())


def _along(profile: Profile, x: Plane) -> Plane:
    """Spreads a profile over the image: its value at each pixel's `x`."""
    values: Plane = profile[(x * (0.5 * _PROFILE / _REACH) + _PROFILE / 2).astype(np.int32) & _PROFILE - 1]
    return values


def _colour(view: _View, red: float, green: float, blue: float, spread: float = 0.3) -> Colour:
    """A material's colour, varied in lightness and in hue; `spread` is the standard deviation of its logarithm."""
    rng = view.rng
    lightness, hue = rng.normal(0.0, spread), rng.normal(0.0, spread / 3, size=3)
    colour: Colour = (np.array([red, green, blue]) * np.exp(lightness + hue)).astype(np.float32)
    return colour


def _hazy(colour: Colour, haze: Colour, near: float) -> Colour:
    """The colour of a thing seen through haze; `near` is the share of its own colour that is left, (0, 1]."""
    return haze + (colour - haze) * np.float32(near)


def _paint(image: NDArray[np.float32], where: NDArray[np.bool_], colour: Colour, shade: Plane) -> None:
    """Sets the pixels `where` of ``(3, height, width)`` to `colour` times `shade`, in place."""
    for channel, strength in zip(image, colour, strict=True):
        np.copyto(channel, shade * strength, where=where)


def _sky(view: _View) -> NDArray[np.float32]:
    """A sky of any hour: a gradient, clouds, perhaps a sun. float32 ``(3, height, width)``."""
    rng = view.rng
    # Lighter or darker than any land, so that brightness does not show where the land begins.
    hour = float(np.exp(rng.normal(-0.25, 0.55)))
    top, bottom = hour * _colour(view, 0.55, 0.6, 0.7), hour * _colour(view, 0.72, 0.7, 0.68)
    fade = np.clip(view.y / (view.horizon + 0.05), 0, 1)
    clouds = _noise(view, "cloud", view.x * rng.uniform(0.4, 0.8), view.y * rng.uniform(0.8, 2))
    veil = rng.uniform(0.0, 0.25) * np.clip(clouds + rng.normal(), 0, 2)
    if rng.random() < 0.3:
        away = np.hypot(view.x - rng.uniform(-0.5, 0.5), view.y - rng.uniform(0, view.horizon))
        veil += np.exp(-((away / rng.uniform(0.03, 0.08)) ** 4))
    return np.stack([above + (low - above) * fade + veil for above, low in zip(top, bottom, strict=True)])


def _paint_beach(view: _View, image: NDArray[np.float32]) -> None:
    """A level sea with streaks that widen towards the eye, lines of surf along a slanting shore, grainy sand."""
    rng = view.rng
    below = np.clip(view.y - view.horizon, 0.004, None)
    depth = 0.06 / (below + 0.03)
    streak = _noise(view, "grain", view.x * depth * 0.5, depth * 1.4 + below * 1.5)
    swell = _noise(view, "leaf", view.x * 0.12, below * 1.2)
    sea = 0.9 + rng.uniform(0.12, 0.2) * streak + rng.uniform(0.1, 0.25) * swell
    _paint(image, view.y > view.horizon, _colour(view, 0.42, 0.52, 0.57, 0.4), sea)

    room = 1.0 - view.horizon
    shore = room * rng.uniform(0.35, 0.95) + rng.uniform(-0.35, 0.35) * view.x
    shore = shore + 0.02 * _along(_curve(view, 0.7, 6), view.x)
    sand = 1.0 + 0.06 * _noise(view, "grain", view.x * 2, view.y * 2)
    _paint(image, below > shore, _colour(view, 0.7, 0.62, 0.52, 0.4), sand)
    _surf(view, image, below, shore)


def _surf(view: _View, image: NDArray[np.float32], below: Plane, shore: Plane) -> None:
    """Foam: bright torn lines that follow the shore, closer together towards the horizon."""
    rng = view.rng
    foam = _colour(view, 0.98, 0.98, 1.0, 0.08)
    torn = _noise(view, "cloud", view.x * 0.7, below * 4)
    lace = _noise(view, "leaf", view.x, below * 2.5)
    position = 1.0
    for _ in range(int(rng.integers(3, 7))):
        line = shore * position + 0.012 * _along(_curve(view, 0.8, 7), view.x)
        thickness = 0.05 * position * np.clip(torn + 0.9, 0, 2)
        away = (line - below) / (thickness + 1e-4)
        where = (away > 0) & (away < 1) & (lace > away * 2 - 1) & (view.y > view.horizon)
        _paint(image, where, foam, 1.05 - 0.12 * away)
        position *= rng.uniform(0.55, 0.85)


def _paint_desert(view: _View, image: NDArray[np.float32]) -> None:
    """Smooth dunes one before another, each with a sharp crest, a lit and a shaded flank, and fine wavy ripples."""
    rng = view.rng
    sand = _colour(view, 0.72, 0.6, 0.46, 0.4)
    count = int(rng.integers(3, 6))
    warp = _noise(view, "cloud", view.x * 0.5, view.y * 0.8)
    for layer in range(count):
        near = layer / max(count - 1, 1)
        base = view.horizon + (1.0 - view.horizon) * near * 0.75
        curve = _curve(view, 0.35, 3)
        crest = base + (0.05 + 0.1 * near) * _along(curve, view.x)
        below = view.y - crest
        slope = _along(np.gradient(curve) * (_PROFILE / 12), view.x)
        # The slip face: dark, and ended by a line that swings out from the crest.
        reach = (0.08 + 0.2 * near) * np.clip(view.light * slope + 0.25, 0, 2)
        shaded = (below < reach) & (reach > 0)
        shade = np.where(shaded, rng.uniform(0.45, 0.65), 1.0 - 0.35 * below) + 0.08 * warp
        if layer >= count - 2:
            phase = (90 - 40 * near) * (below + rng.uniform(-0.5, 0.5) * view.x) + 3 * warp
            shade = shade + rng.uniform(0.06, 0.12) * np.sin(phase) * ~shaded
        _paint(image, below > 0, sand, shade)
    if rng.random() < 0.4:
        _cacti(view, image)


def _cacti(view: _View, image: NDArray[np.float32]) -> None:
    """A few cacti: a stem and two bent arms each, dark on the dunes."""
    rng = view.rng
    colour = _colour(view, 0.2, 0.28, 0.16)
    for _ in range(int(rng.integers(1, 4))):
        size = rng.uniform(0.05, 0.2)
        u = (view.x - rng.uniform(-0.5, 0.5)) / size
        v = (view.horizon + rng.uniform(0.05, 0.35) - view.y) / size
        across = np.abs(u)
        stem = (across < 0.13) & (v > 0) & (v < 1.9)
        arm = (np.abs(across - 0.5) < 0.09) & (v > 0.6) & (v < np.where(u > 0, 1.3, 1.55))
        elbow = (across < 0.5) & (np.abs(v - 0.68) < 0.09)
        _paint(image, stem | arm | elbow, colour, 1 + 2 * view.light * (u % 0.25 - 0.12))


def _paint_forest(view: _View, image: NDArray[np.float32]) -> None:
    """Either among the trunks, under leaves, or before rows of conifers."""
    paint = _woods if view.rng.random() < 0.6 else _conifers
    paint(view, image)


def _woods(view: _View, image: NDArray[np.float32]) -> None:
    """A forest seen from within: trunks behind trunks, a canopy full of holes, undergrowth."""
    rng = view.rng
    leaf, bark = _colour(view, 0.36, 0.5, 0.24), _colour(view, 0.36, 0.3, 0.24)
    haze = image.mean(axis=(1, 2))
    fine, coarse = _noise(view, "leaf", view.x, view.y), _noise(view, "cloud", view.x, view.y)
    ground = view.horizon + 0.25
    for near in (0.15, 0.5, 1.0):
        table = _trunks(view, count=int(rng.integers(7, 14) * (1.6 - near)), width=0.012 + 0.035 * near)
        lean = rng.normal(0, 0.04)
        shade = _along(table, view.x + lean * view.y + 0.004 * fine)
        foot = ground + 0.25 * near + 0.02 * coarse
        thick = 0.75 + 0.25 * near
        _paint(image, view.y > foot, _hazy(leaf, haze, thick), 0.8 + 0.35 * fine + 0.1 * coarse)
        _paint(image, (shade > 0) & (view.y < foot), _hazy(bark, haze, thick), shade * (1 + 0.15 * fine))
        canopy = ground * rng.uniform(0.2, 0.7) + 0.12 * coarse
        leaves = (view.y < canopy) & (fine > rng.uniform(-0.8, 0.2))
        _paint(image, leaves, _hazy(leaf, haze, thick), 0.6 + 0.4 * fine)


def _trunks(view: _View, *, count: int, width: float) -> Profile:
    """A profile of trunks: 0 between them, on them a cylinder's shade in (0, 1.4]."""
    table = np.zeros(_PROFILE, np.float32)
    for _ in range(count):
        across = (_AT - view.rng.uniform(-1.0, 1.0)) / (width * view.rng.uniform(0.4, 1.2))
        np.copyto(table, view.rng.uniform(0.6, 1.0) + 0.4 * view.light * across, where=np.abs(across) < 1)
    return table


def _conifers(view: _View, image: NDArray[np.float32]) -> None:
    """A forest seen from outside: rows of pointed trees that come down a slope."""
    rng = view.rng
    leaf = _colour(view, 0.3, 0.4, 0.28, 0.4)
    haze = image.mean(axis=(1, 2))
    fine = _noise(view, "leaf", view.x * 1.2, view.y)
    rows = int(rng.integers(4, 7))
    for row in range(rows):
        near = (row + 1) / rows
        count = int(70 - 40 * near)
        tops = rng.uniform(0.05, 0.14, size=(count, 1)) * (0.6 + 2.2 * near)
        away = np.abs(_AT - rng.uniform(-1.0, 1.0, size=(count, 1)).astype(np.float32))
        # Boughs: the outline steps in and out as it comes down.
        outline = (tops - (5.0 - near) * away + 0.012 * np.sin(away * (400 / (0.5 + near)))).max(axis=0)
        hill = view.horizon + (1.05 - view.horizon) * near * 0.85
        below = view.y - hill + _along(outline, view.x) + 0.01 * fine
        thick = 0.4 + 0.6 * near
        _paint(image, below > 0, _hazy(leaf, haze, thick), 0.75 + 0.38 * fine - 0.2 * below)


def _paint_mountain(view: _View, image: NDArray[np.float32]) -> None:
    """Jagged ridges one before another, crags lit from one side, snow above a ragged line."""
    rng = view.rng
    rock, snow = _colour(view, 0.45, 0.43, 0.42), _colour(view, 0.95, 0.96, 1.0, 0.1)
    haze = image.mean(axis=(1, 2))
    count = int(rng.integers(2, 5))
    for layer in range(count):
        near = (layer + 1) / count
        size = rng.uniform(0.5, 0.8)
        slope_x, slope_y, rough = _sample(view, ("slope_x", "slope_y", "cloud"), view.x * size, view.y * size)
        foot = view.horizon + (1.0 - view.horizon) * 0.7 * (near - 1 / count)
        crest = foot - rng.uniform(0.1, 0.2) * _along(_peaks(view), view.x)
        below, thick = view.y - crest, 0.45 + 0.55 * near
        relief = view.light * slope_x - 0.5 * slope_y
        _paint(image, below > 0, _hazy(rock, haze, thick), np.clip(0.8 + 0.32 * relief, 0.1, 2))
        line = rng.uniform(0.02, 0.2) + 0.06 * rough - 0.06 * slope_y
        _paint(image, (below > 0) & (below < line), _hazy(snow, haze, thick), np.clip(0.85 + 0.15 * relief, 0.3, 1.2))


def _peaks(view: _View) -> Profile:
    """A mountain skyline: the highest of a few pointed peaks, roughened."""
    rng = view.rng
    centres, tops, steep = rng.uniform([[-1.0], [0.2], [3.0]], [[1.0], [1.4], [6.0]], size=(3, 9))[..., None]
    outline = (tops - steep * np.abs(_AT - centres)).max(axis=0, initial=-0.6)
    jag = np.abs(_curve(view, 0.75, 8)) + 0.5 * np.abs(_curve(view, 0.8, 9))
    skyline: Profile = (outline - 0.35 * jag).astype(np.float32)
    return skyline


_PAINTERS: Final[dict[str, Callable[[_View, NDArray[np.float32]], None]]] = {
    "beach": _paint_beach,
    "desert": _paint_desert,
    "forest": _paint_forest,
    "mountain": _paint_mountain,
}


def _develop(view: _View, image: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Haze, white balance, exposure and noise, random in the same way for all classes.

    The channels are brought most of the way to one mean, and the whole to one contrast (the grey-world assumption of
    automatic white balance), before random shifts: neither colour nor brightness reveals the class.
    """
    rng = view.rng
    grey = image.mean(axis=0)
    image = grey + rng.uniform(0.0, 0.8) * (image - grey)
    image = (image - 0.8 * image.mean(axis=(1, 2), keepdims=True) - 0.2 * image.mean()) / image.std()
    # Light that falls off to one side, and the shadows of clouds.
    image += rng.normal(0.0, 0.55) * view.x + rng.normal(0.0, 0.55) * (view.y - 0.5)
    image += rng.uniform(0.0, 0.5) * _noise(view, "cloud", view.x * 0.4, view.y * 0.4)
    image += rng.uniform(0.03, 0.15) * rng.standard_normal(size=grey.shape, dtype=np.float32)
    contrast, level = rng.uniform(0.16, 0.22), rng.normal(0.46, 0.05) * np.exp(rng.normal(0.0, 0.07, size=3))
    image = level.astype(np.float32)[:, None, None] + contrast * image
    return np.ascontiguousarray(np.clip(image * 255, 0, 255).astype(np.uint8).transpose(1, 2, 0))
