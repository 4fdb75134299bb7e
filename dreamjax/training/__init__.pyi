from .checkpoint import CheckpointError as CheckpointError
from .checkpoint import Store as Store
from .checkpoint import digest as digest
from .fit import fit as fit
from .logbook import Logbook as Logbook
from .settings import SettingError as SettingError
from .writers import Writer as Writer
