"""What the rooms share: the training loop, checkpoints, logs, devices, files."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "fit": ["fit"],
        "checkpoint": ["CheckpointError", "Store", "digest"],
        "logbook": ["Logbook"],
        "settings": ["SettingError"],
    },
)
