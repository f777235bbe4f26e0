/**
 * The worker: it holds the models, and computes whatever the page asks for. The page itself computes nothing.
 *
 * A request is {id, lane, call, args}; the answer is {id, result} or {id, error}, before it perhaps several
 * {id, partial}. One request is worked on at a time. A later one of the same lane ends it, and so does {stop: id}.
 */

import {
  ATTRIBUTION_POINTS, attribute, lens, lensPoints, likeliest, modelSize, repeatedTokens, rowOf, scoresOfPattern,
  tokenLosses,
} from "./analysis.js";
import { beamSearch } from "./beams.js";
import { GPT } from "./engine.js";
import { InputError } from "./errors.js";
import { nextDistribution } from "./filters.js";
import { generate } from "./generate.js";
import { entropy, softmax, topK } from "./numbers.js";
import { Row, generator } from "./sampling.js";
import { textOf } from "./state.js";
import { fromJSON } from "./tokenizer.js";

const NUM_BARS = 12; // next tokens that are shown
const NUM_ALTERNATIVES = 5; // what the model would have said instead of a token
const MOST_WEIGHTS = 16e6; // of attention patterns that are sent to the page at once: 64 MB
const MOST_KEPT = 4e6; // scores of a pass: where it has more, no other is kept beside it
const MOST_PRODUCTS = 4e9; // of the lens: about so many multiply-adds are worth waiting for

// --- the models

/** A model, its tokenizer, and what it has just read. */
class Model {
  #passes = new Map(); // what was computed last, for each set of points

  constructor({ config, weights, tokenizer, ends }) {
    this.gpt = new GPT(config, weights);
    this.tokenizer = fromJSON(tokenizer);
    this.row = new Row(this.gpt, this.tokenizer.vocab_size);
    this.ends = ends; // the ids at which a text ends
    this.V = this.row.V; // the ids behind these have no text
  }

  /** Read all but the last of ids, a part at a time, so that whoever asked can end it: false if that happened. */
  async read(ids, edits, job) {
    while (this.row.read(ids, edits)) {
      await nextTurn();
      if (job.ended) return false;
    }
    return true;
  }

  /** A pass over ids: its points, and for each position the scores of what follows, (V,). The last one is kept. */
  pass(ids, edits, taps) {
    const set = JSON.stringify(taps);
    const key = JSON.stringify([ids, edits]);
    if (this.#passes.get(set)?.key !== key) {
      this.#passes.delete(set); // before the new one is made, or both would be in memory
      if (ids.length * this.gpt.config.vocab_size > MOST_KEPT) this.#passes.clear();
      const { logits, traced } = this.gpt.forward(ids, { edits, taps });
      const whole = { data: logits, shape: [ids.length, this.gpt.config.vocab_size] };
      this.#passes.set(set, { key, traced, row: (t) => this.#withText(rowOf(whole, t)) });
    }
    return this.#passes.get(set);
  }

  #withText(row) {
    return row.subarray(0, this.V);
  }

  /** How a token is shown: its text and its bytes. */
  piece(id) {
    return this.tokenizer.pieces([id])[0];
  }

  named(tokens) {
    return tokens.map((token) => ({ ...token, text: this.piece(token.id).text }));
  }
}

const models = [];

// --- what can be asked

