// What the page shows, as the fragment of its address: whoever opens the same address sees the same.

const DEFAULTS = {
  view: "write",
  prompt: null, // what was typed; null: nothing yet
  more: [], // ids that were written after it
  at: null, // the place in `more` whose choices are shown; null: behind its end
  branches: [], // other continuations: { prompt, more }
  temperature: 0.8,
  top_k: 0,
  top_p: 1,
  min_p: 0,
  repetition_penalty: 1,
  seed: 0,
  length: 200,
  score: "previous", // which number the heads show
  layer: 0,
  head: 0,
  query: null, // the token whose attention is shown; null: the last
  off: [], // what is switched off: "1.2" is head 2 of layer 1, "1.mlp" its MLP
  position: null, // where the lens is read; null: the last token
  token: null, // the token whose logit is split into parts; null: the likeliest
  by: "component",
  beams: 3,
  steps: 8,
  length_penalty: 1,
  measure: "parameters",
  other: "off", // what stands at the other side: "off", or the number of a model
  model: 0,
  line: null, // of model.py, shown in its window
};

const CHOICES = {
  score: ["previous", "first", "self", "entropy", "induction", "duplicate"],
  by: ["component", "layer", "head"],
  measure: ["parameters", "bytes", "flops"],
};
/** What the controls of numbers offer: the least, the most, and the step between. */
export const RANGES = {
  temperature: [0, 2, 0.05],
  top_k: [0, 100, 1],
  top_p: [0.01, 1, 0.01],
  min_p: [0, 1, 0.01],
  repetition_penalty: [0.5, 2, 0.05],
  seed: [0, 2 ** 32 - 1, 1],
  length: [1, 10000, 1],
  beams: [1, 8, 1],
  steps: [1, 40, 1],
  length_penalty: [-5, 5, 0.1],
};

/** The state that a fragment holds. What it cannot hold is left at its default. */
export function readState(fragment) {
  const given = new URLSearchParams(fragment.replace(/^#/, ""));
  const state = { ...DEFAULTS };
  for (const [name, value] of Object.entries(DEFAULTS)) {
    if (!given.has(name)) continue;
    const text = given.get(name);
    if (name === "branches") state.branches = given.getAll(name).map(readBranch);
    else if (name === "more") state.more = readIds(text);
    else if (name === "off") state.off = text.split(",").filter((part) => /^\d+\.(\d+|mlp)$/.test(part));
    else if (name in CHOICES) state[name] = CHOICES[name].includes(text) ? text : value;
    else if (name === "prompt" || name === "view" || name === "other") state[name] = text;
    else if (fits(name, text)) state[name] = Number(text);
  }
  return state;
}

/** Whether a text is a number that its control could show; a place, or another number without a control, is a count. */
function fits(name, text) {
  const [low, high, step] = RANGES[name] ?? [0, 1e15, 1];
  return (step < 1 ? /^-?\d+(\.\d+)?$/ : /^\d+$/).test(text) && Number(text) >= low && Number(text) <= high;
}

/** A state as it can be of these models, {config}: without what only another of them has. */
export function fittingState(state, models) {
  const model = state.model in models ? state.model : 0;
  const { n_layer, n_head } = models[model].config;
  const has = ([layer, head]) => layer < n_layer && (head === "mlp" || head < n_head);
  const beside = models.findIndex((_, number) => String(number) === state.other && number !== model);
  return {
    ...state,
    model,
    off: state.off.filter((part) => has(part.split("."))),
    other: beside < 0 ? "off" : state.other,
  };
}

/** The fragment of a state: only what differs from the defaults. */
export function writeState(state) {
  const given = new URLSearchParams();
  for (const [name, value] of Object.entries(DEFAULTS)) {
    const now = state[name];
    if (name === "branches") now.forEach((branch) => given.append(name, `${branch.more.join(".")}|${branch.prompt}`));
    else if (name === "more" && now.length > 0) given.set(name, now.join("."));
    else if (name === "off" && now.length > 0) given.set(name, now.join(","));
    else if (!Array.isArray(now) && now !== value && now !== null) given.set(name, now);
  }
  return `#${given}`;
}

function readBranch(text) {
  const cut = text.indexOf("|");
  return { more: readIds(text.slice(0, Math.max(cut, 0))), prompt: text.slice(cut + 1) };
}

function readIds(text) {
  return text.split(".").filter((part) => /^\d+$/.test(part)).map(Number);
}

/** A text as the views have it: its pieces, of which so many were `typed`, and the ids that a model can still read. */
export function textOf(pieces, typed, block_size) {
  const ids = pieces.map(({ id }) => id);
  const cut = Math.max(0, ids.length - block_size); // tokens that are too long ago
  return { ids, cut, read: ids.slice(cut), pieces, typed };
}

/** The edits of the engine that "1.2" and "1.mlp" stand for. */
export function editsOf(off) {
  return off
    .map((part) => part.split("."))
    .map(([layer, head]) =>
      head === "mlp"
        ? { kind: "ablate_mlp", layer: Number(layer) }
        : { kind: "ablate_head", layer: Number(layer), head: Number(head) },
    );
}
