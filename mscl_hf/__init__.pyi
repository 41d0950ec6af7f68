from .data import load_data as load_data
from .evaluation import MeanIoU as MeanIoU
from .losses import MultiScaleLoss as MultiScaleLoss
from .methods import METHODS as METHODS
from .models import (
    MsclBackbone as MsclBackbone,
)
from .models import (
    MsclConfig as MsclConfig,
)
from .models import (
    MsclForPreTraining as MsclForPreTraining,
)
from .models import (
    MsclForSemanticSegmentation as MsclForSemanticSegmentation,
)
from .models import (
    build_config as build_config,
)
from .models import (
    load_timm_weights as load_timm_weights,
)
