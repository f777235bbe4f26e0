/**
 * Calls of the page's modules for the tests in Python: a JSON list of {call, args} comes in on stdin, the list of their
 * results goes out on stdout. A tensor is {f32: base64 of its bytes, shape}, so that no value is rounded on the way.
 */

import { readFileSync } from "node:fs";

import {
  ATTRIBUTION_POINTS, attribute, lens, likeliest, modelSize, repeatedTokens, rowOf, scoresOfPattern, streamPoints,
  tokenLosses,
} from "../../minigpt/page/static/analysis.js";
import { beamSearch } from "../../minigpt/page/static/beams.js";
import { Desk } from "../../minigpt/page/static/desk.js";
import { GPT, KVCache } from "../../minigpt/page/static/engine.js";
import { applyFilters, nextDistribution } from "../../minigpt/page/static/filters.js";
import { generate } from "../../minigpt/page/static/generate.js";
import { decodingOptions } from "../../minigpt/page/static/options.js";
import { NoiseTape, Row, exponential, generator, sample } from "../../minigpt/page/static/sampling.js";
import { modelNames, openModel, readCode, runMayGrow } from "../../minigpt/page/static/source.js";
import { textOf } from "../../minigpt/page/static/state.js";
import { TextStream, fromJSON } from "../../minigpt/page/static/tokenizer.js";
import { writeView } from "../../minigpt/page/static/views/write.js";
import { crc32, decodeWeights, fromFloat16 } from "../../minigpt/page/static/weights.js";

/** As much of an element as it takes to build a view. */
class Unseen {
  children = [];
  classList = { toggle() {} };
  setAttribute() {}
  querySelectorAll = () => [];

  addEventListener(event, listener) {
    this[event] = listener;
  }

  append(...children) {
    this.children.push(...children);
  }
}

const models = new Map(); // name -> GPT, for the calls that follow
const tokenizers = new Map();

