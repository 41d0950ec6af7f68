"""Synthetic scenes with exact masks: a data set without files.

A landscape of sky, water and grass, with rocks, houses, trees, balloons and cows. Each class has a texture, an outline and a narrow range
of hues. Each scene has a light of its own, which rotates all hues, and tints and shades the scene: texture tells the class in all scenes,
color only within one. A few masks show a few lights; unlabelled scenes show many.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

CLASSES = ("sky", "water", "grass", "rock", "house", "tree", "balloon", "cow")
SKY, WATER, GRASS, ROCK, HOUSE, TREE, BALLOON, COW = range(len(CLASSES))
HUES = (0.58, 0.5, 0.3, 0.75, 0.03, 0.38, 0.88, 0.12)  # of each class before the light of the scene, in turns of the color circle
SPLIT_SIZES = {"train": 512, "val": 64, "test": 128}


@dataclass(frozen=True)
class DrawnScenes:
    """The rows of a split: len() and [i] -> {"image", "mask", "name"}. Scene i depends only on (seed, split, i)."""

    split: str
    count: int
    seed: int = 0
    height: int = 96
    width: int = 128
    masks: bool = True
    chosen: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.count < 1 or min(self.height, self.width) < 32:
            raise ValueError(f"scenes are {self.count} of {self.width}x{self.height} px; expected at least 1 of at least 32x32 px.")

    def __len__(self) -> int:
        return self.count if self.chosen is None else len(self.chosen)

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < len(self):
            raise IndexError(f"scene {index} of {len(self)}")
        image, mask = draw_scene(self.seed, self.split, self._number(index), self.height, self.width)
        drawn_mask = Image.fromarray(mask) if self.masks else None
        return {"image": Image.fromarray(image), "mask": drawn_mask, "name": self._name(index)}

    def _number(self, index: int) -> int:
        return index if self.chosen is None else self.chosen[index]

    def _name(self, index: int) -> str:
        return f"{self.split}_{self._number(index):05d}"

    @property
    def names(self) -> list[str]:
        return [self._name(index) for index in range(len(self))]

    def select(self, indices: Sequence[int]) -> "DrawnScenes":
        """Return only these scenes, in this order."""
        return replace(self, chosen=tuple(i if self.chosen is None else self.chosen[i] for i in indices))


@lru_cache(maxsize=1024)
def draw_scene(seed: int, split: str, index: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw a scene: image (H, W, 3) uint8 and mask (H, W) uint8, both read-only."""
    rng = np.random.default_rng([seed, list(SPLIT_SIZES).index(split), index])
    canvas = Canvas(rng, height, width)
    horizon = draw_background(canvas)
    things = rng.permutation(np.repeat([draw_rock, draw_house, draw_tree, draw_balloon, draw_cow], 2))[: rng.integers(3, 7)]
    for nearness, draw in zip(np.sort(rng.random(len(things))), things):  # from back to front
        x = rng.uniform(0.05, 0.95) * width
        draw(canvas, x, horizon + nearness * (0.95 * height - horizon), (12 + 9 * nearness) * rng.uniform(0.9, 1.3) * canvas.unit)
    image = finish(canvas)
    image.flags.writeable = canvas.mask.flags.writeable = False
    return image, canvas.mask


class Canvas:
    """A scene, painted from back to front. pixels: (H, W, 3) float in [0, 1]. mask: (H, W) uint8."""

    def __init__(self, rng: np.random.Generator, height: int, width: int):
        self.rng, self.height, self.width = rng, height, width
        self.pixels = np.zeros((height, width, 3), np.float32)
        self.mask = np.zeros((height, width), np.uint8)
        self.y, self.x = np.mgrid[0:height, 0:width].astype(np.float32)
        self.unit = height / 96  # lengths below are in pixels of the default height

    def paint(self, region: np.ndarray, train_id: int, texture: np.ndarray) -> None:
        """Fill region (H, W) bool with a dark and a light color of the class, mixed by texture (H, W) in [0, 1]."""
        rng = self.rng
        hue = HUES[train_id] + rng.uniform(-0.03, 0.03)
        dark_value, gap = rng.uniform(0.2, 0.5), rng.uniform(0.32, 0.48)
        dark = color(hue, rng.uniform(0.5, 0.9), dark_value)
        light = color(hue, rng.uniform(0.4, 0.8), dark_value + gap)
        if rng.random() < 0.5:
            texture = 1 - texture
        mixed = dark + texture[..., None] * (light - dark)
        self.pixels[region] = mixed[region]
        self.mask[region] = train_id

    def noise(self, width: float, height: float | None = None) -> np.ndarray:
        """Return smooth noise (H, W) in [0, 1] with bumps of about width x height px."""
        sides = ((self.height, height or width), (self.width, width))
        rows, columns = (max(2, round(side / (bump * self.unit)) + 1) for side, bump in sides)
        grid = self.rng.random((rows, columns), dtype=np.float32)
        return np.clip(np.asarray(Image.fromarray(grid).resize((self.width, self.height), Image.Resampling.BICUBIC)), 0, 1)

    def polygon(self, points: Sequence) -> np.ndarray:
        """Return (H, W) bool, the inside of a polygon of (x, y) points."""
        drawing = Image.new("1", (self.width, self.height))
        ImageDraw.Draw(drawing).polygon([tuple(p) for p in np.asarray(points, float).tolist()], fill=1)
        return np.asarray(drawing)

    def ellipse(self, x: float, y: float, across: float, high: float) -> np.ndarray:
        """Return (H, W) bool, the inside of an ellipse with these half axes."""
        return np.hypot((self.x - x) / across, (self.y - y) / high) < 1

    def box(self, left: float, top: float, right: float, bottom: float) -> np.ndarray:
        """Return (H, W) bool, the inside of a rectangle."""
        return (self.x >= left) & (self.x < right) & (self.y >= top) & (self.y < bottom)


