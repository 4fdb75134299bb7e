"""M as an environment, the worlds that are dreamt, and the forms that others know."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "env": ["DreamEnv", "EnvParams", "EnvState", "env_params"],
        "unroll": ["unroll"],
        "worlds": [
            "World",
            "export_world",
            "load_controller",
            "load_world",
            "save_controller",
            "save_world",
            "shipped_worlds",
        ],
        "gymnax_env": ["NamedDream", "legacy", "make"],
        "gymnasium_env": ["Dream", "VectorDream"],
        "evosax_problem": ["DreamProblem"],
    },
)
