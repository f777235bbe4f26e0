/**
 * The points of a model that can be read: names, shapes and meanings as in analysis/taps.py.
 *
 * The page reads one text at a time, so there is one row, and the letter B is missing from every shape.
 */

import { InputError } from "./errors.js";

/** Their names, with {l} in the place of the layer, in the order of the forward pass; beside them shape and meaning. */
const NAMES = [
  "embed",                    // T C    the tokens' embeddings
  "pos_embed",                // T C    the positions' embeddings
  "blocks.{l}.resid_pre",     // T C    the residual stream before the block
  "blocks.{l}.ln_1.scale",    // T 1    what the norm divides by: sqrt(variance + 1e-5)
  "blocks.{l}.ln_1.out",      // T C    the stream normalised, as attention reads it
  "blocks.{l}.attn.q",        // H T D  queries
  "blocks.{l}.attn.k",        // H S D  keys, those from the cache included
  "blocks.{l}.attn.v",        // H S D  values, those from the cache included
  "blocks.{l}.attn.scores",   // H T S  q @ k^T / sqrt(D), -inf where the mask hides a key
  "blocks.{l}.attn.pattern",  // H T S  softmax of the scores: how much each query takes from each key
  "blocks.{l}.attn.z",        // H T D  the values that each head has mixed
  "blocks.{l}.attn.head_out", // H T C  what each head adds to the stream; attn.out is their sum and the bias
  "blocks.{l}.attn.out",      // T C    what attention adds to the stream
  "blocks.{l}.resid_mid",     // T C    the residual stream between attention and MLP
  "blocks.{l}.ln_2.scale",    // T 1    what the norm divides by: sqrt(variance + 1e-5)
  "blocks.{l}.ln_2.out",      // T C    the stream normalised, as the MLP reads it
  "blocks.{l}.mlp.pre",       // T 4C   the neurons before the GELU
  "blocks.{l}.mlp.post",      // T 4C   the neurons after the GELU
  "blocks.{l}.mlp.out",       // T C    what the MLP adds to the stream
  "blocks.{l}.resid_post",    // T C    the residual stream after the block
  "ln_f.scale",               // T 1    what the last norm divides by: sqrt(variance + 1e-5)
  "ln_f.out",                 // T C    the stream normalised, as the output head reads it
  "logits",                   // T V    scores of the next token, at the positions that the output head computes
];

/**
 * The names of all points of a model, in the order of the forward pass.
 *
 * @param {{n_layer: number}} config
 * @returns {string[]}
 */
export function points(config) {
  const inBlocks = NAMES.filter((name) => name.startsWith("blocks."));
  const first = NAMES.indexOf(inBlocks[0]);
  const layers = Array.from({ length: config.n_layer }, (_, layer) => layer);
  return [
    ...NAMES.slice(0, first),
    ...layers.flatMap((layer) => inBlocks.map((name) => name.replace("{l}", layer))),
    ...NAMES.slice(first + inBlocks.length),
  ];
}

/**
 * The points that names or globs stand for, each once, in the order of the forward pass.
 *
 * @param {string[]} patterns `*` stands for any text, also with dots.
 * @param {{n_layer: number}} config
 * @returns {string[]}
 * @throws {InputError} if one of them matches nothing.
 */
export function resolve(patterns, config) {
  const all = points(config);
  const wanted = new Set();
  for (const pattern of patterns) {
    const found = all.filter((name) => matches(pattern, name));
    if (!found.length) throw new InputError(`there is no point '${pattern}'`, `choose among ${all.join(", ")}`);
    found.forEach((name) => wanted.add(name));
  }
  return all.filter((name) => wanted.has(name));
}

function matches(pattern, name) {
  const parts = pattern.split("*").map((part) => part.replace(/[.+?^${}()|[\]\\]/g, "\\$&"));
  return new RegExp(`^${parts.join(".*")}$`).test(name);
}
