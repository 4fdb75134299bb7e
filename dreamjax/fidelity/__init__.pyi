from .calibrate import true_temperature as true_temperature
from .compare import dreamt_play as dreamt_play
from .compare import dreamt_returns as dreamt_returns
from .compare import dreamt_scores as dreamt_scores
from .compare import hazard as hazard
from .compare import open_loop as open_loop
from .compare import rank_correlation as rank_correlation
from .compare import reconstruction as reconstruction
