/**
 * The forward pass of model.py in JavaScript, to be read beside it: the same names, in the same order.
 *
 * The page reads one text at a time, so there is one row, and the letter B is missing from every shape:
 *
 *     T  tokens       positions fed in this call: the queries
 *     S  keys         positions that a query may look back on: the cache's and these
 *     C  width        n_embd, the residual stream
 *     H  heads        n_head
 *     D  head size    C / H
 *     V  vocabulary   vocab_size
 *
 * A tensor is a Float32Array, row after row: element (t, c) of a (T, C) stands at t * C + c. Sums are float64, because
 * JavaScript has no other; what is kept is float32. Nothing here knows of text, pages or networks.
 */

import { replaced } from "./edits.js";
import { InputError } from "./errors.js";
import { Pass } from "./tracing.js";

const LAYER_NORM_EPS = 1e-5;

/** y = x W^T + b, as torch.nn.Linear. */
export class Linear {
  /**
   * @param {Float32Array} weight (outputs, inputs).
   * @param {Float32Array | null} bias (outputs,).
   */
  constructor(weight, bias, inputs, outputs) {
    Object.assign(this, { weight, bias, inputs, outputs });
  }

  /**
   * @param {Float32Array} x (T, inputs).
   * @returns {Float32Array} (T, outputs).
   */
  forward(x, T) {
    const y = new Float32Array(T * this.outputs);
    const whole = T - (T % 4); // tokens that come in fours
    fourTokens(x, whole, this.weight, this.inputs, this.outputs, y);
    for (let t = whole; t < T; t++) oneToken(x, t, this.weight, this.inputs, this.outputs, y);
    if (this.bias !== null) {
      for (let t = 0; t < T; t++) {
        for (let o = 0; o < this.outputs; o++) y[t * this.outputs + o] += this.bias[o];
      }
    }
    return y;
  }
}

// Almost all of the time is spent in the two functions below. Both have four sums under way, which do not wait for each
// other, and each number that is loaded serves all four. More sums, sums in float32 (Math.fround) and rows converted to
// float64 beforehand were tried, and are no faster.

/** y[t] = W x[t] for one token t, four rows of W at a time. */
function oneToken(x, t, weight, inputs, outputs, y) {
  const row = t * inputs;
  const whole = outputs - (outputs % 4);
  for (let o = 0; o < whole; o += 4) {
    const w0 = o * inputs;
    const w1 = w0 + inputs;
    const w2 = w1 + inputs;
    const w3 = w2 + inputs;
    let sum0 = 0;
    let sum1 = 0;
    let sum2 = 0;
    let sum3 = 0;
    for (let i = 0; i < inputs; i++) {
      const value = x[row + i];
      sum0 += weight[w0 + i] * value;
      sum1 += weight[w1 + i] * value;
      sum2 += weight[w2 + i] * value;
      sum3 += weight[w3 + i] * value;
    }
    const at = t * outputs + o;
    y[at] = sum0;
    y[at + 1] = sum1;
    y[at + 2] = sum2;
    y[at + 3] = sum3;
  }
  for (let o = whole; o < outputs; o++) {
    let sum = 0;
    for (let i = 0; i < inputs; i++) sum += weight[o * inputs + i] * x[row + i];
    y[t * outputs + o] = sum;
  }
}

/** y[t] = W x[t] for the first T tokens, a multiple of four, four at a time: W is read once, whatever T is. */
function fourTokens(x, T, weight, inputs, outputs, y) {
  for (let o = 0; o < outputs; o++) {
    const w = o * inputs;
    for (let t = 0; t < T; t += 4) {
      const x0 = t * inputs;
      const x1 = x0 + inputs;
      const x2 = x1 + inputs;
      const x3 = x2 + inputs;
      let sum0 = 0;
      let sum1 = 0;
      let sum2 = 0;
      let sum3 = 0;
      for (let i = 0; i < inputs; i++) {
        const value = weight[w + i];
        sum0 += value * x[x0 + i];
        sum1 += value * x[x1 + i];
        sum2 += value * x[x2 + i];
        sum3 += value * x[x3 + i];
      }
      const at = t * outputs + o;
      y[at] = sum0;
      y[at + outputs] = sum1;
      y[at + 2 * outputs] = sum2;
      y[at + 3 * outputs] = sum3;
    }
  }
}

