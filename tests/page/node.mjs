/**
 * Calls of the page's modules for the tests in Python: a JSON list of {call, args} comes in on stdin, the list of their
 * results goes out on stdout. A tensor is {f32: base64 of its bytes, shape}, so that no value is rounded on the way.
 */

import { readFileSync } from "node:fs";

import { GPT, KVCache } from "../../minigpt/page/static/engine.js";

const models = new Map(); // name -> GPT, for the calls that follow

const CALLS = {
  model({ name, config, weights }) {
    models.set(name, new GPT(config, weights));
    return models.get(name).numParameters();
  },

  /** The ids in the pieces given, with a cache if there are several: what each call gave. */
  forward({ model, pieces, edits, taps, last }) {
    const gpt = models.get(model);
    const cache = pieces.length > 1 ? new KVCache(gpt.config) : null;
    return pieces.map((idx) => {
      const { logits, traced } = gpt.forward(idx, { cache, edits, taps, last });
      return { logits, traced: Object.fromEntries(traced) };
    });
  },
};

function decoded(key, value) {
  if (value === null || typeof value !== "object" || !("f32" in value)) return value;
  const bytes = Buffer.from(value.f32, "base64");
  return new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length));
}

function encoded(key, value) {
  if (!(value instanceof Float32Array)) return value;
  return { f32: Buffer.from(value.buffer, value.byteOffset, value.byteLength).toString("base64") };
}

const results = JSON.parse(readFileSync(0, "utf8"), decoded).map(({ call, args }) => {
  try {
    return { value: CALLS[call](args) };
  } catch (error) {
    if (error.name !== "InputError") throw error;
    return { error: error.message };
  }
});
process.stdout.write(JSON.stringify(results, encoded));
