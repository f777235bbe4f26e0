/** From a prompt to its continuation, ids in and ids out: the loop of decoding/generate.py, for one sequence. */

import { InputError } from "./errors.js";
import { applyFilters, checkNotEmpty } from "./filters.js";
import { logSoftmax } from "./numbers.js";
import { decodingOptions, draws } from "./options.js";
import { NoiseTape, choose } from "./sampling.js";

/**
 * The ids that follow others, each as soon as it is chosen. Whoever has enough stops asking.
 *
 * @param {Row} row the model, and what it has read already: see sampling.js.
 * @param {number[]} ids what is there, at least one.
 * @param {object} given options by name: see options.js.
 * @param {object} [further]
 * @param {number} [further.written] how many of the ids were written after the prompt: the n-th new token after a
 *     prompt gets the n-th draw of the seed, wherever one begins.
 * @param {object[]} [further.edits] what to change in every pass: see edits.js.
 * @param {{at: (n: number) => Float32Array}} [further.tape] the noise of the draws; by default the seed's.
 * @yields {{id: number, logits: Float32Array, scores: Float32Array, log_prob: number, finish_reason: string | null}}
 *     the token, the model's logits (V,), what the filters left of them, the token's log-probability by the model
 *     without filters, and what ends the text with this token: "eos", "length", "context", or null.
 * @throws {InputError} before any work, if an option cannot be used, or ids and new tokens do not fit the context.
 */
export function* generate(row, ids, given = {}, { written = 0, edits = [], tape } = {}) {
  const options = decodingOptions(given);
  if (options.strategy === "beam") throw new InputError("a beam search is no stream of tokens", "call beamSearch");
  const limit = room(ids.length, options, row.model.config.block_size);
  tape ??= new NoiseTape(options.seed, row.V);
  ids = [...ids];
  for (let n = 0; n < limit; n++) {
    const logits = row.logits(ids, edits);
    const scores = applyFilters(logits, ids, options, written + n); // filter
    checkNotEmpty(scores);
    const id = choose(scores, draws(options) ? tape.at(written + n) : null); // choose
    ids.push(id); // append
    const finish_reason = finishReason(id, n + 1, limit, options);
    yield { id, logits, scores, log_prob: logSoftmax(logits)[id], finish_reason };
    if (finish_reason !== null) return; // stop, or begin again
  }
}

/**
 * How many tokens may follow so many others.
 *
 * @throws {InputError} if they do not fit, and on_overflow does not say what to do.
 */
export function room(length, options, block_size) {
  if (length < 1) throw new InputError("the prompt is empty: there is no token to continue from", "write something");
  // One more than the context holds: the last token is never fed back.
  const left = Math.max(0, block_size + 1 - length);
  if (options.max_new_tokens <= left || options.on_overflow === "crop") return options.max_new_tokens;
  if (options.on_overflow === "stop") return left;
  throw new InputError(
    `a prompt of ${length} tokens and ${options.max_new_tokens} new ones do not fit block_size = ${block_size}`,
    `shorten the prompt, or ask for at most ${left} new tokens`,
  );
}

/** Why a text ends with this token, the n-th after its prompt, or null if it goes on. */
export function finishReason(id, n, limit, options) {
  if (options.eos.includes(id)) return "eos";
  if (n < limit) return null;
  return limit === options.max_new_tokens ? "length" : "context";
}
