"""Drawn scenes: a small semantic segmentation task that needs no files, for the quick start and the tests.

A scene shows sky, perhaps hills, ground, and a few solid things that stand or float, cast shadows and occlude each
other. All colours are random, so a network has to learn shapes and textures. To add a thing, write its drawing function
and add it to `THINGS`. To look at a scene:

    from PIL import Image
    Image.fromarray(draw_scene(7, size=(512, 768))[0]).show()
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray
SPLITS = ("train", "val", "test")  # the position is part of the seed: append, never reorder
MIN_SIDE = 32


# Every thing is drawn by one function of
#   u, v    float32 coordinates that broadcast, unit = the thing's height: u right of its middle, v above its foot
#   light   (x, y, z): unit vector towards the lamp; x right, y up, z to the viewer
#   form    six numbers in [0, 1) that vary its look
# and returns, per pixel, (distance to the outline, negative inside; pattern in [0, 1] between the thing's two colours;
# shade, which multiplies the colour up to 1 and adds white above).


def lambert(light: tuple, x: Array | float, y: Array | float, z: Array | float) -> Array:
    """Brightness of a matt surface in ambient and directed light; (x, y, z): its normal, of about unit length."""
    return 0.42 + 0.62 * np.maximum(x * light[0] + y * light[1] + z * light[2], 0)


def stripes(phase: Array, sharpness: float = 4.0) -> Array:
    """Bands of period 2 pi in [0, 1]; soft edges keep them from aliasing."""
    return np.clip(0.5 + sharpness * np.sin(phase), 0, 1)


def ball(u: Array, v: Array, light: tuple, form: list) -> tuple[Array, Array, Array]:
    x, y = 2 * u, 2 * v - 1
    square = x * x + y * y
    z = np.sqrt(np.maximum(1 - square, 0))
    turn = 2 * math.pi * form[0]
    along, across = x * math.cos(turn) + y * math.sin(turn), y * math.cos(turn) - x * math.sin(turn)
    if form[1] < 0.45:  # the panels of a beach ball
        pattern = stripes(3 * np.arctan2(across, 0.8 * z + 0.6 * along))
    else:  # one broad band, or none
        pattern = stripes(3 * across + 1.6, 5) * (form[1] < 0.75)
    # Blinn's highlight: the half vector between the lamp and the viewer, who stands at (0, 0, 1).
    half = (x * light[0] + y * light[1] + z * (light[2] + 1)) / math.sqrt(2 + 2 * light[2])
    return 0.5 * (np.sqrt(square) - 1), pattern, lambert(light, x, y, z) + 0.5 * np.maximum(half, 0) ** 24


def box(u: Array, v: Array, light: tuple, form: list) -> tuple[Array, Array, Array]:
    # Seen from above, the nearest edge at u = edge; bottoms and tops recede to the left and right at these slopes.
    edge, slope_l, slope_r = 0.44 * form[0] - 0.22, 0.2 + 0.2 * form[1], 0.2 + 0.2 * form[2]
    width_l, width_r, slopes = 0.5 + edge, 0.5 - edge, slope_l + slope_r
    side = 1 - slope_l * width_l - slope_r * width_r  # height of the two upright faces
    bottom = np.maximum(slope_l * (edge - u), slope_r * (u - edge))
    top = side + np.minimum(slope_l * width_l + slope_r * (u + 0.5), slope_r * width_r + slope_l * (0.5 - u))
    distance = np.maximum(np.maximum(np.abs(u) - 0.5, bottom - v), v - top)
    # Coordinates (p, q), 0 to 1 across each face.
    du, dv, left, lid = u - edge, v - side, u < edge, v - bottom > side
    p = np.where(lid, (dv + slope_l * du) / (width_r * slopes), np.where(left, -du / width_l, du / width_r))
    q = np.where(lid, (dv - slope_r * du) / (width_l * slopes), (v - bottom) / side)
    if form[3] < 0.5:  # a crate's frame
        pattern = np.clip(10 * (0.2 - np.minimum(np.minimum(p, 1 - p), np.minimum(q, 1 - q))), 0, 1)
    elif form[3] < 0.75:  # a die's spots
        pattern = np.clip(12 * (0.3 - np.hypot(p - 0.5, q - 0.5)), 0, 1)
    else:  # a parcel's ribbons
        pattern = np.clip(12 * (0.13 - np.minimum(np.abs(p - 0.5), np.abs(q - 0.5))), 0, 1)
    face_l, face_r, face_top = (float(lambert(light, *n)) for n in ((-0.75, 0, 0.65), (0.75, 0, 0.65), (0, 0.95, 0.3)))
    return distance, pattern, np.where(lid, face_top, np.where(left, face_l, face_r))


def tree(u: Array, v: Array, light: tuple, form: list) -> tuple[Array, Array, Array]:
    leaves = np.sin(44 * u + 2 * np.sin(31 * v + 6 * form[0])) * np.sin(41 * v + 2 * np.sin(29 * u + 6 * form[1]))
    side = np.abs(u)
    if form[2] < 0.5:  # a fir of three tiers
        width, crown = 0.5 + 0.2 * form[3], np.float32(math.inf)
        for low, high in ((0.58, 1), (0.36, 0.84), (0.14, 0.68)):
            crown = np.minimum(crown, np.maximum(low - v, 0.85 * (side - width * (high - v))))
    else:  # a round crown of three lobes
        crown = np.minimum(np.hypot(u, v - 0.7) - 0.28, np.hypot(side - 0.2, v - 0.5 - 0.1 * form[3]) - 0.2)
    crown = crown + 0.02 * leaves
    trunk = np.maximum(np.maximum(side - 0.07, -v), v - 0.6)
    crown_shade = lambert(light, 2 * u, 2 * v - 1.2, 0.8) * (1.05 + 0.25 * leaves)
    shade = np.where(crown < 0, crown_shade, 0.6 + 2.5 * light[0] * u)
    return np.minimum(crown, trunk), np.where(crown < 0, 0.4 - 0.4 * leaves, 1), shade


def ring(u: Array, v: Array, light: tuple, form: list) -> tuple[Array, Array, Array]:
    x, y = u / (0.7 + 0.3 * form[0]), v - 0.5
    radius, tube = np.hypot(x, y), 0.11 + 0.03 * form[1]
    offset = (radius - (0.5 - tube)) / tube  # -1 at the hole, 1 at the rim
    z = np.sqrt(np.maximum(1 - offset * offset, 0))
    outward = offset / np.maximum(radius, 0.1)
    pattern = stripes((3 + int(4 * form[3])) * np.arctan2(y, x) + 6 * form[4]) * (form[2] < 0.7)
    return tube * (np.abs(offset) - 1), pattern, lambert(light, x * outward, y * outward, z) + 0.25 * z**8


def pole(u: Array, v: Array, light: tuple, form: list) -> tuple[Array, Array, Array]:
    half = 0.075 + 0.02 * form[0]
    u = u - 0.2 * (form[1] - 0.5) * v  # it leans
    x = np.clip(u / half, -1, 1)
    knob = np.hypot(u, v - 0.88) - 0.12
    distance = np.minimum(np.maximum(np.maximum(np.abs(u) - half, -v), v - 0.9), knob)
    pattern = stripes((30 + 10 * form[3]) * (v + (0.8 if form[2] < 0.5 else -0.8) * u))
    return distance, np.where(knob < 0, 0, pattern), lambert(light, x, 0, np.sqrt(1 - x * x))


class Thing(NamedTuple):
    draw: Callable[[Array, Array, tuple, list], tuple[Array, Array, Array]]
    height: float  # relative to the other things
    lift: float  # the highest it floats, in its own heights
    colour: tuple[int, int, int]  # in label maps


THINGS = {
    "ball": Thing(ball, 0.95, 0.7, (230, 85, 80)),
    "box": Thing(box, 0.95, 0, (178, 118, 70)),
    "tree": Thing(tree, 1.6, 0, (56, 140, 84)),
    "ring": Thing(ring, 1.15, 0.5, (150, 95, 190)),
    "pole": Thing(pole, 1.8, 0, (250, 200, 70)),
}
STUFF = {"sky": (135, 190, 235), "hills": (90, 115, 160), "ground": (196, 205, 150)}
SKY, HILLS, GROUND = range(len(STUFF))
SCENE_CLASSES: tuple[str, ...] = (*STUFF, *THINGS)
SCENE_PALETTE: tuple[tuple[int, int, int], ...] = (*STUFF.values(), *(thing.colour for thing in THINGS.values()))


# Images are planar, (3, h, w) float32 RGB with 0 to 1 displayable, until `expose` turns them into bytes.


def draw_colour(rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]) -> Array:
    """A colour of any hue: (3, 1, 1) float32."""
    hue, s, v = 6 * rng.random(), rng.uniform(*saturation), rng.uniform(*value)
    k = (np.array([5, 3, 1]).reshape(3, 1, 1) + hue) % 6
    return (v - v * s * np.clip(np.minimum(k, 4 - k), 0, 1)).astype(np.float32)


def mix(a: Any, b: Any, t: Any) -> Any:
    return a + (b - a) * t


def smooth(knots: Array, at: Array) -> Array:
    """Interpolate `knots` (k, ...) at positions `at` (n,), 0 to 1 along their first axis: (n, ...)."""
    at = at * (len(knots) - 1)
    low = np.minimum(at.astype(np.intp), len(knots) - 2)
    t = (at - low.astype(np.float32)).reshape(-1, *[1] * (knots.ndim - 1))
    return mix(knots[low], knots[low + 1], t * t * (3 - 2 * t))


def wavy(rng: np.random.Generator, at: Array, knots: int) -> Array:
    """Smooth noise in [0, 1) along a line: (n,)."""
    return smooth(rng.random(knots, dtype=np.float32), at)


def blotches(rng: np.random.Generator, rows: Array, cols: Array, knots: tuple[int, int]) -> Array:
    """Smooth noise in [0, 1) over the image: (h, w)."""
    across = smooth(rng.random(knots, dtype=np.float32), rows).T
    return smooth(across, cols).T


def draw_sky(rng: np.random.Generator, rows: Array, cols: Array, haze: Array) -> Array:
    zenith = draw_colour(rng, (0.2, 0.5), (0.55, 0.95))
    octaves = ((0.45, 8), (0.35, 16), (0.2, 36))
    clouds = sum(share * blotches(rng, rows, cols, (knots, knots // 2)) for share, knots in octaves)
    clouds = np.clip(rng.uniform(2, 4) * (clouds - rng.uniform(0.4, 0.7)), 0, 0.85)
    return mix(mix(zenith, haze, np.minimum(1.8 * rows, 1)[:, None]), mix(haze, 1, 0.6), clouds)


def draw_hills(rng: np.random.Generator, rows: Array, cols: Array, ridge: Array, light: tuple) -> Array:
    """Brightness of a range of hills: (n, w)."""
    creases = 24 * (cols + light[0] * rows[:, None]) + 9 * blotches(rng, rows, cols, (7, 11))
    return np.clip(0.9 + 0.22 * np.sin(creases) + 0.4 * light[0] * np.gradient(ridge, cols), 0.5, 1.2)


def draw_ground(rng: np.random.Generator, rows: Array, cols: Array, horizon: float, haze: Array) -> Array:
    a = draw_colour(rng, (0.1, 0.55), (0.45, 0.9))
    b = mix(a, draw_colour(rng, (0.1, 0.55), (0.45, 0.9)), 0.45) * rng.uniform(0.65, 0.9)
    # A plane in perspective: `far` is 1 at the bottom of the image and grows towards the horizon.
    far = ((1 - horizon) / np.maximum(rows - horizon, 0.02))[:, None]
    across, turn = (cols - 0.5) * far, rng.uniform(-0.5, 0.5)
    x, z = across + turn * far, far - turn * across
    kind, scale = int(rng.integers(4)), rng.uniform(8, 14)
    if kind == 0:  # tiles
        pattern = np.abs(stripes(scale * x, 3) + stripes(scale * z, 3) - 1)
    elif kind == 1:  # furrows
        pattern = stripes(2 * scale * x, 1)
    elif kind == 2:  # ripples in sand
        pattern = stripes(2 * scale * z + 2 * np.sin(4 * x), 0.7)
    else:  # patches of grass
        pattern = np.clip(3 * blotches(rng, rows, cols, (40, 14)) - 1, 0, 1)
    pattern = 0.5 + (pattern - 0.5) / np.maximum(1, far - 1.5)  # fades before it aliases
    rough = 0.9 + 0.2 * blotches(rng, rows, cols, (48, 24))
    return mix(mix(a, b, pattern) * rough, haze, 0.4 * np.minimum(far / 8, 1))


def lay(image: Array, labels: Array, edge: Array, rows: Array, label: int, paint: Array) -> None:
    """Put `paint` (3, n, w) on the last n rows of the image, below the line `edge` (w,)."""
    h, n = len(labels), len(rows)
    depth = rows[:, None] - edge
    cover = np.clip(0.5 + h * depth / np.hypot(1, h * np.gradient(edge)), 0, 1)
    image[:, h - n :] = mix(image[:, h - n :], paint, cover)
    labels[h - n :][depth > 0] = label


def draw_background(
    rng: np.random.Generator, size: tuple[int, int], horizon: float, light: tuple, haze: Array
) -> tuple[Array, Array]:
    """Image (3, h, w) and labels (h, w) uint8, without things. Heights are fractions of h, counted downwards."""
    rows, cols = ((np.arange(n, dtype=np.float32) + 0.5) / n for n in size)
    image, labels = draw_sky(rng, rows, cols, haze), np.full(size, SKY, np.uint8)
    if rng.random() < 0.85:
        rock = draw_colour(rng, (0.2, 0.6), (0.4, 0.85))
        for near in (0.5, 0.85):  # a range in the haze, a lower and nearer one in front of it
            peaks = int(rng.integers(3, 7))
            ridge = 0.7 * wavy(rng, cols, peaks) + 0.3 * wavy(rng, cols, 4 * peaks)
            ridge = horizon - (1.2 - 0.8 * near) * (0.08 + rng.uniform(0.2, 0.4) * ridge)
            below = rows[rows > ridge.min() - 0.02]
            shade = draw_hills(rng, below, cols, ridge, light)
            lay(image, labels, ridge, below, HILLS, mix(haze, rock * shade, near))
    edge = horizon + rng.uniform(0, 0.03) * (wavy(rng, cols, 5) - 0.5)
    below = rows[rows > edge.min() - 0.02]
    lay(image, labels, edge, below, GROUND, draw_ground(rng, below, cols, horizon, haze))
    return image, labels


class Placed(NamedTuple):
    kind: int  # position in THINGS
    thing: Thing
    near: float  # 0 at the horizon, 1 at the viewer
    height: float  # pixels
    x: float  # pixels: the point on the ground that it stands on or floats above
    y: float
    lift: float  # own heights
    form: list


def place_things(rng: np.random.Generator, size: tuple[int, int], horizon: float) -> list[Placed]:
    """Four to six things (more in a wide image), far ones first."""
    h, w = size
    count = round(int(rng.integers(4, 7)) * max(1, w / h))
    kinds = np.concatenate([rng.permutation(len(THINGS)) for _ in range(0, count, len(THINGS))])[:count]
    stretches = rng.permutation(count)  # each has its own stretch of the width, so that few are wholly hidden
    nearness = np.sort(rng.random(count))
    placed = []
    for kind, stretch, near in zip(kinds.tolist(), stretches.tolist(), nearness.tolist(), strict=True):
        thing = list(THINGS.values())[kind]
        height = min(h, w) * thing.height * (0.23 + 0.2 * near) * rng.uniform(0.9, 1.15)
        x, y = w * (stretch + rng.uniform(0.15, 0.85)) / count, h * mix(horizon, 1, 0.12 + 0.78 * near)
        lift = thing.lift * max(0.0, rng.uniform(-1, 1))
        placed.append(Placed(kind, thing, near, height, x, y, lift, rng.random(6).tolist()))
    return placed


def window(at: Placed, u: tuple[float, float], v: tuple[float, float], size: tuple[int, int]) -> tuple:
    """The part of the image between two u and two v, in the thing's heights and from its point on the ground.

    Returns: rows and columns as slices; u (1, n) and v (m, 1) of the pixels' centres, float32.
    """
    left, right = (min(max(math.floor(at.x + at.height * e), 0), size[1]) for e in u)
    top, bottom = (min(max(math.floor(at.y - at.height * e), 0), size[0]) for e in reversed(v))
    us = (np.arange(left, right, dtype=np.float32) + (0.5 - at.x)) / at.height
    vs = ((at.y - 0.5) - np.arange(top, bottom, dtype=np.float32)) / at.height
    return slice(top, bottom), slice(left, right), us[None], vs[:, None]


def cast_shadow(at: Placed, light: tuple, dark: Array) -> None:
    """Into `dark` (h, w): the thing's own outline, leaning away from the lamp and laid flat on the ground."""
    lean, flat, top = -light[0] / light[1], 0.5 * light[2] / light[1], 1.05 + at.lift
    reach = (min(lean * top, 0) - 0.6, max(lean * top, 0) + 0.6)
    rows, cols, u, v = window(at, reach, (-0.15, flat * top), dark.shape)
    distance, _, _ = at.thing.draw(u - lean / flat * v, v / flat - at.lift, light, at.form)
    contact = np.exp(-((u / 0.35) ** 2) - (v / 0.06) ** 2) * (1 - at.lift)
    dark[rows, cols] = np.maximum(dark[rows, cols], np.maximum(np.clip(0.5 - 12 * distance, 0, 1), contact))


