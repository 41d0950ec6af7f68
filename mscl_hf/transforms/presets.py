"""Published augmentations: the least share of an image in a crop, and the color distortion of each view."""

from dataclasses import dataclass, replace

from .color import Colors


@dataclass(frozen=True)
class Preset:
    """area: least share of the image in a random resized crop. colors: of the first and of the second view; None = unchanged."""

    area: float
    colors: tuple[Colors | None, Colors | None]


_MOCO_V1 = Colors(0.4, 0.4, 0.4, 0.4, jitter=1.0, gray_first=True)
_MOCO_V2 = Colors(0.4, 0.4, 0.4, 0.1, blur=0.5)
_BYOL = Colors(0.4, 0.4, 0.2, 0.1, blur=1.0)

PRESETS = {
    "simclr": Preset(0.08, (Colors.simclr(1.0, blur=0.5),) * 2),
    "moco_v1": Preset(0.2, (_MOCO_V1, _MOCO_V1)),  # InstDisc's too
    "moco_v2": Preset(0.2, (_MOCO_V2, _MOCO_V2)),  # SimSiam's, DenseCL's, CP2's too
    "byol": Preset(0.08, (_BYOL, replace(_BYOL, blur=0.1, solarize=0.2))),  # PixPro's too
    "cmc": Preset(0.08, (None, None)),
    "chaitanya": Preset(0.3, (Colors(0.3, 0.3, jitter=1.0, gray=0.0),) * 2),
}