const CALLS = {
  /** Take a model in. */
  open({ model, ...parts }) {
    models[model] = new Model(parts);
    return { V: models[model].V };
  },

  /**
   * The tokens of a text and of what was written after it, and those of them that the model can read. What another model
   * has written, `writer`, is read as its text: its ids may mean something else here.
   */
  tokens({ model, prompt, more, writer = model }) {
    const { gpt, tokenizer, V } = models[model];
    const typed = tokenizer.encodePrompt(prompt);
    const own = writer === model ? more.filter((id) => id < V) : tokenizer.encode(models[writer].tokenizer.decode(more));
    return textOf(tokenizer.pieces([...typed, ...own]), typed.length, gpt.config.block_size);
  },

  /** The likeliest next tokens, as the model has them, and what the filters make of them. */
  async next({ model, ids, options, edits = [] }, job) {
    const it = models[model];
    if (!(await it.read(ids, edits, job))) return null;
    const logits = it.row.logits(ids, edits);
    const before = softmax(logits);
    const { probs: after, kept } = nextDistribution(logits, options, ids);
    const bars = topK(before, NUM_BARS).map((id) => ({ id, before: before[id], after: after[id], logit: logits[id] }));
    return { bars: it.named(bars), kept, V: it.V, entropy: [entropy(before), entropy(after)] };
  },

  /** The texts of several lists of ids. */
  texts({ model, lists }) {
    return lists.map((ids) => models[model].tokenizer.decode(ids));
  },

  /**
   * Write `count` tokens after ids, or fewer if the text ends; the ids end with `start` written ones, and the n-th draw
   * depends on the seed and n.
   */
  async write({ model, ids, count, start, options: given, edits = [] }, job) {
    const it = models[model];
    const all = [...ids];
    const began = performance.now();
    let told = all.length;
    const tell = () => {
      const fresh = all.slice(told);
      told = all.length;
      job.partial({ ids: fresh, pieces: it.tokenizer.pieces(fresh) });
    };
    const max_new_tokens = (await it.read(ids, edits, job)) ? count : 0;
    const options = { ...given, max_new_tokens, on_overflow: "crop", eos: it.ends };
    let ended = false;
    for (const { id, finish_reason } of generate(it.row, ids, options, { written: start, edits })) {
      all.push(id);
      ended = finish_reason === "eos";
      if (await job.breathe()) tell();
      if (job.ended) break;
    }
    tell();
    return { written: all.length - ids.length, seconds: (performance.now() - began) / 1000, ended };
  },

  /** Every head's pattern, its scores, and what switching parts off does to the probabilities of the text. */
  attention({ model, ids, edits }) {
    const it = models[model];
    const { n_layer: L, n_head: H } = it.gpt.config;
    const most = Math.floor(Math.sqrt(MOST_WEIGHTS / (L * H)));
    const read = ids.slice(-most);
    const { traced, row } = it.pass(read, edits, ["*.attn.pattern"]);
    const patterns = [...traced.values()];
    const whole = edits.length ? it.pass(read, [], []).row : row;
    const own = softmax(whole(read.length - 1));
    const next = likeliest(row(read.length - 1), NUM_ALTERNATIVES).map((bar) => ({ ...bar, before: own[bar.id] }));
    return {
      skipped: ids.length - read.length,
      patterns,
      scores: read.length < 3 ? null : patterns.map((pattern) => scoresOfPattern(pattern)),
      before: probabilities(whole, read),
      after: probabilities(row, read),
      next: it.named(next),
    };
  },

  /** The scores of heads on random tokens that are repeated once: who looks at what came after this token before? */
  induction({ model }) {
    const it = models[model];
    const text = repeatedTokens(it.gpt.config, it.V, generator(0));
    if (text === null) return { scores: null };
    const { traced } = it.pass(text.ids, [], ["*.attn.pattern"]);
    return { ...text, scores: [...traced.values()].map((pattern) => scoresOfPattern(pattern, text.period)) };
  },

  /** What the model would say after each layer, at the last positions: a layer at a time. */
  async lens({ model, ids }, job) {
    const it = models[model];
    const points = lensPoints(it.gpt.config);
    const { n_embd: C, vocab_size } = it.gpt.config;
    const most = Math.max(8, Math.floor(MOST_PRODUCTS / (points.length * C * vocab_size)));
    const first = Math.max(0, ids.length - most);
    const { traced, row } = it.pass(ids, [], [...points, ...ATTRIBUTION_POINTS]);
    for (const point of points) {
      const cells = [];
      for (let t = first; t < ids.length && !job.ended; t++) {
        const scores = point === points.at(-1) ? row(t) : lens(it.gpt, rowOf(traced.get(point), t)).subarray(0, it.V);
        cells.push(it.named(likeliest(scores, NUM_ALTERNATIVES)));
        await job.breathe();
      }
      job.partial({ point, first, cells });
    }
    return { points, first };
  },

  /** The logit of a token as the sum of its parts. Without a token, of the likeliest. */
  attribute({ model, ids, position, token, by }) {
    const it = models[model];
    const points = lensPoints(it.gpt.config);
    const { traced, row } = it.pass(ids, [], [...points, ...ATTRIBUTION_POINTS]);
    const scores = row(position);
    const choices = it.named(likeliest(scores, NUM_BARS));
    const target = token !== null && token < it.V ? token : choices[0].id;
    const vector = (point) => {
      const { data, shape } = traced.get(point);
      if (shape.length === 2) return rowOf({ data, shape }, position);
      const [H, T, D] = shape;
      const heads = new Float32Array(H * D); // (H, T, D) -> (H * D,)
      for (let h = 0; h < H; h++) heads.set(data.subarray((h * T + position) * D, (h * T + position + 1) * D), h * D);
      return heads;
    };
    const found = attribute(it.gpt, vector, scores[target], target, null, by);
    return { ...found, target, text: it.piece(target).text, choices };
  },

  /** The tree of a beam search, a step at a time. */
  async beams({ model, ids, options }, job) {
    const it = models[model];
    let tree = null;
    for (tree of beamSearch(it.gpt, ids, { ...options, eos: it.ends }, { vocab_size: it.V })) {
      const texts = tree.finished.map((one) => it.tokenizer.decode(one.ids.slice(ids.length)));
      job.partial({ ...tree, nodes: it.named(tree.nodes), texts });
      await nextTurn();
      if (job.ended) break;
    }
    return tree;
  },

  /** How surprised the model is by each token. */
  loss({ model, ids, edits }) {
    const it = models[model];
    if (ids.length < 2) return { tokens: [] }; // the first token is not predicted
    const found = tokenLosses(it.pass(ids, edits, []).row, ids, NUM_ALTERNATIVES);
    const characters = [...it.tokenizer.decode(ids.slice(1))].length;
    found.tokens.forEach((token) => (token.alternatives = it.named(token.alternatives)));
    return { ...found, bitsPerCharacter: found.sum / Math.LN2 / characters };
  },

  /** The costs of each module. */
  size({ model, tokens }) {
    return modelSize(models[model].gpt.config, tokens);
  },
};

