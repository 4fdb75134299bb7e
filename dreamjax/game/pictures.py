"""Where a game shows its picture, and that picture as uint8 RGB, in whichever form it comes.

Legend: H rows and W columns of a picture, C its channels, k pictures of a stack.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

from dreamjax.actions import in_a_line
from dreamjax.task import FRAME_SHAPE

SMALLEST = 32  # sides of a picture; what is smaller is a grid of symbols, if the game can draw too
DRAWING = ("rgb_array", "rgb_array_list")  # render modes that give pictures
RENDER, OBSERVATION = "render", "observation"  # what `Task.picture` may say, beside a key
SPANS = ((0, 255), (0, 1), (-1, 1), (0, 65535))  # of the values of a picture, from dark to bright
ROUNDING = 1e-3  # of a span, by which floats may leave it


class Eye:
    """Shows the picture of a game, of its observation or its `render`, as uint8 [H, W, 3].

    Values in [0, 1], [-1, 1] or [0, 65535] are scaled, alpha is dropped, grey becomes RGB, channels
    may come first, and of a stack of pictures the last one counts.

    Args:
      game: the game.
      asked: `Task.picture`.

    Raises:
      ValueError: the game shows no picture there.
    """

    def __init__(self, game: gymnasium.Env, asked: str | None = None):
        self._game, self._span = game, None
        space = getattr(game, "observation_space", None)
        draws = game.render_mode in DRAWING
        found = {k: box for k, box in _boxes(space).items() if _span_of(box)}
        found |= {RENDER: None} if draws else {}
        if asked is None and draws:  # symbols may look like pictures, what is drawn is one
            asked = OBSERVATION if OBSERVATION in found and _is_plain(space) else RENDER
        shown = found if asked is None else {k: box for k, box in found.items() if k == asked}
        if len(shown) != 1:
            several = f"; name one by Task.picture: {', '.join(shown)}" if shown else ""
            if asked is not None:
                raise ValueError(f"has no picture {asked!r}, as Task.picture says; {_has(found)}")
            raise ValueError(
                f"shows no pictures: its observations are {in_a_line(space)}, not uint8 [height, "
                f"width, 3], and its render_mode is {game.render_mode}, not 'rgb_array'{several}"
            )
        self._where, box = shown.popitem()
        self._span = box and _span_of(box)

    def see(self, obs: Any) -> np.ndarray:
        """The picture that belongs to an observation.

        Raises:
          ValueError: it is none: another shape, or values beyond those of the first.
        """
        if self._where == RENDER:
            found = self._game.render()
            found = found[-1] if isinstance(found, list) and found else found
        else:
            found = obs if self._where == OBSERVATION else obs[self._where]
        picture = np.asarray(found)
        lay = _layout(picture.shape)
        if lay is None or picture.dtype.kind not in "buif":
            raise ValueError(
                f"shows {picture.dtype}{list(picture.shape)}, which is no picture; show uint8 "
                "[height, width, 3]"
            )
        if self._span is None and picture.any():  # a black one tells nothing
            self._span = _span_seen(picture)
        return lay(_as_bytes(picture, *(self._span or SPANS[0])))


def _boxes(space: gymnasium.Space) -> dict[str, gymnasium.spaces.Box]:
    """The parts of an observation that have the shape of a picture, by where they are."""
    parts = space.spaces if isinstance(space, gymnasium.spaces.Dict) else {OBSERVATION: space}
    is_box = gymnasium.spaces.Box
    return {k: x for k, x in parts.items() if isinstance(x, is_box) and _layout(x.shape)}


def _is_plain(space: gymnasium.Space) -> bool:
    """Whether observations are pictures beyond doubt: so large, and grey or RGB."""
    shape = space.shape or ()
    large = len(shape) in (2, 3) and min(shape[:2]) >= SMALLEST
    return large and shape[2:] in ((), (1,), (3,))


def _span_of(box: gymnasium.spaces.Box) -> tuple[float, float] | None:
    """The values of a picture by its declared bounds; None where they are none of a picture."""
    low, high = float(np.min(box.low)), float(np.max(box.high))
    if box.dtype == np.uint8 and high > 127:  # some end at 254, or begin at 16
        return SPANS[0]
    return (low, high) if (low, high) in SPANS else None


def _span_seen(picture: np.ndarray) -> tuple[float, float]:
    """The values of pictures by the first of them."""
    if picture.dtype == np.uint16:
        return SPANS[3]
    if picture.dtype.kind == "b" or (picture.dtype.kind == "f" and picture.max(initial=0) <= 1):
        return SPANS[2] if picture.min(initial=0) < 0 else SPANS[1]
    return SPANS[0]


def _as_bytes(picture: np.ndarray, low: float, high: float) -> np.ndarray:
    if picture.dtype == np.uint8 and (low, high) == SPANS[0]:
        return picture
    values, slack = picture.astype(np.float32), ROUNDING * (high - low)
    inside = (values >= low - slack) & (values <= high + slack)
    if not inside.all():
        raise ValueError(
            f"shows a picture that holds {values[~inside][0]:g}, though its values were from "
            f"{low:g} to {high:g}; show uint8 [height, width, 3]"
        )
    return ((values - low) * (255 / (high - low)) + 0.5).clip(0, 255).astype(np.uint8)


def _layout(shape: tuple[int, ...]) -> Callable[[np.ndarray], np.ndarray] | None:
    """What makes [H, W, 3] of pictures of that shape; None where it is none of a picture."""
    if len(shape) == 4:
        inner = _layout(shape[1:])
        return inner and (lambda stack: inner(stack[-1]))
    if len(shape) == 2:
        return lambda grey: np.repeat(grey[..., None], 3, axis=2)
    if len(shape) != 3 or 0 in shape:
        return None
    if shape[2] in (1, 3, 4):
        return {1: lambda x: np.repeat(x, 3, axis=2), 3: lambda x: x, 4: _opaque}[shape[2]]
    if shape[0] in (1, 3):
        return lambda x: _layout(x.shape[1:] + x.shape[:1])(np.moveaxis(x, 0, 2))
    if min(shape[1:]) < SMALLEST or shape[0] % 3 == 0:  # a stack of grey, or of colours?
        return None
    return lambda stack: np.repeat(stack[-1][..., None], 3, axis=2)


def _opaque(picture: np.ndarray) -> np.ndarray:
    """RGB of RGBA [H, W, 4]."""
    if np.ptp(picture[..., 3]):
        raise ValueError(
            "shows four channels of which the last is no alpha but varies; show uint8 [height, "
            "width, 3]"
        )
    return picture[..., :3]


def _has(found: dict[str, Any]) -> str:
    return f"it has {', '.join(found)}" if found else "it has none"


def shrunk(picture: np.ndarray, crop: tuple[int, int, int, int] | None) -> np.ndarray:
    """What V sees of a picture uint8 [height, width, 3], uint8 [64, 64, 3].

    Raises:
      ValueError: the crop is no part of the picture.
    """
    height, width = picture.shape[:2]
    if crop is not None:
        top, bottom, left, right = crop
        if not (0 <= top < bottom <= height and 0 <= left < right <= width):
            raise ValueError(
                f"shows pictures of {height} rows and {width} columns, of which the crop (top, "
                f"bottom, left, right) = {crop} is no part; mend Task.crop"
            )
        picture = picture[top:bottom, left:right]
    return _shrinker(*picture.shape[:2])(picture)


@functools.cache
def _shrinker(height: int, width: int) -> Callable[[np.ndarray], np.ndarray]:
    """Area average of frames uint8 [height, width, 3] down to 64x64.

    Every pixel counts by the area it covers, so a fireball two pixels wide stays visible.
    """
    row_groups, rows = _area_weights(height, FRAME_SHAPE[0])
    column_groups, columns = _area_weights(width, FRAME_SHAPE[1])
    columns = np.ascontiguousarray(np.kron(columns, np.eye(3, dtype=np.float32)).T)

    def shrink(frame: np.ndarray) -> np.ndarray:
        wide = frame.astype(np.float32).reshape(height * column_groups, -1) @ columns
        small = rows @ wide.reshape(row_groups, -1, 3 * FRAME_SHAPE[1])
        return (small + 0.5).reshape(FRAME_SHAPE).astype(np.uint8)

    return shrink


def _area_weights(source: int, target: int) -> tuple[int, np.ndarray]:
    """Number of equal blocks on the axis, and the weights [out, in] inside each."""
    blocks = math.gcd(source, target)
    source, target = source // blocks, target // blocks
    edges = np.arange(target + 1) * source / target
    pixels = np.arange(source)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return blocks, (overlap.clip(min=0) * target / source).astype(np.float32)