/** Each position's values with mean 0 and variance 1, times a weight, plus a bias. */
export class LayerNorm {
  /**
   * @param {Float32Array} weight (C,).
   * @param {Float32Array | null} bias (C,).
   */
  constructor(weight, bias) {
    Object.assign(this, { weight, bias });
  }

  /**
   * @param {Float32Array} x (T, C).
   * @returns {{out: Float32Array, scale: Float32Array}} (T, C), and what was divided by: (T, 1).
   */
  forward(x, T) {
    const C = this.weight.length;
    const out = new Float32Array(T * C);
    const scale = new Float32Array(T);
    for (let t = 0; t < T; t++) {
      const start = t * C;
      let mean = 0;
      for (let c = 0; c < C; c++) mean += x[start + c];
      mean /= C;
      let variance = 0;
      for (let c = 0; c < C; c++) variance += (x[start + c] - mean) ** 2;
      const divisor = Math.sqrt(variance / C + LAYER_NORM_EPS);
      for (let c = 0; c < C; c++) out[start + c] = ((x[start + c] - mean) / divisor) * this.weight[c];
      if (this.bias !== null) for (let c = 0; c < C; c++) out[start + c] += this.bias[c];
      scale[t] = divisor;
    }
    return { out, scale };
  }
}

/** GPT-2's form of the GELU, with a tanh, of each value of x in place. */
function gelu(x) {
  const factor = Math.sqrt(2 / Math.PI);
  for (let i = 0; i < x.length; i++) {
    const v = x[i];
    x[i] = 0.5 * v * (1 + Math.tanh(factor * (v + 0.044715 * v * v * v)));
  }
}

/**
 * The KV-cache: keys and values of earlier tokens, which never change. Column = absolute position, as in kv_cache.py.
 */
export class KVCache {
  /**
   * @param {object} config the model's shape.
   * @param {number} max_length columns; at most block_size.
   */
  constructor(config, max_length = config.block_size) {
    const { n_layer, n_head, n_embd, block_size } = config;
    if (!Number.isInteger(max_length) || max_length < 1 || max_length > block_size) {
      throw new InputError(
        `a cache of ${max_length} columns does not fit a block_size of ${block_size}`,
        `choose max_length from 1 to ${block_size}: there is no position beyond it`,
      );
    }
    this.config = config;
    this.max_length = max_length;
    /** The number of valid columns. */
    this.length = 0;
    const one = () => new Float32Array(n_head * max_length * (n_embd / n_head));
    this.k = Array.from({ length: n_layer }, one); // of each layer (H, max_length, D)
    this.v = Array.from({ length: n_layer }, one);
  }

  /**
   * Store T new keys and values of one layer, of the positions from `length` on. The length moves only with `advance`.
   *
   * @param {Float32Array} k (H, T, D).
   * @param {Float32Array} v (H, T, D).
   */
  write(layer, k, v, T) {
    const { n_head: H, n_embd: C } = this.config;
    const D = C / H;
    for (let head = 0; head < H; head++) {
      const at = (head * this.max_length + this.length) * D;
      this.k[layer].set(k.subarray(head * T * D, (head + 1) * T * D), at);
      this.v[layer].set(v.subarray(head * T * D, (head + 1) * T * D), at);
    }
  }

  /** Count T columns as valid: every layer has written them. */
  advance(T) {
    this.length += T;
  }

  /** Take back the last n tokens. */
  rollback(n) {
    if (!Number.isInteger(n) || n < 0 || n > this.length) {
      throw new InputError(`cannot take back ${n} tokens of ${this.length}`, `choose from 0 to ${this.length}`);
    }
    this.length -= n;
  }

  /** A copy that grows on its own: for a beam that forks. */
  copy() {
    const other = new KVCache(this.config, this.max_length);
    other.length = this.length;
    this.k.forEach((k, layer) => other.k[layer].set(k));
    this.v.forEach((v, layer) => other.v[layer].set(v));
    return other;
  }
}

/** Every position gathers values from itself and the positions before it, in H independent heads. */
class CausalSelfAttention {
  constructor(config, parameter, layer) {
    const { n_embd: C, n_head: H } = config;
    this.layer = layer; // which part of the KV-cache is ours
    this.H = H;
    this.D = C / H;
    this.c_attn = linear(parameter, `h.${layer}.attn.c_attn`, C, 3 * C); // queries, keys and values at once
    this.c_proj = linear(parameter, `h.${layer}.attn.c_proj`, C, C);
  }

