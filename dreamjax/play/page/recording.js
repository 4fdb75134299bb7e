// A recorded real game: its frames, what V makes of them, and dreams that go on from one of them.

import { SIDE } from "./decoder.js";

/** Load the recording that page.json names. */
export async function loadRecording(name, memory) {
  const said = await (await fetch(name)).json();
  const sheet = new Image();
  sheet.src = said.frames;
  await sheet.decode();
  return new Recording(said, sheet, memory);
}

/** Frames [T] on one sheet, latents [T, Z] that V saw in them, actions [T, A]. */
export class Recording {
  constructor({ columns, latents, actions }, sheet, memory) {
    Object.assign(this, { columns, sheet, memory });
    this.latents = latents.map((z) => Float32Array.from(z));
    this.actions = actions.map((action) => Float32Array.from(action));
    this.carries = [memory.initialCarry()]; // what M remembers before each step, as far as known
  }

  get length() {
    return this.latents.length;
  }

  /** Draw frame t. */
  paint(context, t) {
    const x = (t % this.columns) * SIDE;
    const y = Math.floor(t / this.columns) * SIDE;
    context.drawImage(this.sheet, x, y, SIDE, SIDE, 0, 0, SIDE, SIDE);
  }

  /** Let M remember one more step; false once it knows them all. */
  prepare() {
    const t = this.carries.length - 1;
    if (t >= this.length - 1) return false;
    this.carries.push(this.memory.remember(this.carries[t], this.latents[t], this.actions[t], t));
    return true;
  }

  /** The state of a dream that goes on from frame t. */
  moment(t) {
    while (this.carries.length <= t) this.prepare();
    return { time: t, z: this.latents[t], carry: this.carries[t] };
  }
}
