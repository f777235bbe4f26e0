/**
 * Beam search, as in decoding/beam_search.py, for one prompt: keep the B best sequences in view, and extend them all.
 *
 *     B running beams --model, filters--> B x V continuations --best K--> candidates
 *     candidates --ended, and among the first B--> finished: the best B of them are kept
 *                --not ended, the best B---------> the running beams of the next step
 *
 * Candidates are ranked by the sum of their tokens' log-probabilities. A finished one is scored by that sum divided by
 * length ** length_penalty; the length counts the new tokens, an end-of-sequence token too, and never the prompt's.
 */

import { InputError } from "./errors.js";
import { applyFilters } from "./filters.js";
import { finishReason, room } from "./generate.js";
import { logSoftmax, topK } from "./numbers.js";
import { decodingOptions } from "./options.js";
import { Row } from "./sampling.js";

/**
 * Search for the best continuation of a prompt, and show the tree after each step.
 *
 * @param {GPT} model
 * @param {number[]} prompt ids, at least one.
 * @param {object} given options by name: see options.js.
 * @param {object} [further]
 * @param {number} [further.vocab_size] how many of the model's ids have text: those behind it are never chosen.
 * @param {object[]} [further.edits] what to change in every pass: see edits.js.
 * @yields {{nodes: Array<{step: number, parent: number | null, id: number, total: number, kept: boolean,
 *     place: number | null, finish_reason: string | null, best: boolean}>,
 *     finished: Array<{score: number, ids: number[], finish_reason: string}>, done: boolean}}
 *     what was considered so far, step after step, in each the best first. Of a node: the number of the node that it
 *     continues (null: the prompt), the sum of log-probabilities, whether it goes on or is among the best finished ones
 *     of now, where it goes on, what ends it, and whether it belongs to the best sequence of now. `finished`: at most
 *     B, best first; ids with the prompt.
 * @throws {InputError} before any work, if an option cannot be used, or prompt and new tokens do not fit the context;
 *     at the end, if bans have left no continuation.
 */
export function* beamSearch(model, prompt, given = {}, { vocab_size, edits = [] } = {}) {
  const options = decodingOptions({ ...given, strategy: "beam" });
  const B = options.num_beams;
  const limit = room(prompt.length, options, model.config.block_size);
  if (!limit) throw new InputError("0 new tokens leave nothing to consider", "ask for at least one");
  // At worst all B beams have each end-of-sequence token first, which are eos.length * B that end: leave B to go on.
  const K = Math.max(2, 1 + options.eos.length) * B;
  const nodes = [];
  let finished = [];
  // Python begins with B beams of which all but one are dead, because its number of rows is fixed. Here there is one.
  const first = new Row(model, vocab_size, prompt.length + limit);
  const { V } = first;
  let running = [{ total: 0, ids: [...prompt], row: first, node: null }];
  for (let n = 1; running.length; n++) {
    const continued = new Float32Array(running.length * V); // totals of all continuations
    running.forEach(({ total, ids, row }, beam) => {
      const logs = logSoftmax(row.logits(ids, edits)); // (V,)
      // No second log-softmax after the filters: what a penalty takes from a token's score, its beam loses too.
      const left = applyFilters(logs, ids, options, n - 1);
      for (let id = 0; id < V; id++) continued[beam * V + id] = total + left[id];
    });
    const candidates = topK(continued, K)
      .filter((place) => continued[place] > -Infinity)
      .map((place) => {
        const [beam, id] = [running[Math.floor(place / V)], place % V];
        const finish_reason = finishReason(id, n, limit, options);
        return { beam, id, total: continued[place], finish_reason };
      });

    let going = candidates.filter(({ finish_reason }) => finish_reason === null).slice(0, B);
    const ended = candidates.slice(0, B).filter(({ finish_reason }) => finish_reason !== null); // among the first B
    finished.push(
      ...ended.map((candidate) => ({
        candidate,
        score: candidate.total / n ** options.length_penalty,
        ids: [...candidate.beam.ids, candidate.id],
        finish_reason: candidate.finish_reason,
      })),
    );
    finished = finished.sort((a, b) => b.score - a.score).slice(0, B);
    if (!going.length || isOver(finished, going[0].total, n, limit, options)) going = [];

    for (const candidate of candidates) {
      const { beam, id, total, finish_reason } = candidate;
      const place = going.includes(candidate) ? going.indexOf(candidate) : null;
      const kept = place !== null || finished.some((hypothesis) => hypothesis.candidate === candidate);
      candidate.number = nodes.length;
      nodes.push({ step: n - 1, parent: beam.node, id, total, kept, place, finish_reason });
    }
    if (!going.length && !finished.length) {
      const bans = "no_repeat_ngram_size, min_new_tokens or suppress_tokens";
      throw new InputError("every continuation is banned", `relax ${bans}`);
    }
    running = continuedRows(going);
    const best = pathTo((finished[0]?.candidate ?? going[0]).number, nodes);
    yield {
      nodes: nodes.map((node, number) => ({ ...node, best: best.has(number) })),
      finished: finished.map(({ score, ids, finish_reason }) => ({ score, ids, finish_reason })),
      done: !running.length,
    };
  }
}

/** Whether no running beam is expected to improve what is finished. */
function isOver(finished, bestTotal, n, limit, options) {
  if (finished.length < options.num_beams) return false;
  if (options.early_stopping === true) return true;
  // A total never rises. If length_penalty is above 0, a beam's best possible score is its present total at full
  // length, and "never" compares with that. False takes the present length, and may stop too early.
  const patient = options.early_stopping === "never" && options.length_penalty > 0;
  return bestTotal / (patient ? limit : n) ** options.length_penalty <= finished.at(-1).score;
}

/** The beams of the next step. The last child of a beam takes its row over; those before it copy it. */
function continuedRows(going) {
  const left = going.map(({ beam }) => beam);
  return going.map(({ beam, id, total, number }, place) => {
    const row = left.includes(beam, place + 1) ? beam.row.copy() : beam.row;
    return { total, ids: [...beam.ids, id], row, node: number };
  });
}

/** The numbers of the nodes from the first step to this one. */
function pathTo(number, nodes) {
  const path = new Set();
  for (let at = number; at !== null; at = nodes[at].parent) path.add(at);
  return path;
}
