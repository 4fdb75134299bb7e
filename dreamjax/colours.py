"""Colours by which small things in pictures are told: those that matter, and flashes."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Colour:
    """One side of a plane among colours: `red * R + green * G + blue * B > above`, in [0, 1].

    A flash mixes one colour into a whole picture and dims what is in it. Where `flash` tells its
    share, as weights of R, G and B whose least sum in a picture is that share, `above` is dimmed
    alike: the same things are found in a flash and without. It must be a flash of a colour that
    `red`, `green` and `blue` weigh by 0.
    """

    red: float
    green: float
    blue: float
    above: float
    flash: tuple[float, float, float] | None = None

    @property
    def weights(self) -> tuple[float, float, float]:
        """Of red, green and blue."""
        return self.red, self.green, self.blue

    def where(self, pixels: Any, rows: int) -> Any:
        """Which pixels of pictures are of this colour, bool without the axis of colours.

        Args:
          pixels: floats in [0, 1], (3, ...): R, G and B first; of NumPy or of JAX.
          rows: axis of what remains, (...), along which the rows of a picture lie; its columns
            lie along the next.
        """
        found = _weighed(self.weights, pixels)
        if self.flash is None:
            return found > self.above
        return found > self.above * (1 - self.flash_share(pixels, rows))

    def flash_share(self, pixels: Any, rows: int) -> Any:
        """How much of pictures is the flash, 0 to 1; arguments of `where`, pictures of 1 x 1."""
        return _weighed(self.flash, pixels).min((rows, rows + 1), keepdims=True).clip(0, 1)


def _weighed(weights: tuple[float, float, float], pixels: Any) -> Any:
    parts = [weight * x for weight, x in zip(weights, pixels, strict=True) if weight]
    return sum(parts[1:], parts[0])
