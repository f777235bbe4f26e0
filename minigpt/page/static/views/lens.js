/** Lens: what the model would say after each layer, and which parts a logit is made of. */

import { Numbers, arrows, control, element, offer, percent, refill, select, signed, table, visible } from "../dom.js";

const SPLITS = [
  ["component", "attention and MLP"],
  ["layer", "whole layers"],
  ["head", "single heads"],
];

export const lensView = {
  id: "lens",
  title: "Lens",
  sentence:
    "Read after any layer with the model's last norm and output head, the residual stream shows what the model would " +
    "say there; and because the stream is a sum, so is every logit.",
  line: "return x + self.mlp(self.ln_2(x))",

  mount(panel, app) {
    const grid = element("div", { class: "scroll lens", tabindex: "0", role: "region", "aria-label": "the lens" });
    const about = element("p", { class: "quiet" });
    const title = element("h3", {});
    const token = select([], "", (value) => app.set({ token: Number(value) }));
    const by = select(SPLITS, "component", (value) => app.set({ by: value }));
    const parts = element("ol", { class: "parts" });
    const sum = element("p", { class: "readout", role: "status" });
    const numbers = new Numbers("The parts as a table");
    let rows = [];
    let columns = 1;
    let readKey = "";
    let text = null; // the text that is shown

    panel.append(
      element(
        "div",
        { class: "columns wide-first" },
        element("section", {}, element("h3", {}, "What the model would say after each layer"), grid, about),
        element(
          "section",
          {},
          title,
          element("div", { class: "row" }, control("Token", token), control("Split into", by)),
          parts,
          sum,
          numbers.node,
        ),
      ),
    );
    arrows(grid, () => [...grid.querySelectorAll("button")], () => columns, () => {});

    function position() {
      const last = text.read.length - 1;
      return Math.min(last, app.state.position ?? last);
    }

    function showGrid() {
      if (!rows.length) return;
      const { first } = rows[0];
      columns = rows[0].cells.length;
      const pieces = text.pieces.slice(-text.read.length);
      const heading = (i) => {
        const now = first + i === position();
        return element("th", { scope: "col", class: now ? "now" : "" }, visible(pieces[first + i].text));
      };
      const cell = (row, best, i) => {
        const [{ id, text, probability }] = best;
        const said = best.map((other) => `${visible(other.text)} ${percent(other.probability)}`).join(", ");
        const now = first + i === position();
        const label = `${nameOf(row.point)}, behind ${visible(pieces[first + i].text)}: ${said}`;
        const options = { type: "button", "data-key": `${row.point}/${first + i}`, title: label, "aria-label": label };
        options.tabindex = now && row === rows.at(-1) ? 0 : -1;
        options.css = { "--share": probability.toFixed(4) };
        options.on = { click: () => app.set({ position: first + i, token: id }) };
        return element("td", { class: now ? "now" : "" }, element("button", options, visible(text)));
      };
      const built = element(
        "table",
        {},
        element("caption", { class: "hidden" }, "The likeliest next token after each layer, behind each token"),
        element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "behind"), rows[0].cells.map((_, i) => heading(i)))),
        element(
          "tbody",
          {},
          [...rows].reverse().map((row) =>
            element("tr", {}, element("th", { scope: "row" }, nameOf(row.point)), row.cells.map((best, i) => cell(row, best, i))),
          ),
        ),
      );
      const at = grid.scrollLeft;
      const atEnd = at + grid.clientWidth >= grid.scrollWidth - 2;
      refill(grid, built);
      grid.scrollLeft = atEnd ? grid.scrollWidth : at;
      about.textContent = first > 0 ? `The last ${columns} tokens; each costs this model much computing.` : "";
    }

    async function showLens() {
      const key = JSON.stringify([app.state.model, text.read]);
      if (key === readKey) return showGrid();
      readKey = key;
      rows = [];
      const done = await app.ask("lens", "lens", { ids: text.read }, (row) => {
        rows.push(row);
        showGrid();
      });
      return done;
    }

    async function showParts() {
      const request = { ids: text.read, position: position(), token: app.state.token, by: app.state.by };
      const found = await app.ask("attribute", "attribute", request);
      if (found === null) return;
      const choices = found.choices.map(({ id, text, probability }) => [id, `${visible(text)} ${percent(probability)}`]);
      if (!choices.some(([id]) => id === found.target)) choices.push([found.target, visible(found.text)]);
      offer(token, choices, found.target);
      by.value = app.state.by;
      const behind = visible(text.pieces.at(position() - text.read.length).text);
      title.textContent = `Why “${visible(found.text)}” behind “${behind}”`;
      const all = [...found.parts, ...found.constants];
      const ends = [0];
      for (const { value } of all) ends.push(ends.at(-1) + value);
      const [low, high] = [Math.min(...ends), Math.max(...ends)];
      const share = (value) => (value - low) / (high - low || 1);
      const row = ({ label, value }, i) =>
        element(
          "li",
          { class: value < 0 ? "less" : "more" },
          element("span", { class: "part-name" }, label),
          element(
            "span",
            {
              class: "waterfall",
              "aria-hidden": "true",
              css: {
                "--from": share(Math.min(ends[i], ends[i + 1])).toFixed(4),
                "--to": share(Math.max(ends[i], ends[i + 1])).toFixed(4),
              },
            },
            element("span", {}),
          ),
          element("span", { class: "part-value" }, signed(value, 3)),
        );
      refill(parts, all.map(row));
      sum.textContent =
        `Together ${signed(found.total, 4)}; the model's logit is ${signed(found.logit, 4)}; remainder ` +
        `${found.remainder.toExponential(1)}.`;
      numbers.show(() =>
        table(
          `The parts of the logit of “${visible(found.text)}”`,
          ["part", "value"],
          [
            ...all.map(({ label, value }) => [label, value.toFixed(7)]),
            ["together", found.total.toFixed(7)],
            ["the model's logit", found.logit.toFixed(7)],
            ["remainder", found.remainder.toFixed(7)],
          ],
        ),
      );
    }

    return {
      async update() {
        if (app.text === null || app.text.read.length === 0) return;
        text = app.text;
        await Promise.all([showParts(), showLens()]);
      },
      leave() {
        app.stop("lens");
        readKey = "";
      },
    };
  },
};

/** A point of the stream, as people say it. */
function nameOf(point) {
  return point.endsWith("resid_pre") ? "embeddings" : `layer ${point.split(".")[1]}`;
}
