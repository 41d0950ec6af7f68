from .build import (
    finetuning_data as finetuning_data,
)
from .build import (
    labelled_part as labelled_part,
)
from .build import (
    open_held_out as open_held_out,
)
from .build import (
    open_whole_split as open_whole_split,
)
from .build import (
    pretraining_data as pretraining_data,
)
from .build import (
    usable as usable,
)
from .build import (
    with_image_range as with_image_range,
)
from .dataset import BadSample as BadSample
from .dataset import Sample as Sample
from .dataset import SegmentationData as SegmentationData
from .dataset import check_data as check_data
from .folder_layout import UnknownSplit as UnknownSplit
from .image_range import check_values as check_values
from .labels import (
    label_fields as label_fields,
)
from .labels import (
    label_warnings as label_warnings,
)
from .labels import (
    require_two_classes as require_two_classes,
)
from .labels import (
    with_labels_of_model as with_labels_of_model,
)
from .layouts import DATASETS as DATASETS
from .layouts import load_data as load_data
from .stream import SegmentationStream as SegmentationStream
from .subset import choose_subset as choose_subset
from .training_data import TrainingData as TrainingData
from .training_data import TrainingImages as TrainingImages
from .training_data import TrainingStream as TrainingStream
