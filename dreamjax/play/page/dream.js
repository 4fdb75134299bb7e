// The dream: M's step as a game. As dreamjax/dream/env.py, `DreamEnv`.

import { expected, sample } from "./memory.js";
import { sigmoid } from "./linear.js";

const SURE = 1e-6; // added to a spread, so that it has a logarithm

/**
 * One dream. Its state is replaced at every step, never changed.
 * @param facts - page.json.
 * @param memory - M.
 * @param starts - {mu, logvar}, posteriors [N, Z] of first frames.
 */
export class Dream {
  constructor(facts, memory, starts) {
    this.facts = facts;
    this.memory = memory;
    this.starts = starts;
    this.tau = facts.temperature;
  }

  /** Begin at a real first frame, chosen and blurred by `noise`; `mask` as `Random` draws it. */
  reset(noise, mask) {
    const Z = this.memory.latent_size;
    const row = Math.floor(noise.uniform[0] * this.starts.mu.shape[0]) * Z;
    const z = Float32Array.from({ length: Z }, (_, i) => {
      const spread = Math.exp(this.starts.logvar.data[row + i] / 2);
      return this.starts.mu.data[row + i] + spread * noise.normal[i];
    });
    this.goOn({ time: 0, z, carry: this.memory.initialCarry(), mask });
  }

  /** Go on from a state {time, z, carry, mask}: a moment of the game, or of an earlier dream. */
  goOn(state) {
    this.state = { reward: 0, chance: 0, ended: null, ...state };
  }

  /** What C reads of the state. */
  features() {
    return this.memory.features(this.state.z, this.state.carry);
  }

  /**
   * How much M's predictions of a step differ where each lacks other parts of what M reads: their
   * standard deviation, the geometric mean over Z.
   */
  doubt(action, masks) {
    const { time, z, carry } = this.state;
    const each = masks.map((mask) => {
      const { predicted } = this.memory.step(carry, z, this.within(action), time, mask);
      return expected(this.memory, predicted);
    });
    const spread = Array.from(z, (_, i) => Math.log(deviation(each.map((mean) => mean[i])) + SURE));
    return Math.exp(spread.reduce((a, b) => a + b) / z.length);
  }

  /** The action [A] within the game's bounds. */
  within(action) {
    const { low, high } = this.facts.actions;
    return Float32Array.from(action, (x, i) => Math.min(Math.max(x, low[i]), high[i]));
  }

  /** One step: a function of the state, the action [A] and the noise alone. */
  step(action, noise) {
    const { max_steps, step_reward, death_noise, death_threshold } = this.facts;
    const { time, z, carry, mask } = this.state;
    const { carry: after, predicted } = this.memory.step(carry, z, this.within(action), time, mask);
    let dead = false;
    let chance = 0;
    if (predicted.end !== null) {
      dead = !(predicted.end + death_noise * noise.logistic <= death_threshold);
      chance = sigmoid((predicted.end - death_threshold) / (death_noise || 1));
    }
    this.state = {
      time: time + 1,
      z: sample(this.memory, predicted, noise, this.tau),
      carry: after,
      mask,
      reward: step_reward ?? predicted.reward,
      chance,
      ended: dead ? "dead" : time + 1 >= max_steps ? "time" : null,
    };
  }
}

function deviation(numbers) {
  const mean = numbers.reduce((a, b) => a + b) / numbers.length;
  return Math.sqrt(numbers.reduce((sum, x) => sum + (x - mean) ** 2, 0) / numbers.length);
}
