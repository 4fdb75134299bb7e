"""C: its forms, how populations of it are played, and the two ways to find it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
