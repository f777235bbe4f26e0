/** A text as its tokens, each of which can be coloured, and chosen by mouse or keyboard. */

import { arrows, element, refill, visible } from "../dom.js";

export const DARK = 6; // nats: the loss whose colour is the strongest

/** How strongly a token's loss colours it, from 0 to 1, of the losses from the second token on; none colours the first. */
export function surprise(tokens, place) {
  return place === 0 ? 0 : Math.min(1, tokens[place - 1].loss / DARK);
}

export class Strip {
  /**
   * @param {string} label what the text is, for a screen reader.
   * @param {((place: number) => void) | null} choose is told which token was chosen; null if none can be.
   * @param {((place: number | null) => void) | null} look is told over which token the mouse is.
   */
  constructor(label, choose = null, look = null) {
    this.choose = choose;
    this.node = element("div", {
      class: "strip",
      "aria-label": label,
      role: choose === null ? "group" : "listbox",
      on: look === null ? {} : { pointerleave: () => look(null) },
    });
    this.look = look;
    if (choose !== null) arrows(this.node, () => this.#choosable(), () => 1, (token) => this.#chosen(token));
  }

  /**
   * @param {{text: string}[]} pieces
   * @param {object} [how] functions of a token's place: `share`, from 0 to 1, colours it; `kind` is a class;
   *     `tip` describes it; `can` says whether it can be chosen. `selected` is the place that is.
   */
  show(pieces, { share = null, kind = null, tip = null, can = () => true, selected = null } = {}) {
    const tokens = pieces.map(({ text }, place) => {
      const classes = ["token", kind?.(place) ?? "", text.endsWith("\n") ? "ends-line" : ""].filter(Boolean).join(" ");
      const options = { class: classes, "data-place": place };
      if (share !== null) options.css = { "--share": share(place).toFixed(4) };
      if (tip !== null) options.title = tip(place);
      if (this.choose === null || !can(place)) return element("span", options, visible(text));
      return element(
        "span",
        {
          ...options,
          "data-key": place,
          role: "option",
          "aria-selected": String(place === selected),
          "aria-label": tip === null ? visible(text) : tip(place),
          tabindex: place === selected ? 0 : -1,
          on: { click: () => this.choose(place), pointerenter: () => this.look?.(place) },
        },
        visible(text),
      );
    });
    this.node.classList.toggle("pieces", pieces.some(({ text }) => [...text].length > 1));
    // A line may break between two tokens, though there is no blank.
    refill(this.node, tokens.flatMap((token) => [token, element("wbr")]));
    const choosable = this.#choosable();
    if (choosable.length && !choosable.some((token) => token.tabIndex === 0)) choosable.at(-1).tabIndex = 0;
  }

  /** Colour the tokens anew, without building them anew. */
  colour(share) {
    for (const token of this.tokens()) {
      token.style.setProperty("--share", share(Number(token.dataset.place)).toFixed(4));
    }
  }

  /** The elements of the tokens. */
  tokens() {
    return [...this.node.querySelectorAll(".token")];
  }

  #choosable() {
    return [...this.node.querySelectorAll("[role=option]")];
  }

  #chosen(token) {
    this.choose(Number(token.dataset.place));
  }
}
