/** Beams: the tree of a beam search, growing. */

import { Numbers, characters, control, element, refill, shape, table, visible } from "../dom.js";
import { RANGES } from "../state.js";

const [COLUMN, ROW, WIDTH, HEIGHT] = [112, 30, 84, 24]; // of the tree: steps between nodes, and a node's size
const QUICK = 2e7; // parameters: a search of a smaller model starts by itself

export const beamsView = {
  id: "beams",
  title: "Beams",
  sentence:
    "Beam search keeps the few likeliest texts so far and extends them all: each column is a step, each box a token, " +
    "and only the boxes with a solid border go on.",
  line: "return self.lm_head(self.trunk(idx, cache))",

  mount(panel, app) {
    const inputs = [
      ["beams", "Beams"],
      ["steps", "New tokens"],
      ["length_penalty", "Length penalty"],
    ].map(([name, label]) => {
      const [min, max, step] = RANGES[name];
      const input = element("input", { type: "number", min, max, step });
      input.addEventListener("change", () => {
        if (input.checkValidity() && input.value !== "") app.set({ [name]: Number(input.value) });
        else input.value = app.state[name];
      });
      return { name, input, node: control(label, input) };
    });
    const grow = element("button", { type: "button", class: "main", on: { click: () => (growing ? app.stop("beams") : search()) } }, "Grow");
    const place = element("div", { class: "scroll tree", tabindex: "0", role: "region", "aria-label": "the tree" });
    const result = element("ol", { class: "finished" });
    const status = element("p", { class: "readout", role: "status" });
    const numbers = new Numbers("The tree as a table");
    let growing = false;
    let turn = 0; // the number of the newest search
    let shown = "";

    panel.append(
      element("div", { class: "row" }, inputs.map(({ node }) => node), grow),
      status,
      place,
      element("h3", { class: "after" }, "The best texts, with their scores"),
      result,
      numbers.node,
    );

    async function search() {
      if (app.text === null) return;
      const { beams: num_beams, steps: max_new_tokens, length_penalty } = app.state;
      const options = { num_beams, max_new_tokens, length_penalty, on_overflow: "stop" };
      const mine = (turn += 1);
      growing = true;
      grow.textContent = "Stop";
      place.replaceChildren();
      await app.ask("beams", "beams", { ids: app.text.read, options }, show);
      if (mine !== turn) return;
      growing = false;
      grow.textContent = "Grow again";
    }

    function show({ nodes, finished, texts, done }) {
      const step = nodes.at(-1).step + 1;
      status.textContent = `${step} ${step === 1 ? "step" : "steps"}, ${nodes.length} tokens considered${done ? "; the search is over" : ""}.`;
      place.replaceChildren(tree(nodes));
      place.scrollLeft = place.scrollWidth;
      refill(
        result,
        finished.map(({ score, finish_reason }, i) => {
          const end = finish_reason === "eos" ? ", and ends" : "";
          return element("li", {}, element("span", { class: "score" }, score.toFixed(4)), " ", element("code", {}, visible(texts[i])), end);
        }),
      );
      numbers.show(() =>
        table(
          "The tree: what each step considered",
          ["node", "step", "continues", "token", "sum of log-probabilities", "goes on", "in the best text"],
          nodes.map((node, number) => [
            number,
            node.step,
            node.parent ?? "prompt",
            visible(node.text),
            node.total.toFixed(6),
            node.kept ? "yes" : "no",
            node.best ? "yes" : "no",
          ]),
        ),
      );
    }

    return {
      update() {
        for (const { name, input } of inputs) input.value = app.state[name];
        if (app.text === null) return;
        const { beams, steps, length_penalty, model } = app.state;
        const key = JSON.stringify([model, app.text.read, beams, steps, length_penalty]);
        if (key === shown) return;
        shown = key;
        if (app.model.about.parameters <= QUICK) search();
        else status.textContent = "A model of this size takes its time: press Grow.";
      },
      leave() {
        app.stop("beams");
      },
    };
  },
};

/** The nodes as a picture: a column a step, in each the best on top. */
function tree(nodes) {
  const columns = [];
  const places = nodes.map((node) => {
    columns[node.step] = (columns[node.step] ?? 0) + 1;
    return { x: 12 + node.step * COLUMN, y: 8 + (columns[node.step] - 1) * ROW };
  });
  const width = 24 + columns.length * COLUMN;
  const height = 16 + Math.max(...columns) * ROW;
  const kind = ({ best, kept }) => (best ? "best" : kept ? "kept" : "dropped");
  const edge = (node, number) => {
    if (node.parent === null) return null;
    const [from, to] = [places[node.parent], places[number]];
    const [x0, y0, x1, y1] = [from.x + WIDTH, from.y + HEIGHT / 2, to.x, to.y + HEIGHT / 2];
    const middle = (x0 + x1) / 2;
    return shape("path", { class: kind(node), d: `M${x0} ${y0}C${middle} ${y0} ${middle} ${y1} ${x1} ${y1}` });
  };
  const box = (node, number) => {
    const { x, y } = places[number];
    const text = visible(node.text);
    return shape(
      "g",
      { class: `node ${kind(node)}` },
      shape("title", {}, `${text}: ${node.total.toFixed(4)}`),
      shape("rect", { x, y, width: WIDTH, height: HEIGHT, rx: 5 }),
      shape("text", { x: x + 8, y: y + 17 }, [...text].length > 4 ? `${characters(text, 0, 4)}…` : text),
      shape("text", { class: "total", x: x + WIDTH - 6, y: y + 17, "text-anchor": "end" }, node.total.toFixed(1)),
    );
  };
  const sorted = nodes.map((node, number) => [node, number]).sort(([a], [b]) => Number(a.best) - Number(b.best));
  const name = `the tree of the search: ${nodes.length} tokens in ${columns.length} steps; the table below has them`;
  return shape(
    "svg",
    { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": name },
    sorted.map(([node, number]) => edge(node, number)),
    nodes.map(box),
  );
}
