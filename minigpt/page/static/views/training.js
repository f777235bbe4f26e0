/** Training: the run that made the model, as far as it is; it grows while the training is at work. */

import { Numbers, element, refill, shape, table } from "../dom.js";

const POLL = 2000; // milliseconds between two looks at a run that may grow
const [HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [300, 44, 12, 12, 32]; // of the picture, and its margins

export const trainingView = {
  id: "training",
  title: "Training",
  sentence:
    "Training changes the weights a little at every step, so that the mean loss falls; samples show what the model " +
    "could write by then.",
  line: "def init_weights(self) -> None:",

  mount(panel, app) {
    const status = element("p", { class: "readout", role: "status" });
    const picture = element("div", { class: "chart" });
    const numbers = new Numbers("The losses as a table");
    const samples = element("div", { class: "samples" });
    const before = element("section", {}, element("h3", {}, "The loss"), picture, numbers.node);
    const after = element("section", {}, element("h3", {}, "What it wrote"), samples);
    let timer = null;
    let shown = "";

    panel.append(status, element("div", { class: "columns wide-first" }, before, after));
    new ResizeObserver(() => run !== null && drawLosses(picture, run)).observe(picture);
    let run = null;

    async function look() {
      clearTimeout(timer);
      const found = await app.readRun();
      if (found === undefined) return;
      before.hidden = after.hidden = found === null;
      if (found === null) {
        status.textContent = "There is no training run to show: this model was not opened as a run directory.";
        return;
      }
      run = found;
      const ends = found.max_steps !== null && found.step >= found.max_steps;
      status.textContent = `${found.name}: step ${found.step.toLocaleString("en")}${
        found.max_steps === null ? "" : ` of ${found.max_steps.toLocaleString("en")}`
      }${ends ? "" : app.runMayGrow ? "; this page looks for more every two seconds" : ""}.`;
      if (JSON.stringify(found) !== shown) {
        shown = JSON.stringify(found);
        drawLosses(picture, found);
        showNumbers(found);
        const figures = [...found.samples]
          .reverse()
          .map(({ step, text }) => element("figure", {}, element("figcaption", {}, `Step ${step}`), element("pre", {}, text)));
        refill(samples, figures.length ? figures : element("p", { class: "quiet" }, "No sample was written yet."));
      }
      if (!ends && app.runMayGrow) timer = setTimeout(look, POLL);
    }

    function showNumbers({ train, validation }) {
      numbers.show(() => [
        table("Loss on the validation split", ["step", "loss"], validation.map(([step, loss]) => [step, loss.toFixed(4)])),
        table("Loss of training batches", ["step", "loss"], train.map(([step, loss]) => [step, loss.toFixed(4)])),
      ]);
    }

    return {
      update: look,
      leave: () => clearTimeout(timer),
    };
  },
};

/** Both losses against the step, in a picture as wide as its place. */
function drawLosses(place, { train, validation }) {
  const width = Math.max(280, place.clientWidth);
  const points = [...train, ...validation].filter(([, loss]) => Number.isFinite(loss));
  if (!points.length) return place.replaceChildren();
  const last = Math.max(...points.map(([step]) => step), 1);
  const losses = points.map(([, loss]) => loss);
  const steps = [roundBelow(Math.min(...losses)), roundAbove(Math.max(...losses))];
  const x = (step) => LEFT + ((width - LEFT - RIGHT) * step) / last;
  const y = (loss) => TOP + ((HEIGHT - TOP - BOTTOM) * (steps[1] - loss)) / (steps[1] - steps[0]);
  const path = (line) => line.map(([step, loss], i) => `${i ? "L" : "M"}${x(step).toFixed(1)} ${y(loss).toFixed(1)}`).join("");
  const ticks = [];
  const apart = Math.max(0.5, (steps[1] - steps[0]) / 8); // a run that broke has losses of any size
  for (let tick = 0; steps[0] + tick * apart <= steps[1] + 1e-9 && tick < 9; tick++) {
    const loss = steps[0] + tick * apart;
    ticks.push(
      shape("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(loss), y2: y(loss) }),
      shape("text", { x: LEFT - 6, y: y(loss) + 4, "text-anchor": "end" }, loss < 1e4 ? loss.toFixed(1) : loss.toExponential(0)),
    );
  }
  for (const share of [0, 0.5, 1]) {
    const anchor = ["start", "middle", "end"][share * 2];
    const step = Math.round(last * share);
    ticks.push(shape("text", { x: x(step), y: HEIGHT - 12, "text-anchor": anchor }, step.toLocaleString("en")));
  }
  const best = validation.at(-1);
  const now = best === undefined ? "" : `, now ${best[1].toFixed(3)}`;
  const name = `loss against the step: of training batches it ends at ${train.at(-1)?.[1].toFixed(3) ?? "nothing"}, ` +
    `on the validation split at ${best?.[1].toFixed(3) ?? "nothing"}`;
  const dots = validation.map(([step, loss]) => shape("circle", { class: "validation", cx: x(step), cy: y(loss), r: 4 }));
  place.replaceChildren(
    shape(
      "svg",
      { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": name },
      ticks,
      shape("path", { class: "train", d: path(train) }),
      shape("path", { class: "validation", d: path(validation) }),
      dots,
    ),
    element(
      "p",
      { class: "legend quiet" },
      element("span", {}, element("span", { class: "key train" }), "training batches"),
      element("span", {}, element("span", { class: "key validation" }), "validation split", now),
    ),
  );
}

const roundBelow = (loss) => Math.floor(loss * 2 - 0.1) / 2;
const roundAbove = (loss) => Math.ceil(loss * 2 + 0.1) / 2;
