// V's decoder on the graphics card, in WebGL2: a pass for each layer.
//
// An image of C channels and `side` x `side` pixels is a texture of four channels a texel, `side`
// wide and side * C / 4 high: the first four channels' pixels, below them the next four's.

import { affine } from "./linear.js";
import { SIDE, WIDENINGS } from "./decoder.js";

const WEIGHTS_WIDTH = 1024; // texels in a row of a texture of weights

const CORNERS = `#version 300 es
void main() { // one triangle that covers everything
  gl_Position = vec4(gl_VertexID == 1 ? 3 : -1, gl_VertexID == 2 ? 3 : -1, 0, 1);
}`;

// A transposed convolution of stride 2: pixel (x, y) gathers what the pixels of the image below
// spread on it.
const WIDEN = `#version 300 es
precision highp float;
precision highp sampler2D;
uniform sampler2D image, weights, biases;
uniform int side, wide, size, inputs, outputs; // inputs and outputs in fours
uniform bool rectified;
out vec4 found;
void main() {
  ivec2 here = ivec2(gl_FragCoord.xy);
  int group = here.y / wide, x = here.x, y = here.y - group * wide;
  vec4 sum = texelFetch(biases, ivec2(group, 0), 0);
  for (int dy = y & 1; dy < size; dy += 2) {
    int row = (y - dy) / 2;
    if (y < dy || row >= side) continue;
    for (int dx = x & 1; dx < size; dx += 2) {
      int column = (x - dx) / 2;
      if (x < dx || column >= side) continue;
      int at = ((dy * size + dx) * outputs + group) * inputs * 4;
      for (int i = 0; i < inputs; i++, at += 4) {
        vec4 seen = texelFetch(image, ivec2(column, i * side + row), 0);
        ivec2 w = ivec2(at & ${WEIGHTS_WIDTH - 1}, at / ${WEIGHTS_WIDTH});
        sum += vec4(dot(seen, texelFetch(weights, w, 0)),
                    dot(seen, texelFetch(weights, w + ivec2(1, 0), 0)),
                    dot(seen, texelFetch(weights, w + ivec2(2, 0), 0)),
                    dot(seen, texelFetch(weights, w + ivec2(3, 0), 0)));
      }
    }
  }
  found = rectified ? max(sum, 0.0) : 1.0 / (1.0 + exp(-sum));
}`;

const SHOW = `#version 300 es
precision highp float;
uniform highp sampler2D image;
out vec4 found;
void main() {
  found = vec4(texelFetch(image, ivec2(gl_FragCoord.x, ${SIDE - 1} - int(gl_FragCoord.y)), 0).rgb, 1);
}`;

/** V's decoder; `canvas` shows what was last drawn, and is SIDE pixels wide and high. */
export class GraphicsDecoder {
  /** @throws {Error} where WebGL2, or drawing of floats, is missing. */
  constructor(arrays, canvas) {
    this.canvas = Object.assign(canvas, { width: SIDE, height: SIDE });
    const gl = (this.gl = canvas.getContext("webgl2", { alpha: false, preserveDrawingBuffer: true }));
    if (!gl) throw new Error("this browser has no WebGL2");
    if (!gl.getExtension("EXT_color_buffer_float")) throw new Error("WebGL2 draws no floats here");
    this.dense = { kernel: arrays["dense.kernel"], bias: arrays["dense.bias"] };
    this.widen = program(gl, WIDEN);
    this.show = program(gl, SHOW);
    this.first = texture(gl, 1, arrays["dense.bias"].data.length / 4, null);
    let side = 1;
    this.layers = WIDENINGS.map((name, depth) => {
      const rectified = depth < WIDENINGS.length - 1;
      const layer = this.layer(arrays[`${name}.kernel`], arrays[`${name}.bias`], side, rectified);
      side = layer.wide;
      return layer;
    });
  }

  layer(kernel, bias, side, rectified) {
    const { gl } = this;
    const [size, , outputs, inputs] = kernel.shape;
    const fours = Math.ceil(outputs / 4);
    const wide = 2 * (side - 1) + size;
    const offsets = new Float32Array(4 * fours);
    offsets.set(bias.data);
    const image = texture(gl, wide, wide * fours, null);
    return {
      uniforms: { side, wide, size, inputs: inputs / 4, outputs: fours, rectified: Number(rectified) },
      wide,
      height: wide * fours,
      weights: texture(gl, WEIGHTS_WIDTH, null, inFours(kernel, fours)),
      biases: texture(gl, fours, 1, offsets),
      image,
      target: framebuffer(gl, image),
    };
  }

