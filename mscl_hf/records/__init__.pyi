from .files import replacing as replacing
from .files import write_json as write_json
from .files import write_text as write_text
from .run_folder import CONFIG as CONFIG
from .run_folder import RECORD as RECORD
from .run_folder import VAL_SPLIT as VAL_SPLIT
from .versions import commit as commit
from .versions import package_versions as package_versions
