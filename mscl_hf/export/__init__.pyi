from .formats import EXPORTS as EXPORTS
from .formats import export as export
from .formats import open_network as open_network
