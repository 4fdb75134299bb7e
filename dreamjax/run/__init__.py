"""All of it in one directory: settings, phases, tables, pictures, the command."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "settings": ["Run", "RunConfig"],
        "presets": ["PRESETS"],
        "phases": ["PHASES", "run_phases"],
        "scores": ["score"],
        "pictures": ["film"],
    },
)
