/** Attention: what every head looks at, and what the model loses without it. */

import { Numbers, arrows, control, element, offer, percent, refill, select, signed, table, visible } from "../dom.js";
import { showBars } from "./bars.js";
import { Strip } from "./strip.js";

const SCORES = [
  ["previous", "weight on the token before"],
  ["first", "weight on the first token"],
  ["self", "weight on the token itself"],
  ["entropy", "how evenly it looks"],
  ["induction", "induction: what came after this token before"],
  ["duplicate", "duplicate: this token, where it stood before"],
];

export const attentionView = {
  id: "attention",
  title: "Attention",
  sentence:
    "Each head of each layer lets every token gather values from itself and the tokens before it; a pattern shows how " +
    "much from which, the stronger the colour the more.",
  line: "pattern = F.softmax(attention_scores(q, k, mask), dim=-1)",

  mount(panel, app) {
    const kind = select(SCORES, "previous", (value) => app.set({ score: value }));
    const heads = element("div", { class: "heads", role: "group", "aria-label": "all heads, a layer a row" });
    const scores = new Numbers("The scores of all heads as a table");
    const bestHeads = element("p", { class: "quiet", role: "status" });
    const title = element("h3", {});
    const canvas = element("canvas", { class: "pattern", role: "img" });
    const readout = element("p", { class: "readout" });
    const strip = new Strip("the tokens: choose one to see what it looks at", choose, lookAt);
    const weights = new Numbers("This token's weights as a table");
    const switchHead = element("input", { type: "checkbox" });
    const switchMlp = element("input", { type: "checkbox" });
    const headName = control("", switchHead);
    const mlpName = control("", switchMlp);
    const allOn = element("button", { type: "button", on: { click: () => app.set({ off: [] }) } }, "Switch all on");
    const change = element("p", { role: "status" });
    const changed = new Strip("the text, coloured by what the switches change", (place) => tell(place), (place) => tell(place));
    const detail = element("p", { class: "readout" });
    const nextTitle = element("h4", {}, "The next token, and a mark where it was before");
    const next = element("ol", { class: "bars", "aria-label": "the next token, and without what is switched off" });
    const probabilities = new Numbers("The text's probabilities as a table");
    const skipped = element("p", { class: "quiet" });
    let found = null;
    let induction = null;
    let query = null; // whose weights are shown now

    panel.append(
      element(
        "div",
        { class: "columns" },
        element("section", {}, element("h3", {}, "All heads"), element("div", { class: "row" }, control("Score", kind)), heads, bestHeads, scores.node),
        element("section", {}, title, canvas, readout, strip.node, skipped, weights.node),
        element(
          "section",
          {},
          element("h3", {}, "Switch off"),
          element("div", { class: "row" }, headName, mlpName, allOn),
          change,
          changed.node,
          detail,
          nextTitle,
          next,
          probabilities.node,
        ),
      ),
    );
    switchHead.addEventListener("change", () => toggle(`${app.state.layer}.${app.state.head}`));
    switchMlp.addEventListener("change", () => toggle(`${app.state.layer}.mlp`));
    canvas.addEventListener("pointermove", (event) => {
      const box = canvas.getBoundingClientRect();
      const place = (at, start, size) => Math.min(canvas.width - 1, Math.max(0, Math.floor(((at - start) / size) * canvas.width)));
      const at = place(event.clientY, box.top, box.height);
      const key = place(event.clientX, box.left, box.width);
      lookAt(at, key <= at ? key : null);
    });
    canvas.addEventListener("pointerleave", () => lookAt(null));
    arrows(heads, () => [...heads.querySelectorAll("button")], () => app.model.config.n_head, (button) => button.click());

    function toggle(part) {
      const { off } = app.state;
      app.set({ off: off.includes(part) ? off.filter((other) => other !== part) : [...off, part].sort() });
    }

    function choose(place) {
      app.set({ query: place + found.skipped });
    }

    /** The pattern on show, and a row of it. */
    function pattern() {
      const { layer, head } = chosen();
      const { data, shape } = found.patterns[layer];
      const T = shape[1];
      return { T, row: (t) => data.subarray((head * T + t) * T, (head * T + t + 1) * T) };
    }

    function chosen() {
      const { n_layer, n_head } = app.model.config;
      return { layer: Math.min(app.state.layer, n_layer - 1), head: Math.min(app.state.head, n_head - 1) };
    }

    /** Show what a token looks at; null: the one that was chosen. */
    function lookAt(place, key = null) {
      if (found === null) return;
      const { T, row } = pattern();
      query = place ?? Math.min(T - 1, Math.max(0, (app.state.query ?? found.text.read.length - 1) - found.skipped));
      const shares = row(query);
      strip.colour((i) => shares[i]);
      for (const token of strip.tokens()) token.classList.toggle("asks", Number(token.dataset.place) === query);
      const of = (i) => visible(found.text.pieces.at(i - T).text);
      let most = 0;
      for (let i = 0; i <= query; i++) if (shares[i] > shares[most]) most = i;
      const at = key ?? most;
      readout.textContent =
        `“${of(query)}” at ${query + found.skipped} looks ${key === null ? "most " : ""}at “${of(at)}” at ` +
        `${at + found.skipped}: ${percent(shares[at])}`;
    }

    function showHeads() {
      const { n_layer, n_head } = app.model.config;
      const now = chosen();
      heads.style.setProperty("--columns", n_head);
      const buttons = [];
      for (let layer = 0; layer < n_layer; layer++) {
        for (let head = 0; head < n_head; head++) {
          const picture = element("canvas", { "aria-hidden": "true" });
          const { data, shape: [, T] } = found.patterns[layer];
          drawPattern(picture, data.subarray(head * T * T, (head + 1) * T * T), T);
          const current = layer === now.layer && head === now.head;
          const off = app.state.off.includes(`${layer}.${head}`);
          buttons.push(
            element(
              "button",
              {
                type: "button",
                class: off ? "head off" : "head",
                "data-key": `head-${layer}.${head}`,
                "data-head": `${layer}.${head}`,
                "aria-label": `head ${layer}.${head}${off ? ", switched off" : ""}`,
                "aria-pressed": String(current),
                tabindex: current ? 0 : -1,
                on: { click: () => app.set({ layer, head }) },
              },
              picture,
              element("span", { class: "head-name" }, `${layer}.${head}${off ? " off" : ""}`, element("span", { class: "score" })),
            ),
          );
        }
      }
      refill(heads, buttons);
    }

    async function showScores() {
      if (found === null) return;
      const repeats = kind.value === "induction" || kind.value === "duplicate";
      if (repeats && induction === null) {
        bestHeads.textContent = "Reading random tokens twice …";
        const { model } = app.state;
        const answer = await app.ask("induction", "induction", {});
        if (answer === null || model !== app.state.model) return;
        induction = { ...answer, model };
        bestHeads.dataset.induction = answer.ids?.join(" ") ?? "";
      }
      const from = repeats ? induction.scores : found.scores;
      const value = (layer, head) => from?.[layer][kind.value][head] ?? null;
      const all = [];
      for (const button of heads.querySelectorAll("button")) {
        const [layer, head] = button.dataset.head.split(".").map(Number);
        const score = value(layer, head);
        button.querySelector(".score").textContent = score === null ? "" : score.toFixed(2);
        button.title = score === null ? "" : `${button.dataset.head}: ${kind.value} ${score.toFixed(2)}`;
        if (score !== null) all.push([button.dataset.head, score]);
      }
      all.sort((a, b) => b[1] - a[1]);
      const [, meaning] = SCORES.find(([name]) => name === kind.value);
      bestHeads.textContent = all.length
        ? `Highest: ${all.slice(0, 3).map(([name, score]) => `${name} ${score.toFixed(2)}`).join(", ")}.`
        : repeats
          ? "The context or the vocabulary has no room for a text that is repeated."
          : "A text of at least three tokens shows what a head does.";
      scores.show(() =>
        table(`The scores of all heads: ${meaning}`, ["head", kind.value], all.map(([name, score]) => [name, score.toFixed(6)])),
      );
    }

    function showLarge() {
      const { layer, head } = chosen();
      const name = `${layer}.${head}`;
      title.textContent = `Head ${name}`;
      const { T, row } = pattern();
      const { data } = found.patterns[layer];
      drawPattern(canvas, data.subarray(head * T * T, (head + 1) * T * T), T);
      canvas.setAttribute("aria-label", `the pattern of head ${name}: a row a token, a column a token that it may look at`);
      const pieces = found.text.pieces.slice(-T);
      strip.show(pieces, { share: () => 0, selected: Math.min(T - 1, (app.state.query ?? T - 1 + found.skipped) - found.skipped) });
      lookAt(null);
      const at = query;
      weights.show(() =>
        table(
          `What “${visible(pieces[at].text)}” at ${at + found.skipped} looks at, in head ${name}`,
          ["place", "token", "weight"],
          [...row(at).subarray(0, at + 1)].map((weight, i) => [i + found.skipped, visible(pieces[i].text), weight.toFixed(7)]),
        ),
      );
      switchHead.checked = app.state.off.includes(name);
      switchMlp.checked = app.state.off.includes(`${layer}.mlp`);
      headName.querySelector("label").textContent = `Head ${name} off`;
      mlpName.querySelector("label").textContent = `MLP ${layer} off`;
      allOn.disabled = app.state.off.length === 0;
      skipped.textContent = found.skipped
        ? `The last ${T} tokens: patterns of all ${T + found.skipped} would not fit into memory.`
        : "";
    }

    function showChange() {
      const { before, after } = found;
      const { off } = app.state;
      const T = after.length + 1;
      const pieces = found.text.pieces.slice(-T);
      const difference = (i) => (i === 0 ? 0 : after[i - 1] - before[i - 1]);
      changed.node.hidden = detail.hidden = nextTitle.hidden = off.length === 0;
      const mean = (values) => values.reduce((sum, p) => sum - Math.log(p), 0) / values.length;
      change.textContent =
        off.length === 0
          ? "Switch the head off, and see what happens to the text's probabilities."
          : T < 2
            ? `Without ${off.join(", ")}.`
            : `Without ${off.join(", ")}, the mean loss of the text goes from ${mean(before).toFixed(3)} to ` +
              `${mean(after).toFixed(3)} nats.`;
      changed.show(pieces, {
        share: (i) => Math.abs(difference(i)),
        kind: (i) => (difference(i) < 0 ? "less" : "more"),
        can: (i) => i > 0,
      });
      detail.textContent = "Choose a token to see its probability before and after.";
      showBars(next, off.length === 0 ? [] : found.next, { names: ["with the switches", "without them"] });
      probabilities.show(() =>
        table(
          off.length === 0 ? "The probability of each token" : `The probability of each token, without ${off.join(", ")}`,
          ["place", "token", "as it is", "with the switches", "difference"],
          after.map((p, i) => [
            i + 1 + found.skipped,
            visible(pieces[i + 1].text),
            before[i].toFixed(7),
            p.toFixed(7),
            signed(p - before[i], 7),
          ]),
        ),
      );
    }

    function tell(place) {
      if (place === null || place === 0) return;
      const [before, after] = [found.before[place - 1], found.after[place - 1]];
      const text = visible(found.text.pieces.at(place - found.after.length - 1).text);
      detail.textContent = `“${text}”: ${percent(before)}, and ${percent(after)} without: ${signed(100 * (after - before), 1)} points`;
    }

    return {
      async update() {
        offer(kind, SCORES, app.state.score);
        if (app.text === null || app.text.read.length === 0) return;
        const { text } = app;
        const answer = await app.ask("attention", "attention", { ids: text.read, edits: app.edits() });
        if (answer === null) return;
        found = { ...answer, text };
        if (induction?.model !== app.state.model) induction = null;
        showHeads();
        showLarge();
        showChange();
        await showScores();
      },
    };
  },
};

/** A pattern (T, T) as a picture of T by T points, which the style sheet enlarges. */
function drawPattern(canvas, weights, T) {
  const colour = getComputedStyle(document.documentElement).getPropertyValue("--blue").trim();
  const [red, green, blue] = colour.match(/[\da-f]{2}/gi).map((part) => parseInt(part, 16));
  canvas.width = canvas.height = T;
  const context = canvas.getContext("2d");
  const image = context.createImageData(T, T);
  for (let i = 0; i < T * T; i++) image.data.set([red, green, blue, 255 * weights[i]], 4 * i);
  context.putImageData(image, 0, 0);
}
