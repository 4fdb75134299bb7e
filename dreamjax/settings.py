"""Settings that cannot be, refused in one line before anything runs."""

from typing import Any


class SettingError(ValueError):
    """A setting out of its range; names the value and the remedy."""


def require_positive(settings: Any, *names: str) -> None:
    """Check fields of a settings dataclass.

    Raises:
      SettingError: one of `names` is not above zero.
    """
    for name in names:
        value = getattr(settings, name)
        if not value > 0:
            least = "at least 1" if isinstance(value, int) else "more than 0"
            raise SettingError(f"{name} must be {least}, got {value}")
