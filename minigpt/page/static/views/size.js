/** Size: what each module of the model costs. */

import { Numbers, element, human, refill, table } from "../dom.js";

const MEASURES = {
  parameters: { name: "Parameters", unit: "", says: (c) => `numbers that are trained; ${c.tie_weights ? "the output head shares the embedding's" : "the output head has its own"}` },
  bytes: { name: "Bytes", unit: "B", says: () => "of the weights, four a number (float32)" },
  flops: { name: "FLOPs", unit: "", says: (c) => `of one pass over the whole context of ${c.block_size} tokens, matrix products alone` },
};

export const sizeView = {
  id: "size",
  title: "Size",
  sentence: "Where the model's numbers, bytes and floating-point operations are: a module a box, its area what it costs.",
  line: "def num_parameters(self) -> int:",

  mount(panel, app) {
    const choices = Object.entries(MEASURES).map(([value, { name }]) => {
      const input = element("input", { type: "radio", name: "measure", value, id: `measure-${value}` });
      input.addEventListener("change", () => app.set({ measure: value }));
      return { value, input, node: element("span", {}, input, element("label", { for: input.id }, name)) };
    });
    const total = element("p", { class: "readout", role: "status" });
    const boxes = element("div", { class: "boxes", role: "img" });
    const numbers = new Numbers("All modules as a table");

    panel.append(
      element(
        "fieldset",
        { class: "row" },
        element("legend", { class: "hidden" }, "What is shown"),
        choices.map(({ node }) => node),
      ),
      total,
      boxes,
      numbers.node,
    );

    return {
      async update() {
        const rows = await app.ask("size", "size", { tokens: app.model.config.block_size });
        if (rows === null) return;
        const { measure } = app.state;
        const { name: title, unit, says } = MEASURES[measure];
        for (const { value, input } of choices) input.checked = value === measure;
        const sum = rows.reduce((all, row) => all + row[measure], 0);
        total.textContent = `${human(sum, unit)} ${says(app.model.config)}.`;
        const groups = grouped(rows);
        boxes.setAttribute("aria-label", `${title} of each module, as boxes; the table below has the numbers`);
        const box = (row) => {
          const [, block, name] = /^(h\.\d+\.)?(.*)/.exec(row.name);
          const label = element("span", {}, element("i", {}, block ?? ""), name, " ", element("b", {}, human(row[measure], unit)));
          return element("div", { class: "box", css: { "flex-grow": row[measure] }, title: `${row.name}: ${row[measure].toLocaleString("en")}` }, label);
        };
        refill(
          boxes,
          [...groups].flatMap(([group, members]) => {
            const size = members.reduce((all, row) => all + row[measure], 0);
            if (size === 0) return [];
            const inside = element("div", { class: "inside" }, members.filter((row) => row[measure] > 0).map(box));
            return element("div", { class: "group", css: { "flex-grow": size } }, element("div", { class: "group-name" }, group), inside);
          }),
        );
        numbers.show(() =>
          table(
            `What each module costs; FLOPs of one pass over ${app.model.config.block_size} tokens`,
            ["module", "parameters", "bytes", "FLOPs"],
            [
              ...rows.map((row) => [row.name, row.parameters, row.bytes, row.flops]),
              ["together", ...["parameters", "bytes", "flops"].map((key) => rows.reduce((all, row) => all + row[key], 0))],
            ].map(([first, ...others]) => [first, ...others.map((value) => value.toLocaleString("en"))]),
          ),
        );
      },
    };
  },
};

/** The rows of each block together, and every other module alone. */
function grouped(rows) {
  const groups = new Map();
  for (const row of rows) {
    const group = row.name.startsWith("h.") ? row.name.split(".").slice(0, 2).join(".") : row.name;
    groups.set(group, [...(groups.get(group) ?? []), row]);
  }
  return groups;
}