  /** (T, C) -> (T, C). */
  forward(x, T, cache, pass) {
    const { H, D } = this;
    const name = `blocks.${this.layer}.attn`;
    const qkv = this.c_attn.forward(x, T); // (T, C) -> (T, 3C)
    const [q, k, v] = [0, 1, 2].map((part) => heads(qkv, part, T, H, D)); // (T, 3C) -> 3 x (H, T, D)
    cache.write(this.layer, k, v, T);

    const S = cache.length + T; // the past and the present
    pass.tap(`${name}.q`, q, [H, T, D]);
    if (pass.wants(`${name}.k`)) pass.tap(`${name}.k`, columns(cache.k[this.layer], cache, S, H, D), [H, S, D]);
    if (pass.wants(`${name}.v`)) pass.tap(`${name}.v`, columns(cache.v[this.layer], cache, S, H, D), [H, S, D]);
    const scores = attentionScores(q, cache.k[this.layer], cache, T, S, H, D);
    pass.tap(`${name}.scores`, scores, [H, T, S]);
    const pattern = softmaxRows(scores, S); // each query's weights sum to 1
    pass.tap(`${name}.pattern`, pattern, [H, T, S]);
    const z = mixed(pattern, cache.v[this.layer], cache, T, S, H, D); // (H, T, S) @ (H, S, D) -> (H, T, D)
    pass.tap(`${name}.z`, z, [H, T, D]);
    if (pass.wants(`${name}.head_out`)) pass.tap(`${name}.head_out`, this.headOut(z, T), [H, T, H * D]);
    return this.c_proj.forward(sideBySide(z, T, H, D), T); // (H, T, D) -> (T, C)
  }

  /** What each head adds to the stream: (H, T, D) -> (H, T, C). */
  headOut(z, T) {
    const { H, D } = this;
    const C = H * D;
    const out = new Float32Array(H * T * C);
    for (let head = 0; head < H; head++) {
      for (let t = 0; t < T; t++) {
        const row = (head * T + t) * D;
        for (let c = 0; c < C; c++) {
          let sum = 0;
          for (let d = 0; d < D; d++) sum += this.c_proj.weight[c * C + head * D + d] * z[row + d];
          out[(head * T + t) * C + c] = sum;
        }
      }
    }
    return out;
  }
}

/** Queries, keys or values (part 0, 1 or 2) as heads: (T, 3C) -> (H, T, D). */
function heads(qkv, part, T, H, D) {
  const C = H * D;
  const x = new Float32Array(H * T * D);
  for (let t = 0; t < T; t++) {
    for (let head = 0; head < H; head++) {
      const from = t * 3 * C + part * C + head * D;
      x.set(qkv.subarray(from, from + D), (head * T + t) * D);
    }
  }
  return x;
}

/** Heads side by side again: (H, T, D) -> (T, C). */
function sideBySide(z, T, H, D) {
  const y = new Float32Array(T * H * D);
  for (let head = 0; head < H; head++) {
    for (let t = 0; t < T; t++) {
      const from = (head * T + t) * D;
      y.set(z.subarray(from, from + D), t * H * D + head * D);
    }
  }
  return y;
}

/** The first S columns of a layer's keys or values: (H, max_length, D) -> (H, S, D). */
function columns(stored, cache, S, H, D) {
  const x = new Float32Array(H * S * D);
  for (let head = 0; head < H; head++) {
    const from = head * cache.max_length * D;
    x.set(stored.subarray(from, from + S * D), head * S * D);
  }
  return x;
}

/** How well each key answers each query: (H, T, D), (H, max_length, D) -> (H, T, S); -inf where it may not look. */
function attentionScores(q, k, cache, T, S, H, D) {
  const scores = new Float32Array(H * T * S).fill(-Infinity);
  const root = Math.sqrt(D);
  for (let head = 0; head < H; head++) {
    for (let t = 0; t < T; t++) {
      const query = (head * T + t) * D;
      const seen = S - T + t; // the position of the query, the last that it sees
      for (let s = 0; s <= seen; s++) {
        const key = (head * cache.max_length + s) * D;
        let sum = 0;
        for (let d = 0; d < D; d++) sum += q[query + d] * k[key + d];
        scores[(head * T + t) * S + s] = sum / root;
      }
    }
  }
  return scores;
}

/** The softmax of every row of S scores, in place. */
function softmaxRows(x, S) {
  for (let start = 0; start < x.length; start += S) {
    let highest = -Infinity;
    for (let i = start; i < start + S; i++) if (x[i] > highest) highest = x[i];
    let sum = 0;
    for (let i = start; i < start + S; i++) sum += x[i] = Math.exp(x[i] - highest);
    for (let i = start; i < start + S; i++) x[i] /= sum;
  }
  return x;
}

