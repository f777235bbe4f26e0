/** Loss: how surprised the model is by each token of the text. */

import { Numbers, definitions, element, percent, refill, table, visible } from "../dom.js";
import { showBars } from "./bars.js";
import { DARK, Strip, surprise } from "./strip.js";

export const lossView = {
  id: "loss",
  title: "Loss",
  sentence:
    "The loss of a token is how surprised the model is by it, −ln of the probability that it had; training makes the " +
    "mean small.",
  line: "return self.lm_head(self.trunk(idx, cache))",

  mount(panel, app) {
    const strip = new Strip("the text, the stronger the colour the more surprising", choose, (place) => place !== null && tell(place));
    const legend = element("p", { class: "legend quiet" });
    const sums = element("dl", { class: "sums" });
    const title = element("h3", {});
    const detail = element("p", { class: "readout", role: "status" });
    const list = element("ol", { class: "bars", "aria-label": "what the model expected instead" });
    const numbers = new Numbers("The losses as a table");
    let found = null;

    panel.append(
      element(
        "div",
        { class: "columns wide-first" },
        element("section", {}, element("h3", {}, "The text"), strip.node, legend, sums, numbers.node),
        element("section", {}, title, detail, list),
      ),
    );
    legend.append(
      element("span", { class: "token less", css: { "--share": "0" } }, "expected"),
      " to ",
      element("span", { class: "token less", css: { "--share": "1" } }, `surprising: ${DARK} nats and more`),
    );

    function choose(place) {
      app.set({ position: place });
    }

    function tell(place) {
      const { loss, probability, entropy, alternatives } = found.tokens[place - 1];
      const pieces = found.pieces;
      title.textContent = `“${visible(pieces[place].text)}” at ${place}`;
      detail.textContent =
        `It had ${percent(probability)}, which is a loss of ${loss.toFixed(3)} nats; the model expected ` +
        `${entropy.toFixed(3)} (its entropy).`;
      showBars(list, alternatives, { chosen: found.read[place] });
    }

    return {
      async update() {
        if (app.text === null) return;
        const { read, pieces: all } = app.text;
        const answer = await app.ask("loss", "loss", { ids: read, edits: [] });
        if (answer === null) return;
        const pieces = all.slice(-read.length);
        found = { ...answer, read, pieces };
        title.hidden = detail.hidden = list.hidden = found.tokens.length === 0;
        const now = Math.min(read.length - 1, Math.max(1, app.state.position ?? read.length - 1));
        strip.show(pieces, {
          share: (i) => surprise(found.tokens, i),
          kind: () => "less",
          can: (i) => i > 0,
          tip: (i) => (i === 0 ? "the first token is not predicted" : `${visible(pieces[i].text)}: ${found.tokens[i - 1].loss.toFixed(3)} nats`),
          selected: now,
        });
        numbers.show(() =>
          table(
            "The loss of each token in nats",
            ["place", "token", "loss", "probability", "entropy"],
            found.tokens.map((token, i) => [
              i + 1, visible(pieces[i + 1].text), token.loss.toFixed(6), token.probability.toFixed(7), token.entropy.toFixed(6),
            ]),
          ),
        );
        if (found.tokens.length === 0) {
          refill(sums, definitions([["Loss", "from two tokens on"]]));
          return;
        }
        refill(sums, definitions([
          ["mean", `${found.mean.toFixed(4)} nats a token`],
          ["perplexity", found.perplexity.toFixed(3)],
          ["bits per character", found.bitsPerCharacter.toFixed(4)],
        ]));
        tell(now);
      },
    };
  },
};
