"""Synthetic scenes with exact masks: a data set without files.

Each scene has its own four paints, light, shadows, haze and noise, and all classes are painted with the same paints. Color therefore does
not separate the classes; texture (clouds, grains, bricks, leaves) does, and outline (box, ball, tent, post) among the objects, which
sometimes have each other's patterns.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

CLASSES = ("sky", "ground", "wall", "tree", "box", "ball", "tent", "post")
SKY, GROUND, WALL, TREE, BOX, BALL, TENT, POST = range(len(CLASSES))
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
    for _ in range(rng.integers(1, 4)):
        draw_wall(canvas, horizon)
    for _ in range(rng.integers(1, 4)):
        draw_tree(canvas, horizon)
    for _ in range(rng.integers(0, 3)):
        draw_post(canvas, horizon)
    for draw in rng.permutation(np.repeat([draw_box, draw_ball, draw_tent], 2))[: rng.integers(3, 7)]:
        draw(canvas, horizon)
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
        self.paints = rng.uniform(0.12, 0.88, (4, 3)).astype(np.float32)  # shared by all classes of the scene

    def paint(self, region: np.ndarray, train_id: int, texture: np.ndarray, shade: np.ndarray | float = 1.0) -> None:
        """Fill region (H, W) bool with two paints mixed by texture (H, W) in [0, 1], times the shade."""
        first, second = self.rng.choice(4, 2, replace=False)
        dark, light = self.paints[first], self.paints[second]
        gap = np.abs(light - dark).max()
        if gap < 0.3:  # too similar to show the texture, by which the class is recognized
            light = np.where(dark.mean() > 0.5, dark - 0.3, dark + 0.3)
        mixed = dark + texture[..., None] * (light - dark)
        shaded = mixed * (shade[..., None] if isinstance(shade, np.ndarray) else shade)
        self.pixels[region] = shaded[region]
        self.mask[region] = train_id

    def noise(self, width: float) -> np.ndarray:
        """Return smooth noise (H, W) in [0, 1] with bumps of about `width` px."""
        rows, columns = (max(2, round(side / (width * self.unit)) + 1) for side in (self.height, self.width))
        grid = self.rng.random((rows, columns), dtype=np.float32)
        return np.clip(np.asarray(Image.fromarray(grid).resize((self.width, self.height), Image.Resampling.BICUBIC)), 0, 1)

    def polygon(self, points: np.ndarray) -> np.ndarray:
        """Return (H, W) bool, the inside of a polygon of (x, y) points."""
        drawing = Image.new("1", (self.width, self.height))
        ImageDraw.Draw(drawing).polygon([tuple(p) for p in np.asarray(points, float).tolist()], fill=1)
        return np.asarray(drawing)


def draw_background(canvas: Canvas) -> np.ndarray:
    """Draw sky above and ground below a slanted, wavy horizon. Returns the row of the horizon in each column, (W,)."""
    rng = canvas.rng
    slope, wave = rng.uniform(-0.12, 0.12), rng.uniform(0, 4) * canvas.unit
    horizon = canvas.height * rng.uniform(0.3, 0.6) + slope * (canvas.x[0] - canvas.width / 2)
    horizon = horizon + wave * np.sin(canvas.x[0] * rng.uniform(0.03, 0.12) / canvas.unit + rng.uniform(0, 6.3))
    clouds = 0.6 * canvas.noise(40) + 0.4 * canvas.noise(16)
    canvas.paint(np.ones_like(canvas.mask, bool), SKY, clouds)
    grains = 0.35 * canvas.noise(30) + 0.65 * rng.random(canvas.mask.shape, dtype=np.float32)
    canvas.paint(canvas.y > horizon, GROUND, grains)
    return horizon


def draw_wall(canvas: Canvas, horizon: np.ndarray) -> None:
    """Draw a building: a quadrangle of bricks or windows that stands on the ground."""
    rng, unit = canvas.rng, canvas.unit
    left, span = rng.uniform(-0.1, 0.9) * canvas.width, rng.uniform(18, 55) * unit
    ground = horizon[int(np.clip(left, 0, canvas.width - 1))] + rng.uniform(2, 14) * unit
    tops = ground - rng.uniform(18, 50, 2) * unit
    region = canvas.polygon([(left, ground), (left, tops[0]), (left + span, tops[1]), (left + span, ground)])
    period = rng.uniform(5, 10) * unit
    row = np.floor((canvas.y + rng.uniform(-0.25, 0.25) * canvas.x) / (0.6 * period))
    shift = 0.5 * (row % 2) if rng.random() < 0.5 else 0.0
    across = (canvas.x / period + shift) % 1
    along = ((canvas.y + 0.0 * canvas.x) / (0.6 * period)) % 1
    joints = ((across < 0.22) | (along < 0.3)).astype(np.float32)
    canvas.paint(region, WALL, 0.85 * joints + 0.15 * canvas.noise(10))


def draw_tree(canvas: Canvas, horizon: np.ndarray) -> None:
    """Draw a crown with a ragged outline and leaves a few pixels wide."""
    rng, unit = canvas.rng, canvas.unit
    x = rng.uniform(0, canvas.width)
    radius = rng.uniform(7, 20) * unit
    y = horizon[int(np.clip(x, 0, canvas.width - 1))] + rng.uniform(-14, 10) * unit
    angle = np.arctan2(canvas.y - y, canvas.x - x)
    outline = 1 + sum(rng.uniform(0.03, 0.16) * np.sin(k * angle + rng.uniform(0, 6.3)) for k in (2, 3, 5, 8))
    distance = np.hypot(canvas.x - x, (canvas.y - y) * rng.uniform(0.7, 1.2))
    leaves = np.clip(2.5 * (canvas.noise(rng.uniform(2.5, 4)) - 0.5) + 0.5, 0, 1)
    canvas.paint(distance < radius * outline, TREE, leaves)


PLAIN, STRIPES, CHECKS, DOTS = range(4)


def object_texture(canvas: Canvas, usual: int) -> np.ndarray:
    """Return the pattern (H, W) in [0, 1] of a box, ball, tent or post: mostly the usual one, sometimes another."""
    rng = canvas.rng
    pattern = usual if rng.random() < 0.7 else rng.integers(4)
    period, turn = rng.uniform(4, 9) * canvas.unit, rng.uniform(0, np.pi)
    u = (canvas.x * np.cos(turn) + canvas.y * np.sin(turn)) * 2 * np.pi / period
    v = (canvas.y * np.cos(turn) - canvas.x * np.sin(turn)) * 2 * np.pi / period
    patterns = (lambda: 0 * u, lambda: np.sin(u), lambda: np.sin(u) * np.sin(v), lambda: np.sin(u) + np.sin(v) - 1)
    sharp = np.clip(0.5 + 2 * patterns[pattern](), 0, 1)
    return 0.8 * sharp + 0.2 * canvas.noise(12)


def place_object(canvas: Canvas, horizon: np.ndarray) -> tuple[float, float, float]:
    """Draw a point on the ground and a size that grows towards the viewer: (x, y, size) in px."""
    rng = canvas.rng
    x = rng.uniform(0.03, 0.97) * canvas.width
    near = rng.uniform(0, 1)
    start = horizon[int(x)]
    return x, start + near * (canvas.height - start), rng.uniform(0.7, 1.4) * (8 + 10 * near) * canvas.unit


def draw_box(canvas: Canvas, horizon: np.ndarray) -> None:
    """Draw a rotated rectangle, lit from one side."""
    x, y, size = place_object(canvas, horizon)
    turn, wide, high = canvas.rng.uniform(-0.5, 0.5), size * canvas.rng.uniform(0.8, 1.4), size
    corners = np.array([[-wide, -high], [wide, -high], [wide, high], [-wide, high]]) * 0.85
    turned = corners @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]) + (x, y - size)
    canvas.paint(canvas.polygon(turned), BOX, object_texture(canvas, CHECKS), light(canvas, x, y - size, size))


def draw_ball(canvas: Canvas, horizon: np.ndarray) -> None:
    """Draw an ellipse, lit from one side."""
    x, y, size = place_object(canvas, horizon)
    squeeze = canvas.rng.uniform(0.8, 1.25)
    inside = np.hypot((canvas.x - x) / squeeze, (canvas.y - y + size) * squeeze) < size
    canvas.paint(inside, BALL, object_texture(canvas, DOTS), light(canvas, x, y - size, size))


def draw_tent(canvas: Canvas, horizon: np.ndarray) -> None:
    """Draw a triangle that stands on its base, lit from one side."""
    x, y, size = place_object(canvas, horizon)
    half, tip = size * canvas.rng.uniform(0.9, 1.4), size * canvas.rng.uniform(-0.5, 0.5)
    region = canvas.polygon([(x - half, y), (x + half, y + canvas.rng.uniform(-2, 2)), (x + tip, y - 2 * size)])
    canvas.paint(region, TENT, object_texture(canvas, STRIPES), light(canvas, x, y - size, size))


def draw_post(canvas: Canvas, horizon: np.ndarray) -> None:
    """Draw a thin upright bar over the scene."""
    rng, unit = canvas.rng, canvas.unit
    x, y, _ = place_object(canvas, horizon)
    width, height, lean = rng.uniform(1.2, 3) * unit, rng.uniform(25, 60) * unit, rng.uniform(-3, 3) * unit
    region = canvas.polygon([(x - width, y), (x + width, y), (x + width + lean, y - height), (x - width + lean, y - height)])
    canvas.paint(region, POST, object_texture(canvas, PLAIN))


def light(canvas: Canvas, x: float, y: float, size: float) -> np.ndarray:
    """Return brightness (H, W) that falls across an object in a random direction."""
    turn = canvas.rng.uniform(0, 2 * np.pi)
    across = ((canvas.x - x) * np.cos(turn) + (canvas.y - y) * np.sin(turn)) / size
    return np.clip(1 + canvas.rng.uniform(0, 0.35) * across, 0.5, 1.5)


def finish(canvas: Canvas) -> np.ndarray:
    """Add shadows, tinted light, haze, blur and noise; return (H, W, 3) uint8."""
    rng = canvas.rng
    pixels = canvas.pixels
    shadow = np.clip(6 * (canvas.noise(rng.uniform(25, 60)) - rng.uniform(0.45, 0.7)), 0, 1)
    pixels = pixels * (1 - rng.uniform(0.15, 0.5) * shadow)[..., None]
    ramp = (canvas.x / canvas.width - 0.5) * rng.uniform(-0.4, 0.4) + (canvas.y / canvas.height - 0.5) * rng.uniform(-0.4, 0.4)
    pixels = pixels * (1 + ramp)[..., None] * rng.uniform(0.8, 1.2, 3).astype(np.float32)
    haze = rng.uniform(0, 0.3)
    pixels = (1 - haze) * pixels + haze * rng.uniform(0.3, 0.8)
    padded = np.pad(pixels, ((1, 1), (1, 1), (0, 0)), mode="edge")
    side = rng.uniform(0.05, 0.25)  # soft edges, as of a lens
    pixels = (1 - 2 * side) * padded[1:-1] + side * (padded[:-2] + padded[2:])
    pixels = (1 - 2 * side) * pixels[:, 1:-1] + side * (pixels[:, :-2] + pixels[:, 2:])
    pixels = pixels + rng.normal(0, rng.uniform(0.01, 0.06), pixels.shape).astype(np.float32)
    return (np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8)
