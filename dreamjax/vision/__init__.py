"""V: what it is, and how it is trained."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "model": ["VAE"],
        "training": ["VisionConfig", "train_vision"],
        "frames": ["FrameStream"],
    },
)
