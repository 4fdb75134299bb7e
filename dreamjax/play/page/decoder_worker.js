// Draws pictures beside the dream, which never waits for one: on the graphics card where that is
// faster, else in typed arrays.

import { Decoder, SIDE } from "./decoder.js";
import { GraphicsDecoder } from "./decoder_gl.js";

let decoder = null;

onmessage = ({ data }) => {
  if (data.vision) {
    const { chosen, name, why } = choose(data.vision, data.only);
    decoder = chosen;
    postMessage({ decoder: name, why });
  } else if (data.floats) {
    postMessage({ number: data.number, picture: decoder.decode(data.z) });
  } else {
    answer(data.number, data.z);
  }
};

function answer(number, z) {
  if (decoder instanceof GraphicsDecoder) {
    const picture = decoder.draw(z).transferToImageBitmap();
    postMessage({ number, picture }, [picture]);
  } else {
    const picture = opaque(decoder.decode(z));
    postMessage({ number, picture }, [picture.data.buffer]);
  }
}

/** The decoder to use, its name, and why it is not the graphics card's. */
function choose(vision, only) {
  const arrays = { chosen: new Decoder(vision), name: "typed arrays" };
  if (only === "arrays") return { ...arrays, why: "asked for" };
  try {
    const graphics = new GraphicsDecoder(vision, new OffscreenCanvas(SIDE, SIDE));
    const size = vision["dense.kernel"].shape[0];
    const faster = only === "webgl2" || seconds(graphics, size) < seconds(arrays.chosen, size);
    if (faster) return { chosen: graphics, name: "WebGL2" };
    return { ...arrays, why: "WebGL2 is slower here" };
  } catch (error) {
    return { ...arrays, why: error.message };
  }
}

/** Seconds of a picture, the best of three after one. */
function seconds(decoder, size) {
  const times = Array.from({ length: 4 }, () => {
    const start = performance.now();
    decoder.decode(new Float32Array(size));
    return performance.now() - start;
  });
  return Math.min(...times.slice(1));
}

/** Pixels with their alpha. */
function opaque(picture) {
  const found = new ImageData(SIDE, SIDE);
  for (let i = 0, at = 0; i < picture.length; i += 3) {
    for (let colour = 0; colour < 3; colour++) found.data[at++] = 255 * picture[i + colour] + 0.5;
    found.data[at++] = 255;
  }
  return found;
}
