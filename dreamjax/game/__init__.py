"""The real game: made from a `Task`, played by processes of their own, recorded."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "env": ["EngineCrashError", "make_env"],
        "policies": ["POLICIES", "play_steps"],
        "rollouts": ["Rollouts", "collect"],
        "jobs": ["Played", "play"],
        "vector": ["VectorGame"],
        "workers": ["WorkerError"],
    },
)
