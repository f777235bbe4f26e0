/** Bars of probabilities: what may come next. */

import { element, percent, refill, visible } from "../dom.js";

/**
 * Show bars in a list, a token each.
 *
 * @param {HTMLElement} list an ol.
 * @param {{id: number, text: string, probability: number, before?: number}[]} bars `before` is a mark on the bar.
 * @param {object} [how] `take` is told which token was clicked; `chosen` is the id of one that is marked; `names` of
 *     the probability and of the mark, for a screen reader.
 */
export function showBars(list, bars, { take = null, chosen = null, names = ["", ""] } = {}) {
  const rows = bars.map(({ id, text, probability, before = null }) => {
    const cut = probability === 0 && before > 0;
    const parts = [
      element("span", { class: "bar-token" }, visible(text)),
      element(
        "span",
        { class: "bar", css: { "--share": probability, "--before": before ?? 0 }, "aria-hidden": "true" },
        element("span", { class: "bar-full" }),
        before === null ? null : element("span", { class: "bar-mark" }),
      ),
      element("span", { class: "bar-number" }, cut ? "cut" : percent(probability)),
    ];
    const classes = ["bar-row", cut ? "cut" : "", id === chosen ? "chosen" : ""].filter(Boolean).join(" ");
    const mark = before === null ? "" : `, ${percent(before)} ${names[1]}`;
    const label = `${visible(text)}: ${percent(probability)} ${names[0]}${mark}`;
    if (take === null) return element("li", {}, element("span", { class: classes, title: label }, parts));
    const options = { type: "button", class: classes, "data-key": `bar-${id}`, title: label };
    options["aria-label"] = `take ${label}`;
    options.on = { click: () => take(id) };
    return element("li", {}, element("button", options, parts));
  });
  refill(list, rows);
}
