/**
 * Changes of what a model computes, at the places where analysis/edits.py makes them:
 *
 *     {kind: "ablate_head", layer, head}            the head's z is 0             ablate("3.7")
 *     {kind: "ablate_attn", layer}                  attention adds 0              ablate("3.attn")
 *     {kind: "ablate_mlp", layer}                   the MLP adds 0                ablate("3.mlp")
 *     {kind: "cut_edge", layer, head, query, key}   the query misses that key     knockout(layer, head, query, key)
 *     {kind: "replace_token", position, id}         another token stands there
 *
 * Positions are absolute, also with a cache: an edit changes the pass that computes its positions.
 */

import { InputError } from "./errors.js";

/**
 * The edits of each point, ready to be carried out.
 *
 * @param {object[]} edits as above.
 * @param {object} config the model's shape.
 * @returns {Map<string, Array<(x: Float32Array, shape: number[], first: number) => void>>} point -> functions that
 *     change its values in place; `first` is the position of the pass's first token. Replaced tokens are no point:
 *     see `replaced`.
 * @throws {InputError} if the model has no such layer, head, position or token.
 */
export function changes(edits, config) {
  const found = new Map();
  for (const edit of edits) {
    const [point, change] = CHANGES[kindOf(edit)](edit, config);
    if (point !== null) found.set(point, [...(found.get(point) ?? []), change]);
  }
  return found;
}

/**
 * The ids with the replaced tokens in them.
 *
 * @param {ArrayLike<number>} idx (T,).
 * @param {object[]} edits as above.
 * @param {number} first the position of the first id.
 * @returns {number[]} (T,).
 */
export function replaced(idx, edits, first) {
  const ids = Array.from(idx);
  for (const { kind, position, id } of edits) {
    if (kind === "replace_token" && position >= first && position < first + ids.length) ids[position - first] = id;
  }
  return ids;
}

const CHANGES = {
  ablate_head(edit, config) {
    checkPlace(edit.layer, config.n_layer, "layer");
    checkPlace(edit.head, config.n_head, "head");
    return [`blocks.${edit.layer}.attn.z`, (z, [, T, D]) => z.fill(0, edit.head * T * D, (edit.head + 1) * T * D)];
  },
  ablate_attn(edit, config) {
    checkPlace(edit.layer, config.n_layer, "layer");
    return [`blocks.${edit.layer}.attn.out`, (x) => x.fill(0)];
  },
  ablate_mlp(edit, config) {
    checkPlace(edit.layer, config.n_layer, "layer");
    return [`blocks.${edit.layer}.mlp.out`, (x) => x.fill(0)];
  },
  cut_edge({ layer, head, query, key }, config) {
    checkPlace(layer, config.n_layer, "layer");
    checkPlace(head, config.n_head, "head");
    checkPlace(query, config.block_size, "position");
    if (query === 0) {
      throw new InputError("query 0 sees nothing but key 0 and must keep one key", "choose a query from 1 on");
    }
    if (!Number.isInteger(key) || key < 0 || key > query) {
      throw new InputError(
        `query ${query} does not see key ${key} in any case: the mask hides what comes after it`,
        `choose a key from 0 to ${query}`,
      );
    }
    const change = (scores, [, T, S], first) => {
      if (query < first || query >= first + T) return;
      const start = (head * T + query - first) * S;
      scores[start + key] = -Infinity;
      if (scores.subarray(start, start + S).every((score) => score === -Infinity)) {
        throw new InputError(
          `query ${query} of head ${layer}.${head} is left without any key`,
          "leave it at least one, or switch the whole head off",
        );
      }
    };
    return [`blocks.${layer}.attn.scores`, change];
  },
  replace_token({ position, id }, config) {
    checkPlace(position, config.block_size, "position");
    checkPlace(id, config.vocab_size, "token");
    return [null, null];
  },
};

function kindOf(edit) {
  if (!Object.hasOwn(CHANGES, edit.kind)) {
    throw new InputError(`there is no edit '${edit.kind}'`, `choose among ${Object.keys(CHANGES).join(", ")}`);
  }
  return edit.kind;
}

function checkPlace(place, count, what) {
  if (!Number.isInteger(place) || place < 0 || place >= count) {
    throw new InputError(`there is no ${what} ${place}: the model has ${count}`, `choose from 0 to ${count - 1}`);
  }
}
