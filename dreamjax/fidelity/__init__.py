"""How true a dream is: dream against game."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "calibrate": ["true_temperature"],
        "compare": [
            "dreamt_play",
            "dreamt_returns",
            "dreamt_scores",
            "hazard",
            "open_loop",
            "rank_correlation",
            "reconstruction",
        ],
        "departures": ["departures"],
        "probe": ["known"],
    },
)
