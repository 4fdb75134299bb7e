from .phases import PHASES as PHASES
from .pictures import film as film
from .presets import PRESETS as PRESETS
from .running import run_phases as run_phases
from .scores import score as score
from .settings import Run as Run
from .settings import RunConfig as RunConfig
