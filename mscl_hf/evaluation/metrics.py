"""Mean IoU as a metric of the library `evaluate`: the class in hub/mean_iou, the folder that `mscl-push --what metric` uploads.

The file is loaded by its path, because it also has to work without mscl_hf: `evaluate.load` downloads it alone.
"""

import importlib.util

from ..records.files import hub_folder

_spec = importlib.util.spec_from_file_location(f"{__package__}.mean_iou", hub_folder() / "mean_iou" / "mean_iou.py")
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
MeanIoU, mean_of_present = _module.MeanIoU, _module.mean_of_present
