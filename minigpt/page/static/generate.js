/** From a prompt to its continuation, ids in and ids out: the loop of decoding/generate.py, for one sequence. */

import { KVCache } from "./engine.js";
import { InputError } from "./errors.js";
import { applyFilters } from "./filters.js";
import { logSoftmax } from "./numbers.js";
import { decodingOptions, draws } from "./options.js";
import { NoiseTape, choose } from "./sampling.js";

/**
 * The ids that follow a prompt, each as soon as it is chosen. Whoever has enough stops asking.
 *
 * @param {GPT} model
 * @param {number[]} prompt ids, at least one.
 * @param {object} given options by name: see options.js.
 * @param {object} [further]
 * @param {number} [further.vocab_size] how many of the model's ids have text: those behind it are never chosen.
 * @param {object[]} [further.edits] what to change in every pass: see edits.js.
 * @param {{at: (n: number) => Float32Array}} [further.tape] the noise of the draws; by default the seed's.
 * @yields {{id: number, logits: Float32Array, scores: Float32Array, log_prob: number, finish_reason: string | null}}
 *     the token, the model's logits (V,), what the filters left of them, the token's log-probability by the model
 *     without filters, and what ends the text with this token: "eos", "length", "context", or null.
 * @throws {InputError} before any work, if an option cannot be used, or prompt and new tokens do not fit the context.
 */
export function* generate(model, prompt, given = {}, { vocab_size, edits = [], tape } = {}) {
  const options = decodingOptions(given);
  const { block_size } = model.config;
  const V = Math.min(vocab_size ?? model.config.vocab_size, model.config.vocab_size);
  const limit = room(prompt.length, options, block_size);
  const longest = prompt.length + limit;
  tape ??= new NoiseTape(options.seed, V);
  const ids = [...prompt];
  let cache = prompt.length <= block_size ? new KVCache(model.config, Math.min(longest, block_size)) : null;
  let fed = cache === null ? ids.slice(-block_size) : ids;
  for (let n = 0; n < limit; n++) {
    const logits = model.forward(fed, { cache, edits, last: true }).logits.subarray(0, V); // (V,)
    const scores = applyFilters(logits, ids, options, n); // filter
    const id = choose(scores, draws(options) ? tape.at(n) : null); // choose
    ids.push(id); // append
    const ended = options.eos.includes(id) ? "eos" : n + 1 < limit ? null : limitReason(limit, options);
    yield { id, logits, scores, log_prob: logSoftmax(logits)[id], finish_reason: ended }; // stop, or begin again
    if (ended !== null) return;
    // Where the window starts to slide, a cache cannot: its columns are absolute positions.
    if (cache !== null && cache.length === block_size) cache = null;
    fed = cache === null ? ids.slice(-block_size) : [id];
  }
}

/**
 * How many tokens a prompt may get.
 *
 * @throws {InputError} if they do not fit, and on_overflow does not say what to do.
 */
export function room(length, options, block_size) {
  if (length < 1) throw new InputError("the prompt is empty: there is no token to continue from", "write something");
  const left = Math.max(0, block_size + 1 - length); // one more than the context holds: the last token is never fed back
  if (options.max_new_tokens <= left || options.on_overflow === "crop") return options.max_new_tokens;
  if (options.on_overflow === "stop") return left;
  throw new InputError(
    `a prompt of ${length} tokens and ${options.max_new_tokens} new ones do not fit block_size = ${block_size}`,
    `shorten the prompt, or ask for at most ${left} new tokens`,
  );
}

/** What it is called when a text reaches its limit. */
export function limitReason(limit, options) {
  return limit === options.max_new_tokens ? "length" : "context";
}
