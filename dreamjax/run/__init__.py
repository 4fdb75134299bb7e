"""All of it in one directory: settings, phases, tables, pictures, the command."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
