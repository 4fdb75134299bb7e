// The page: a dream that runs, whoever plays it, and what may be turned while it does.

import { DamagedError, checkArrays, parseArrays, within } from "./arrays.js";
import { Controller } from "./controller.js";
import { Dream } from "./dream.js";
import { Latents } from "./latents.js";
import { Memory } from "./memory.js";
import { Pictures, Screen } from "./picture.js";
import { Hands } from "./player.js";
import { Random } from "./random.js";
import { loadRecording } from "./recording.js";
import { Trace } from "./trace.js";

const SPEEDS = [0.25, 0.5, 1, 2, 4, 1000]; // the last is as fast as it goes
const PATIENCE = 20; // milliseconds of a frame that dreaming may take
const PAUSE = 1500; // milliseconds between a dream's end and the next dream
const [DOUBTERS, DOUBTFUL] = [8, 0.1]; // masks whose predictions are compared; what each drops
const POLL = 2000; // milliseconds between looks for a recording that is being made

const $ = (id) => document.getElementById(id);

class Page {
  constructor(facts, arrays) {
    this.facts = facts;
    const starts = { mu: arrays.get("initial_mu"), logvar: arrays.get("initial_logvar") };
    this.memory = new Memory(facts.memory, within(arrays, "memory."));
    this.dream = new Dream(facts, this.memory, starts);
    const weights = arrays.get("controller")?.data;
    this.controller = weights && new Controller(facts.controller, weights, facts.actions);
    this.pictures = new Pictures(within(arrays, "vision."), facts.only);
    this.screen = new Screen($("dream"), this.pictures);
    this.hands = new Hands(facts.actions, $("dream"));
    const apart = new Random(1); // not the dream's own: doubt changes nothing of it
    this.doubters = Array.from({ length: DOUBTERS }, () => apart.mask(this.memory, DOUBTFUL));
    this.trace = new Trace($("trace"), $("trace-label"), facts);
    this.latents = new Latents($("latents"), this.pictures, (z) => this.become(z));
    this.recording = null;
    this.rolling = false; // the recording plays
    this.paused = false;
    this.due = 0; // steps that time asks for
    this.steps = 0; // dreamt so far
    this.previous = null; // the latent before the newest
  }

  /** Begin the dream of a seed. */
  begin(seed) {
    this.seed = seed;
    this.random = new Random(seed);
    this.goOn(() => this.dream.reset(this.random.noise(this.memory.latent_size), this.mask()));
    this.replaying = false;
    this.remember();
  }

  /** What M does not read in a new dream. */
  mask() {
    return this.random.mask(this.memory, this.facts.dropout);
  }

  /** Set the dream's state by `place`, and count anew. */
  goOn(place) {
    place();
    this.total = 0;
    this.touched = false; // by the reader's hands
    this.due = 0;
    this.over = null;
    this.previous = this.dream.state.z;
    this.trace.clear();
    $("over").hidden = true;
    this.screen.show(this.dream.state.z);
  }

  /** Write seed and tau into the address. */
  remember() {
    const tau = this.dream.tau === this.facts.temperature ? "" : `&tau=${this.dream.tau}`;
    history.replaceState(null, "", `#seed=${this.seed}${tau}`);
    $("seed").value = this.seed;
    $("tau").value = this.dream.tau;
    $("tau-shown").textContent = this.dream.tau.toFixed(2);
  }

  /** One step of the dream, by whoever holds the wheel. */
  advance() {
    const { dream } = this;
    const [who, action] = this.choose();
    this.previous = dream.state.z;
    const doubt = $("doubt").checked ? dream.doubt(action, this.doubters) : null;
    dream.step(action, this.random.noise(this.memory.latent_size));
    this.steps++;
    this.total += dream.state.reward;
    this.touched ||= who === "you";
    this.trace.add({ ...dream.state, doubt });
    this.shown(who);
    if (dream.state.ended) this.finish();
  }

  /** Who plays, and the action. */
  choose() {
    const { time } = this.dream.state;
    const hands = this.hands.action();
    if (hands) return ["you", hands];
    if (this.replaying && time < this.recording.length) return ["recording", this.recording.actions[time]];
    if (this.controller) return ["c", this.controller.act(this.dream.features())];
    return ["nobody", this.idle()];
  }

  /** The action nearest to doing nothing. */
  idle() {
    const { low, high } = this.facts.actions;
    return Float32Array.from(low, (bound, i) => Math.min(Math.max(0, bound), high[i]));
  }

  shown(who) {
    const words = { you: "You play", c: "C plays", recording: "As recorded", nobody: "Nobody plays" };
    if ($("badge").textContent !== words[who]) $("badge").textContent = words[who];
    $("badge").dataset.who = who;
  }

  finish() {
    this.over = performance.now();
    const survived = this.dream.state.ended === "time";
    $("over").textContent = `${survived ? "to the end" : "over"}: ${this.points()}`;
    $("over").hidden = false;
    if (!this.replaying) noteBest(this.facts, this.touched ? "you" : "C", this.total);
    showBest(this.facts);
  }

