"""The published augmentations as a table: how much of an image a crop shows at least, and what is done to the colours of each view."""

from dataclasses import dataclass, replace

from .color import Colours


@dataclass(frozen=True)
class Preset:
    """area: least share of the image in a random resized crop. colours: of the first and of the second view; None leaves them alone."""

    area: float
    colours: tuple[Colours | None, Colours | None]


_MOCO_V1 = Colours(0.4, 0.4, 0.4, 0.4, jitter=1.0, grey_first=True)
_MOCO_V2 = Colours(0.4, 0.4, 0.4, 0.1, blur=0.5)
_BYOL = Colours(0.4, 0.4, 0.2, 0.1, blur=1.0)

PRESETS = {
    "simclr": Preset(0.08, (Colours.simclr(1.0, blur=0.5),) * 2),
    "moco_v1": Preset(0.2, (_MOCO_V1, _MOCO_V1)),  # InstDisc's too
    "moco_v2": Preset(0.2, (_MOCO_V2, _MOCO_V2)),  # SimSiam's, DenseCL's, CP2's too
    "byol": Preset(0.08, (_BYOL, replace(_BYOL, blur=0.1, solarise=0.2))),  # PixPro's too
    "cmc": Preset(0.08, (None, None)),
    "chaitanya": Preset(0.3, (Colours(0.3, 0.3, jitter=1.0, grey=0.0),) * 2),
}
