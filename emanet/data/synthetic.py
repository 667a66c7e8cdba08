"""Drawn scenes: a small semantic segmentation task that needs no files, for the quick start and the tests.

A scene is sky, perhaps hills, ground, and a few solid things that stand or float in one light, cast shadows and hide
each other. Every colour is drawn freely, so a network has to learn shapes and textures. To add a thing, write its
drawing function and give it one entry in `THINGS`. To look at some scenes:

    python -c "from PIL import Image; from emanet.data.synthetic import draw_scene as d; Image.fromarray(d(7)[0]).show()"
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Array = np.ndarray
SPLITS = ("train", "val", "test")  # the position is part of the seed: append, never reorder
MIN_SIDE = 32


# Every thing is drawn by one function of
#   u, v    float32 coordinates that broadcast, unit = the thing's height: u right of its middle, v above its foot
#   light   (x, y, z): unit vector towards the light; x right, y up, z to the viewer
#   form    six numbers in [0, 1) that vary its look
# and returns, per pixel, (distance to the outline, negative inside; pattern in [0, 1] between the thing's two colours;
# shade, which multiplies the colour up to 1 and adds white above).


def lambert(light: tuple, x: Array, y: Array, z: Array) -> Array:
    """Brightness of a matt surface with normal (x, y, z), of about unit length, in ambient and directed light."""
    return 0.42 + 0.62 * np.maximum(x * light[0] + y * light[1] + z * light[2], 0)


def stripes(phase: Array, sharpness: float = 4.0) -> Array:
    """Bands of period 2 pi in [0, 1], their edges soft enough not to alias."""
    return np.clip(0.5 + sharpness * np.sin(phase), 0, 1)


def ball(u: Array, v: Array, light: tuple, form: list) -> tuple[Array, Array, Array]:
    x, y = 2 * u, 2 * v - 1
    square = x * x + y * y
    z = np.sqrt(np.maximum(1 - square, 0))
    turn = 6.3 * form[0]
    along, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    if form[1] < 0.45:  # the panels of a beach ball
        pattern = stripes(3 * np.arctan2(across, 0.8 * z + 0.6 * along))
    else:  # one broad band, or none
        pattern = stripes(3 * across + 1.6, 5) * (form[1] < 0.75)
    glint = np.maximum(x * light[0] + y * light[1] + z * (light[2] + 1), 0) ** 2 / (2 + 2 * light[2])
    return 0.5 * (np.sqrt(square) - 1), pattern, lambert(light, x, y, z) + 0.5 * glint**12


def box(u: Array, v: Array, light: tuple, form: list) -> tuple[Array, Array, Array]:
    # Seen from above with the nearest edge at u = edge; bottoms and tops recede to both sides at these slopes.
    edge, slope_l, slope_r = 0.44 * form[0] - 0.22, 0.2 + 0.2 * form[1], 0.2 + 0.2 * form[2]
    width_l, width_r = 0.5 + edge, 0.5 - edge
    side = 1 - slope_l * width_l - slope_r * width_r  # height of the two upright faces
    bottom = np.maximum(slope_l * (edge - u), slope_r * (u - edge))
    top = side + np.minimum(slope_l * width_l + slope_r * (u + 0.5), slope_r * width_r + slope_l * (0.5 - u))
    distance = np.maximum(np.maximum(np.abs(u) - 0.5, bottom - v), v - top)
    # Coordinates (p, q) in [0, 1] on each face.
    du, dv, left, lid = u - edge, v - side, u < edge, v - bottom > side
    p = np.where(lid, (dv + slope_l * du) / (width_r * (slope_l + slope_r)), np.where(left, -du / width_l, du / width_r))
    q = np.where(lid, (dv - slope_r * du) / (width_l * (slope_l + slope_r)), (v - bottom) / side)
    if form[3] < 0.5:  # a crate's frame
        pattern = np.clip(10 * (0.2 - np.minimum(np.minimum(p, 1 - p), np.minimum(q, 1 - q))), 0, 1)
    elif form[3] < 0.75:  # a die's spots
        pattern = np.clip(12 * (0.3 - np.hypot(p - 0.5, q - 0.5)), 0, 1)
    else:  # ribbons of a parcel
        pattern = np.clip(12 * (0.13 - np.minimum(np.abs(p - 0.5), np.abs(q - 0.5))), 0, 1)
    face_l, face_r, face_top = lambert(light, *np.array([[-0.75, 0.75, 0], [0, 0, 0.95], [0.65, 0.65, 0.3]])).tolist()
    return distance, pattern, np.where(lid, face_top, np.where(left, face_l, face_r))


def tree(u: Array, v: Array, light: tuple, form: list) -> tuple[Array, Array, Array]:
    leaves = np.sin(44 * u + 2 * np.sin(31 * v + 6 * form[0])) * np.sin(41 * v + 2 * np.sin(29 * u + 6 * form[1]))
    side = np.abs(u)
    if form[2] < 0.5:  # a fir: three tiers
        width = 0.5 + 0.2 * form[3]
        tiers = [np.maximum(low - v, 0.85 * (side - width * (high - v))) for low, high in ((0.58, 1), (0.36, 0.84), (0.14, 0.68))]
        crown = np.minimum(np.minimum(tiers[0], tiers[1]), tiers[2])
    else:  # a round crown of three lobes
        crown = np.minimum(np.hypot(u, v - 0.7) - 0.28, np.hypot(side - 0.2, v - 0.5 - 0.1 * form[3]) - 0.2)
    crown = crown + 0.02 * leaves
    trunk = np.maximum(np.maximum(side - 0.07, -v), v - 0.6)
    leafy = crown < 0
    shade = lambert(light, 2 * u, 2 * v - 1.2, 0.6) * (0.85 + 0.25 * leaves)
    return np.minimum(crown, trunk), np.where(leafy, 0.4 - 0.4 * leaves, 1), np.where(leafy, shade, 0.55 - 2.5 * light[0] * -u)


def ring(u: Array, v: Array, light: tuple, form: list) -> tuple[Array, Array, Array]:
    x, y = u / (0.7 + 0.3 * form[0]), v - 0.5
    radius = np.hypot(x, y)
    tube = 0.11 + 0.03 * form[1]
    offset = (radius - (0.5 - tube)) / tube  # -1 at the hole, 1 at the rim
    z = np.sqrt(np.maximum(1 - offset * offset, 0))
    outward = offset / np.maximum(radius, 0.1)
    pattern = stripes((3 + int(4 * form[3])) * np.arctan2(y, x) + 6 * form[4]) * (form[2] < 0.7)
    return tube * (np.abs(offset) - 1), pattern, lambert(light, x * outward, y * outward, z) + 0.25 * z**8


def pole(u: Array, v: Array, light: tuple, form: list) -> tuple[Array, Array, Array]:
    half = 0.075 + 0.02 * form[0]
    u = u - 0.2 * (form[1] - 0.5) * v
    x = np.clip(u / half, -1, 1)
    lean = 1 if form[2] < 0.5 else -1
    pattern = stripes((30 + 10 * form[3]) * (v + lean * 0.8 * u))
    knob = np.hypot(u, v - 0.88) - 0.12
    distance = np.minimum(np.maximum(np.maximum(np.abs(u) - half, -v), v - 0.9), knob)
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
SKY, HILLS, GROUND, FIRST_THING = range(4)
SCENE_CLASSES: tuple[str, ...] = ("sky", "hills", "ground", *THINGS)
SCENE_PALETTE: tuple[tuple[int, int, int], ...] = (
    (135, 190, 235), (90, 115, 160), (196, 205, 150), *(thing.colour for thing in THINGS.values()),
)  # fmt: skip


def colour(rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]) -> Array:
    """A colour of any hue: (3, 1, 1) float32 RGB in [0, 1]."""
    hue, s, v = 6 * rng.random(), rng.uniform(*saturation), rng.uniform(*value)
    k = (np.array([[[5]], [[3]], [[1]]]) + hue) % 6
    return (v - v * s * np.clip(np.minimum(k, 4 - k), 0, 1)).astype(np.float32)


def mix(a: Array, b: Array, t: Array | float) -> Array:
    return a + (b - a) * t


def smooth(knots: Array, at: Array) -> Array:
    """Read `knots` (k, ...) at positions `at` (n,) in [0, 1] along their first axis, smoothly: (n, ...)."""
    at = at * (len(knots) - 1)
    low = np.minimum(at.astype(np.intp), len(knots) - 2)
    t = (at - low).reshape(-1, *[1] * (knots.ndim - 1))
    return mix(knots[low], knots[low + 1], t * t * (3 - 2 * t))


def blotches(rng: np.random.Generator, rows: Array, cols: Array, cells: tuple[int, int]) -> Array:
    """Smooth noise in [0, 1): (h, w), with about `cells` blotches down and across the picture."""
    knots = rng.random((cells[0] + 1, cells[1] + 1), dtype=np.float32)
    return smooth(np.ascontiguousarray(smooth(knots, rows).T), cols).T


def draw_sky(rng: np.random.Generator, rows: Array, cols: Array, haze: Array) -> Array:
    zenith = colour(rng, (0.2, 0.5), (0.55, 0.95))
    clouds = sum(share * blotches(rng, rows, cols, (n, n // 2)) for share, n in ((0.45, 7), (0.35, 15), (0.2, 34)))
    clouds = np.clip(rng.uniform(2, 4) * (clouds - rng.uniform(0.4, 0.7)), 0, 0.85)
    return mix(mix(zenith, haze, np.minimum(1.8 * rows, 1)[:, None]), mix(haze, np.float32(1), 0.6), clouds)


def draw_ground(rng: np.random.Generator, rows: Array, cols: Array, horizon: float, haze: Array) -> Array:
    a = colour(rng, (0.1, 0.55), (0.4, 0.85))
    b = mix(a, colour(rng, (0.1, 0.55), (0.4, 0.85)), 0.45) * np.float32(rng.uniform(0.65, 0.9))
    # The plane seen in perspective: far = 1 at the bottom of the picture and grows towards the horizon.
    far = ((1 - horizon) / np.maximum(rows - horizon, 0.02))[:, None]
    across, turn = (cols - 0.5)[None] * far, rng.uniform(-0.5, 0.5)
    x, z = across + turn * far + 10, far - turn * across
    kind, scale = rng.integers(4), rng.uniform(8, 14)
    if kind == 0:  # tiles
        pattern = stripes(scale * x, 3) + stripes(scale * z, 3)
        pattern = np.abs(pattern - 1)
    elif kind == 1:  # furrows
        pattern = stripes(2 * scale * x, 1)
    elif kind == 2:  # ripples in sand
        pattern = stripes(2 * scale * z + 2 * np.sin(4 * x), 0.7)
    else:  # patches of grass
        pattern = np.clip(3 * blotches(rng, rows, cols, (40, 14)) - 1, 0, 1)
    pattern = 0.5 + (pattern - 0.5) / np.maximum(1, far - 1.5)  # fine patterns fade before they alias
    rough = 0.9 + 0.2 * blotches(rng, rows, cols, (48, 24))
    return mix(mix(a, b, pattern) * rough, haze, 0.4 * np.minimum(far / 8, 1))


def draw_background(
    rng: np.random.Generator, rows: Array, cols: Array, horizon: float, light: tuple
) -> tuple[Array, Array, Array]:
    """Image (3, h, w) float32, labels (h, w) uint8, and the colour of the haze (3, 1, 1)."""
    h = len(rows)
    haze = colour(rng, (0.05, 0.4), (0.8, 1))
    image, labels = draw_sky(rng, rows, cols, haze), np.full((h, len(cols)), SKY, np.uint8)
    if rng.random() < 0.8:
        rock = colour(rng, (0.2, 0.6), (0.35, 0.75))
        for near in (0.4, 0.8):  # a range in the haze, a nearer and lower one in front of it
            cells = int(rng.integers(3, 7))
            ridge = 0.7 * smooth(rng.random(cells, dtype=np.float32), cols)
            ridge = ridge + 0.3 * smooth(rng.random(4 * cells, dtype=np.float32), cols)
            ridge = horizon - (1.1 - 0.7 * near) * (0.06 + rng.uniform(0.15, 0.4) * ridge)
            depth = rows[:, None] - ridge
            slope = np.gradient(ridge, cols)
            creases = 24 * (cols[None] + light[0] * depth) + 9 * blotches(rng, rows, cols, (6, 10))
            shade = (0.8 + 0.3 * np.sin(creases) + 0.8 * light[0] * slope)
            image = mix(image, mix(haze, rock * shade, near), np.clip(0.5 + h * depth / np.hypot(slope, 1), 0, 1))
            labels[depth > 0] = HILLS
    edge = horizon + rng.uniform(0, 0.03) * (smooth(rng.random(5, dtype=np.float32), cols) - 0.5)
    depth = rows[:, None] - edge
    image = mix(image, draw_ground(rng, rows, cols, horizon, haze), np.clip(0.5 + h * depth, 0, 1))
    labels[depth > 0] = GROUND
    return image, labels, haze


def draw_light(rng: np.random.Generator) -> tuple[float, float, float]:
    """A lamp before, above, and to one side of the scene."""
    x, y = rng.uniform(0.2, 0.7) * rng.choice((-1, 1)), rng.uniform(0.45, 0.65)
    return float(x), float(y), float(np.sqrt(1 - x * x - y * y))


def window(x0: float, x1: float, y0: float, y1: float, size: tuple[int, int]) -> tuple[slice, slice, Array, Array]:
    """The pixels within these borders: two slices, and the centres x (1, n) and y (m, 1), float32."""
    top, bottom = (int(np.clip(y, 0, size[0])) for y in (y0, y1 + 1))
    left, right = (int(np.clip(x, 0, size[1])) for x in (x0, x1 + 1))
    x, y = np.arange(left, right, dtype=np.float32) + 0.5, np.arange(top, bottom, dtype=np.float32) + 0.5
    return slice(top, bottom), slice(left, right), x[None], y[:, None]


def draw_scene(
    index: int, *, split: str = "train", seed: int = 0, size: tuple[int, int] = (128, 128)
) -> tuple[Array, Array]:
    """Draw scene number `index` of a split, a function of the arguments alone.

    Returns: image (h, w, 3) uint8 RGB; labels (h, w) uint8, indices into `SCENE_CLASSES`.
    Raises: ValueError for an unknown split, a negative index or seed, or a side below 32.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {split!r}")
    if index < 0 or seed < 0:
        raise ValueError(f"index and seed must not be negative, got index {index} and seed {seed}")
    h, w = size
    if min(h, w) < MIN_SIDE:
        raise ValueError(f"both sides of a drawn scene must be at least {MIN_SIDE} pixels, got {h} x {w}")
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    rows, cols = ((np.arange(n, dtype=np.float32) + np.float32(0.5)) / np.float32(n) for n in (h, w))
    horizon, light = rng.uniform(0.35, 0.55), draw_light(rng)
    image, labels, haze = draw_background(rng, rows, cols, horizon, light)

    # Each thing gets its own stretch of the width, so that none is wholly hidden; far ones come first.
    count = round(int(rng.integers(4, 7)) * max(1, w / h))
    kinds = np.concatenate([rng.permutation(len(THINGS)) for _ in range(-(-count // len(THINGS)))])[:count]
    nearness = np.sort(rng.random(count))
    stretch = rng.permutation(count)
    placed = []
    for kind, near, place in zip(kinds.tolist(), nearness.tolist(), stretch.tolist(), strict=True):
        thing = tuple(THINGS.values())[kind]
        height = min(h, w) * thing.height * (0.23 + 0.2 * near) * rng.uniform(0.9, 1.15)
        x, y = w * (place + rng.uniform(0.15, 0.85)) / count, h * mix(horizon, 1, 0.12 + 0.78 * near)
        lift = thing.lift * max(0.0, rng.uniform(-1, 1))
        placed.append((FIRST_THING + kind, thing, height, x, y, near, lift, rng.random(6).tolist()))

    # A thing's shadow is its own outline seen along the light: leaning away from the lamp, flattened onto the ground.
    slant, flat = -light[0] / light[1], 0.5 * light[2] / light[1]
    dark = np.zeros((h, w), np.float32)
    for _, thing, height, x, y, _, lift, form in placed:
        reach = height * (1.1 + lift) * slant
        spread = 0.6 * height
        at_y, at_x, px, py = window(x - spread + min(reach, 0), x + spread + max(reach, 0), y - height * (1.1 + lift) * flat, y + 0.1 * height, (h, w))
        v = (y - py) / (height * flat)
        u = (px - x) / height - slant * v
        cast = np.clip(0.5 - 12 * thing.draw(u, v - lift, light, form)[0], 0, 1)
        contact = np.exp(-(((px - x) / (0.35 * height)) ** 2) - ((py - y) / (0.06 * height)) ** 2) * (1 - lift)
        dark[at_y, at_x] = np.maximum(dark[at_y, at_x], np.maximum(cast, contact))
    dark *= labels == GROUND
    image *= 1 - np.float32(rng.uniform(0.3, 0.55)) * dark

    for label, thing, height, x, y, near, lift, form in placed:
        a = colour(rng, (0.3, 0.85), (0.45, 0.95))
        b = mix(colour(rng, (0, 0.7), (0.3, 1)), 1 - a, 0.4)  # leans to the opposite colour, so that patterns show
        foot = y - height * lift
        at_y, at_x, px, py = window(x - 0.6 * height, x + 0.6 * height, foot - 1.05 * height, foot + 0.05 * height, (h, w))
        distance, pattern, shade = thing.draw((px - x) / height, (foot - py) / height, light, form)
        paint = mix(a, b, pattern) * np.minimum(shade, 1) + np.maximum(shade - 1, 0)
        cover = np.clip(0.5 - height * distance, 0, 1)
        image[:, at_y, at_x] = mix(image[:, at_y, at_x], mix(paint, haze, 0.25 * (1 - near)), cover)
        labels[at_y, at_x][distance < 0] = label
    return expose(rng, image), labels


def expose(rng: np.random.Generator, image: Array) -> Array:
    """Photograph the scene: brightness, colour temperature, contrast, noise; (3, h, w) float32 to (h, w, 3) uint8."""
    warmth = rng.uniform(-0.14, 0.14)
    gain = rng.uniform(0.8, 1.25) * np.array([[[1 + warmth]], [[1]], [[1 - warmth]]])
    image = image * gain.astype(np.float32)
    contrast = np.float32(rng.uniform(0.85, 1.15))
    image = 0.5 + contrast * (image - 0.5)
    # The noise comes last: everything above is the same scene at every size of one shape.
    image += np.float32(rng.uniform(0.005, 0.02)) * rng.standard_normal(image.shape, dtype=np.float32)
    return np.ascontiguousarray((255 * np.clip(image, 0, 1) + 0.5).astype(np.uint8).transpose(1, 2, 0))


class DrawnScenes:
    """A data set that needs no files: `count` scenes of one split, drawn when they are read."""

    def __init__(
        self, split: str = "train", *, count: int = 2000, size: tuple[int, int] = (128, 128), seed: int = 0
    ):
        self.split, self.count, self.size, self.seed = split, count, size, seed
        draw_scene(0, split=split, seed=seed, size=size)  # a wrong argument fails here, not in a worker later

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> tuple[Array, Array]:
        """Image (h, w, 3) uint8 RGB and labels (h, w) uint8, as `draw_scene`."""
        return draw_scene(self._check(index), split=self.split, seed=self.seed, size=self.size)

    def name(self, index: int) -> str:
        return f"drawn/{self.split}/{self._check(index):06d}"

    def _check(self, index: int) -> int:
        if not 0 <= index < self.count:
            raise IndexError(f"scene {index} of {self.count}")
        return index
