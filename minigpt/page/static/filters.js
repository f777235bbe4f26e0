/**
 * What a decoder may choose from: pure functions on scores, in the order of decoding/filters.py.
 *
 * A filter takes the scores of the next token, a Float32Array (V,). It returns new ones and never changes its input. A
 * removed token gets -inf, which no softmax and no later filter brings back. The last token is never removed, except by
 * bans. `history` are the ids written before, the prompt included.
 *
 * Where a comparison decides, both sides are rounded to float32, as torch rounds them.
 */

import { InputError } from "./errors.js";
import { argmax, entropy, largest, logSoftmax, softmax } from "./numbers.js";
import { decodingOptions, draws } from "./options.js";

const { fround } = Math;
const TINY = 2 ** -126; // the smallest normal float32

/**
 * Every filter that is on, in the one order that this project knows. Scores are logits, or log-probabilities in a beam
 * search.
 *
 * @param {Float32Array} scores of the next token, (V,).
 * @param {ArrayLike<number>} history ids, prompt included.
 * @param {object} options as `decodingOptions` gives them.
 * @param {number} numNew how many of the ids were written after the prompt.
 * @returns {Float32Array} new scores (V,). Where bans have left nothing, all are -inf: see `checkNotEmpty`.
 */
export function applyFilters(scores, history, options, numNew) {
  scores = scores.slice();
  if (options.repetition_penalty !== 1) scores = repetitionPenalty(scores, history, options.repetition_penalty);
  if (options.no_repeat_ngram_size) scores = noRepeatNgram(scores, history, options.no_repeat_ngram_size);
  if (numNew < options.min_new_tokens) scores = banTokens(scores, options.eos);
  if (options.suppress_tokens.length) scores = banTokens(scores, options.suppress_tokens);
  if (!draws(options)) return scores; // the filters below only shape a draw: the best token stays the best
  // Each of these sees what the one before has left: top-p counts the probability that temperature and top-k made.
  if (options.temperature !== 1) scores = divided(scores, options.temperature);
  if (options.top_k) scores = keepTopK(scores, options.top_k);
  if (options.top_p < 1) scores = keepTopP(scores, options.top_p);
  if (options.min_p) scores = keepMinP(scores, options.min_p);
  if (options.typical_p < 1) scores = keepTypicalP(scores, options.typical_p);
  if (options.epsilon_cutoff) scores = keepEpsilon(scores, options.epsilon_cutoff);
  if (options.eta_cutoff) scores = keepEta(scores, options.eta_cutoff);
  return scores;
}

/**
 * Refuse to go on where bans have left no token.
 *
 * @param {Float32Array} scores (V,).
 * @throws {InputError}
 */
export function checkNotEmpty(scores) {
  if (largest(scores) === -Infinity) {
    throw new InputError(
      "every token is banned; what bans is no_repeat_ngram_size, min_new_tokens and suppress_tokens",
      "relax one of them",
    );
  }
}

/**
 * The distribution that the next token is drawn from.
 *
 * @param {Float32Array} logits (V,).
 * @param {object} given options by name: see options.js.
 * @param {ArrayLike<number>} history ids, prompt included: what the repetition penalty looks at.
 * @param {number} numNew how many of them were written after the prompt.
 * @returns {{probs: Float32Array, kept: number}} (V,), and how many tokens are left. Where nothing is drawn, the best
 *     token has all the probability.
 */
export function nextDistribution(logits, given = {}, history = [], numNew = 0) {
  const options = decodingOptions(given);
  const scores = applyFilters(logits, history, options, numNew);
  checkNotEmpty(scores);
  if (draws(options)) {
    return { probs: softmax(scores), kept: scores.reduce((count, score) => count + (score > -Infinity), 0) };
  }
  const probs = new Float32Array(scores.length);
  probs[argmax(scores)] = 1;
  return { probs, kept: 1 };
}

// The functions below follow the order in which `applyFilters` calls them.

/** CTRL's penalty: what was written before loses score, once: positive scores are divided, negative ones multiplied. */
export function repetitionPenalty(scores, history, penalty) {
  scores = scores.slice();
  const factor = fround(penalty);
  for (const id of new Set(history)) scores[id] = scores[id] < 0 ? scores[id] * factor : scores[id] / factor;
  return scores;
}