/** The values, mixed by a pattern: (H, T, S), (H, max_length, D) -> (H, T, D). */
function mixed(pattern, v, cache, T, S, H, D) {
  const z = new Float32Array(H * T * D);
  const sums = new Float64Array(D);
  for (let head = 0; head < H; head++) {
    for (let t = 0; t < T; t++) {
      sums.fill(0);
      for (let s = 0; s <= S - T + t; s++) {
        const weight = pattern[(head * T + t) * S + s];
        const value = (head * cache.max_length + s) * D;
        for (let d = 0; d < D; d++) sums[d] += weight * v[value + d];
      }
      z.set(sums, (head * T + t) * D);
    }
  }
  return z;
}

/** Each position on its own: widen to 4C, tanh-GELU, narrow to C. */
class MLP {
  constructor(config, parameter, layer) {
    const C = config.n_embd;
    this.layer = layer;
    this.c_fc = linear(parameter, `h.${layer}.mlp.c_fc`, C, 4 * C);
    this.c_proj = linear(parameter, `h.${layer}.mlp.c_proj`, 4 * C, C);
  }

  /** (T, C) -> (T, C). */
  forward(x, T, pass) {
    const name = `blocks.${this.layer}.mlp`;
    const neurons = this.c_fc.forward(x, T); // (T, C) -> (T, 4C)
    pass.tap(`${name}.pre`, neurons, [T, this.c_fc.outputs]);
    gelu(neurons);
    pass.tap(`${name}.post`, neurons, [T, this.c_fc.outputs]);
    return this.c_proj.forward(neurons, T); // (T, 4C) -> (T, C)
  }
}

/** One layer: attention moves information between positions, the MLP works on each position. */
class Block {
  constructor(config, parameter, layer) {
    this.layer = layer;
    this.C = config.n_embd;
    this.ln_1 = layerNorm(parameter, `h.${layer}.ln_1`, this.C);
    this.attn = new CausalSelfAttention(config, parameter, layer);
    this.ln_2 = layerNorm(parameter, `h.${layer}.ln_2`, this.C);
    this.mlp = new MLP(config, parameter, layer);
  }

  /** The residual stream x (T, C), to which attention and MLP add in place. */
  forward(x, T, cache, pass) {
    const name = `blocks.${this.layer}`;
    const shape = [T, this.C];
    pass.tap(`${name}.resid_pre`, x, shape);
    const attn = this.attn.forward(normalised(this.ln_1, x, T, `${name}.ln_1`, pass), T, cache, pass);
    pass.tap(`${name}.attn.out`, attn, shape);
    add(x, attn);
    pass.tap(`${name}.resid_mid`, x, shape);
    const mlp = this.mlp.forward(normalised(this.ln_2, x, T, `${name}.ln_2`, pass), T, pass);
    pass.tap(`${name}.mlp.out`, mlp, shape);
    add(x, mlp);
    pass.tap(`${name}.resid_post`, x, shape);
  }
}

/** What a norm makes of x (T, C), with its two points tapped. */
function normalised(norm, x, T, name, pass) {
  const { out, scale } = norm.forward(x, T);
  pass.tap(`${name}.scale`, scale, [T, 1]);
  pass.tap(`${name}.out`, out, [T, norm.weight.length]);
  return out;
}

function add(x, y) {
  for (let i = 0; i < x.length; i++) x[i] += y[i];
}

/**
 * The whole model.
 *
 *     idx (T,) --------> wte --+
 *                              +--> x (T, C) --> h.0 --> h.1 --> ... --> ln_f --> lm_head --> logits (T, V)
 *     positions (T,) --> wpe --+
 */
