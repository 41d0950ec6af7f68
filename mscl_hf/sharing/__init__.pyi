from .model_card import copy_beside as copy_beside
from .model_card import in_words as in_words
from .model_card import method_facts as method_facts
from .model_card import write_card as write_card
from .model_folder import publish as publish
from .model_folder import typical_size as typical_size
from .provenance import (
    data_name as data_name,
)
from .provenance import (
    pin_revisions as pin_revisions,
)
from .provenance import (
    read_provenance as read_provenance,
)
from .provenance import (
    stage_record as stage_record,
)
from .provenance import (
    with_evaluation as with_evaluation,
)
from .upload import check_can_push as check_can_push
from .upload import push_result as push_result
from .upload import push_run as push_run
