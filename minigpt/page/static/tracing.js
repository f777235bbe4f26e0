/**
 * Reading and changing the values of one pass. At every point the value goes through the edits first, then it is
 * recorded, and then the model goes on with it: a trace shows what the model used.
 */

import { changes } from "./edits.js";
import { resolve } from "./taps.js";

/** The edits and the recording of one pass. */
export class Pass {
  /**
   * @param {object} config the model's shape.
   * @param {number} first the position of the pass's first token.
   * @param {object[]} edits see edits.js.
   * @param {string[] | null} taps names or globs of the points to record; null for none.
   */
  constructor(config, first, edits, taps) {
    this.first = first;
    this.changes = changes(edits, config);
    this.wanted = new Set(taps === null ? [] : resolve(taps, config));
    /** @type {Map<string, {data: Float32Array, shape: number[]}>} */
    this.traced = new Map();
  }

  /** Whether somebody wants a point's value; what the model does not need is not worked out otherwise. */
  wants(name) {
    return this.wanted.has(name) || this.changes.has(name);
  }

  /**
   * Change a point's value in place by its edits, and record a copy.
   *
   * @param {string} name
   * @param {Float32Array} x
   * @param {number[]} shape
   */
  tap(name, x, shape) {
    if (!this.wants(name)) return;
    for (const change of this.changes.get(name) ?? []) change(x, shape, this.first);
    if (this.wanted.has(name)) this.traced.set(name, { data: x.slice(), shape });
  }
}