/** Ban every token that would repeat `size` tokens of the history. */
export function noRepeatNgram(scores, history, size) {
  const banned = [];
  const last = history.length - size + 1; // where the n-gram in the making begins
  for (let start = 0; start < last; start++) {
    let same = true;
    for (let n = 0; n < size - 1; n++) same &&= history[start + n] === history[last + n];
    if (same) banned.push(history[start + size - 1]);
  }
  return banTokens(scores, banned);
}

/** Remove these tokens. */
export function banTokens(scores, tokens) {
  scores = scores.slice();
  for (const id of tokens) scores[id] = -Infinity;
  return scores;
}

/**
 * Divide by a temperature above 0. The order of tokens stays. If a quotient overflows, the best score is first
 * subtracted from all: the softmax is the same.
 */
export function divided(scores, temperature) {
  const value = Math.max(fround(temperature), TINY); // or it would be rounded to 0
  const quotients = scores.map((score) => score / value);
  if (!quotients.some((quotient, id) => Math.abs(quotient) === Infinity && Math.abs(scores[id]) < Infinity)) {
    return quotients;
  }
  const best = largest(scores);
  return scores.map((score) => fround(score - best) / value);
}

/** Keep the k best, and all that tie with the k-th: none is better. */
export function keepTopK(scores, k) {
  const last = scores.slice().sort()[scores.length - Math.min(k, scores.length)];
  return without(scores, (id) => scores[id] < last);
}

/**
 * Keep the nucleus: the fewest best tokens whose probability reaches p. A token stays if the tokens better than it have
 * less than p together. The sum runs from the worst token up, as in Python, so that both agree where rounding decides.
 */
export function keepTopP(scores, p) {
  const ascending = places(scores);
  const probs = softmax(ascending.map((id) => scores[id]));
  const removed = new Set();
  let sum = 0;
  for (let n = 0; n < ascending.length - 1; n++) {
    sum += probs[n];
    if (fround(sum) <= fround(1 - p)) removed.add(ascending[n]);
  }
  return without(scores, (id) => removed.has(id));
}

/** Keep tokens with at least `share` of the best one's probability. */
export function keepMinP(scores, share) {
  const probs = softmax(scores);
  return atLeast(scores, probs, fround(share) * largest(probs));
}

/**
 * Keep the tokens that are about as surprising as expected: those nearest to the entropy, until their probability
 * reaches p. It is the one filter that may remove the most likely token, where that is too predictable.
 */
export function keepTypicalP(scores, p) {
  const logs = logSoftmax(scores);
  const expected = fround(entropy(logs.map(Math.exp)));
  const distance = logs.map((log) => Math.abs(-log - expected));
  const order = places(distance);
  const probs = softmax(order.map((id) => scores[id]));
  let last = 0;
  for (let sum = probs[0]; fround(sum) < fround(p) && last < order.length - 1; sum += probs[last]) last++;
  const farthest = distance[order[last]];
  return without(scores, (id) => distance[id] > farthest);
}

/** Keep the tokens whose probability is at least epsilon. */
export function keepEpsilon(scores, epsilon) {
  return atLeast(scores, softmax(scores), epsilon);
}

/**
 * Keep the tokens of probability min(eta, sqrt(eta) * exp(-entropy)), or more: the bar comes down where the model is
 * unsure.
 */
export function keepEta(scores, eta) {
  const probs = softmax(scores);
  return atLeast(scores, probs, Math.min(eta, Math.sqrt(eta) * Math.exp(-entropy(probs))));
}

/** Keep the tokens whose probability is not below a bar, and the best in any case. */
function atLeast(scores, probs, bar) {
  const best = largest(scores);
  return without(scores, (id) => probs[id] < fround(bar) && scores[id] < best);
}

/** The places of a row, those of the smallest values first; of equal ones the first. */
function places(row) {
  return Array.from(row.keys()).sort((a, b) => row[a] - row[b] || a - b);
}

/** The scores, with -inf where the test of an id is true. */
function without(scores, test) {
  return scores.map((score, id) => (test(id) ? -Infinity : score));
}