  points() {
    return this.facts.step_reward === null ? this.total.toFixed(0) : `${this.total.toFixed(0)} steps`;
  }

  /** Everything that an animation frame does. */
  frame(now) {
    const passed = Math.min(now - (this.before ?? now), 250);
    this.before = now;
    const speed = SPEEDS[$("speed").value];
    if (this.over !== null) {
      if (!this.paused && now - this.over > PAUSE / Math.max(speed, 1)) this.begin(this.seed + 1);
    } else if (!this.paused) {
      this.catchUp(passed, speed);
    }
    this.screen.show(this.between(speed));
    this.panels(now);
  }

  /** Dream as many steps as time asks for, as far as there is time for them. */
  catchUp(passed, speed) {
    const start = performance.now();
    this.due += (passed / 1000) * this.facts.steps_per_second * speed;
    while (this.due >= 1 && this.over === null) {
      this.advance();
      this.due--;
      if (performance.now() - start > PATIENCE) this.due %= 1;
    }
  }

  /** The latent to show: where a step is several of the game's frames, one on the way. */
  between(speed) {
    const { z } = this.dream.state;
    if (this.facts.frame_skip === 1 || this.paused || speed > 1 || this.over !== null) return z;
    const share = Math.min(this.due, 1);
    return z.map((x, i) => this.previous[i] + share * (x - this.previous[i]));
  }

  panels(now) {
    $("score").textContent = this.total.toFixed(0);
    this.trace.draw();
    if ($("latents-panel").open && !this.paused) this.latents.follow(this.dream.state.z);
    if (this.recording) this.roll(now);
    this.rates(now);
  }

  /** Show how fast it goes, once a second. */
  rates(now) {
    const since = now - (this.counted?.now ?? 0);
    if (since < 1000) return;
    const rate = (count, before) => Math.round((1000 * (count - (before ?? count))) / since);
    const steps = rate(this.steps, this.counted?.steps);
    const drawn = rate(this.screen.drawn, this.counted?.drawn);
    $("rates").textContent = `${steps} steps and ${drawn} pictures a second, ${this.decoder}`;
    this.counted = { now, steps: this.steps, drawn: this.screen.drawn };
  }

  /** The reader made a latent: stop, and go on from it. */
  become(z) {
    this.pause(true);
    this.previous = z;
    this.dream.goOn({ ...this.dream.state, z, ended: null });
    this.over = null;
    $("over").hidden = true;
  }

  pause(on) {
    this.paused = on;
    $("pause").firstChild.textContent = on ? "Go on " : "Pause ";
  }

  /** One step alone. */
  single() {
    this.pause(true);
    if (this.over === null) this.advance();
    else this.begin(this.seed + 1);
  }

  turn(tau) {
    this.dream.tau = tau;
    this.remember();
  }

  /** Show the recording where its slider stands, or where the dream is that goes on from it. */
  roll(now) {
    if (this.recording.prepare()) this.recording.prepare();
    $("dreamt").getContext("2d").drawImage($("dream"), 0, 0);
    const slider = $("moment");
    const last = this.recording.length - 1;
    if (this.replaying) slider.value = Math.min(this.dream.state.time, last);
    else if (this.rolling && now - (this.rolled ?? 0) > 1000 / this.facts.steps_per_second) {
      slider.value = (Number(slider.value) + 1) % (last + 1);
      this.rolled = now;
    }
    const t = Number(slider.value);
    if (t === this.momentShown) return;
    this.momentShown = t;
    $("moment-shown").textContent = t;
    this.recording.paint($("real").getContext("2d"), t);
    this.seen.show(this.recording.latents[t]);
  }

  dreamOn() {
    const t = Number($("moment").value);
    this.rolling = false;
    this.goOn(() => this.dream.goOn({ ...this.recording.moment(t), mask: this.mask() }));
    this.replaying = $("same").checked;
    this.pause(false);
  }

  /** Take a recording, once there is one. */
  async record() {
    let facts = this.facts;
    while (facts.recording === "coming") {
      $("recording-state").textContent = "C plays a real game for this; it takes some seconds.";
      await new Promise((resolve) => setTimeout(resolve, POLL));
      facts = await (await fetch("page.json")).json();
    }
    if (!facts.recording.endsWith(".json")) {
      $("recording-state").textContent = facts.recording;
      return;
    }
    const recording = await loadRecording(facts.recording, this.memory);
    $("moment").max = recording.length - 1;
    this.seen = new Screen($("seen"), this.pictures);
    this.recording = recording;
    $("recording-state").textContent = "A real game that C played, frame by frame.";
    $("recording").hidden = false;
  }
}

/** Best results of today, by whoever played: kept in this browser alone. */
function bests(facts) {
  try {
    return JSON.parse(localStorage.getItem(bestKey(facts))) ?? {};
  } catch {
    return {};
  }
}

function bestKey(facts) {
  return `dreamjax ${facts.sha256.slice(0, 12)} ${new Date().toDateString()}`;
}

function noteBest(facts, who, total) {
  const found = bests(facts);
  found[who] = Math.max(found[who] ?? -Infinity, Math.round(total));
  try {
    localStorage.setItem(bestKey(facts), JSON.stringify(found));
  } catch {
    // a browser that keeps nothing: the page works without
  }
}

