// M: what follows a step. As dreamjax/memory/ computes it, an LSTM under named heads.

import { addRows, sigmoid } from "./linear.js";

const CLOCK = 1000; // steps that M's clock counts as one
const FORGET_BIAS = 1;
const MIN_LOGSTD = -7;

/** M's form, `facts.memory` of page.json, and its arrays by their names. */
export class Memory {
  constructor(form, arrays) {
    Object.assign(this, form); // latent_size, hidden_size, num_mixtures, num_events, clock, ...
    this.arrays = arrays;
    this.inputSize = arrays["lstm_kernel"].shape[0] - form.hidden_size;
    this.width = arrays["head_kernel"].shape[1];
    this.rows = Int32Array.from({ length: arrays["lstm_kernel"].shape[0] }, (_, row) => row);
  }

  /** (c, h) of an M that remembers nothing. */
  initialCarry() {
    return { c: new Float32Array(this.hidden_size), h: new Float32Array(this.hidden_size) };
  }

  /**
   * The carry after z [Z] and action [A] at an age, and what M predicts of the next step. `mask`
   * {z, h} are factors of what M reads, or null.
   */
  step(carry, z, action, age, mask) {
    const read = (name, x) => (mask ? x.map((number, i) => number * mask[name][i]) : x);
    const thinned = { c: carry.c, h: read("h", carry.h) };
    const after = this.remember(thinned, read("z", z), action, age);
    return { carry: after, predicted: this.predict(after.h, z) };
  }

  /** The carry after a step. Age 0 empties what was before. */
  remember(carry, z, action, age) {
    const H = this.hidden_size;
    const { c, h } = age === 0 ? this.initialCarry() : carry;
    const read = new Float32Array(this.inputSize + H);
    read.set(z);
    read.set(this.readAction(action), z.length);
    if (this.reads_restart) read[this.inputSize - 1] = age === 0 ? 1 : this.clock ? -age / CLOCK : 0;
    read.set(h, this.inputSize);
    const gates = this.product(read, "lstm_kernel", "lstm_bias");
    const next = this.initialCarry();
    for (let i = 0; i < H; i++) {
      const kept = c[i] * sigmoid(gates[2 * H + i] + FORGET_BIAS);
      next.c[i] = kept + sigmoid(gates[i]) * Math.tanh(gates[H + i]);
      next.h[i] = Math.tanh(next.c[i]) * sigmoid(gates[3 * H + i]);
    }
    return next;
  }

  /** What M reads of an action [A]: the keys that it presses, or its numbers in [-1, 1]. */
  readAction(action) {
    if (this.keys) return action.map((x) => (Math.abs(x) > this.pressed ? Math.sign(x) : 0));
    if (!this.scale) return action;
    const [center, half] = this.scale;
    return action.map((x, i) => (x - center[i]) / half[i]);
  }

  /** The heads, by name, of h; the mixture's mean is of the next z itself. */
  predict(h, z) {
    const out = this.product(h, "head_kernel", "head_bias");
    const found = {};
    let start = 0;
    for (const [name, size] of this.heads) found[name] = out.subarray(start, (start += size));
    for (const name of ["logstd", "event_logstd"]) {
      found[name] &&= found[name].map((x) => Math.max(x, MIN_LOGSTD));
    }
    if (this.residual) found.mean = found.mean.map((x, i) => x + z[i % z.length]);
    const reward = found.reward ? found.reward[0] * this.reward_scale : null;
    return { ...found, reward, end: found.end ? totalLogit(found.end) : null };
  }

  /** What C reads: z and parts of the carry, in order. */
  features(z, carry) {
    const parts = [z, ...this.reads.map((name) => carry[name])];
    const found = new Float32Array(parts.reduce((sum, part) => sum + part.length, 0));
    parts.reduce((at, part) => (found.set(part, at), at + part.length), 0);
    return found;
  }

  product(x, kernelName, biasName) {
    const kernel = this.arrays[kernelName];
    const columns = kernel.shape[1];
    const out = Float32Array.from(this.arrays[biasName].data);
    const starts = this.rows.subarray(0, x.length).map((row) => row * columns);
    addRows(out, 0, columns, kernel.data, starts, x, x.length);
    return out;
  }
}

/**
 * The next z [Z] by a step's noise: each number draws its component at temperature tau, or an
 * event replaces them all.
 */
export function sample(memory, predicted, { uniform, normal, event }, tau) {
  const Z = memory.latent_size;
  const wide = Math.sqrt(tau);
  const z = new Float32Array(Z);
  for (let i = 0; i < Z; i++) {
    const at = component(predicted.logits, memory.num_mixtures, Z, i, uniform[i], tau);
    z[i] = predicted.mean[at] + Math.exp(predicted.logstd[at]) * wide * normal[i];
  }
  const happened = memory.num_events ? whichEvent(predicted.event_weights, event, tau) : 0;
  if (happened) {
    for (let i = 0; i < Z; i++) {
      const at = (happened - 1) * Z + i;
      z[i] = predicted.event_mean[at] + Math.exp(predicted.event_logstd[at]) * wide * normal[i];
    }
  }
  return z;
}

/** The mean of the mixture, [Z]. */
export function expected(memory, { logits, mean }) {
  const { latent_size: Z, num_mixtures: K } = memory;
  return Float32Array.from({ length: Z }, (_, i) => {
    const mine = Array.from({ length: K }, (_, k) => k * Z + i);
    const top = Math.max(...mine.map((at) => logits[at]));
    const shares = mine.map((at) => Math.exp(logits[at] - top));
    const sum = shares.reduce((a, b) => a + b);
    return mine.reduce((found, at, k) => found + (shares[k] / sum) * mean[at], 0);
  });
}

/** The place among [K, Z] of the component that number i draws. */
function component(logits, K, Z, i, uniform, tau) {
  let top = -Infinity;
  for (let k = 0; k < K; k++) top = Math.max(top, logits[k * Z + i]);
  let sum = 0;
  for (let k = 0; k < K; k++) sum += Math.exp((logits[k * Z + i] - top) / tau);
  const level = uniform * sum;
  let chosen = 0;
  for (let k = 0, passed = 0; k < K && level >= passed; k++) {
    chosen = k;
    passed += Math.exp((logits[k * Z + i] - top) / tau);
  }
  return chosen * Z + i;
}

/** 0 for no event, else 1 and up. */
function whichEvent(weights, uniform, tau) {
  const top = Math.max(...weights);
  const shares = Array.from(weights, (weight) => Math.exp((weight - top) / tau));
  const sum = shares.reduce((a, b) => a + b);
  let chosen = 0;
  for (let j = 0, passed = 0; j < shares.length && uniform >= passed; j++) {
    chosen = j;
    passed += shares[j] / sum;
  }
  return chosen;
}

/** The logit of any end, from those of each way to end. */
function totalLogit(ends) {
  const either = (a, b) => Math.max(a, b) + Math.log1p(Math.exp(-Math.abs(a - b)));
  return Array.from(ends).reduce((a, b) => either(either(a, b), a + b));
}