const CALLS = {
  model({ name, config, weights }) {
    models.set(name, new GPT(config, weights));
    return null;
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

  filters: ({ scores, history, options, num_new }) => applyFilters(scores, history, decodingOptions(options), num_new),

  distribution: ({ logits, options, history }) => nextDistribution(logits, options, history),

  draw: ({ scores, uniforms }) => sample(scores, exponential(uniforms)),

  /** `uniforms` holds those of each new token, one after another. */
  generate({ model, prompt, options, uniforms, vocab_size }) {
    const row = new Row(models.get(model), vocab_size);
    const tape = uniforms && { at: (n) => exponential(uniforms.subarray(n * row.V, (n + 1) * row.V)) };
    const steps = [...generate(row, prompt, options, { tape })];
    return steps.map(({ id, log_prob, finish_reason }) => [id, log_prob, finish_reason]);
  },

  /** The logits after each of several sequences, one after another, of one row. */
  rows({ model, sequences, edits }) {
    const row = new Row(models.get(model));
    return sequences.map((ids, n) => row.logits(ids, edits[n]));
  },

  /** How many ids are left after each call of `read`, and the logits then. */
  reading({ model, sequences, most }) {
    const row = new Row(models.get(model));
    return sequences.map((ids) => {
      const left = [];
      do left.push(row.read(ids, [], most));
      while (left.at(-1));
      return { left, logits: row.logits(ids) };
    });
  },

  /** A text, and the same text written again from each of its places. */
  branches({ model, prompt, options, places }) {
    const row = new Row(models.get(model));
    const written = (ids, given, n) => [...generate(row, ids, given, { written: n })].map(({ id }) => id);
    const whole = written(prompt, options, 0);
    const rest = (n) => written([...prompt, ...whole.slice(0, n)], { ...options, max_new_tokens: whole.length - n }, n);
    return [whole, ...places.map(rest)];
  },

  beams: ({ model, prompt, options, vocab_size }) => [
    ...beamSearch(models.get(model), prompt, options, { vocab_size }),
  ],

  losses({ model, ids, k }) {
    const gpt = models.get(model);
    const whole = { data: gpt.forward(ids).logits, shape: [ids.length, gpt.config.vocab_size] };
    return tokenLosses((t) => rowOf(whole, t), ids, k);
  },

  /** The scores of every point of the stream at every position: point -> T rows, and the k likeliest of each. */
  lens({ model, ids, k }) {
    const gpt = models.get(model);
    const points = streamPoints(gpt.config);
    const { traced } = gpt.forward(ids, { taps: points });
    const rows = points.map((point) => ids.map((_, t) => lens(gpt, rowOf(traced.get(point), t))));
    return { points, rows, best: rows.map((row) => row.map((scores) => likeliest(scores, k))) };
  },

  attribute({ model, ids, target, against, by, position }) {
    const gpt = models.get(model);
    const { logits, traced } = gpt.forward(ids, { taps: ATTRIBUTION_POINTS });
    const scores = rowOf({ data: logits, shape: [ids.length, gpt.config.vocab_size] }, position);
    const vector = (point) => {
      const { data, shape } = traced.get(point);
      if (shape.length === 2) return rowOf({ data, shape }, position);
      const [H, T] = shape;
      const heads = Array.from({ length: H }, (_, head) => rowOf({ data, shape }, head * T + position));
      return Float32Array.from(heads.flatMap((z) => [...z])); // (H, T, D) -> (H * D,)
    };
    const logit = scores[target] - (against === null ? 0 : scores[against]);
    return attribute(gpt, vector, logit, target, against, by);
  },

  scores_of_pattern: ({ pattern, shape, period }) => scoresOfPattern({ data: pattern, shape }, period),

  repeated_tokens: ({ config, V, seed }) => repeatedTokens(config, V, generator(seed)),

  size: ({ config, tokens }) => modelSize(config, tokens),

  uniforms: ({ seeds, count }) => Float32Array.from({ length: count }, generator(...seeds)),

  noise: ({ seed, columns, places }) => places.map((n) => new NoiseTape(seed, columns).at(n)),

  tokenizer({ name, content }) {
    tokenizers.set(name, fromJSON(content));
    const { vocab_size, start_token_id, special_ids } = tokenizers.get(name);
    return { vocab_size, start_token_id, special_ids: [...special_ids] };
  },

  encode: ({ tokenizer, text }) => tokenizers.get(tokenizer).encode(text),

  encode_prompt: ({ tokenizer, text }) => tokenizers.get(tokenizer).encodePrompt(text),

  decode: ({ tokenizer, ids }) => tokenizers.get(tokenizer).decode(ids),

  pieces({ tokenizer, ids }) {
    const pieces = tokenizers.get(tokenizer).pieces(ids);
    return pieces.map(({ id, text, bytes, special }) => [id, text, [...bytes], special]);
  },

  /** What each id after a prompt completes, and what the end gives. */
  stream({ tokenizer, prompt, ids }) {
    const stream = new TextStream(tokenizers.get(tokenizer), prompt);
    return [...ids.map((id) => stream.feed(id)), stream.flush()];
  },

  text: ({ ids, typed, block_size }) => textOf(ids.map((id) => ({ id })), typed, block_size),

  /** What a desk passes on of three parts and an answer, if their lane is dropped before the second. */
  async dropped({ parts, answer }) {
    const sent = [];
    const worker = Object.assign(new EventTarget(), { postMessage: (message) => sent.push(message) });
    const tell = (data) => worker.dispatchEvent(Object.assign(new Event("message"), { data: { id: 1, ...data } }));
    const desk = new Desk(worker, () => {}, () => {});
    const heard = [];
    const asked = desk.ask("write", "write", {}, (part) => heard.push(part));
    for (const [n, partial] of parts.entries()) {
      if (n === 1) desk.drop("write");
      tell({ partial });
    }
    tell({ result: answer });
    return { heard, answer: await asked, sent };
  },

  /** What the text is after each part that the Write view is told of: its ids, and how many of them were typed. */
  async run({ ids, typed, parts }) {
    const made = [];
    globalThis.document = { createElement: () => made[made.push(new Unseen()) - 1] };
    globalThis.requestAnimationFrame = globalThis.cancelAnimationFrame = () => {};
    const pieces = (some) => some.map((id) => ({ id, text: String(id) }));
    const text = textOf(pieces(ids), typed, ids.length);
    const state = { model: 0, prompt: "", more: ids.slice(typed), at: null, branches: [], length: parts.length };
    const grown = [];
    const grow = (now, of) => grown.push([now.map(({ id }) => id), of]);
    async function ask(lane, call, args, partial) {
      if (call === "tokens") return text;
      for (const part of parts) partial({ ids: part, pieces: pieces(part) });
      return null;
    }
    await new Promise((resolve) => {
      writeView.mount(new Unseen(), { state, text, grow, ask, options: () => ({}), set: resolve, refresh: resolve });
      made.find(({ children: [name] }) => name === "Step").click();
    });
    return grown;
  },

  halves: ({ bits }) => Float32Array.from(bits, fromFloat16),

  checksum: ({ pieces }) => pieces.reduce((crc, piece) => crc32(Buffer.from(piece, "base64"), crc), 0),

  weights({ tensors, base64 }) {
    const bytes = Buffer.from(base64, "base64");
    return decodeWeights(tensors, bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length));
  },

  /** A file's model, from its elements: a list of {id, class, text}. */
  async file({ elements, index }) {
    const parts = elements.map(({ id, class: kind, text }) => ({ id, kind, textContent: text }));
    globalThis.document = {
      getElementById: (id) => parts.find((part) => part.id === id) ?? null,
      querySelectorAll: (asked) =>
        parts.filter(({ id, kind }) => (asked.startsWith(".") ? `.${kind}` === asked : id?.startsWith("minigpt-model-"))),
    };
    const seen = [];
    const model = await openModel({ index, progress: (so_far, all) => seen.push([so_far, all]) });
    return { ...model, seen, names: await modelNames(), code: await readCode(), grows: runMayGrow() };
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

const results = [];
for (const { call, args } of JSON.parse(readFileSync(0, "utf8"), decoded)) {
  try {
    results.push({ value: await CALLS[call](args) });
  } catch (error) {
    if (error.name !== "InputError") throw error;
    results.push({ error: error.message });
  }
}
process.stdout.write(JSON.stringify(results, encoded));
