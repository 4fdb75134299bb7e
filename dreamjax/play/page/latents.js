// Fifteen sliders, for the latent numbers that change the picture most.

import { SIDE } from "./decoder.js";
import { paint } from "./picture.js";

const SHOWN = 15;
const FAR = 2; // how far the small pictures go: standard deviations of V's prior

/** The sliders; `change(z)` hears of a latent that the reader made. */
export class Latents {
  constructor(root, pictures, change) {
    this.root = root;
    this.pictures = pictures;
    this.change = change;
    this.rows = [];
    this.z = null;
  }

  /** Choose the latents by what they do to the picture of z, and show how far each can go. */
  async open(z) {
    this.root.replaceChildren("looking…");
    this.z = z;
    const far = await Promise.all(Array.from(z, (_, i) => this.ends(z, i)));
    const order = far.map(({ effect }, i) => [effect, i]).sort((a, b) => b[0] - a[0]);
    this.rows = order.slice(0, SHOWN).map(([, i]) => this.row(i));
    this.root.replaceChildren(...this.rows.map((row) => row.element));
    this.follow(z);
    for (const row of this.rows) {
      for (const [side, canvas] of [[-FAR, row.low], [FAR, row.high]]) {
        paint(canvas.getContext("2d"), await this.pictures.of(moved(z, row.i, side)));
      }
    }
  }

  /** How much the picture of z changes from one end of latent i to the other. */
  async ends(z, i) {
    const asked = [-FAR, FAR].map((side) => this.pictures.floats(moved(z, i, side)));
    const [low, high] = await Promise.all(asked);
    return { effect: low.reduce((sum, x, at) => sum + Math.abs(x - high[at]), 0) };
  }

  row(i) {
    const element = document.createElement("label");
    const slider = document.createElement("input");
    const [low, high] = [0, 1].map(() => {
      const canvas = document.createElement("canvas");
      return Object.assign(canvas, { width: SIDE, height: SIDE });
    });
    Object.assign(slider, { type: "range", min: -3, max: 3, step: 0.01, ariaLabel: `latent ${i}` });
    slider.addEventListener("input", () => {
      this.z = moved(this.z, i, Number(slider.value));
      this.change(this.z);
    });
    element.append(low, slider, high);
    return { i, element, slider, low, high };
  }

  /** Let the sliders stand where z is. */
  follow(z) {
    this.z = z;
    for (const { i, slider } of this.rows) slider.value = z[i];
  }
}

function moved(z, i, value) {
  const other = Float32Array.from(z);
  other[i] = value;
  return other;
}
