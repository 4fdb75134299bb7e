"""The real game: made from a `Task`, played by processes of their own, recorded."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
