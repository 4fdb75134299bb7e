// What M foretells, step by step, as a line that moves.

const SHOWN = 240; // steps
const DOUBT = 0.5; // the doubt at the top of the chart
const DECADES = 4; // of chances: from one in 10,000 to 1

/** A chart of the chance of death, on a logarithmic scale, or of the reward. */
export class Trace {
  constructor(canvas, label, facts) {
    this.canvas = canvas;
    this.label = label;
    this.chances = facts.step_reward !== null;
    this.rate = facts.steps_per_second;
    this.scale = facts.memory.reward_scale;
    this.clear();
  }

  clear() {
    this.values = [];
    this.doubts = []; // M's own, where they are asked for
  }

  /** Take a state of the dream. */
  add({ chance, reward, doubt }) {
    this.values.push(this.chances ? chance : reward);
    this.doubts.push(doubt);
    for (const line of [this.values, this.doubts]) if (line.length > SHOWN) line.shift();
  }

  draw() {
    const { canvas, values } = this;
    const ratio = devicePixelRatio || 1;
    const width = (canvas.width = canvas.clientWidth * ratio);
    const height = (canvas.height = canvas.clientHeight * ratio);
    const context = canvas.getContext("2d");
    const style = getComputedStyle(canvas);
    context.strokeStyle = style.getPropertyValue("--line");
    context.lineWidth = ratio;
    context.fillStyle = style.getPropertyValue("--faint");
    context.font = `${11 * ratio}px system-ui, sans-serif`;
    for (const [mark, name] of this.marks()) {
      this.stroke(context, [[0, mark], [1, mark]], width, height);
      context.fillText(name, 4 * ratio, this.y(mark, height) - 3 * ratio);
    }
    context.strokeStyle = style.getPropertyValue("--accent");
    context.lineWidth = 2 * ratio;
    const points = values.map((value, i) => [i / (SHOWN - 1), this.level(value)]);
    this.stroke(context, points, width, height);
    context.strokeStyle = style.getPropertyValue("--doubt");
    const unsure = this.doubts.map((doubt, i) => [i / (SHOWN - 1), Math.min(doubt / DOUBT, 1)]);
    this.stroke(context, unsure.filter((_, i) => this.doubts[i] !== null), width, height);
    this.label.textContent = this.words();
  }

  stroke(context, points, width, height) {
    context.beginPath();
    for (const [x, y] of points) context.lineTo(x * width, this.y(y, height));
    context.stroke();
  }

  y(level, height) {
    return (1 - 0.04 - 0.8 * level) * height;
  }

  /** Heights in [0, 1] of the faint lines, and their names: chances, or rewards. */
  marks() {
    if (!this.chances) return [0, this.scale].map((reward) => [this.level(reward), `${reward}`]);
    const names = { 0: "0.01 %", 0.5: "1 %", 1: "100 %" };
    return [0, 0.25, 0.5, 0.75, 1].map((level) => [level, names[level] ?? ""]);
  }

  level(value) {
    const height = this.chances
      ? 1 + Math.log10(value + 1e-12) / DECADES
      : (value / this.scale + 1) / 3;
    return Math.min(Math.max(height, 0), 1);
  }

  words() {
    const now = this.values.at(-1) ?? 0;
    const doubt = this.doubts.at(-1) ?? null;
    const unsure = doubt === null ? "" : `; doubt: ${doubt.toFixed(3)}`;
    if (!this.chances) return `reward that M expects: ${now.toFixed(2)}${unsure}`;
    const percent = 100 * now;
    return `chance that M ends it in this step: ${percent.toFixed(percent < 1 ? 2 : 0)} %${unsure}`;
  }
}
