/** Side by side: the same text, read by the model and by another, or by itself with a part switched off. */

import { Numbers, control, definitions, element, offer, refill, select, signed, table, visible } from "../dom.js";
import { showBars } from "./bars.js";
import { Strip, surprise } from "./strip.js";

const WRITTEN = 60; // tokens that both write

export const sideView = {
  id: "side",
  title: "Side by side",
  sentence: "The same text read twice, by the model as it is and by another model or without a part: what changes?",
  line: "x = x + self.attn(self.ln_1(x), positions, cache)",

  mount(panel, app) {
    const other = select([], "off", (value) => app.set({ other: value }));
    const part = select([], "", (value) => app.set({ off: value === "" ? [] : value.split(",") }));
    const partControl = control("Without", part);
    const compare = element("p", { class: "readout", role: "status" });
    const write = element("button", { type: "button", on: { click: writeBoth } }, `Write ${WRITTEN} tokens with both`);
    const sides = [0, 1].map((number) => {
      const title = element("h3", {});
      const strip = new Strip("the text, the stronger the colour the more surprising");
      const sums = element("dl", { class: "sums" });
      const list = element("ol", { class: "bars", "aria-label": "the next token" });
      const written = element("p", { class: "written-text" });
      const node = element("section", {}, title, sums, strip.node, element("h4", {}, "The next token"), list, written);
      return { number, title, strip, sums, list, written, node };
    });
    const numbers = new Numbers("Both as a table");

    panel.append(
      element("div", { class: "row" }, control("Beside it", other), partControl, write),
      compare,
      element("div", { class: "columns halves" }, sides.map(({ node }) => node)),
      numbers.node,
    );

    /** What each side reads with. */
    function readers() {
      const { state } = app;
      const model = Number(state.other);
      const left = { model: state.model, edits: [], name: app.model.about.name };
      if (app.models[model] !== undefined && state.other !== "off") {
        return [left, { model, edits: [], name: app.models[model].about.name }];
      }
      const without = state.off.length ? `without ${state.off.join(", ")}` : "nothing switched off";
      return [left, { model: state.model, edits: app.edits(), name: without }];
    }

    function offerChoices() {
      const { state } = app;
      const models = app.models.map(({ about }, i) => [String(i), about.name]).filter(([i]) => Number(i) !== state.model);
      offer(other, [["off", "this model without a part"], ...models], state.other);
      const { n_layer, n_head } = app.model.config;
      const parts = [["", "choose a head or an MLP"]];
      for (let layer = 0; layer < n_layer; layer++) {
        for (let head = 0; head < n_head; head++) parts.push([`${layer}.${head}`, `head ${layer}.${head}`]);
        parts.push([`${layer}.mlp`, `MLP ${layer}`]);
      }
      const off = state.off.join(",");
      if (!parts.some(([value]) => value === off)) parts.push([off, `${off} together`]);
      offer(part, parts, off);
      partControl.hidden = state.other !== "off";
    }

    async function writeBoth() {
      const { prompt, more } = app.state;
      const both = readers();
      for (const side of sides) side.written.textContent = "";
      for (const { number, written } of sides) {
        const { model, edits } = both[number];
        const own = await app.ask("sides", "tokens", { model, prompt, more, writer: app.state.model });
        if (own === null) return;
        const request = { model, edits, ids: own.ids, count: WRITTEN, start: 0, options: app.options() };
        const done = await app.ask("sides", "write", request, ({ pieces }) => {
          written.append(pieces.map((piece) => piece.text).join(""));
        });
        if (done === null) return;
      }
    }

    return {
      async update() {
        offerChoices();
        if (app.text === null || app.text.read.length === 0) return;
        const both = readers();
        const { prompt, more } = app.state;
        const found = [];
        for (const { model, edits } of both) {
          const writer = app.state.model;
          const own = model === writer ? app.text : await app.ask("side", "tokens", { model, prompt, more, writer });
          if (own === null) return;
          const loss = await app.ask("side", "loss", { model, edits, ids: own.read });
          if (loss === null) return;
          const next = await app.ask("side", "next", { model, edits, ids: own.read, options: { temperature: 1 } });
          if (next === null) return;
          found.push({ own, loss, next });
        }
        for (const { number, title, strip, sums, list, written } of sides) {
          const { own, loss, next } = found[number];
          const pieces = own.pieces.slice(-own.read.length);
          title.textContent = both[number].name;
          written.textContent = "";
          strip.show(pieces, {
            share: (i) => surprise(loss.tokens, i),
            kind: () => "less",
            tip: (i) => (i === 0 ? "not predicted" : `${visible(pieces[i].text)}: ${loss.tokens[i - 1].loss.toFixed(3)} nats`),
          });
          const rows = loss.tokens.length === 0 ? [] : [["mean", `${loss.mean.toFixed(4)} nats a token`], ["bits per character", loss.bitsPerCharacter.toFixed(4)]];
          refill(sums, definitions(rows));
          showBars(list, next.bars.slice(0, 8).map((bar) => ({ ...bar, probability: bar.before, before: undefined })));
        }
        tellDifference(both, found);
      },
      leave: () => app.stop("sides"),
    };

    function tellDifference(both, [left, right]) {
      if (!left.loss.tokens.length || !right.loss.tokens.length) {
        compare.textContent = "A text of at least two tokens has a loss.";
        numbers.show(() => element("p", {}, compare.textContent));
        return;
      }
      const same = left.own.read.join() === right.own.read.join();
      if (!same && (left.own.cut > 0 || right.own.cut > 0)) {
        compare.textContent = "The text is longer than a context, so the two read different parts of it: to compare them, shorten it.";
        numbers.show(() => element("p", {}, "The two models read different parts of the text, so there is no common table."));
        return;
      }
      const bits = right.loss.bitsPerCharacter - left.loss.bitsPerCharacter;
      compare.textContent = `Bits per character: ${signed(bits, 4)} from left to right.`;
      numbers.show(() => {
        if (!same) return element("p", {}, "The two models cut the text into other tokens, so there is no common table.");
        const pieces = left.own.pieces.slice(-left.own.read.length);
        return table(
          "The loss of each token in nats",
          ["place", "token", both[0].name, both[1].name, "difference"],
          left.loss.tokens.map(({ loss }, i) => [
            i + 1,
            visible(pieces[i + 1].text),
            loss.toFixed(6),
            right.loss.tokens[i].loss.toFixed(6),
            signed(right.loss.tokens[i].loss - loss, 6),
          ]),
        );
      });
    }
  },
};
