"""Crops and views of samples: geometry in the workers, color on the device. Names are imported when they are first used."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
