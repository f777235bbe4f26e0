/**
 * What can be asked of a decoder, checked: the names, ranges and meanings of decoding/options.py, of those options that
 * the page has. One that is not given is off.
 */

import { InputError } from "./errors.js";

const NUCLEUS = { low: 0, above: true, high: 1, off: 1, range: "above 0 and at most 1: 1 is off" };
const CUTOFF = { low: 0, high: 1, below: true, off: 0, range: "from 0 to below 1: 0 is off" };
const COUNT = { low: 0, high: 2 ** 31, whole: true };

const RANGES = {
  max_new_tokens: { ...COUNT, off: 40, range: "a whole number from 0 on" },
  temperature: { low: 0, high: 1e30, off: 1, range: "from 0 on: 0 takes the best token, 1 leaves the scores alone" },
  top_k: { ...COUNT, off: 0, range: "a whole number: 0 is off, 50 keeps the 50 best tokens" },
  top_p: NUCLEUS,
  min_p: { low: 0, high: 1, off: 0, range: "from 0 to 1: 0 is off" },
  typical_p: NUCLEUS,
  epsilon_cutoff: CUTOFF,
  eta_cutoff: CUTOFF,
  repetition_penalty: { low: 0.001, high: 1000, off: 1, range: "from 0.001 to 1000: 1 is off, 1.2 makes it rarer" },
  no_repeat_ngram_size: { ...COUNT, off: 0, range: "a whole number: 0 is off, 3 forbids a repeated triple" },
  min_new_tokens: { ...COUNT, off: 0, range: "a whole number from 0 on" },
  num_beams: { low: 1, high: 1e6, whole: true, off: 1, range: "a whole number from 1 on" },
  length_penalty: { low: -10, high: 10, off: 1, range: "from -10 to 10: 0 is the sum, 1 the mean per token" },
  seed: { low: 0, high: 2 ** 53 - 1, whole: true, off: 0, range: "a whole number from 0 on" },
};

const CHOICES = {
  strategy: ["sample", "greedy", "beam"],
  early_stopping: [false, true, "never"],
  on_overflow: ["error", "stop", "crop"],
};

const LISTS = ["suppress_tokens", "eos"]; // of ids; `eos` are the tokens that end a sequence

/**
 * The options with those in it that were not given.
 *
 * @param {object} given any of the names above.
 * @returns {object} all of them.
 * @throws {InputError} if there is no such option, or a value is out of its range.
 */
export function decodingOptions(given = {}) {
  const options = {};
  for (const [name, { off }] of Object.entries(RANGES)) options[name] = off;
  for (const [name, [first]] of Object.entries(CHOICES)) options[name] = first;
  for (const name of LISTS) options[name] = [];
  for (const [name, value] of Object.entries(given)) {
    if (!Object.hasOwn(options, name)) {
      throw new InputError(`there is no option ${name}`, `choose among ${Object.keys(options).join(", ")}`);
    }
    if (value !== undefined && value !== null) options[name] = checkedValue(name, value);
  }
  return options;
}

function checkedValue(name, value) {
  if (LISTS.includes(name)) return Array.from(value);
  if (Object.hasOwn(CHOICES, name)) {
    if (CHOICES[name].includes(value)) return value;
    throw new InputError(`${name} = ${value} cannot be used`, `choose among ${CHOICES[name].join(", ")}`);
  }
  const { low, above, high, below, whole, range } = RANGES[name];
  const fits =
    typeof value === "number" &&
    (above ? value > low : value >= low) &&
    (below ? value < high : value <= high) &&
    (!whole || Number.isInteger(value));
  if (!fits) throw new InputError(`${name} = ${value} cannot be used`, `${name} must be ${range}`);
  return value;
}

/**
 * Whether anything is drawn. At temperature 0, the limit of sampling, the best token always wins.
 *
 * @param {object} options as `decodingOptions` gives them.
 */
export function draws(options) {
  return options.strategy === "sample" && options.temperature !== 0;
}
