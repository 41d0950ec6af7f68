from .files import write_json as write_json
from .files import write_text as write_text
from .versions import commit as commit
from .versions import package_versions as package_versions