export class GPT {
  /**
   * @param {object} config model.py's GPTConfig: vocab_size, block_size, n_layer, n_head, n_embd, bias, tie_weights.
   * @param {Record<string, Float32Array>} weights the state dict: name -> values, row after row. They are not copied.
   * @throws {InputError} if a tensor is missing, or has another size than the config says.
   */
  constructor(config, weights) {
    const { vocab_size: V, n_embd: C, block_size } = config;
    const parameter = (name, ...shape) => {
      const size = shape.reduce((product, n) => product * n, 1);
      const found = Object.hasOwn(weights, name) ? weights[name] : [];
      if (found.length !== size) {
        throw new InputError(
          `the weights have ${found.length} numbers of ${name}, and the model needs ${shape.join(" x ")}`,
          "the file is cut off, or belongs to another model: make it again",
        );
      }
      return found;
    };
    parameter.bias = config.bias; // whether linear layers and norms have one
    this.config = config;
    this.wte = parameter("wte.weight", V, C);
    this.wpe = parameter("wpe.weight", block_size, C);
    this.h = Array.from({ length: config.n_layer }, (_, layer) => new Block(config, parameter, layer));
    this.ln_f = layerNorm(parameter, "ln_f", C);
    const head = config.tie_weights ? this.wte : parameter("lm_head.weight", V, C);
    this.lm_head = new Linear(head, null, C, V);
  }

  /**
   * Logits of the next token: idx (T,) -> (T, V). With a cache, `idx` continues what the cache holds, and the cache
   * then holds `idx` too. Any way of cutting a sequence into calls gives the same logits as one call.
   *
   * @param {ArrayLike<number>} idx ids (T,), at least one.
   * @param {object} [options]
   * @param {KVCache | null} [options.cache]
   * @param {object[]} [options.edits] what to change: see edits.js.
   * @param {string[] | null} [options.taps] names or globs of the points to keep: see taps.js.
   * @param {boolean} [options.last] whether only the last position's logits are wanted, (1, V): the head is a third of
   *     GPT-2 small.
   * @returns {{logits: Float32Array, traced: Map<string, {data: Float32Array, shape: number[]}>}}
   * @throws {InputError} if the tokens are no ids of the vocabulary, or do not fit the context; then the cache is as
   *     before.
   */
  forward(idx, { cache = null, edits = [], taps = null, last = false } = {}) {
    const { vocab_size: V, n_embd: C, block_size } = this.config;
    const T = idx.length;
    checkInputs(idx, V);
    const room = (cache === null ? block_size : cache.max_length) - (cache?.length ?? 0);
    if (T > room) {
      throw new InputError(
        `${T} tokens are more than there is room for: ${room} of block_size = ${block_size}`,
        `feed at most ${room} tokens: the model has no position embedding beyond that`,
      );
    }
    // Without a cache of the caller's, attention still keeps this pass's keys and values in one: a second way would
    // only be a second way.
    cache ??= new KVCache(this.config, T);
    const first = cache.length;
    const pass = new Pass(this.config, first, edits, taps);
    const x = this.embedded(replaced(idx, edits, first), first, pass); // (T, C)
    for (const block of this.h) block.forward(x, T, cache, pass);
    cache.advance(T);
    const hidden = normalised(this.ln_f, x, T, "ln_f", pass); // (T, C)
    const num = last ? 1 : T;
    const logits = this.lm_head.forward(hidden.subarray((T - num) * C), num); // (T, C) -> (T, V)
    pass.tap("logits", logits, [num, V]);
    return { logits, traced: pass.traced };
  }

  /** The embeddings of tokens and positions, summed: (T,) -> (T, C). */
  embedded(ids, first, pass) {
    const { n_embd: C } = this.config;
    const T = ids.length;
    const x = new Float32Array(T * C);
    ids.forEach((id, t) => x.set(this.wte.subarray(id * C, (id + 1) * C), t * C));
    pass.tap("embed", x, [T, C]);
    const positions = this.wpe.slice(first * C, (first + T) * C); // (T, C)
    pass.tap("pos_embed", positions, [T, C]);
    add(x, positions);
    return x;
  }
}

function linear(parameter, name, inputs, outputs) {
  const bias = parameter.bias ? parameter(`${name}.bias`, outputs) : null;
  return new Linear(parameter(`${name}.weight`, outputs, inputs), bias, inputs, outputs);
}

function layerNorm(parameter, name, C) {
  return new LayerNorm(parameter(`${name}.weight`, C), parameter.bias ? parameter(`${name}.bias`, C) : null);
}

function checkInputs(idx, V) {
  if (!idx.length) throw new InputError("there are no tokens to read", "give at least one id");
  for (let t = 0; t < idx.length; t++) {
    if (!Number.isInteger(idx[t]) || idx[t] < 0 || idx[t] >= V) {
      throw new InputError(
        `id ${idx[t]} is not in the vocabulary of ${V}`,
        `use ids from 0 to ${V - 1}, made by the tokenizer that belongs to this model`,
      );
    }
  }
}
