// The noise of a dream: all of it follows from one seed.

/** Noise of one step after another. The same seed draws the same noise, in every browser. */
export class Random {
  constructor(seed) {
    this.state = Uint32Array.of(seed, Math.floor(seed / 2 ** 32), 0x9e3779b9, 1);
    for (let i = 0; i < 12; i++) this.bits();
  }

  /** 32 random bits: Chris Doty-Humphrey's sfc32. */
  bits() {
    const s = this.state;
    const sum = s[0] + s[1] + s[3]++;
    s[0] = s[1] ^ (s[1] >>> 9);
    s[1] = s[2] + (s[2] << 3);
    s[2] = (s[2] << 21) | (s[2] >>> 11);
    s[2] += sum;
    return sum >>> 0;
  }

  /** A number in [0, 1). */
  uniform() {
    return this.bits() / 2 ** 32;
  }

  /** A standard normal number, by Box and Muller. */
  normal() {
    const radius = Math.sqrt(-2 * Math.log((this.bits() + 1) / 2 ** 32));
    return radius * Math.cos(2 * Math.PI * this.uniform());
  }

  /** What a dream of M does not read, at the rate `dropout`: factors {z, h}; null drops nothing. */
  mask({ latent_size, hidden_size }, dropout) {
    if (!dropout) return null;
    const factor = () => (this.uniform() < dropout ? 0 : 1 / (1 - dropout));
    const draw = (size) => Float32Array.from({ length: size }, factor);
    return { z: draw(latent_size), h: draw(hidden_size) };
  }

  /** The noise of a step in a dream of Z latent numbers. */
  noise(Z) {
    const draw = (one) => Float32Array.from({ length: Z }, () => one.call(this));
    const inner = (this.bits() + 0.5) / 2 ** 32;
    return {
      uniform: draw(this.uniform),
      normal: draw(this.normal),
      logistic: Math.log(inner / (1 - inner)),
      event: this.uniform(),
    };
  }
}