  /** Draw the picture of z [Z] on the canvas. */
  draw(z) {
    const { gl } = this;
    this.compute(z);
    gl.bindFramebuffer(gl.FRAMEBUFFER, null);
    gl.viewport(0, 0, SIDE, SIDE);
    gl.useProgram(this.show.program);
    bind(gl, this.show, { image: this.layers.at(-1).image });
    gl.drawArrays(gl.TRIANGLES, 0, 3);
    return this.canvas;
  }

  /** The picture of z [Z] as Float32Array [64, 64, 3] in [0, 1]. */
  decode(z) {
    const { gl } = this;
    this.compute(z);
    const texels = new Float32Array(SIDE * SIDE * 4);
    gl.readPixels(0, 0, SIDE, SIDE, gl.RGBA, gl.FLOAT, texels);
    return texels.filter((_, i) => i % 4 < 3);
  }

  compute(z) {
    const { gl } = this;
    const dense = affine(z, this.dense.kernel, this.dense.bias);
    gl.bindTexture(gl.TEXTURE_2D, this.first);
    gl.texSubImage2D(gl.TEXTURE_2D, 0, 0, 0, 1, dense.length / 4, gl.RGBA, gl.FLOAT, dense);
    gl.useProgram(this.widen.program);
    let image = this.first;
    for (const layer of this.layers) {
      gl.bindFramebuffer(gl.FRAMEBUFFER, layer.target);
      gl.viewport(0, 0, layer.wide, layer.height);
      bind(gl, this.widen, { image, weights: layer.weights, biases: layer.biases });
      for (const [name, value] of Object.entries(layer.uniforms)) {
        gl.uniform1i(this.widen.places[name], value);
      }
      gl.drawArrays(gl.TRIANGLES, 0, 3);
      image = layer.image;
    }
  }
}

/** A kernel [size, size, outputs, inputs] by fours: [size, size, outputs / 4, inputs / 4, 4, 4]. */
function inFours({ shape: [size, , outputs, inputs], data }, fours) {
  const rows = Math.ceil((size * size * fours * inputs) / WEIGHTS_WIDTH);
  const laid = new Float32Array(rows * WEIGHTS_WIDTH * 4);
  let from = 0;
  for (let place = 0; place < size * size; place++) {
    for (let o = 0; o < outputs; o++) {
      const group = (place * fours + (o >> 2)) * inputs * 4 + (o & 3) * 4;
      for (let i = 0; i < inputs; i++) laid[group + (i >> 2) * 16 + (i & 3)] = data[from++];
    }
  }
  return laid;
}

/** A texture of four floats a texel; `height` null is what the data fill. */
function texture(gl, width, height, data) {
  const made = gl.createTexture();
  gl.bindTexture(gl.TEXTURE_2D, made);
  for (const side of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) {
    gl.texParameteri(gl.TEXTURE_2D, side, gl.NEAREST);
  }
  const rows = height ?? data.length / 4 / width;
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA32F, width, rows, 0, gl.RGBA, gl.FLOAT, data);
  return made;
}

function framebuffer(gl, image) {
  const made = gl.createFramebuffer();
  gl.bindFramebuffer(gl.FRAMEBUFFER, made);
  gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, image, 0);
  if (gl.checkFramebufferStatus(gl.FRAMEBUFFER) !== gl.FRAMEBUFFER_COMPLETE) {
    throw new Error("WebGL2 draws no floats here");
  }
  return made;
}

/** A compiled program and the places of its uniforms, by name. */
function program(gl, fragment) {
  const made = gl.createProgram();
  for (const [type, source] of [[gl.VERTEX_SHADER, CORNERS], [gl.FRAGMENT_SHADER, fragment]]) {
    const shader = gl.createShader(type);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(made, shader);
  }
  gl.linkProgram(made);
  if (!gl.getProgramParameter(made, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(made));
  const count = gl.getProgramParameter(made, gl.ACTIVE_UNIFORMS);
  const names = Array.from({ length: count }, (_, i) => gl.getActiveUniform(made, i).name);
  const places = Object.fromEntries(names.map((name) => [name, gl.getUniformLocation(made, name)]));
  return { program: made, places };
}

/** Bind textures to a program's samplers, by name. */
function bind(gl, { places }, textures) {
  Object.entries(textures).forEach(([name, image], unit) => {
    gl.activeTexture(gl.TEXTURE0 + unit);
    gl.bindTexture(gl.TEXTURE_2D, image);
    gl.uniform1i(places[name], unit);
  });
  gl.activeTexture(gl.TEXTURE0);
}
