"""Mean IoU as a metric of the library `evaluate`: the class in hub/mean_iou, the folder that `mscl-push --what metric` uploads.

The file is loaded by its path, because it also has to work without mscl_hf: `evaluate.load` downloads it alone.
"""

import importlib.util
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
# In an installed copy, hub is a folder of the package; in the sources it lies beside it.
FILE = next(path for hub in (PACKAGE / "hub", PACKAGE.parent / "hub") if (path := hub / "mean_iou" / "mean_iou.py").is_file())

_spec = importlib.util.spec_from_file_location(f"{__package__}.mean_iou", FILE)
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
MeanIoU, mean_of_present = _module.MeanIoU, _module.mean_of_present