def paint_thing(rng: np.random.Generator, at: Placed, light: tuple, haze: Array, image: Array, labels: Array) -> None:
    a = draw_colour(rng, (0.3, 0.85), (0.45, 0.95))
    b = mix(draw_colour(rng, (0, 0.7), (0.3, 1)), 1 - a, 0.4)  # leans to the opposite of a, so that the pattern shows
    rows, cols, u, v = window(at, (-0.6, 0.6), (at.lift - 0.05, at.lift + 1.05), labels.shape)
    distance, pattern, shade = at.thing.draw(u, v - at.lift, light, at.form)
    paint = mix(a, b, pattern) * np.minimum(shade, 1) + np.maximum(shade - 1, 0)
    paint = mix(paint, haze, 0.25 * (1 - at.near))
    image[:, rows, cols] = mix(image[:, rows, cols], paint, np.clip(0.5 - at.height * distance, 0, 1))
    labels[rows, cols][distance < 0] = len(STUFF) + at.kind


def expose(rng: np.random.Generator, image: Array) -> Array:
    """Photograph a scene, with brightness, colour temperature, contrast and noise: (h, w, 3) uint8."""
    gain, warmth, contrast = rng.uniform(0.8, 1.2), rng.uniform(-0.14, 0.14), rng.uniform(0.85, 1.15)
    balance = gain * np.array([1 + warmth, 1, 1 - warmth], np.float32).reshape(3, 1, 1)
    image = 0.5 + contrast * (image * balance - 0.5)
    # The noise is drawn last, so that a scene looks the same in all sizes of one aspect ratio.
    image += rng.uniform(0.005, 0.02) * rng.standard_normal(image.shape, dtype=np.float32)
    return np.ascontiguousarray((255 * np.clip(image, 0, 1) + 0.5).astype(np.uint8).transpose(1, 2, 0))


