"""C: its forms, how populations of it are played, and the two ways to find it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "model": ["LinearController", "MLPController", "controller_for"],
        "heads": ["BoxHead", "ChoiceHead", "Head", "KeysHead", "head_of"],
        "population": ["Dreamt", "rollout"],
        "evolution": ["Evolution", "EvolveConfig", "evolve"],
        "policy_gradient": ["LearnConfig", "Learning", "learn"],
        "strategies": ["STRATEGIES", "make_strategy"],
    },
)
