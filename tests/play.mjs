// Runs a page's own modules, outside a browser, on what a test recorded: node play.mjs PAGE FED.

import fs from "node:fs";
import { pathToFileURL } from "node:url";

const [page, fed] = process.argv.slice(2);
const load = (name) => import(pathToFileURL(`${page}/${name}`));
const { parseArrays, checkArrays, within } = await load("arrays.js");
const { Controller } = await load("controller.js");
const { Decoder } = await load("decoder.js");
const { Dream } = await load("dream.js");
const { Memory } = await load("memory.js");
const { Random } = await load("random.js");

const facts = JSON.parse(fs.readFileSync(`${page}/page.json`));
const file = fs.readFileSync(`${page}/${facts.weights}`);
const buffer = file.buffer.slice(file.byteOffset, file.byteOffset + file.length);
await checkArrays(buffer, facts);
const arrays = parseArrays(buffer);
const memory = new Memory(facts.memory, within(arrays, "memory."));
const starts = { mu: arrays.get("initial_mu"), logvar: arrays.get("initial_logvar") };
const weights = arrays.get("controller")?.data;
const controller = weights && new Controller(facts.controller, weights, facts.actions);
const decoder = new Decoder(within(arrays, "vision."));

const { steps, tau, mask, pictures, draws, rate, doubters = [] } = JSON.parse(fs.readFileSync(fed));
const dream = new Dream(facts, memory, starts);
dream.tau = tau;
dream.goOn({ time: 0, z: Float32Array.from(steps[0].z), carry: memory.initialCarry(), mask });
const told = steps.map(({ z, action, noise }) => {
  dream.goOn({ ...dream.state, z: Float32Array.from(z) });
  const features = dream.features();
  const doubt = doubters.length ? dream.doubt(action, doubters) : null;
  dream.step(action, noise);
  const { state } = dream;
  return {
    action: controller ? [...controller.act(features)] : null,
    z: [...state.z],
    carry: [...state.carry.c, ...state.carry.h],
    doubt,
    reward: state.reward,
    chance: state.chance,
    ended: state.ended,
  };
});

const random = new Random(7);
const noises = Array.from({ length: draws }, () => random.noise(facts.memory.latent_size));
const masks = Array.from({ length: draws }, () => random.mask(facts.memory, rate));
const found = {
  masks: masks.map((mask) => mask && [...mask.z, ...mask.h]),
  steps: told,
  pictures: pictures.map((z) => [...decoder.decode(Float32Array.from(z))]),
  noises: noises.map((noise) => ({ ...noise, uniform: [...noise.uniform], normal: [...noise.normal] })),
};
fs.writeFileSync(1, JSON.stringify(found));
