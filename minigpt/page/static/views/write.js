/** Write: the next token's probabilities, what each filter makes of them, and the text that comes of drawing. */

import { Numbers, characters, control, element, refill, table, visible } from "../dom.js";
import { RANGES } from "../state.js";
import { showBars } from "./bars.js";
import { Strip } from "./strip.js";

const SLIDERS = [
  ["temperature", "Temperature", "below 1 the likely get likelier; 0 takes the best"],
  ["top_k", "Top-k", "only the k best; 0: all"],
  ["top_p", "Top-p", "the fewest that have this much together"],
  ["min_p", "Min-p", "those with this share of the best one's"],
  ["repetition_penalty", "Repetition penalty", "above 1, what was written before loses"],
];
const MOST_BRANCHES = 20;

export const writeView = {
  id: "write",
  title: "Write",
  sentence:
    "From the text so far the model gives every token of its vocabulary a probability to come next; the sliders change " +
    "these, and one token is drawn.",
  line: "return self.lm_head(self.trunk(idx, cache))",

  mount(panel, app) {
    const strip = new Strip("the text as tokens", (place) => app.set({ at: place - typed }));
    const tokens = new Numbers("The tokens, their ids and bytes");
    const list = element("ol", { class: "bars", "aria-label": "the next token" });
    const bars = new Numbers("These probabilities as a table");
    const about = element("p", { class: "quiet" });
    const place = element("p", { class: "quiet" });
    const speed = element("p", { class: "quiet", role: "status" });
    const branches = element("ol", { class: "branches" });
    const others = element("section", {}, element("h3", {}, "Branches"), branches);
    const step = element("button", { type: "button", on: { click: () => write(1) } }, "Step");
    const run = element("button", { type: "button", class: "main", on: { click: () => (running ? stop() : write()) } });
    const clear = element("button", { type: "button", on: { click: () => forget() } }, "Clear what was written");
    const seed = number("seed");
    const length = number("length");
    const sliders = SLIDERS.map(([name, label, hint]) => {
      const [min, max, by] = RANGES[name];
      const input = element("input", { type: "range", min, max, step: by });
      const output = element("output", {});
      input.addEventListener("input", () => app.set({ [name]: Number(input.value) }));
      return { name, input, output, node: control(label, input, output, hint) };
    });
    let running = false;
    let typed = 0; // tokens of the prompt, in the text that is shown

    panel.append(
      element(
        "div",
        { class: "columns" },
        element(
          "section",
          {},
          element("h3", {}, "The text"),
          strip.node,
          element("div", { class: "row" }, step, run, clear),
          element("div", { class: "row" }, control("Seed", seed), control("Tokens to run", length)),
          speed,
          tokens.node,
          others,
        ),
        element("section", {}, element("h3", {}, "The next token"), place, list, about, bars.node),
        element("section", { class: "sliders" }, element("h3", {}, "How it is chosen"), sliders.map(({ node }) => node)),
      ),
    );

    function number(name) {
      const [min, max] = RANGES[name];
      const input = element("input", { type: "number", min, max, step: 1 });
      input.addEventListener("change", () => {
        if (input.checkValidity() && input.value !== "") app.set({ [name]: Number(input.value) });
        else input.value = app.state[name];
      });
      return input;
    }

    /** The ids whose next token is shown. */
    function shown() {
      const { at } = app.state;
      return at === null ? app.text.ids : app.text.ids.slice(0, app.text.typed + at);
    }

    async function write(count = app.state.length) {
      if (app.text === null || running) return;
      const { prompt, more, at, branches: kept } = app.state;
      if (at !== null) app.set({ more: more.slice(0, at), at: null, branches: withBranch(kept, { prompt, more }) });
      let drawing = null; // tokens may come faster than they can be drawn, and a click has to be heard in between
      running = true;
      run.textContent = "Stop";
      try {
        const text = await app.ask("write", "tokens", { prompt, more: app.state.more });
        if (text === null) return;
        let { pieces } = text;
        const request = { ids: text.ids, count, start: text.ids.length - text.typed, options: app.options() };
        const done = await app.ask("write", "write", request, (part) => {
          pieces = [...pieces, ...part.pieces];
          app.grow(pieces, text.typed);
          drawing ??= requestAnimationFrame(() => {
            drawing = null;
            showText(pieces, null);
          });
        });
        if (done === null) return;
        const rate = Number((done.written / done.seconds).toPrecision(3)).toLocaleString("en");
        speed.textContent = `${done.written} ${done.written === 1 ? "token" : "tokens"} in ${done.seconds.toFixed(2)} s: ${rate} a second${done.ended ? "; the text has ended" : ""}`;
      } finally {
        cancelAnimationFrame(drawing);
        running = false;
        run.textContent = "Run";
        app.refresh();
      }
    }

    function stop() {
      app.stop("write");
    }

    function take(id) {
      const { prompt, more, at, branches: kept } = app.state;
      const next = { more: [...more.slice(0, at ?? more.length), id], at: null };
      if (at !== null && more[at] !== id) next.branches = withBranch(kept, { prompt, more });
      if (at !== null && more[at] === id) Object.assign(next, { more, at: at + 1 < more.length ? at + 1 : null });
      app.set(next);
    }

    function forget() {
      const { prompt, more, branches: kept } = app.state;
      if (more.length) app.set({ more: [], at: null, branches: withBranch(kept, { prompt, more }) });
    }

    function goTo(branch) {
      const { prompt, more, branches: kept } = app.state;
      const rest = kept.filter((other) => other !== branch);
      app.set({ ...branch, at: null, branches: more.length ? withBranch(rest, { prompt, more }) : rest });
    }

    function showText(pieces, at) {
      const { cut } = app.text ?? { cut: 0 };
      typed = app.text?.typed ?? typed;
      const selected = at === null ? null : typed + at;
      strip.show(pieces, {
        kind: (i) => (i < cut ? "too-far" : i >= typed ? "written" : ""),
        can: (i) => i >= typed,
        tip: (i) => `${visible(pieces[i].text)}, id ${pieces[i].id}`,
        selected,
      });
    }

    async function showBranches() {
      const { branches: kept } = app.state;
      others.hidden = kept.length === 0;
      if (!kept.length) return;
      const texts = await app.ask("branches", "texts", { lists: kept.map(({ more }) => more) });
      if (texts === null) return;
      const button = (branch, i) =>
        element(
          "button",
          { type: "button", "data-key": `branch-${i}`, on: { click: () => goTo(branch) } },
          element("span", { class: "quiet" }, visible(characters(branch.prompt, -12))),
          visible(characters(texts[i], 0, 60)),
        );
      refill(branches, kept.map((branch, i) => element("li", {}, button(branch, i))));
    }

    return {
      async update() {
        const { state, text } = app;
        run.textContent = running ? "Stop" : "Run";
        seed.value = state.seed;
        length.value = state.length;
        for (const { name, input, output } of sliders) {
          if (name === "top_k") input.max = Math.min(100, app.model.V);
          input.value = state[name];
          output.textContent = state[name];
        }
        if (text === null || running) return;
        const at = state.at !== null && state.at < state.more.length ? state.at : null;
        showText(text.pieces, at);
        tokens.show(() =>
          table(
            "The tokens of the text",
            ["place", "token", "id", "bytes"],
            text.pieces.map((piece, i) => [i, visible(piece.text), piece.id, hex(piece.bytes)]),
          ),
        );
        showBranches();
        const found = await app.ask("next", "next", { ids: shown(), options: app.options() });
        if (found === null) return;
        place.textContent =
          at === null ? "Behind the text; a click adds a token." : "Instead of the token that is marked; a click branches.";
        const chosen = at === null ? null : state.more[at];
        const drawn = found.bars.map((bar) => ({ ...bar, probability: bar.after }));
        showBars(list, drawn, { take, chosen, names: ["after the sliders", "the model's own"] });
        about.textContent =
          `${found.kept.toLocaleString("en")} of ${found.V.toLocaleString("en")} tokens are left; entropy ${found.entropy[0].toFixed(2)} nats, ` +
          `after the sliders ${found.entropy[1].toFixed(2)}.`;
        bars.show(() =>
          table(
            "The likeliest next tokens",
            ["token", "id", "logit", "the model's own probability", "after the sliders"],
            found.bars.map((bar) => [
              visible(bar.text), bar.id, bar.logit.toFixed(5), bar.before.toFixed(7), bar.after.toFixed(7),
            ]),
          ),
        );
      },
      leave: stop,
    };
  },
};

/** The branches with one more, unless it is among them; the oldest goes if there are too many. */
export function withBranch(branches, branch) {
  const same = ({ prompt, more }) => prompt === branch.prompt && more.join() === branch.more.join();
  return branches.some(same) ? branches : [...branches, branch].slice(-MOST_BRANCHES);
}

function hex(bytes) {
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join(" ");
}
