"""mscl_hf: pre-train a segmentation network by contrast at three scales, fine-tune it on few masks.

Names are imported when they are first used, so that a command line is checked before torch is loaded.
"""

import importlib
import importlib.machinery
import sys

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


class _AutoClasses:
    """A finder of `sys.meta_path` that registers our classes when transformers' Auto classes are imported, which takes seconds."""

    REGISTRATIONS = {
        "transformers.models.auto.configuration_auto": "mscl_hf.models.auto_config",
        "transformers.models.auto.modeling_auto": "mscl_hf.models.auto_model",
    }

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name not in cls.REGISTRATIONS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        exec_module = spec.loader.exec_module

        def exec_and_register(module):
            exec_module(module)
            importlib.import_module(cls.REGISTRATIONS[name])

        spec.loader.exec_module = exec_and_register
        return spec


sys.meta_path.insert(0, _AutoClasses)
for _auto_module, _registration in _AutoClasses.REGISTRATIONS.items():
    if _auto_module in sys.modules:
        importlib.import_module(_registration)
