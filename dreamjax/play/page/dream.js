// The dream: M's step as a game. As dreamjax/dream/env.py, `DreamEnv`.

import { sample } from "./memory.js";
import { sigmoid } from "./linear.js";

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

  /** One step: a function of the state, the action [A] and the noise alone. */
  step(action, noise) {
    const { low, high } = this.facts.actions;
    const { max_steps, step_reward, death_noise, death_threshold } = this.facts;
    const within = Float32Array.from(action, (x, i) => Math.min(Math.max(x, low[i]), high[i]));
    const { time, z, carry, mask } = this.state;
    const { carry: after, predicted } = this.memory.step(carry, z, within, time, mask);
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
