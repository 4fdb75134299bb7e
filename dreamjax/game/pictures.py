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
    may come first, and of a stack of pictures the last one counts. `asked` is `Task.picture`;
    ValueError if the game shows no picture there.
    """

    def __init__(self, game: gymnasium.Env, asked: str | None = None):
        self._game = game
        space = getattr(game, "observation_space", None)
        draws = game.render_mode in DRAWING
        found = _spans(space) | ({RENDER: None} if draws else {})
        if asked is None and draws:  # symbols may look like pictures, what is drawn is one
            asked = OBSERVATION if OBSERVATION in found and _is_plain(space) else RENDER
        shown = found if asked is None else {k: x for k, x in found.items() if k == asked}
        if len(shown) != 1 and asked is not None:
            has = ", ".join(found) or "none"
            raise ValueError(f"has no picture {asked!r}, as Task.picture says; it has {has}")
        if len(shown) != 1:
            several = f"; name one by Task.picture: {', '.join(shown)}" if shown else ""
            raise ValueError(
                f"shows no pictures: its observations are {in_a_line(space)}, not uint8 [height, "
                f"width, 3], and its render_mode is {game.render_mode}, not 'rgb_array'{several}"
            )
        self._where, self._span = shown.popitem()

    def see(self, obs: Any) -> np.ndarray:
        """The picture of an observation; ValueError if it is none, or beyond the first's values."""
        if self._where == RENDER:
            found = self._game.render()
            found = found[-1] if isinstance(found, list) and found else found
        else:
            found = obs if self._where == OBSERVATION else obs[self._where]
        picture, rgb = np.asarray(found), None
        if picture.dtype.kind in "buif":
            if self._span is None and picture.any():  # a black one tells nothing
                self._span = _span_seen(picture)
            rgb = _rgb(_as_bytes(picture, *(self._span or SPANS[0])))
        if rgb is None:
            raise ValueError(
                f"shows {picture.dtype}{list(picture.shape)}, which is no picture; show uint8 "
                "[height, width, 3]"
            )
        return rgb


def _spans(space: gymnasium.Space) -> dict[str, tuple[float, float]]:
    """Where observations have shape and bounds of a picture, and from what to what its values."""
    parts = space.spaces if isinstance(space, gymnasium.spaces.Dict) else {OBSERVATION: space}
    found = {}
    for where, box in parts.items():
        if not isinstance(box, gymnasium.spaces.Box):
            continue
        if _rgb(np.broadcast_to(0, box.shape)) is not None:
            span = float(np.min(box.low)), float(np.max(box.high))
            if box.dtype == np.uint8 and span[1] > 127:  # some end at 254, or begin at 16
                span = SPANS[0]
            if span in SPANS:
                found[where] = span
    return found


def _is_plain(space: gymnasium.Space) -> bool:
    """Whether observations are pictures beyond doubt: so large, and grey or RGB."""
    shape = space.shape or ()
    large = len(shape) in (2, 3) and min(shape[:2]) >= SMALLEST
    return large and shape[2:] in ((), (1,), (3,))


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


def _rgb(picture: np.ndarray) -> np.ndarray | None:
    """Its colours [H, W, 3], None if it has no picture's shape; ValueError of channels unknown."""
    if picture.ndim == 4:
        return _rgb(picture[-1]) if len(picture) else None
    if picture.ndim == 2:
        picture = picture[..., None]
    if picture.ndim != 3 or 0 in picture.shape:
        return None
    if picture.shape[2] not in (1, 3, 4):
        if len(picture) in (1, 3):
            picture = np.moveaxis(picture, 0, 2)
        elif min(picture.shape[1:]) < SMALLEST or len(picture) % 3 == 0:
            return None  # a stack of grey, or of colours?
        else:
            picture = picture[-1][..., None]
    if picture.shape[2] == 4 and np.ptp(picture[..., 3]):
        raise ValueError(
            "shows four channels of which the last is no alpha but varies; show uint8 [height, "
            "width, 3]"
        )
    return np.broadcast_to(picture[..., :3], (*picture.shape[:2], 3))


def shrunk(picture: np.ndarray, crop: tuple[int, int, int, int] | None) -> np.ndarray:
    """What V sees of a picture [H, W, 3], uint8 [64, 64, 3]; ValueError if it has no such crop."""
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