def draw_scene(
    index: int, *, split: str = "train", seed: int = 0, size: tuple[int, int] = (128, 128)
) -> tuple[Array, Array]:
    """Draw scene number `index` of a split. It depends on the arguments alone; about 3 ms at 128 x 128.

    Returns: image (h, w, 3) uint8 RGB; labels (h, w) uint8, positions in `SCENE_CLASSES`.
    Raises: ValueError for an unknown split, a negative index or seed, or a side below 32.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {split!r}")
    if index < 0 or seed < 0:
        raise ValueError(f"index and seed must not be negative: index {index}, seed {seed}")
    if min(size) < MIN_SIDE:
        raise ValueError(f"both sides of a drawn scene must be at least {MIN_SIDE} pixels, not {size[0]} x {size[1]}")
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    horizon, haze = rng.uniform(0.35, 0.55), draw_colour(rng, (0.05, 0.4), (0.8, 1))
    # The lamp stands before and above the scene, on one side.
    light_x, light_y = rng.uniform(0.2, 0.7) * (1 if rng.random() < 0.5 else -1), rng.uniform(0.45, 0.65)
    light = (light_x, light_y, math.sqrt(1 - light_x**2 - light_y**2))

    image, labels = draw_background(rng, size, horizon, light, haze)
    placed = place_things(rng, size, horizon)
    dark = np.zeros(size, np.float32)
    for at in placed:
        cast_shadow(at, light, dark)
    image *= 1 - rng.uniform(0.3, 0.55) * dark * (labels == GROUND)
    for at in placed:
        paint_thing(rng, at, light, haze, image, labels)
    return expose(rng, image), labels


class DrawnScenes:
    """A data set that needs no files: `count` scenes of one split, each drawn when it is read."""

    def __init__(self, split: str = "train", *, count: int = 2000, size: tuple[int, int] = (128, 128), seed: int = 0):
        self.split, self.count, self.size, self.seed = split, count, size, seed
        draw_scene(0, split=split, seed=seed, size=size)  # a wrong argument fails here, not later in a worker

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> tuple[Array, Array]:
        """Image (h, w, 3) uint8 RGB and labels (h, w) uint8, as `draw_scene`."""
        return draw_scene(self._checked(index), split=self.split, seed=self.seed, size=self.size)

    def name(self, index: int) -> str:
        return f"drawn/{self.split}/{self._checked(index):06d}"

    def _checked(self, index: int) -> int:
        if not 0 <= index < self.count:
            raise IndexError(f"scene {index} is not in 0 to {self.count - 1}")
        return index
