// V's decoder in typed arrays: a latent becomes a picture on any machine.

import { addRows, affine, sigmoid } from "./linear.js";

export const SIDE = 64; // pixels of a picture, each way
export const WIDENINGS = ["deconv1", "deconv2", "deconv3", "deconv4"];

/** V's decoder; `arrays` are those of V by their names. */
export class Decoder {
  constructor(arrays) {
    this.dense = { kernel: arrays["dense.kernel"], bias: arrays["dense.bias"] };
    this.layers = WIDENINGS.map((name) => widening(arrays[`${name}.kernel`], arrays[`${name}.bias`]));
  }

  /** The picture of z [Z] as Float32Array [64, 64, 3] in [0, 1]. */
  decode(z) {
    let image = affine(z, this.dense.kernel, this.dense.bias);
    let side = 1;
    this.layers.forEach((layer, depth) => {
      [image, side] = widen(layer, image, side);
      const last = depth === this.layers.length - 1;
      for (let i = 0; i < image.length; i++) image[i] = last ? sigmoid(image[i]) : Math.max(image[i], 0);
    });
    return image;
  }
}

/** A transposed convolution of stride 2: its kernel, laid out as [inputs, size, size, outputs]. */
function widening(kernel, bias) {
  const [size, , outputs, inputs] = kernel.shape;
  const places = size * size * outputs;
  const laid = new Float32Array(inputs * places);
  for (let place = 0; place < places; place++) {
    for (let i = 0; i < inputs; i++) laid[i * places + place] = kernel.data[place * inputs + i];
  }
  return { size, outputs, inputs, laid, bias: bias.data };
}

/** An image [side, side, inputs] widened to [2 side + size - 2, same, outputs], and its side. */
function widen({ size, outputs, inputs, laid, bias }, image, side) {
  const wide = 2 * (side - 1) + size;
  const out = new Float32Array(wide * wide * outputs);
  for (let i = 0; i < out.length; i++) out[i] = bias[i % outputs];
  const row = size * outputs; // numbers in a row of a patch, one after another in `out` too
  const values = new Float32Array(inputs);
  const starts = new Int32Array(inputs);
  const shifted = new Int32Array(inputs);
  for (let pixel = 0; pixel < side * side; pixel++) {
    let count = 0;
    for (let i = 0; i < inputs; i++) {
      const value = image[pixel * inputs + i];
      if (value !== 0) { // half of them are, after a relu
        values[count] = value;
        starts[count++] = i * size * row;
      }
    }
    const corner = (2 * Math.floor(pixel / side) * wide + 2 * (pixel % side)) * outputs;
    for (let y = 0; y < size; y++) {
      for (let k = 0; k < count; k++) shifted[k] = starts[k] + y * row;
      addRows(out, corner + y * wide * outputs, row, laid, shifted, values, count);
    }
  }
  return [out, wide];
}