/** Of each token of the text from the second on. */
function probabilities(row, ids) {
  return tokenLosses(row, ids, 1).tokens.map(({ probability }) => probability);
}

// --- one request after the other

class Job {
  ended = false;
  #id;
  #breathed = performance.now();

  constructor(id) {
    this.#id = id;
  }

  partial(partial) {
    self.postMessage({ id: this.#id, partial });
  }

  /** Let messages in, if the last time is a while ago: true if it was, and it is time to tell of what was done. */
  async breathe() {
    if (performance.now() - this.#breathed < 30) return false;
    await nextTurn();
    this.#breathed = performance.now();
    return true;
  }
}

const channel = new MessageChannel();

/** The end of this turn; setTimeout would wait 4 ms longer. */
function nextTurn() {
  return new Promise((resolve) => {
    channel.port1.onmessage = resolve;
    channel.port2.postMessage(null);
  });
}

let waiting = [];
let current = null; // {request, job}

self.onmessage = ({ data }) => {
  if (data.stop !== undefined) {
    if (current?.request.id === data.stop) current.job.ended = true;
    drop((request) => request.id === data.stop);
    return;
  }
  if (current?.request.lane === data.lane) current.job.ended = true;
  drop((request) => request.lane === data.lane);
  waiting.push(data);
  if (current === null) work();
};

function drop(isOutdated) {
  waiting.filter(isOutdated).forEach(({ id }) => self.postMessage({ id, outdated: true }));
  waiting = waiting.filter((request) => !isOutdated(request));
}

async function work() {
  while (waiting.length) {
    current = { request: waiting[0], job: new Job(waiting[0].id) };
    await nextTurn(); // whatever else has been asked for by now may make this outdated
    if (waiting[0] !== current.request) continue;
    const { id, call, args } = waiting.shift();
    try {
      self.postMessage({ id, result: await CALLS[call](args, current.job) });
    } catch (error) {
      self.postMessage({ id, error: { name: error.name, message: error.message } });
      if (!(error instanceof InputError)) console.error(error);
    }
  }
  current = null;
}
