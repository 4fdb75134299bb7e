// C: from features to an action, as dreamjax/controller/ does it awake.

import { affine } from "./linear.js";

/** C; `form` is `facts.controller` of page.json, `weights` its one flat vector. */
export class Controller {
  constructor({ hidden, bias, outputs }, weights, actions) {
    this.actions = actions;
    let at = 0;
    const take = (rows, columns) => ({
      shape: [rows, columns],
      data: weights.subarray(at, (at += rows * columns)),
    });
    if (hidden) {
      const features = (weights.length - (hidden + 1) * outputs) / hidden - 1;
      const first = { bias: take(1, hidden), kernel: take(features, hidden) };
      this.layers = [first, { bias: take(1, outputs), kernel: take(hidden, outputs) }];
    } else {
      const offset = bias ? take(1, outputs) : null;
      this.layers = [{ bias: offset, kernel: take(weights.length / outputs - Number(bias), outputs) }];
    }
  }

  /** The action [A] for features [F]. */
  act(features) {
    const [first, second] = this.layers;
    let out = affine(features, first.kernel, first.bias);
    if (second) out = affine(out.map(Math.tanh), second.kernel, second.bias);
    return act(this.actions, out);
  }
}

/** The action that a form of actions makes of C's outputs. */
function act({ form, low, high, clipped }, out) {
  if (form === "choice") {
    const best = out.indexOf(Math.max(...out));
    return out.map((_, choice) => Number(choice === best));
  }
  return out.map((x, i) => {
    const squashed = Math.tanh(x);
    if (clipped.includes(i)) return Math.min(Math.max(squashed, low[i]), high[i]);
    return (low[i] + high[i]) / 2 + ((high[i] - low[i]) / 2) * squashed;
  });
}
