// The world's arrays: one safetensors file in half precision, read into Float32Arrays.

/** Thrown where the file is not what page.json describes; its message is for the reader. */
export class DamagedError extends Error {}

/**
 * The arrays of a safetensors file by their names.
 * @param {ArrayBuffer} buffer - the file.
 * @returns {Map<string, {shape: number[], data: Float32Array}>}
 */
export function parseArrays(buffer) {
  try {
    const length = Number(new DataView(buffer).getBigUint64(0, true));
    const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
    const body = buffer.slice(8 + length);
    const found = new Map();
    for (const [name, { dtype, shape, data_offsets: [start, end] }] of Object.entries(header)) {
      if (name !== "__metadata__") found.set(name, { shape, data: numbers(dtype, body, start, end) });
    }
    return found;
  } catch (error) {
    throw new DamagedError(`The weights file cannot be read (${error.message}).`);
  }
}

/**
 * Refuse a file that is not the one page.json describes.
 * SHA-256 exists only on https and on this machine; elsewhere the length must do.
 */
export async function checkArrays(buffer, { size, sha256 }) {
  if (buffer.byteLength !== size) {
    throw new DamagedError(`The weights file has ${buffer.byteLength} bytes in place of ${size}.`);
  }
  if (!globalThis.crypto?.subtle) return;
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", buffer));
  const hex = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
  if (hex !== sha256) throw new DamagedError("The weights file is not the one that was written.");
}

/** The arrays whose names begin with `prefix`, by the rest of their names. */
export function within(arrays, prefix) {
  const found = {};
  for (const [name, array] of arrays) {
    if (name.startsWith(prefix)) found[name.slice(prefix.length).replace(/\.value$/, "")] = array;
  }
  return found;
}

function numbers(dtype, body, start, end) {
  if (dtype === "F32") return new Float32Array(body.slice(start, end));
  if (dtype !== "F16") throw new Error(`numbers of the type ${dtype}`);
  const halves = new Uint16Array(body.slice(start, end));
  const found = new Float32Array(halves.length);
  for (let i = 0; i < found.length; i++) found[i] = HALF[halves[i]];
  return found;
}

// Every half-precision number, by its bits.
const HALF = Float32Array.from({ length: 65536 }, (_, bits) => {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
});
