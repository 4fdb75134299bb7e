"""The page dreams what JAX dreams, and a reader can play it in a real browser."""

import contextlib
import dataclasses
import hashlib
import json
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from command import dreamjax, finish, refused, start
from flax import nnx
from gru import GRU
from PIL import Image
from scipy import stats

from dreamjax.actions import Box, Choice
from dreamjax.agent import watch
from dreamjax.controller.model import LinearController
from dreamjax.controller.player import Player
from dreamjax.dream.env import DOUBTERS, DOUBTFUL, MASKS, EnvState, Noise
from dreamjax.dream.exported import export_world
from dreamjax.dream.prefix import dream_from
from dreamjax.dream.world import World
from dreamjax.dream.worlds import load_world
from dreamjax.memory.heads import places
from dreamjax.memory.lstm import MDNRNN
from dreamjax.play import folder, server
from dreamjax.tasks import CAR_RACING, TAKE_COVER, TASKS

STEPS = 200
SLOW = pytest.mark.slow
HERE = Path(__file__).parent


def node():
    """A JavaScript engine: Node's, or the one that Playwright brings along."""
    found = shutil.which("node")
    if found is None:
        driver = pytest.importorskip("playwright._impl._driver", reason="no node, no playwright")
        found = driver.compute_driver_executable()[0]
    return found


