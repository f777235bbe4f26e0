/**
 * One step of decoding, as in decoding/sampling.py: the scores of the next token, and the choice of one.
 */

import { KVCache } from "./engine.js";
import { argmax, softmax } from "./numbers.js";

const SMALLEST = 2 ** -126; // float32's smallest normal number: noise of 0 would make a removed token 0 / 0

/**
 * The logits of the token after a sequence, for sequences that mostly grow at their end: only what the last one had not
 * is fed, and the rest is in a cache. Of a sequence longer than the context all of its end that fits is fed: every
 * token changes its position then.
 */
export class Row {
  #read = []; // the ids in the cache
  #edits = "[]"; // with which they were read

  /**
   * @param {GPT} model
   * @param {number} [vocab_size] how many of the model's ids there are to choose from: those that have text.
   * @param {number} [longest] the most tokens that a sequence will have.
   */
  constructor(model, vocab_size = Infinity, longest = Infinity) {
    this.model = model;
    /** How many ids there are to choose from. */
    this.V = Math.min(vocab_size, model.config.vocab_size);
    this.cache = new KVCache(model.config, Math.min(longest, model.config.block_size));
  }

  /**
   * @param {number[]} ids at least one.
   * @param {object[]} [edits] what to change in the pass: see edits.js.
   * @returns {Float32Array} (V,).
   */
  logits(ids, edits = []) {
    const { logits } = this.#fits(ids)
      ? this.#fed(this.#unread(ids, edits), edits)
      : this.model.forward(ids.slice(-this.model.config.block_size), { edits, last: true });
    return logits.subarray(0, this.V);
  }

  /**
   * Feed the first `most` of what is new, and not the last of the ids: for a long text, so that one can stop between.
   *
   * @param {number[]} ids at least one.
   * @param {object[]} [edits]
   * @param {number} [most]
   * @returns {number} how many are left to read before `logits` has only the last one to feed.
   */
  read(ids, edits = [], most = 32) {
    if (!this.#fits(ids)) return 0; // there is no reading in parts without a cache
    const unread = this.#unread(ids, edits).slice(0, -1);
    if (unread.length) this.#fed(unread.slice(0, most), edits);
    return Math.max(0, unread.length - most);
  }

  #fits(ids) {
    return ids.length <= this.cache.max_length;
  }

  /** What of the ids is not in the cache, the last one in any case; what is in it and not in the ids is taken back. */
  #unread(ids, edits) {
    if (JSON.stringify(edits) !== this.#edits) this.#read = [];
    this.#edits = JSON.stringify(edits);
    let common = 0;
    while (common < ids.length - 1 && ids[common] === this.#read[common]) common++;
    this.cache.rollback(this.cache.length - common);
    this.#read.length = common; // so that an error in a pass leaves both alike
    return ids.slice(common);
  }

  #fed(unread, edits) {
    const passed = this.model.forward(unread, { cache: this.cache, edits, last: true });
    this.#read.push(...unread);
    return passed;
  }

  /** One that goes on from here on its own: for a beam that forks. */
  copy() {
    const other = new Row(this.model, this.V, this.cache.max_length);
    other.cache = this.cache.copy();
    other.#read = [...this.#read];
    other.#edits = this.#edits;
    return other;
  }
}

/**
 * Draw a token from softmax(scores).
 *
 * If the q_i are exponential with mean 1, the largest p_i / q_i belongs to token i with probability p_i: a race that
 * runner i, of speed p_i, ends after the time q_i / p_i.
 *
 * @param {Float32Array} scores (V,).
 * @param {Float32Array} noise (V,), as `exponential` makes it.
 * @returns {number} the token's id.
 */
export function sample(scores, noise) {
  return argmax(softmax(scores).map((p, id) => p / noise[id]));
}

/**
 * Draw a token if there is noise to draw with, else take the best.
 *
 * @param {Float32Array} scores (V,).
 * @param {Float32Array | null} noise (V,).
 * @returns {number} the token's id.
 */
export function choose(scores, noise) {
  return noise === null ? argmax(scores) : sample(scores, noise);
}

/**
 * Exponential noise of mean 1, from uniform numbers.
 *
 * @param {ArrayLike<number>} uniforms (V,), from 0 to below 1.
 * @returns {Float32Array} (V,), above 0.
 */
export function exponential(uniforms) {
  const noise = new Float32Array(uniforms.length);
  for (let i = 0; i < noise.length; i++) noise[i] = Math.max(-Math.log1p(-uniforms[i]), SMALLEST);
  return noise;
}

/**
 * The randomness of sampling: for the n-th new token it is the same, whoever asks, whenever, how often. So a text that
 * branches keeps what is before the branch, and a seed always gives the same text.
 *
 * The numbers are the page's own: a seed gives another text here than on the command line.
 */
export class NoiseTape {
  /**
   * @param {number} seed a whole number from 0 on.
   * @param {number} columns V.
   */
  constructor(seed, columns) {
    this.seed = seed;
    this.columns = columns;
  }

  /** The noise (V,) for the token that follows n new ones. */
  at(n) {
    const uniform = generator(this.seed, n);
    return exponential(Float64Array.from({ length: this.columns }, uniform));
  }
}

/**
 * Uniform numbers from 0 to below 1, in steps of 2^-32: Chris Doty-Humphrey's sfc32, which passes PractRand.
 *
 * @param {...number} seeds whole numbers, each of which may have more than 32 bits.
 * @returns {() => number}
 */
export function generator(...seeds) {
  let [a, b, c, counter] = [0, 0, 0, 1];
  const next = () => {
    const sum = (a + b + counter) | 0;
    counter = (counter + 1) | 0;
    a = b ^ (b >>> 9);
    b = (c + (c << 3)) | 0;
    c = ((c << 21) | (c >>> 11)) + sum;
    c |= 0;
    return (sum >>> 0) / 2 ** 32;
  };
  for (const seed of seeds) {
    a ^= seed % 2 ** 32 | 0;
    b ^= Math.floor(seed / 2 ** 32) | 0;
    for (let n = 0; n < 15; n++) next(); // until every bit of the seed has reached every bit of the state
  }
  return next;
}
