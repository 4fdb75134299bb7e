// Pictures of latents, from the worker that draws them.

import { SIDE } from "./decoder.js";

/** The worker that decodes, and what it was asked for. */
export class Pictures {
  /** @param vision - V's arrays by their names. @param only - "webgl2", "arrays" or null for the faster. */
  constructor(vision, only) {
    this.asked = new Map();
    this.number = 0;
    this.worker = new Worker(new URL("./decoder_worker.js", import.meta.url), { type: "module" });
    this.ready = new Promise((resolve, reject) => {
      this.worker.onerror = (event) => reject(new Error(event.message || "the decoder does not start"));
      this.worker.onmessage = ({ data }) => {
        if (data.decoder) return resolve(data);
        this.asked.get(data.number)(data.picture);
        this.asked.delete(data.number);
      };
    });
    this.worker.postMessage({ vision, only });
  }

  /** The picture of z, to be drawn on a canvas. */
  of(z) {
    return this.ask({ z });
  }

  /** The picture of z as Float32Array [64, 64, 3] in [0, 1]. */
  floats(z) {
    return this.ask({ z, floats: true });
  }

  ask(request) {
    const number = this.number++;
    this.worker.postMessage({ ...request, number });
    return new Promise((resolve) => this.asked.set(number, resolve));
  }
}

/** A canvas that shows the newest latent; those that come while it waits for one are passed over. */
export class Screen {
  constructor(canvas, pictures) {
    this.context = Object.assign(canvas, { width: SIDE, height: SIDE }).getContext("2d");
    this.pictures = pictures;
    this.drawn = 0;
    this.next = null;
    this.newest = null;
    this.waits = false;
  }

  async show(z) {
    if (z === this.newest) return;
    this.next = this.newest = z;
    if (this.waits) return;
    this.waits = true;
    while (this.next) {
      const now = this.next;
      this.next = null;
      paint(this.context, await this.pictures.of(now));
      this.drawn++;
    }
    this.waits = false;
  }
}

/** Draw what `Pictures.of` gave. */
export function paint(context, picture) {
  if (picture instanceof ImageData) {
    context.putImageData(picture, 0, 0);
  } else {
    context.drawImage(picture, 0, 0, SIDE, SIDE);
    picture.close();
  }
}
