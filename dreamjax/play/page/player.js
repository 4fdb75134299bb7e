// Whoever holds the wheel: keys, mouse, touch and gamepad, read as one action.

const HOLD = 1500; // milliseconds for which hands stay on after the last touch
const KEYS = {
  ArrowLeft: "left", a: "left", ArrowRight: "right", d: "right",
  ArrowUp: "up", w: "up", ArrowDown: "down", s: "down",
};
const PAD = { left: 14, right: 15, up: [0, 7, 12], down: [1, 6, 13] };

/** The reader's hands. */
export class Hands {
  /** @param actions - `facts.actions`. @param picture - the element that is steered by pointer. */
  constructor(actions, picture) {
    this.actions = actions;
    this.held = new Set();
    this.pointer = null;
    this.choice = actions.form === "choice" ? Math.floor((actions.low.length - 1) / 2) : null;
    this.last = -Infinity;
    addEventListener("keydown", (event) => this.key(event, true));
    addEventListener("keyup", (event) => this.key(event, false));
    addEventListener("blur", () => this.held.clear());
    picture.addEventListener("pointerdown", (event) => {
      picture.setPointerCapture(event.pointerId);
      this.point(event, picture);
    });
    picture.addEventListener("pointermove", (event) => this.pointer && this.point(event, picture));
    for (const name of ["pointerup", "pointercancel"]) {
      picture.addEventListener(name, () => (this.pointer = null));
    }
  }

  key(event, down) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.matches?.("input, select, textarea") && down) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const side = KEYS[key] ?? (this.choice !== null && /^[1-9]$/.test(key) ? key : null);
    if (!side) return;
    event.preventDefault();
    this.press(side, down);
  }

  /** Hold a side, or the digit of a choice, or let go of it. */
  press(side, down) {
    if (down) this.held.add(side);
    else this.held.delete(side);
    this.last = performance.now();
  }

  point(event, picture) {
    const box = picture.getBoundingClientRect();
    const place = (at, start, size) => Math.min(Math.max((2 * (at - start)) / size - 1, -1), 1);
    this.pointer = {
      x: place(event.clientX, box.left, box.width),
      y: place(event.clientY, box.top, box.height),
    };
  }

  /** The action [A] of the hands, or null where they are off. */
  action() {
    const { steer, up, down } = this.sides();
    const number = [...this.held].find((side) => /^\d$/.test(side));
    if (steer || up || down || number || this.pointer || this.held.size) this.last = performance.now();
    if (performance.now() - this.last > HOLD) return null;
    return this.choice === null ? this.vector(steer, up, down) : this.chosen(steer, number);
  }

  /** How far each side is pressed: steer in [-1, 1], up and down in [0, 1]. */
  sides() {
    const pads = navigator.getGamepads ? [...navigator.getGamepads()].filter(Boolean) : [];
    const pressed = (side) =>
      Math.max(
        Number(this.held.has(side)),
        ...pads.flatMap((pad) => [PAD[side]].flat().map((button) => pad.buttons[button]?.value ?? 0)),
      );
    const stick = pads.map((pad) => pad.axes[0] ?? 0).find((x) => Math.abs(x) > 0.15) ?? 0;
    const { x, y } = this.pointer ?? { x: 0, y: 0 };
    const steer = pressed("right") - pressed("left") + stick + (Math.abs(x) > 0.1 ? x : 0);
    return {
      steer: Math.min(Math.max(steer, -1), 1),
      up: Math.max(pressed("up"), y < -0.2 ? -y : 0),
      down: Math.max(pressed("down"), y > 0.2 ? y : 0),
    };
  }

  /** Numbers between bounds: the first steers, the second goes up, the last of three down. */
  vector(steer, up, down) {
    const { form, low, high } = this.actions;
    if (form === "keys") return Float32Array.of(Math.sign(steer));
    const pushes = low.length === 2 ? [steer, up - down] : [steer, up, down];
    return Float32Array.from(low, (bound, i) => {
      const rest = Math.min(Math.max(0, bound), high[i]);
      const push = pushes[i] ?? 0;
      return rest + push * (push > 0 ? high[i] - rest : rest - bound);
    });
  }

  /** One of n, by its digit; left is the first, right the last. */
  chosen(steer, number) {
    const n = this.actions.low.length;
    if (steer) this.choice = steer < 0 ? 0 : n - 1;
    else if (number && number <= n) this.choice = number - 1;
    else if (n % 2) this.choice = (n - 1) / 2;
    return Float32Array.from({ length: n }, (_, i) => Number(i === this.choice));
  }
}