def color(hue: float, saturation: float, value: float) -> np.ndarray:
    """Return RGB (3,) in [0, 1] of a hue in turns."""
    ramps = np.clip(np.abs((hue + np.array([0, 2 / 3, 1 / 3])) % 1 * 6 - 3) - 1, 0, 1)
    return (value * (1 - saturation + saturation * ramps)).astype(np.float32)


def sharp(values: np.ndarray, slope: float = 4) -> np.ndarray:
    """Return values around 0.5 with more contrast, in [0, 1]."""
    return np.clip(slope * (values - 0.5) + 0.5, 0, 1)


def draw_background(canvas: Canvas) -> float:
    """Draw sky with clouds, then water with waves and grass with blades, one or both. Returns the row of the horizon."""
    rng, unit = canvas.rng, canvas.unit
    horizon = canvas.height * rng.uniform(0.3, 0.5)
    canvas.paint(np.ones_like(canvas.mask, bool), SKY, 0.6 * canvas.noise(40, 25) + 0.4 * canvas.noise(20, 10))
    far, near = rng.permutation([WATER, GRASS])
    hills = horizon + rng.uniform(0, 4) * unit * np.sin(canvas.x / (rng.uniform(8, 20) * unit) + rng.uniform(0, 6.3)) * (far == GRASS)
    slope = rng.uniform(-0.3, 0.3) * (canvas.x - canvas.width / 2)
    shore = canvas.height * rng.uniform(0.55, 1.0) + slope + 8 * unit * (canvas.noise(30) - 0.5)
    for train_id, top in ((far, hills), (near, np.maximum(shore, hills))):
        canvas.paint(canvas.y > top, train_id, waves(canvas) if train_id == WATER else blades(canvas))
    return horizon


def waves(canvas: Canvas) -> np.ndarray:
    """Return long horizontal waves (H, W)."""
    bend = canvas.rng.uniform(2, 5) * canvas.noise(20, 40)
    crests = np.sin((canvas.y / canvas.unit + bend) * 2 * np.pi / canvas.rng.uniform(4, 7))
    return np.clip(0.5 + 0.5 * crests * (0.4 + 0.8 * canvas.noise(25, 8)), 0, 1)


def blades(canvas: Canvas) -> np.ndarray:
    """Return short upright strokes (H, W)."""
    return sharp(0.8 * canvas.noise(1.6, canvas.rng.uniform(5, 9)) + 0.2 * canvas.noise(30), 2)


def draw_rock(canvas: Canvas, x: float, y: float, size: float) -> None:
    """Draw an angular stone of flat facets."""
    rng = canvas.rng
    angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
    reach = size * rng.uniform(0.8, 1.3, 9)
    outline = np.stack([x + 1.3 * reach * np.cos(angles), y - 0.7 * size + 0.8 * reach * np.sin(angles)], 1)
    centers = np.stack([x + 1.4 * size * rng.uniform(-1, 1, 12), y - 0.7 * size + size * rng.uniform(-1, 1, 12)], 1)
    nearest = np.argmin([np.hypot(canvas.x - cx, canvas.y - cy) for cx, cy in centers], 0)
    facets = rng.permutation(np.linspace(0, 1, 12))[nearest]
    canvas.paint(canvas.polygon(outline), ROCK, 0.85 * facets + 0.15 * rng.random(facets.shape))


