"""M: the protocol, its heads, the paper's LSTM, what it is trained on and how."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
