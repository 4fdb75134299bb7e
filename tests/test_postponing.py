"""Packages that a command imports when it uses them."""

import subprocess
import sys

from dreamjax.training.postponing import postponed

START = """
import sys
from dreamjax.run.cli import main
try:
    main(["--help"])
except SystemExit:
    pass
import gymnax
from gymnax.environments.misc import pong
print("|", *(name for name in ("seaborn", "matplotlib.pyplot") if name in sys.modules))
print("|", pong.sns.heatmap.__module__)
import seaborn
print("|", pong.sns.heatmap is seaborn.heatmap)
"""


def test_a_command_starts_without_plots_and_gymnax_still_has_them():
    done = subprocess.run([sys.executable, "-c", START], capture_output=True, text=True)
    said = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert said == ["|", "| seaborn.matrix", "| True"], done.stderr


def test_a_stand_in_gives_way_even_while_others_are_imported(monkeypatch):
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    with postponed("colorsys"):
        import colorsys

        assert colorsys.rgb_to_hsv(0, 0, 1)[2] == 1
    assert sys.modules["colorsys"].__file__ and sys.modules["colorsys"] is not colorsys
