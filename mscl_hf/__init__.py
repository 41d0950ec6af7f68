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
    """Registers our classes with transformers' Auto classes as soon as somebody imports these, which takes seconds.

    A finder of `sys.meta_path`: it only adds to what a module's own loader does.
    """

    MODELS = "mscl_hf.models.modeling_mscl"  # which imports modeling_auto
    MODULES = {
        "transformers.models.auto.configuration_auto": "auto_config", "transformers.models.auto.modeling_auto": "auto_model",
        MODELS: "auto_model",
    }  # fmt: skip

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name not in cls.MODULES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        load = spec.loader.exec_module

        def load_and_register(module):
            load(module)
            cls.register(name)

        spec.loader.exec_module = load_and_register
        return spec

    @classmethod
    def register(cls, name):
        models = sys.modules.get(cls.MODELS)
        importing_models = name != cls.MODELS and models is not None and getattr(models.__spec__, "_initializing", False)
        if cls.MODULES[name] == "auto_config" or not importing_models:
            importlib.import_module(f"mscl_hf.models.{cls.MODULES[name]}")


sys.meta_path.insert(0, _AutoClasses)
for _name in filter(sys.modules.__contains__, _AutoClasses.MODULES):
    _AutoClasses.register(_name)
