"""A minute and more, in the first half of which blows fall on everything that a run does."""

import random
import time

import pytest
from soak import OFTEN, artefacts, differences, shaken

pytestmark = pytest.mark.slow


def test_a_shaken_run_leaves_what_a_quiet_one_does(smoke, tmp_path):
    words = ["run", "short_cover:SHORT", "--preset", "smoke", "--run-dir", str(tmp_path), *OFTEN]
    blows = shaken(words, random.Random(time.time_ns()), every=6, end=time.monotonic() + 36)
    assert blows, "it was over before the first blow"
    same = differences(artefacts(smoke[0]), artefacts(tmp_path))
    assert not [name for name in same if name != "curves"], blows
