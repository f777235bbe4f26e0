// Building what is seen. Every text goes in as text: a prompt or a model's output is never read as HTML.

const SVG = "http://www.w3.org/2000/svg";

/**
 * An element.
 * @param {string} name of the element
 * @param {object} attributes `on` holds listeners, `css` custom properties of the style; true is an empty attribute,
 *     false, null and undefined leave it out
 * @param {...any} children elements, texts and lists of them; null and false are left out
 */
export function element(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

/** The same for the elements of a picture. */
export function shape(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") {
      for (const [event, listener] of Object.entries(value)) node.addEventListener(event, listener);
    } else if (name === "css") {
      for (const [property, text] of Object.entries(value)) node.style.setProperty(property, text);
    } else if (value === true) {
      node.setAttribute(name, "");
    } else if (value !== false && value !== null && value !== undefined) {
      node.setAttribute(name, value);
    }
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** Replace what is in an element. The keyboard's focus stays where it was, by the `data-key` of what had it. */
export function refill(node, ...children) {
  const active = document.activeElement;
  const key = active !== null && node.contains(active) ? active.dataset.key : undefined;
  node.replaceChildren(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  if (key === undefined) return;
  for (const child of node.querySelectorAll("[data-key]")) {
    if (child.dataset.key === key) {
      child.focus({ preventScroll: true });
      return;
    }
  }
}

/** A table. Each row's first cell names the row; numbers are already texts. */
export function table(caption, headings, rows) {
  return element(
    "table",
    {},
    element("caption", {}, caption),
    element("thead", {}, element("tr", {}, headings.map((text) => element("th", { scope: "col" }, text)))),
    element(
      "tbody",
      {},
      rows.map(([first, ...others]) =>
        element("tr", {}, element("th", { scope: "row" }, first), others.map((text) => element("td", {}, text))),
      ),
    ),
  );
}

/** Names with their values, for a <dl>. */
export function definitions(rows) {
  return rows.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value)));
}

/** A picture's numbers: a table that opens on a click. It is built when it is opened, and built anew while it is. */
export class Numbers {
  constructor(name) {
    this.body = element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": name });
    this.node = element("details", { class: "numbers" }, element("summary", {}, name), this.body);
    this.make = () => [];
    this.node.addEventListener("toggle", () => this.#fill());
  }

  /** @param {() => Node | Node[]} make builds the table, or several */
  show(make) {
    this.make = make;
    this.#fill();
  }

  #fill() {
    if (this.node.open) this.body.replaceChildren(...[this.make()].flat());
    else this.body.replaceChildren();
  }
}

let labels = 0;

/** A control with its label and, for a slider, the number that it stands at. */
export function control(label, input, output = null, hint = null) {
  input.id = `control-${(labels += 1)}`;
  if (hint !== null) {
    hint = element("span", { class: "hint", id: `${input.id}-hint` }, hint);
    input.setAttribute("aria-describedby", hint.id);
  }
  return element("div", { class: "control" }, element("label", { for: input.id }, label), output, input, hint);
}

/** A list to choose from. `choices`: pairs of value and text. */
export function select(choices, value, change) {
  const node = element("select", { on: { change: () => change(node.value) } });
  offer(node, choices, value);
  return node;
}

/** What a list offers. */
export function offer(node, choices, value) {
  node.replaceChildren(
    ...choices.map(([key, text]) => element("option", { value: key, selected: String(key) === String(value) }, text)),
  );
  node.value = String(value);
}

/**
 * Arrow keys move among the children of an element, one of which can be reached by Tab.
 * @param {HTMLElement} node holds them
 * @param {() => HTMLElement[]} items they, in their order
 * @param {() => number} columns how many stand in a row: 1 for a list
 * @param {(item: HTMLElement) => void} arrive is told which one the keyboard has come to
 */
export function arrows(node, items, columns, arrive) {
  node.addEventListener("keydown", (event) => {
    const all = items();
    const at = all.indexOf(event.target.closest("[tabindex], button, a"));
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns(), ArrowDown: columns() };
    let next = at + (steps[event.key] ?? NaN);
    if (event.key === "Home") next = 0;
    if (event.key === "End") next = all.length - 1;
    if (at < 0 || !(next in all) || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    for (const item of all) item.tabIndex = item === all[next] ? 0 : -1;
    all[next].focus();
    arrive(all[next]);
  });
}

const SYMBOLS = { " ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍" };

/** A token's text with its blanks as symbols, and characters that do not print as escapes. */
export function visible(text) {
  return text.replace(/[\s\p{C}]/gu, (sign) => SYMBOLS[sign] ?? escaped(sign));
}

function escaped(sign) {
  const code = sign.codePointAt(0);
  return code < 256 ? `\\x${code.toString(16).padStart(2, "0")}` : `\\u${code.toString(16).padStart(4, "0")}`;
}

/** A part of a text, counted as `slice` does, but in whole characters: none is cut into halves of UTF-16. */
export function characters(text, start, end) {
  return [...text].slice(start, end).join("");
}

/** A probability as people read one; a small one keeps its first digits. */
export function percent(p) {
  if (p === 0) return "0 %";
  if (p < 0.00001) return `${(100 * p).toExponential(0)} %`;
  return `${(100 * p).toPrecision(p >= 0.9995 ? 4 : p >= 0.1 ? 3 : 2)} %`;
}

/** A number with a sign, so that a difference is told apart without its colour. */
export function signed(value, digits) {
  const text = Math.abs(value).toFixed(digits);
  return (value < 0 ? "−" : "+") + text;
}

const PREFIXES = "kMGTPEZYRQ"; // all that there are

/** A number with a decimal prefix: 124439808 -> "124 M". */
export function human(number, unit = "") {
  let power = 0;
  while (number >= 999.5 && power < PREFIXES.length) {
    number /= 1000;
    power += 1;
  }
  return `${Number(number.toPrecision(3))} ${PREFIXES[power - 1] ?? ""}${unit}`.trimEnd();
}