def draw_house(canvas: Canvas, x: float, y: float, size: float) -> None:
    """Draw a wall of bricks under a gable."""
    rng = canvas.rng
    half, wall, roof = size * rng.uniform(0.8, 1.3), size * rng.uniform(1.0, 1.6), size * rng.uniform(0.4, 1.0)
    outline = [(x - half, y), (x - half, y - wall), (x, y - wall - roof), (x + half, y - wall), (x + half, y)]
    brick = rng.uniform(6, 10) * canvas.unit
    row = np.floor((canvas.y - y) / (0.5 * brick))
    across, along = ((canvas.x - x) / brick + 0.5 * (row % 2)) % 1, ((canvas.y - y) / (0.5 * brick)) % 1
    joints = ((across < 0.18) | (along < 0.32)).astype(np.float32)
    canvas.paint(canvas.polygon(outline), HOUSE, 0.85 * joints + 0.15 * canvas.noise(8))


def draw_tree(canvas: Canvas, x: float, y: float, size: float) -> None:
    """Draw a ragged crown of leaves on a trunk."""
    rng = canvas.rng
    top, narrow = y - 1.7 * size, rng.uniform(0.8, 1.1)
    angle = np.arctan2(canvas.y - top, canvas.x - x)
    ragged = 1 + sum(rng.uniform(0.04, 0.14) * np.sin(k * angle + rng.uniform(0, 6.3)) for k in (3, 5, 8))
    crown = np.hypot((canvas.x - x) / narrow, (canvas.y - top) * narrow) < size * ragged
    trunk = canvas.box(x - 0.15 * size, top, x + 0.15 * size, y)
    canvas.paint(crown | trunk, TREE, sharp(canvas.noise(rng.uniform(3, 4.5)), 3))


def draw_balloon(canvas: Canvas, x: float, y: float, size: float) -> None:
    """Draw a striped balloon in the air, with a basket."""
    rng = canvas.rng
    y = rng.uniform(0.15, 0.55) * canvas.height
    inside = canvas.ellipse(x, y, size, 1.15 * size)
    bulge = np.sqrt(np.clip(1.2 - ((canvas.y - y) / (1.15 * size)) ** 2, 0.05, None))
    stripes = np.sin((canvas.x - x) / (size * bulge) * rng.uniform(5, 8) + rng.uniform(0, 6.3))
    basket = canvas.box(x - 0.25 * size, y + 1.3 * size, x + 0.25 * size, y + 1.7 * size)
    canvas.paint(inside | basket, BALLOON, sharp(0.5 + 0.5 * stripes))


def draw_cow(canvas: Canvas, x: float, y: float, size: float) -> None:
    """Draw a body with patches, a head and legs."""
    rng = canvas.rng
    side = rng.choice([-1, 1])
    region = canvas.ellipse(x, y - 1.1 * size, 1.3 * size, 0.65 * size)
    region |= canvas.ellipse(x + side * 1.4 * size, y - 1.5 * size, 0.45 * size, 0.38 * size)
    for leg in (-0.95, -0.5, 0.4, 0.85):
        region |= canvas.box(x + (leg - 0.12) * size, y - size, x + (leg + 0.12) * size, y)
    canvas.paint(region, COW, sharp(canvas.noise(rng.uniform(9, 13)), 12))


def finish(canvas: Canvas) -> np.ndarray:
    """Add the light of the scene, shadows, haze, blur and noise; return (H, W, 3) uint8."""
    rng, pixels = canvas.rng, canvas.pixels
    pixels = turn_hue(pixels, rng.uniform(0, 1), rng.uniform(0.3, 1.4))
    shadow = np.clip(5 * (canvas.noise(rng.uniform(25, 60)) - rng.uniform(0.45, 0.7)), 0, 1)
    pixels = pixels * (1 - rng.uniform(0.1, 0.5) * shadow)[..., None]
    ramp = (canvas.x / canvas.width - 0.5) * rng.uniform(-0.5, 0.5) + (canvas.y / canvas.height - 0.5) * rng.uniform(-0.5, 0.5)
    pixels = np.clip(pixels * (1 + ramp)[..., None], 0, 1) ** rng.uniform(0.6, 1.4) * rng.uniform(0.7, 1.15, 3).astype(np.float32)
    haze = rng.uniform(0, 0.3)
    pixels = (1 - haze) * pixels + haze * rng.uniform(0.2, 0.9, 3).astype(np.float32)
    pixels = pixels + rng.normal(0, rng.uniform(0.005, 0.025), pixels.shape).astype(np.float32)
    return (np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8)


def turn_hue(pixels: np.ndarray, turns: float, saturation: float) -> np.ndarray:
    """Rotate colors (H, W, 3) about the gray axis, and scale their distance from it."""
    cosine, sine = np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns) / np.sqrt(3)
    a, b, c = 1 / 3 + 2 / 3 * cosine, 1 / 3 - cosine / 3 - sine, 1 / 3 - cosine / 3 + sine
    turned = pixels @ np.array([[a, c, b], [b, a, c], [c, b, a]], np.float32)
    gray = pixels.mean(2, keepdims=True)
    return np.clip(gray + saturation * (turned - gray), 0, 1)
