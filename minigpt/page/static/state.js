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
const FRACTIONS = ["temperature", "top_p", "min_p", "repetition_penalty", "length_penalty"]; // the others are counts

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
    else if (FRACTIONS.includes(name) ? Number.isFinite(parseFloat(text)) : /^\d{1,15}$/.test(text)) state[name] = Number(text);
  }
  return state;
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

/** The edits of the engine that "1.2" and "1.mlp" stand for. Parts that the model lacks are left out. */
export function editsOf(off, config) {
  return off
    .map((part) => part.split("."))
    .filter(([layer, head]) => layer < config.n_layer && (head === "mlp" || head < config.n_head))
    .map(([layer, head]) =>
      head === "mlp"
        ? { kind: "ablate_mlp", layer: Number(layer) }
        : { kind: "ablate_head", layer: Number(layer), head: Number(head) },
    );
}