def ran(page, fed):
    """What the page's modules make of `fed`."""
    path = page.parent / "fed.json"
    path.write_text(json.dumps(fed))
    done = subprocess.run(
        [node(), str(HERE / "play.mjs"), str(page), str(path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def page_of(world, controller, weights, target):
    """The page's folder, and the world as it is in it: in half precision."""
    player = None if controller is None else Player(controller, weights)
    export_world(target / "world", world, player)
    world = load_world(target / "world")
    return folder.write(target / "page", world, player), world


def clear_of_boundaries(uniform, shares):
    """`uniform` [Z], moved where rounding could decide between two components [K, Z]."""
    levels = np.cumsum(shares, axis=0) / shares.sum(axis=0)
    for _ in range(20):
        near = np.abs(uniform - levels).min(axis=0) < 1e-4
        if not near.any():
            return uniform
        uniform = np.where(near, (uniform + 3e-4) % 1, uniform)
    raise AssertionError("always near a boundary")


def drawn_noise(seed, found, tau):
    """The noise of a step, in which no number lies where two components meet."""
    rng, latent = np.random.default_rng(seed), found.latent
    Z = latent.mean.shape[-1]
    shares = np.exp((np.asarray(latent.logits) - np.asarray(latent.logits).max(0)) / tau)
    event = rng.random(1)
    if hasattr(latent, "weights"):
        weights = np.asarray(latent.weights)
        event = clear_of_boundaries(event, np.exp((weights - weights.max()) / tau)[:, None])
    return Noise(
        uniform=clear_of_boundaries(rng.random(Z).astype(np.float32), shares),
        normal=rng.normal(size=Z).astype(np.float32),
        logistic=float(rng.logistic()),
        event=float(event[0]),
    )


def recorded(world, tau, act):
    """A dream by JAX, step by step: what was fed, and what came."""
    env, params = world.env(), world.params(tau, dtype=jnp.float32)
    predict, step = jax.jit(params.memory.__call__), jax.jit(env.transition)
    doubtful, branch = jax.jit(env.doubt), jax.random.key(9)
    numbers = DOUBTERS, world.memory.latent_size + world.memory.hidden_size
    drawn = jax.random.uniform(jax.random.fold_in(branch, MASKS), numbers)
    doubters = world.memory.mask(drawn, DOUBTFUL)
    z, mask = params.initial_mu[0], params.draw_mask(jax.random.key(5))
    carry, fed, came = world.memory.initial_carry(), [], []
    for time_ in range(STEPS):
        obs = world.memory.features(z, carry)
        action = act(obs, time_)
        state = EnvState(time=jnp.int32(time_), z=z, carry=carry, mask=mask)
        doubt = doubtful(branch, state, action, params)
        _, found = predict(carry, z, env.clipped(action), state.time, mask)
        noise = drawn_noise(time_, found, tau)
        _, state, reward, dead, _ = step(noise, state, action, params)
        chance = params.death_chance(found.end) if found.end is not None else 0
        noise = {name: np.asarray(x).tolist() for name, x in vars(noise).items()}
        fed.append({"z": z.tolist(), "action": np.asarray(action).tolist(), "noise": noise})
        carry = state.carry
        came.append((obs, state.z, carry, float(doubt), float(reward), float(chance), bool(dead)))
        z = state.z
    mask = mask and {name: np.asarray(x).tolist() for name, x in vars(mask).items()}
    doubters = [
        {"z": z.tolist(), "h": h.tolist()} for z, h in zip(doubters.z, doubters.h, strict=True)
    ]
    return {"steps": fed, "tau": tau, "mask": mask, "doubters": doubters}, came


def check_dream(world, page, tau, controller, weights):
    """The page's modules dream, play and draw as JAX does, to 1e-3."""
    act = jax.jit(controller)

    def varied(obs, time_):  # as C plays, but for moments of random play, out of bounds
        if time_ % 10 < 7:
            return act(weights, obs)
        return 1.5 * jnp.asarray(world.task.actions.draw(np.random.default_rng(time_)))

    fed, came = recorded(world, tau, varied)
    pictures = [step["z"] for step in fed["steps"][::40]]
    told = ran(page, fed | {"pictures": pictures, "draws": 0})
    for step, (obs, z, carry, doubt, reward, chance, dead) in zip(told["steps"], came, strict=True):
        np.testing.assert_allclose(step["z"], z, atol=1e-3)
        np.testing.assert_allclose(step["carry"], np.concatenate(carry), atol=1e-3)
        np.testing.assert_allclose(step["action"], act(weights, obs), atol=1e-3)
        assert step["reward"] == pytest.approx(reward, abs=1e-3)
        assert step["doubt"] == pytest.approx(doubt, abs=1e-3)
        assert step["chance"] == pytest.approx(chance, abs=1e-3)
        assert (step["ended"] == "dead") == dead
    images = world.vision.decode(jnp.asarray(pictures)).reshape(len(pictures), -1)
    np.testing.assert_allclose(told["pictures"], images, atol=1e-3)
    return came


def test_a_page_goes_at_the_pace_of_its_game():
    world = load_world("car-racing")
    facts = folder.facts_of(world, None)
    assert (facts["steps_per_second"], facts["frame_skip"]) == (50 / 4, 4)


def test_a_page_begins_at_the_temperature_of_its_world():
    world = load_world("take-cover")
    assert world.temperature not in (None, world.task.temperature)
    assert folder.facts_of(world, None)["temperature"] == world.temperature


@SLOW
@pytest.mark.parametrize("tau", [0.1, 1.0, 1.5])
@pytest.mark.parametrize("name", ["take-cover", "car-racing"])
def test_a_shipped_world_dreams_in_the_page_as_in_jax(name, tau, tmp_path):
    """Events, clock, rewards, several ends; `tau` as the page's slider sets it."""
    world = load_world(name)
    page = folder.write(tmp_path / "page", world, world.player)
    check_dream(world, page, tau, world.player.controller, world.player.weights)


def own_task(actions, **changes):
    return dataclasses.replace(TAKE_COVER, name="own", actions=actions, hidden_size=12, **changes)


FORMS = {
    "choice": (own_task(Choice(3), step_reward=None, reward_scale=2.0), {}, 0),
    "box, hidden": (own_task(Box((-2, 0), (1, 3), (1,)), reads_restart=False), {}, 5),
    "keys read": (own_task(TAKE_COVER.actions, ends=(), step_reward=None), {"keys": True}, 0),
    "two ends, residual": (own_task(Box(), ends=("a", "b")), {"residual": True, "clock": True}, 4),
}


OFTEN = ("two ends, residual",)


@pytest.mark.parametrize("form", [x if x in OFTEN else pytest.param(x, marks=SLOW) for x in FORMS])
def test_other_forms_of_a_world_dream_in_the_page_as_in_jax(form, world, tmp_path, monkeypatch):
    """Of actions, of M and of C."""
    task, variant, hidden = FORMS[form]
    monkeypatch.setitem(TASKS, "own", task)
    key = jax.random.key(3)
    memory = MDNRNN(task, rngs=nnx.Rngs(4), **variant)
    memory.head_kernel[...] = memory.head_kernel[...] * 3
    narrow = places(memory.layout)["logstd"].start  # two latents below the floor of logstd
    memory.head_bias[...] = memory.head_bias[...].at[narrow : narrow + 2].set(-15)
    mu = jax.random.normal(key, (5, 64))
    dropout = 0.3 if variant.get("keys") or variant.get("residual") else None
    world = World(task, load_world(world).vision, memory, mu, mu - 2, 1.5, 1.0, dropout=dropout)
    controller = world.controller(hidden)
    weights = jax.random.normal(key, (controller.num_params,))
    page, world = page_of(world, controller, weights, tmp_path)
    came = check_dream(world, page, 0.7, controller, weights)
    if form == "two ends, residual":
        assert 10 < np.sum([dead for *_, dead in came]) < STEPS - 10
    if task.step_reward is None:
        assert np.std([reward for *_, reward, _, _ in came]) > 0.01, "rewards are to vary"


def test_the_pages_noise_is_what_it_claims(world, tmp_path):
    loaded = load_world(world)
    page = folder.write(tmp_path / "page", loaded, None)
    z = loaded.initial_mu[0].tolist()
    noise = {"uniform": [0.5] * 64, "normal": [0.0] * 64, "logistic": -9.0, "event": 0.5}
    steps = [{"z": z, "action": [0.0], "noise": noise}]
    fed = {"steps": steps, "tau": 1, "mask": None, "pictures": [], "draws": 200, "rate": 0.1}
    told = ran(page, fed)
    masks, told = np.asarray(told["masks"]), told["noises"]
    assert masks.shape == (200, 64 + 512) and set(masks.ravel()) == {0, float(np.float32(1 / 0.9))}
    np.testing.assert_allclose((masks == 0).mean(), 0.1, atol=0.005)  # 5 standard errors
    assert ran(page, fed | {"rate": None})["masks"] == [None] * 200
    uniform, normal = (np.concatenate([n[name] for n in told]) for name in ("uniform", "normal"))
    # p of a right generator is below 1e-4 once in 10,000 seeds; the seed is fixed, so never here.
    assert stats.kstest(uniform, "uniform").pvalue > 1e-4
    assert stats.kstest(normal, "norm").pvalue > 1e-4
    assert abs(normal.std() - 1) < 0.03  # 5 standard errors
    assert stats.kstest([n["logistic"] for n in told], "logistic").pvalue > 1e-4
    assert stats.kstest([n["event"] for n in told], "uniform").pvalue > 1e-4
    assert abs(np.corrcoef(uniform[:-1], uniform[1:])[0, 1]) < 0.05  # 5 standard errors


@contextlib.contextmanager
def shown(*words):
    """The address at which `dreamjax play` shows a page, until it is interrupted."""
    process = start("play", *words, "--port", "0")
    try:
        line = process.stdout.readline()
        assert line.startswith("http://127.0.0.1:"), finish(process)
        yield line.split()[0], process
    finally:
        process.send_signal(signal.SIGINT)
        status, out, err = finish(process, 60)
    assert (status, out.strip(), err) == (0, "", "")


FLAGS = (
    "--no-sandbox",  # as root
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


@pytest.fixture(scope="module")
def browser(request):
    """Headless Chromium, with the flags that a test names."""
    playwright = pytest.importorskip("playwright.sync_api")
    names = "chromium", "chromium-browser", "google-chrome"
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=found, args=[*FLAGS, *getattr(request, "param", [])]
        )
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(browser, address, **kwargs):
    """A page in the browser, which must say nothing to its console and ask nobody else."""
    context = browser.new_context(**kwargs)
    page, said, asked = context.new_page(), [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    context.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    yield page
    root = "/".join(address.split("/")[:3])
    context.close()
    assert said == []
    assert {url for url in asked if not url.startswith((root, "data:", "blob:"))} == set()


def wait(page, condition, seconds=120):
    """Until a JavaScript condition holds; the page lets nobody evaluate strings by itself."""
    end = time.monotonic() + seconds
    while not page.evaluate(f"Boolean({condition})"):
        assert time.monotonic() < end, (condition, page.inner_text("body"))
        time.sleep(0.05)


@pytest.mark.slow
def test_a_reader_plays_in_a_browser(browser):
    """C plays, the reader takes over by key and lets go, tau acts at once, the game is shown."""
    with (
        shown("take-cover") as (address, _),
        opened(browser, f"{address}#seed=5&tau=0.8") as page,
    ):
        wait(page, "globalThis.dreamPage?.screen.drawn > 0")
        assert page.evaluate("[dreamPage.seed, dreamPage.dream.tau]") == [5, 0.8]
        assert page.inner_text("#badge") == "C plays"
        page.keyboard.down("ArrowLeft")
        wait(page, "document.querySelector('#badge').textContent === 'You play'")
        assert page.evaluate("[...dreamPage.hands.action()]") == [-1]
        page.keyboard.up("ArrowLeft")
        wait(page, "document.querySelector('#badge').textContent === 'C plays'")
        page.focus("#tau")
        page.keyboard.press("End")
        assert page.evaluate("dreamPage.dream.tau") == 2
        assert "tau=2" in page.evaluate("location.hash")
        page.focus("#speed")
        page.keyboard.press("End")
        wait(page, "dreamPage.steps >= 300")
        page.keyboard.press("n")
        page.keyboard.press("p")
        time_, seed = page.evaluate("[dreamPage.dream.state.time, dreamPage.seed]")
        page.keyboard.press(".")
        assert page.evaluate("dreamPage.dream.state.time") == time_ + 1
        page.keyboard.press("r")
        assert page.evaluate("[dreamPage.dream.state.time, dreamPage.seed]") == [0, seed]
        first = page.evaluate("[...dreamPage.dream.state.z]")
        page.fill("#seed", str(seed + 1))
        page.press("#seed", "Enter")
        assert page.evaluate("[...dreamPage.dream.state.z]") != first
        check_doubt(page)
        page.evaluate(f"location.hash = '#seed={seed}'")
        wait(page, f"dreamPage.seed === {seed}")
        assert page.evaluate("[...dreamPage.dream.state.z]") == first
        check_latents(page)
        check_recording(page)


def check_doubt(page):
    """It is told where it is asked for, and changes nothing of the dream."""
    ended = []
    for asked in (False, True):
        page.set_checked("#doubt", asked)
        page.keyboard.press("r")
        for _ in range(3):
            page.evaluate("dreamPage.single()")
        ended.append(page.evaluate("[...dreamPage.dream.state.z]"))
        told = page.evaluate("dreamPage.trace.doubts")
        says = "document.querySelector('#trace-label').textContent.includes('doubt')"
        wait(page, says if asked else f"!{says}")
        assert len(told) == 3 and all((x or 0) > 0 for x in told) == asked
    assert ended[0] == ended[1]


def check_latents(page):
    """Fifteen sliders; one that is moved stops the dream, and is its latent from then on."""
    page.evaluate("dreamPage.pause(false)")
    page.click("#latents-panel summary")
    wait(page, "document.querySelectorAll('#latents input').length === 15")
    page.focus("#latents input")
    page.keyboard.press("End")
    number = int(page.get_attribute("#latents input", "aria-label").split()[1])
    assert page.evaluate(f"[dreamPage.dream.state.z[{number}], dreamPage.paused]") == [3, True]


def check_recording(page):
    """A real game was recorded meanwhile; the dream goes on from one of its moments."""
    page.click("#recording-panel summary")
    wait(page, "dreamPage.recording")
    length = page.evaluate("dreamPage.recording.length")
    page.fill("#moment", str(length // 2))
    page.click("#dream-on")
    wait(page, f"dreamPage.dream.state.time > {length // 2} + 5")
    assert page.inner_text("#badge") in ("As recorded", "C plays")
    assert page.evaluate("dreamPage.dream.state.mask.h.some((factor) => factor === 0)")
    said = page.evaluate("fetch('recording.json').then((answer) => answer.json())")
    kept = page.evaluate("[...dreamPage.recording.moment(20).carry.h]")
    world = load_world("take-cover")
    z, action = (jnp.asarray(said[name][:20]) for name in ("latents", "actions"))
    inputs = world.memory.inputs(z, action, jnp.arange(20))
    carry, _ = world.memory.run(world.memory.initial_carry(), inputs, jnp.arange(20) == 0)
    np.testing.assert_allclose(kept, carry[1], atol=1e-3)


@contextlib.contextmanager
def served(page):
    """The address of a folder."""
    with server.serving(page, 0) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}/"
        serving.shutdown()


@pytest.fixture(scope="module")
def racing(tmp_path_factory):
    """The folder of Car Racing's page, as `--out` writes it, but without a recording."""
    world = dataclasses.replace(load_world("car-racing"), dropout=0.2)
    target = tmp_path_factory.mktemp("racing")
    page = folder.write(target, world, world.player)
    folder.tell(page, "none")
    return page


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["webgl2", "arrays"])
def test_the_browser_draws_what_v_draws(browser, racing, decoder):
    """By either decoder: numbers to 1e-3, and the pixels that are seen."""
    world = load_world("car-racing")
    z = np.asarray(world.initial_mu[0])
    wanted = np.asarray(world.vision.decode(z[None])).ravel()
    with served(racing) as root, opened(browser, f"{root}?decoder={decoder}") as page:
        wait(page, "globalThis.dreamPage?.screen.drawn > 0")
        name = "WebGL2" if decoder == "webgl2" else "typed arrays"
        assert f"drawn by {name}" in page.evaluate("dreamPage.decoder")
        floats = "(z) => dreamPage.pictures.floats(Float32Array.from(z)).then((x) => [...x])"
        np.testing.assert_allclose(page.evaluate(floats, z.tolist()), wanted, atol=1e-3)
        np.testing.assert_allclose(
            page.evaluate(PIXELS, z.tolist()), np.round(wanted * 255), atol=1
        )


@pytest.mark.parametrize(
    "browser", [["--disable-gpu", "--disable-software-rasterizer"]], indirect=True
)
def test_a_browser_without_webgl2_draws_all_the_same(browser, racing):
    with served(racing) as root, opened(browser, root) as page:
        wait(page, "globalThis.dreamPage?.screen.drawn > 5")
        assert "typed arrays (this browser has no WebGL2)" in page.evaluate("dreamPage.decoder")


def hands(page):
    return page.evaluate("dreamPage.hands.action() && [...dreamPage.hands.action()]")


def check_mask(page):
    """Each dream drops something else of what M reads, and the same from first to last."""
    mask = "[...dreamPage.dream.state.mask.h]"
    page.evaluate("dreamPage.begin(4)")
    first = page.evaluate(mask)
    assert 0.1 < np.mean(np.equal(first, 0)) < 0.35
    wait(page, "dreamPage.dream.state.time > 3")
    assert page.evaluate(mask) == first
    page.evaluate("dreamPage.begin(5)")
    assert page.evaluate(mask) != first
    page.evaluate("dreamPage.begin(4)")
    assert page.evaluate(mask) == first


def test_keys_mouse_touch_and_gamepad_steer(browser, racing):
    """A box of three: steer, gas, brake."""
    with served(racing) as root, opened(browser, root, has_touch=True) as page:
        wait(page, "globalThis.dreamPage?.screen.drawn > 0")
        check_mask(page)
        assert hands(page) is None
        for keys, wanted in {("d", "ArrowUp"): [1, 1, 0], ("ArrowLeft", "s"): [-1, 0, 1]}.items():
            for key in keys:
                page.keyboard.down(key)
            assert hands(page) == wanted
            for key in keys:
                page.keyboard.up(key)
        let_go = "dispatchEvent(new KeyboardEvent('keyup', {key: 's'})), dreamPage.hands.action()"
        assert page.evaluate(f"[...({let_go})]") == [0, 0, 0]  # hands stay on for a moment
        box = page.locator("#dream").bounding_box()
        page.mouse.move(box["x"] + 1, box["y"] + box["height"] / 2)
        page.mouse.down()
        assert hands(page) == pytest.approx([-1, 0, 0], abs=0.02)
        page.mouse.up()
        page.evaluate(
            "document.querySelector('#dream').dispatchEvent(new PointerEvent("
            "'pointerdown', {clientX: 1e4, clientY: -1e4, pointerId: 1}))"
        )
        assert hands(page) == [1, 1, 0]
        page.evaluate(
            "document.querySelector('#dream').dispatchEvent(new PointerEvent("
            "'pointercancel', {pointerId: 1}))"
        )
        buttons = "[...Array(16)].map((_, i) => ({value: i === 6 ? 0.5 : 0}))"
        pad = f"{{axes: [0.75], buttons: {buttons}}}"
        page.evaluate(f"navigator.getGamepads = () => [null, {pad}]")
        assert hands(page) == [0.75, 0, 0.5]
        page.evaluate("navigator.getGamepads = () => []")
        wait(page, "dreamPage.hands.action() === null")


def test_choices_are_made_by_digits_and_buttons(browser, world, tmp_path, monkeypatch):
    """A game of ones own, with three actions and no C."""
    task, variant, _ = FORMS["choice"]
    monkeypatch.setitem(TASKS, "own", task)
    mu, memory = jnp.zeros((5, 64)), MDNRNN(task, rngs=nnx.Rngs(4))
    world = World(task, load_world(world).vision, memory, mu, mu - 2, 9.0)
    page, _ = page_of(world, None, None, tmp_path)
    with served(page) as root, opened(browser, root) as page:
        wait(page, "globalThis.dreamPage?.screen.drawn > 0")
        assert page.inner_text("#badge") == "Nobody plays"
        for key, wanted in {
            "2": [0, 1, 0],
            "ArrowRight": [0, 0, 1],
            "ArrowLeft": [1, 0, 0],
        }.items():
            page.keyboard.down(key)
            assert hands(page) == wanted
            page.keyboard.up(key)
        page.hover("#choices button:last-child")
        page.mouse.down()
        assert hands(page) == [0, 0, 1]
        page.mouse.up()
        page.click("#recording-panel summary")
        assert page.inner_text("#recording-state") == folder.NO_PLAYER


@pytest.mark.parametrize("damage", ["bits", "short", "gone", "no V"])
def test_a_page_says_what_is_wrong_with_its_weights(browser, racing, damage, tmp_path):
    shutil.copytree(racing, tmp_path, dirs_exist_ok=True)
    path, facts = tmp_path / folder.WEIGHTS, tmp_path / folder.FACTS
    blob, words = path.read_bytes(), None
    if damage == "bits":
        path.write_bytes(blob[:-1] + bytes([blob[-1] ^ 1]))
        words = "The weights file is not the one that was written."
    elif damage == "short":
        path.write_bytes(blob[:1000])
        words = f"The weights file has 1000 bytes in place of {len(blob)}."
    elif damage == "gone":
        path.unlink()
        words = "The weights file is missing."
    else:
        arrays = safetensors.numpy.load(blob)
        blob = safetensors.numpy.save({k: x for k, x in arrays.items() if "vision" not in k})
        path.write_bytes(blob)
        told = {"size": len(blob), "sha256": hashlib.sha256(blob).hexdigest()}
        facts.write_text(json.dumps(json.loads(facts.read_text()) | told))
        words = "The weights file holds no V."
    with served(tmp_path) as root:
        page = browser.new_page()
        page.goto(root)
        page.wait_for_selector("#message:visible")
        assert f"{words} Write the folder again" in page.inner_text("#message")
        page.close()


PIXELS = """async (z) => {
  const { paint } = await import("./picture.js");
  const canvas = new OffscreenCanvas(64, 64), context = canvas.getContext("2d");
  paint(context, await dreamPage.pictures.of(Float32Array.from(z)));
  return [...context.getImageData(0, 0, 64, 64).data].filter((_, i) => i % 4 < 3);
}"""


@pytest.mark.slow
def test_a_page_is_written_for_any_host(smoke, tmp_path):
    """A run in a game of ones own; again in its place, never in that of something else."""
    run, out = smoke[0], tmp_path / "page"
    for _ in range(2):
        words = ("play", run, "--task", "short_cover:SHORT", "--out", out)
        status, said, err = finish(start(*words))
        assert (status, err) == (0, "") and str(out) in said
    facts = json.loads((out / folder.FACTS).read_text())
    said = json.loads((out / facts["recording"]).read_text())
    assert len(said["latents"]) == len(said["actions"]) > 10 and facts["controller"]["outputs"] == 1
    with Image.open(out / said["frames"]) as frames:
        assert frames.format == "WEBP" and said["frames"].endswith(".webp")
        assert frames.width == 64 * said["columns"]
        assert frames.height >= 64 * len(said["latents"]) / said["columns"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "kept.txt").write_text("kept")
    said = refused("play", "take-cover", "--out", tmp_path / "other")
    assert "choose another folder" in said
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["kept.txt"]


def test_the_command_writes_the_page_of_a_world_that_has_no_c(world, tmp_path):
    status, said, err = dreamjax("play", world, "--out", tmp_path / "page")
    assert (status, err) == (0, "") and str(tmp_path / "page") in said
    facts = json.loads((tmp_path / "page" / folder.FACTS).read_text())
    assert "controller" not in facts and facts["memory"]["hidden_size"] == 512


def test_bad_input_is_refused_in_one_line(world, tmp_path):
    assert "no world in" in refused("play", tmp_path / "none")
    with socket.socket() as taken:
        taken.bind((server.HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"port {port} is not to be had (in use)" in refused("play", world, "--port", port)
    assert "from 0 to 65535" in refused("play", world, "--port", 70000)


def test_only_the_page_is_shown(world, tmp_path):
    """On the loopback address; no lists of files, nothing outside the folder."""
    (tmp_path / "secret").write_text("secret")
    page = folder.write(tmp_path / "page", load_world(world), None)
    (page / "inner").mkdir()
    with served(page) as root:
        with urllib.request.urlopen(f"{root}page.js") as answer:
            assert answer.headers["Content-Type"] == "text/javascript"
        for path in ("inner/", "../secret", "%2e%2e/secret", "none"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(root + path)


def test_what_the_page_cannot_hold_is_refused(world, tmp_path):
    """Another kind of M, and numbers beyond half precision."""
    loaded = load_world(world)
    other = GRU(dataclasses.replace(TAKE_COVER, hidden_size=8), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="dreams M of the kind lstm"):
        folder.write(tmp_path, dataclasses.replace(loaded, memory=other), None)
    loaded.memory.lstm_bias[...] = loaded.memory.lstm_bias[...].at[0].set(1e9)
    with pytest.raises(ValueError, match="memory.lstm_bias has a number beyond half precision"):
        folder.write(tmp_path, loaded, None)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_dream_goes_on_from_a_real_game():
    """What V saw and M remembers of it is what the agent had there when it played."""
    world = load_world("take-cover")
    frames, latents, actions = watch(world, world.player, 3, 30)
    state = dream_from(world, frames[:21], actions[:20])
    mu, logvar = world.vision.encode(frames[:21])
    assert int(state.time) == 20
    np.testing.assert_allclose(state.z, mu[20], atol=1e-4)
    assert np.abs((latents[:21] - mu) / jnp.exp(logvar / 2)).mean() < 1.2  # they were drawn so
    carry = world.memory.initial_carry()
    for t in range(20):
        carry, _ = world.memory(carry, mu[t], actions[t], jnp.int32(t))
    np.testing.assert_allclose(state.carry[1], carry[1], atol=1e-4)
    again = dream_from(world, frames[:21], actions[:20], jax.random.key(1))
    assert not np.allclose(again.z, mu[20], atol=1e-3)
    env, params = world.env(), world.params()
    _, after, *_ = env.step_env(jax.random.key(0), state, actions[20], params)
    assert int(after.time) == 21 and isinstance(after, EnvState)
    first = dream_from(world, frames[:1], actions[:0])
    np.testing.assert_array_equal(first.carry[1], 0)


@pytest.mark.slow
def test_a_dream_with_dropout_goes_on_with_one_mask():
    """Of the world's dropout or the one asked for, through `env.step`, which resets as well."""
    world = dataclasses.replace(load_world("take-cover"), dropout=0.3)
    env, step = world.env(), np.zeros((1, 1), np.float32)
    game = world, np.zeros((2, 64, 64, 3), np.uint8), step
    for key, dropout in ((None, None), (jax.random.key(1), None), (jax.random.key(1), 0.0)):
        state, params = dream_from(*game, key, dropout), world.params(dropout=dropout)
        _, after, *_ = env.step(jax.random.key(0), state, step[0], params)
        jax.tree.map(np.testing.assert_array_equal, after.mask, state.mask)
        if dropout == 0:
            assert state.mask is None
        else:
            share = np.mean(np.asarray(state.mask.h) == 0)
            assert share == 0 if key is None else 0.15 < share < 0.45


@pytest.mark.parametrize(
    ("frames", "actions", "words"),
    [
        ((3, 64, 64, 3), (3, 3), "actions must be"),
        ((64, 64, 3), (0, 3), "frames must be"),
        ((0, 64, 64, 3), (0, 3), "frames must be"),
        ((252, 64, 64, 3), (251, 3), "ends after 250 steps"),
    ],
)
def test_what_is_no_episode_is_refused(frames, actions, words):
    with pytest.raises(ValueError, match=words):
        dream_from(load_world("car-racing"), np.zeros(frames, np.uint8), np.zeros(actions))
    with pytest.raises(ValueError, match="frames must be uint8"):
        dream_from(load_world("car-racing"), np.zeros((1, 64, 64, 3)), np.zeros((0, 3)))
    with pytest.raises(ValueError, match="NaN"):
        dream_from(
            load_world("car-racing"), np.zeros((2, 64, 64, 3), np.uint8), np.full((1, 3), np.nan)
        )


@pytest.mark.slow
def test_the_forms_of_actions_are_those_of_the_page():
    assert folder._actions(CAR_RACING.actions)["form"] == "box"
    assert folder._actions(TAKE_COVER.actions)["form"] == "keys"
    assert folder._actions(Choice(4))["form"] == "choice"
    assert isinstance(load_world("take-cover").controller(), LinearController)
