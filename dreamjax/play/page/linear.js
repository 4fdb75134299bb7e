// The one kernel of arithmetic: rows of a matrix, weighted and added up.

/**
 * out[at + j] += sum over r of values[r] * matrix[starts[r] + j], for j below `length`.
 * Four rows a pass, so that `out` is read and written a quarter as often.
 */
export function addRows(out, at, length, matrix, starts, values, count) {
  let r = 0;
  for (; r + 4 <= count; r += 4) {
    const a = values[r], b = values[r + 1], c = values[r + 2], d = values[r + 3];
    const i = starts[r], k = starts[r + 1], m = starts[r + 2], n = starts[r + 3];
    for (let j = 0; j < length; j++) {
      out[at + j] += a * matrix[i + j] + b * matrix[k + j] + c * matrix[m + j] + d * matrix[n + j];
    }
  }
  for (; r < count; r++) {
    const a = values[r], i = starts[r];
    for (let j = 0; j < length; j++) out[at + j] += a * matrix[i + j];
  }
}

/** x @ kernel + bias, of x [N], kernel [N, M], bias [M] or null. */
export function affine(x, kernel, bias) {
  const columns = kernel.shape[1];
  const out = bias ? Float32Array.from(bias.data) : new Float32Array(columns);
  const starts = Int32Array.from(x, (_, row) => row * columns);
  addRows(out, 0, columns, kernel.data, starts, x, x.length);
  return out;
}

export const sigmoid = (x) => 1 / (1 + Math.exp(-x));
