from .base import Method as Method
from .callback import MethodCallback as MethodCallback
from .creation import Scale as Scale
from .creation import create_method as create_method
from .creation import defaults_of as defaults_of
from .creation import given_options as given_options
from .finetuning_losses import FINETUNING_LOSSES as FINETUNING_LOSSES
from .finetuning_losses import check_options as check_options
from .mscl import MSCL as MSCL, MultiScaleLoss as MultiScaleLoss
from .registry import METHODS as METHODS
from .registry import markdown as markdown
from .registry import option_table as option_table
from .registry import stages_of as stages_of
from .registry import table as table
from .segmentation import SegmentationTraining as SegmentationTraining
