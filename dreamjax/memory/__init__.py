"""M: the protocol, its heads, the paper's LSTM, what it is trained on and how."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "model": ["Memory"],
        "lstm": ["MDNRNN"],
        "kinds": ["KINDS", "find_kind"],
        "heads": ["EventMixture", "Mixture", "Prediction"],
        "latents": ["LatentSequences", "encode_rollouts", "read_latents"],
        "training": ["MemoryConfig", "train_memory"],
        "metrics": ["calibrated_threshold", "memory_metrics"],
    },
)
