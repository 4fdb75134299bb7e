"""M as an environment, the worlds that are dreamt, and the forms that others know."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