function showBest(facts) {
  const found = Object.entries(bests(facts)).map(([who, total]) => `${who} ${total}`);
  $("best").textContent = found.length ? `best of today: ${found.join(", ")}` : "";
}

/** What the keys do in this game. */
function help({ form, low }) {
  const hands = "Take over by keys, mouse, touch or gamepad; hands off, and C plays on.";
  if (form === "choice") return `← → or 1 to ${low.length}: act. ${hands}`;
  return `${low.length > 1 ? "← → ↑ ↓" : "← →"}: steer. ${hands}`;
}

/** Buttons for the choices of a game that has them. */
function choiceButtons(page) {
  if (page.facts.actions.form !== "choice") return;
  page.facts.actions.low.forEach((_, i) => {
    const button = Object.assign(document.createElement("button"), { textContent: i + 1 });
    const hold = (down) => () => page.hands.press(`${i + 1}`, down);
    button.addEventListener("pointerdown", hold(true));
    for (const name of ["pointerup", "pointerleave"]) button.addEventListener(name, hold(false));
    $("choices").append(button);
  });
}

/** Everything that can be pressed or moved. */
function wire(page) {
  const acts = {
    pause: () => page.pause(!page.paused),
    step: () => page.single(),
    restart: () => page.begin(page.seed),
    new: () => page.begin(page.seed + 1),
    look: () => page.latents.open(page.dream.state.z),
    roll: () => (page.rolling = !page.rolling),
    "dream-on": () => page.dreamOn(),
  };
  for (const [id, act] of Object.entries(acts)) $(id).addEventListener("click", act);
  const keys = { p: "pause", ".": "step", r: "restart", n: "new" };
  addEventListener("keydown", (event) => {
    const plain = !(event.ctrlKey || event.metaKey || event.altKey || event.repeat);
    const id = keys[event.key.toLowerCase()];
    if (id && plain && event.target.type !== "number") acts[id]();
  });
  $("tau").addEventListener("input", () => page.turn(Number($("tau").value)));
  $("speed").addEventListener("input", showSpeed);
  $("seed").addEventListener("change", () => page.begin(wholeNumber($("seed").value) ?? page.seed));
  $("moment").addEventListener("input", () => ((page.replaying = false), (page.rolling = false)));
  $("latents-panel").addEventListener("toggle", () => {
    if ($("latents-panel").open && !page.latents.rows.length) page.latents.open(page.dream.state.z);
  });
  addEventListener("hashchange", () => page.begin(address(page).seed));
  // The arrow keys steer again once a slider is let go of by pointer.
  addEventListener("pointerup", (event) => event.target.type === "range" && event.target.blur());
  showSpeed();
}

function showSpeed() {
  const speed = SPEEDS[$("speed").value];
  $("speed-shown").textContent = speed === SPEEDS.at(-1) ? "as fast as it goes" : `${speed} ×`;
}

function wholeNumber(text) {
  const number = Number(text);
  return text !== "" && Number.isSafeInteger(number) && number >= 0 ? number : null;
}

/** Seed and tau of the address, where it names any. */
function address(page) {
  const said = new URLSearchParams(location.hash.slice(1));
  const tau = Number(said.get("tau"));
  if (tau >= 0.1 && tau <= 2) page.dream.tau = tau;
  return { seed: wholeNumber(said.get("seed") ?? "") ?? Math.floor(Math.random() * 1e6) };
}

async function load() {
  const facts = await (await fetch("page.json")).json();
  document.title = `A dream of ${facts.title}`;
  $("title").textContent = document.title;
  const answer = await fetch(facts.weights);
  if (!answer.ok) throw new DamagedError("The weights file is missing.");
  const buffer = await answer.arrayBuffer();
  await checkArrays(buffer, facts);
  const arrays = parseArrays(buffer);
  for (const [part, name] of [["V", "vision.dense.kernel"], ["M", "memory.lstm_kernel"]]) {
    if (!arrays.has(name)) throw new DamagedError(`The weights file holds no ${part}.`);
  }
  return new Page({ ...facts, only: new URLSearchParams(location.search).get("decoder") }, arrays);
}

async function main() {
  const page = await load();
  const { decoder, why } = await page.pictures.ready;
  page.decoder = why ? `drawn by ${decoder} (${why})` : `drawn by ${decoder}`;
  $("keys").textContent = help(page.facts.actions);
  $("unit").textContent = page.facts.step_reward === null ? "return" : "steps survived";
  choiceButtons(page);
  wire(page);
  showBest(page.facts);
  page.begin(address(page).seed);
  const loop = (now) => {
    page.frame(now);
    requestAnimationFrame(loop);
  };
  requestAnimationFrame(loop);
  page.record();
  globalThis.dreamPage = page; // for the console
}

main().catch((error) => {
  const remedy = error instanceof DamagedError ? " Write the folder again: dreamjax play WORLD --out DIR." : "";
  $("message").textContent = `This dream cannot begin. ${error.message}${remedy}`;
  $("message").hidden = false;
  document.querySelector("main").hidden = true;
});
