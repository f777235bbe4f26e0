/**
 * One step of decoding, as in decoding/sampling.py: the scores of the next token, and the choice of one.
 */

import { KVCache } from "./engine.js";
import { argmax, softmax } from "./numbers.js";

const SMALLEST = 2 ** -126; // float32's smallest normal number: noise of 0 would make a removed token 0 / 0

/**
 * A sequence that grows, and the logits of the token after it. With a cache only new tokens are fed. Once the sequence
 * is longer than the context, its end is fed whole: every token changes its position then.
 */
export class Row {
  /**
   * @param {GPT} model
   * @param {number[]} ids the prompt, at least one.
   * @param {number} longest the most tokens that the row will have.
   * @param {number} V how many of the model's ids there are to choose from: those that have text.
   * @param {object[]} edits what to change in every pass: see edits.js.
   */
  constructor(model, ids, longest, V, edits) {
    const { block_size } = model.config;
    Object.assign(this, { model, ids, V, edits });
    this.cache = ids.length <= block_size ? new KVCache(model.config, Math.min(longest, block_size)) : null;
  }

  /** Feed what is new; give the logits of the token after the last one: (V,). */
  logits() {
    if (this.cache !== null && this.ids.length > this.cache.max_length) this.cache = null; // the window starts to slide
    const unread = this.cache === null ? this.ids.slice(-this.model.config.block_size) : this.ids.slice(this.cache.length);
    const { logits } = this.model.forward(unread, { cache: this.cache, edits: this.edits, last: true });
    return logits.subarray(0, this.V);
  }

  /** A copy that grows on its own: a beam that forks. */
  copy() {
    return Object.assign(Object.create(Row.prototype), this, { ids: [...this.ids], cache: this.cache?.copy() ?? null });
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
