/**
 * What is read off a pass: losses, the lens, the parts of a logit, the scores of heads, sizes.
 *
 * Each function is its namesake in minigpt/analysis, and gives the same numbers. Letters as in engine.js. A row is what
 * one position has: V scores, or the values of a point.
 */

import { entropy, logSoftmax, topK } from "./numbers.js";

/** One of the T rows of a tensor, not copied. */
export function rowOf({ data, shape }, t) {
  const width = shape.at(-1);
  return data.subarray(t * width, (t + 1) * width);
}

/** The k likeliest tokens of a row of scores, the likeliest first. */
export function likeliest(scores, k) {
  const logs = logSoftmax(scores);
  return topK(logs, k).map((id) => ({ id, probability: Math.exp(logs[id]) }));
}

/**
 * The loss of every token except the first, -log p(ids[t] | ids[:t]) in nats, and what the model would have said.
 *
 * @param {(t: number) => Float32Array} row scores (V,) of what follows token t.
 * @param {number[]} ids (T,), at least two.
 * @param {number} k how many alternatives of each.
 */
export function tokenLosses(row, ids, k) {
  const tokens = ids.slice(1).map((id, t) => {
    const logs = logSoftmax(row(t));
    const alternatives = topK(logs, k).map((other) => ({ id: other, probability: Math.exp(logs[other]) }));
    return { loss: -logs[id], probability: Math.exp(logs[id]), entropy: entropy(logs.map(Math.exp)), alternatives };
  });
  const sum = tokens.reduce((total, { loss }) => total + loss, 0);
  const mean = sum / tokens.length;
  return { tokens, sum, mean, perplexity: Math.exp(mean) };
}

/**
 * What each head of a layer looks at, as numbers from 0 to 1; analysis/heads.py says what they mean.
 *
 * @param {{data: Float32Array, shape: number[]}} pattern (H, T, T), row = query, at least 3 tokens.
 * @param {number | null} period after how many tokens the text repeats itself, from position 1 on.
 * @returns {Record<string, number[]>} kind -> (H,).
 */
export function scoresOfPattern({ data, shape: [H, T] }, period = null) {
  const mean = (from, value) =>
    Array.from({ length: H }, (_, head) => {
      let sum = 0;
      for (let query = from; query < T; query++) {
        const start = (head * T + query) * T;
        sum += value(data.subarray(start, start + T), query);
      }
      return sum / (T - from);
    });
  const scores = {
    previous: mean(2, (row, query) => row[query - 1]),
    first: mean(2, (row) => row[0]),
    self: mean(1, (row, query) => row[query]),
    entropy: mean(1, (row, query) => entropy(row) / Math.log(query + 1)),
  };
  if (period === null) return scores;
  return {
    ...scores,
    duplicate: mean(period + 1, (row, query) => row[query - period]),
    induction: mean(period + 1, (row, query) => row[query - period + 1]),
  };
}

/**
 * One token, and then others twice, all of them different: the text on which induction is scored.
 *
 * @param {{block_size: number}} config
 * @param {number} V tokens that have text.
 * @param {() => number} uniform draws from [0, 1).
 * @returns {{ids: number[], period: number} | null} null if there is no room for 3.
 */
export function repeatedTokens(config, V, uniform) {
  const length = Math.min(50, Math.floor((config.block_size - 1) / 2), V - 1);
  if (length < 3) return null;
  const drawn = Array.from({ length: V }, (_, id) => id);
  for (let place = 0; place <= length; place++) {
    const other = place + Math.floor(uniform() * (V - place));
    [drawn[place], drawn[other]] = [drawn[other], drawn[place]];
  }
  return { ids: [...drawn.slice(0, length + 1), ...drawn.slice(1, length + 1)], period: length };
}

/** The states of the residual stream: the embeddings, and after every sublayer. */
export function streamPoints({ n_layer }) {
  const layers = Array.from({ length: n_layer }, (_, layer) => layer);
  return ["blocks.0.resid_pre", ...layers.flatMap((l) => [`blocks.${l}.resid_mid`, `blocks.${l}.resid_post`])];
}

/** The states that the page reads with the lens: what enters the first layer, and what every layer leaves. */
export function lensPoints(config) {
  return streamPoints(config).filter((point) => !point.endsWith("resid_mid"));
}

/** The scores that a state of the stream (C,) gives, read as if it were the last: (V,). */
export function lens(gpt, x) {
  return gpt.lm_head.forward(gpt.ln_f.forward(x, 1).out, 1);
}

/** The points that `attribute` reads. */
export const ATTRIBUTION_POINTS = ["embed", "pos_embed", "*.attn.z", "*.attn.out", "*.mlp.out", "ln_f.scale"];

