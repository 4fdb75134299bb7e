"""What the page of `dreamjax play` does in headless Chromium, without a graphics card.

    python -m benchmarks.play
    python -m benchmarks.play --world car-racing

Needs `pip install -e '.[test]'` and Chromium.
"""

import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tyro
from playwright.sync_api import Page, sync_playwright

FLAGS = ("--no-sandbox", "--disable-background-networking", "--no-first-run")
FULL_SPEED = 5  # of the page's speeds, as fast as it goes


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the measurement."""

    world: str = "take-cover"  # as `dreamjax play` takes it
    seconds: float = 10.0  # of each rate
    decoder: str | None = None  # "webgl2" or "arrays"; None is the faster, as the page chooses


def main(config: Config) -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(_command(config.world, "--out", folder), check=True, capture_output=True)
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=_chromium(), args=FLAGS)
        first = _first_frame(browser, config)
        browser.close()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])  # all that follows has one core
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=_chromium(), args=FLAGS)
        usual, full, decoder = _rates(browser, config)
        browser.close()
    print(f"| {config.world}, {decoder} | |")
    print("|---|---|")
    print(f"| MB of the folder | {size / 1e6:.1f} |")
    print(f"| seconds from the command to the first dreamt picture | {first:.1f} |")
    print(f"| at the game's speed, steps and pictures a second, 1 core | {usual} |")
    print(f"| as fast as it goes, the same | {full} |")


def _command(*words: str) -> list[str]:
    return [sys.executable, "-m", "dreamjax", "play", *words]


def _chromium() -> str:
    names = "chromium", "chromium-browser", "google-chrome"
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        sys.exit("Chromium is not found; install it, on Debian by: apt-get install chromium")
    return found


def _first_frame(browser, config: Config) -> float:
    """Seconds from the command's start to the first picture, the browser running already."""
    page = browser.new_page()
    start = time.monotonic()
    with _shown(config.world) as address:
        _open(page, address, config)
        return time.monotonic() - start


def _rates(browser, config: Config) -> tuple[str, str, str]:
    """Steps and pictures a second at the game's speed and at full speed, and what draws."""
    page = browser.new_page()
    with _shown(config.world) as address:
        _open(page, address, config)
        known = "dreamPage.recording?.carries.length === dreamPage.recording?.length"
        while not page.evaluate(f"dreamPage.recording !== null && {known}"):
            time.sleep(0.5)  # until nothing else runs
        usual = _counted(page, config.seconds)
        page.evaluate(f"document.getElementById('speed').value = {FULL_SPEED}")
        return usual, _counted(page, config.seconds), page.evaluate("dreamPage.decoder")


def _open(page: Page, address: str, config: Config) -> None:
    page.goto(address + (f"?decoder={config.decoder}" if config.decoder else ""))
    while not page.evaluate("Boolean(globalThis.dreamPage?.screen.drawn)"):
        time.sleep(0.02)


def _counted(page: Page, seconds: float) -> str:
    look = "[performance.now(), dreamPage.steps, dreamPage.screen.drawn]"
    before = page.evaluate(look)
    time.sleep(seconds)
    passed, steps, drawn = (b - a for a, b in zip(before, page.evaluate(look), strict=True))
    return f"{1000 * steps / passed:.0f} and {1000 * drawn / passed:.0f}"


class _shown:  # noqa: N801
    """The address at which `dreamjax play` shows a world."""

    def __init__(self, world: str):
        self._words = _command(world, "--port", "0")

    def __enter__(self) -> str:
        self._process = subprocess.Popen(self._words, stdout=subprocess.PIPE, text=True)
        return self._process.stdout.readline().split()[0]

    def __exit__(self, *_) -> None:
        self._process.terminate()
        self._process.wait()


if __name__ == "__main__":
    main(tyro.cli(Config))