/**
 * A logit, or the difference of two, as the sum of what each part of the model has added to it.
 *
 *     logit = bias + sum over parts of part . read,    read = centred(weight of ln_f * row of lm_head) / scale
 *
 * @param {object} gpt
 * @param {(point: string) => Float32Array} vector a point's values at the position: (C,), (H * D,) or (1,).
 * @param {number} logit the model's own, minus that of `against`.
 * @param {number} target the token's id.
 * @param {number | null} against the id of the token whose logit is subtracted.
 * @param {"component" | "layer" | "head"} by how fine the parts are.
 */
export function attribute(gpt, vector, logit, target, against, by) {
  const { n_embd: C, n_head: H } = gpt.config;
  const head = gpt.lm_head.weight; // (V, C)
  const direction = new Float64Array(C);
  for (let c = 0; c < C; c++) direction[c] = head[target * C + c] - (against === null ? 0 : head[against * C + c]);
  const read = direction.map((value, c) => value * gpt.ln_f.weight[c]);
  const mean = read.reduce((sum, value) => sum + value, 0) / C;
  const [scale] = vector("ln_f.scale");
  for (let c = 0; c < C; c++) read[c] = (read[c] - mean) / scale;

  const parts = [];
  const constants = [];
  const add = (label, ...points) => {
    parts.push({ label, value: points.reduce((sum, point) => sum + dot(vector(point), read), 0) });
  };
  const addConstant = (label, bias, by_what) => {
    if (bias !== null) constants.push({ label, value: dot(bias, by_what) });
  };
  addConstant("ln_f.bias", gpt.ln_f.bias, direction);
  add("embed", "embed");
  add("pos_embed", "pos_embed");
  gpt.h.forEach((block, layer) => {
    const [attn, mlp] = [`blocks.${layer}.attn.out`, `blocks.${layer}.mlp.out`];
    if (by === "layer") return add(`${layer}`, attn, mlp);
    if (by === "head") {
      const { weight, bias } = block.attn.c_proj;
      const z = vector(`blocks.${layer}.attn.z`); // (H * D,)
      const back = transposed(weight, read); // (H * D,)
      const D = C / H;
      for (let h = 0; h < H; h++) {
        const [from, to] = [h * D, (h + 1) * D];
        parts.push({ label: `${layer}.${h}`, value: dot(z.subarray(from, to), back.subarray(from, to)) });
      }
      addConstant(`h.${layer}.attn.c_proj.bias`, bias, read);
    } else {
      add(`${layer}.attn`, attn);
    }
    return add(`${layer}.mlp`, mlp);
  });
  const total = [...parts, ...constants].reduce((sum, { value }) => sum + value, 0);
  return { parts, constants, total, logit, remainder: logit - total };
}

function dot(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}

/** W^T x: (n, m), (n,) -> (m,). */
function transposed(weight, x) {
  const m = weight.length / x.length;
  const y = new Float64Array(m);
  for (let row = 0; row < x.length; row++) {
    for (let column = 0; column < m; column++) y[column] += weight[row * m + column] * x[row];
  }
  return y;
}

/** What a model costs, a module a row: parameters, their bytes in float32, FLOPs of one pass over T tokens. */
export function modelSize(config, T) {
  const { n_layer: L, n_embd: C, vocab_size: V } = config;
  const bias = (size) => (config.bias ? size : 0);
  const rows = [];
  const add = (name, parameters, flops) => rows.push({ name, parameters, bytes: 4 * parameters, flops });
  const addNorm = (name) => add(name, C + bias(C), 0);
  const addLinear = (name, inputs, outputs) => add(name, inputs * outputs + bias(outputs), 2 * T * inputs * outputs);
  add("wte", V * C, 0);
  add("wpe", config.block_size * C, 0);
  for (let layer = 0; layer < L; layer++) {
    addNorm(`h.${layer}.ln_1`);
    addLinear(`h.${layer}.attn.c_attn`, C, 3 * C);
    add(`h.${layer}.attn scores`, 0, 2 * T * T * C);
    add(`h.${layer}.attn values`, 0, 2 * T * T * C);
    addLinear(`h.${layer}.attn.c_proj`, C, C);
    addNorm(`h.${layer}.ln_2`);
    addLinear(`h.${layer}.mlp.c_fc`, C, 4 * C);
    addLinear(`h.${layer}.mlp.c_proj`, 4 * C, C);
  }
  addNorm("ln_f");
  add("lm_head", config.tie_weights ? 0 : C * V, 2 * T * C * V);
  return rows;
}
