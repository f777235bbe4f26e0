/** The page: its bar on top, its tabs, and one view at a time. What is shown is the state, in the address's fragment. */

import { Desk } from "./desk.js";
import { arrows, control, element, human, offer, refill, select } from "./dom.js";
import { modelNames, openModel, openWorker, readCode, readRun, runMayGrow } from "./source.js";
import { editsOf, fittingState, readState, textOf, writeState } from "./state.js";
import { attentionView } from "./views/attention.js";
import { beamsView } from "./views/beams.js";
import { lensView } from "./views/lens.js";
import { lossView } from "./views/loss.js";
import { sideView } from "./views/side.js";
import { sizeView } from "./views/size.js";
import { trainingView } from "./views/training.js";
import { withBranch, writeView } from "./views/write.js";

const VIEWS = [writeView, attentionView, lensView, beamsView, lossView, sizeView, trainingView, sideView];
const OPTIONS = ["temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed"];
const PROMPTS = ["To be, or not to be", "the "]; // the first of them that a model's tokenizer knows
// Of another text, or of a model with other tokens, nothing is written yet and no token is chosen.
const ANEW = { more: [], at: null, query: null, position: null, token: null };
const FRAGMENT_DELAY = 500; // milliseconds: browsers refuse to change an address too often

/** What the views see of the page. */
class App {
  state; // see state.js
  models = []; // { config, about, V }
  text = null; // the tokens of the text, as the worker's `tokens` gives them; null if it cannot be read
  runMayGrow = runMayGrow();
  #desk;
  #views = new Map(); // id -> what the view's mount gave
  #current = null;
  #known = ""; // the text that `text` belongs to
  #timer = null;

  /** The model that is looked at. */
  get model() {
    return this.models[this.state.model] ?? this.models[0];
  }

  /** The sliders, as filters.js takes them. */
  options() {
    return Object.fromEntries(OPTIONS.map((name) => [name, this.state[name]]));
  }

  /** What is switched off, as engine.js takes it. */
  edits() {
    return editsOf(this.state.off);
  }

  /** Ask the worker, see Desk; of the model that is looked at, unless `args` names one. */
  async ask(lane, call, args, partial) {
    try {
      return await this.#desk.ask(lane, call, { model: this.state.model, ...args }, partial);
    } catch (error) {
      this.say(error.message);
      return null;
    }
  }

  stop(lane) {
    this.#desk.stop(lane);
  }

  /** The run of the model that is looked at, see source.js; undefined if the server does not answer. */
  async readRun() {
    try {
      return await readRun(this.state.model);
    } catch (error) {
      this.say(error.message);
      return undefined;
    }
  }

  /** Change the state; the page and its address follow. */
  set(changes) {
    this.#become({ ...this.state, ...changes });
    if (this.text !== null) this.say("");
    if ("prompt" in changes || "model" in changes) this.#desk.stopAll();
    this.#follow();
    this.refresh();
  }

  /**
   * What is being written is the text as soon as it is there, so that the address has it, whatever the page turns to.
   * @param {object[]} pieces of the whole text, of which so many were `typed`; see textOf in state.js
   */
  grow(pieces, typed) {
    this.text = textOf(pieces, typed, this.model.config.block_size);
    this.state = { ...this.state, more: this.text.ids.slice(typed), at: null };
    this.#known = this.#key();
    showCount(this);
    this.#follow();
  }

  /** Take another state. What is being written belongs to its text alone, and ends where that changes. */
  #become(state) {
    const before = this.#key();
    this.state = fittingState(state, this.models);
    if (this.#key() !== before) this.#desk.drop("write");
  }

  /** The address becomes that of the state, a little later. */
  #follow() {
    this.#timer ??= setTimeout(() => {
      this.#timer = null;
      history.replaceState(null, "", writeState(this.state));
    }, FRAGMENT_DELAY);
  }

  /** A sentence about what cannot be done, until something else is. */
  say(message) {
    parts.alert.textContent = message.replace("\n", ": ");
    parts.alert.hidden = message === "";
  }

  async start() {
    if (typeof Worker === "undefined") {
      throw new Error("This browser has no web workers, in which the page computes: open it in a newer one.");
    }
    const names = await modelNames();
    this.#desk = new Desk(openWorker(), (busy) => parts.busy.classList.toggle("on", busy), (message) => fail(message));
    for (const [index] of names.entries()) {
      const { config, tokenizer, ends, weights, about } = await openModel({ index, progress: showProgress });
      const buffers = new Set(Object.values(weights).map((values) => values.buffer));
      const args = { model: index, config, tokenizer, ends, weights };
      const { V } = await this.#desk.ask(`open ${index}`, "open", args, () => {}, [...buffers]);
      this.models.push({ config, about, V });
    }
    this.state = fittingState(readState(location.hash), this.models);
    if (this.state.prompt === null) this.state.prompt = this.model.about.prompt ?? (await this.#knownPrompt());
    parts.opening.remove();
    build(this);
    // Not hashchange, which comes a little later: until then #follow could still write the old state into the new entry.
    addEventListener("popstate", () => {
      const state = readState(location.hash); // whoever has typed it
      this.#become({ ...state, prompt: state.prompt ?? "" });
      this.refresh();
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.refresh());
    this.refresh();
  }

  async #knownPrompt() {
    for (const text of PROMPTS) {
      try {
        await this.#desk.ask("prompt", "tokens", { model: this.state.model, prompt: text, more: [] });
        return text;
      } catch {
        // the next one, then
      }
    }
    return "";
  }

  /** Show the state. */
  async refresh() {
    const { state } = this;
    const view = VIEWS.find(({ id }) => id === state.view) ?? writeView;
    if (view !== this.#current) {
      this.#views.get(this.#current?.id)?.leave?.();
      this.#current = view;
      showView(view, this.#views, this);
    }
    showTop(this);
    await this.#read();
    showCount(this);
    if (view === this.#current) this.#views.get(view.id).update();
  }

  /** Turn the text into tokens, if it has changed. */
  async #read() {
    const key = this.#key();
    if (key === this.#known) return;
    const { model, prompt, more } = this.state;
    const asked = this.#desk.ask("text", "tokens", { model, prompt, more });
    const [found, said] = await asked.then((text) => [text, ""], (error) => [undefined, error.message]);
    if (found === null || key !== this.#key()) return; // it was taken back meanwhile
    this.text = found ?? null;
    this.say(said);
    this.#known = key;
  }

  /** What the tokens depend on. */
  #key() {
    const { model, prompt, more } = this.state;
    return JSON.stringify([model, prompt, more]);
  }
}

// --- the parts of the page

const parts = {
  opening: document.getElementById("opening"),
  top: document.getElementById("top"),
  main: document.getElementById("main"),
  alert: element("p", { class: "alert", role: "alert", hidden: true }),
  busy: element("span", { class: "busy" }, "computing …"),
  prompt: element("textarea", { id: "prompt", rows: "2", spellcheck: "false", autocomplete: "off" }),
  count: element("p", { class: "quiet", id: "count", role: "status" }),
  facts: element("p", { class: "quiet" }),
  models: element("span", {}),
  tabs: element("div", { class: "tabs", role: "tablist", "aria-label": "Views" }),
  progress: element("progress", { max: 1, value: 0, "aria-label": "weights" }),
  code: element("dialog", { class: "code", "aria-labelledby": "code-name" }),
};

function showProgress(done, all) {
  if (!parts.progress.isConnected) parts.opening.after(parts.progress);
  parts.progress.value = done / all;
}

/** Say why there is no page. */
function fail(message) {
  parts.progress.remove();
  parts.opening.remove();
  parts.alert.textContent = message.replace("\n", ": ");
  parts.alert.hidden = false;
  if (!parts.alert.isConnected) parts.main.prepend(parts.alert);
}

/** Everything that stays while views come and go. */
function build(app) {
  parts.progress.remove();
  const choices = app.models.map(({ about }, i) => [i, about.name]);
  if (app.models.length > 1) {
    const model = select(choices, app.state.model, (value) => step(app, { model: Number(value), branches: [], ...ANEW }));
    model.dataset.key = "model";
    parts.models.append(control("Model", model));
    parts.models.update = () => offer(model, choices, app.state.model);
  } else {
    parts.models.append(element("strong", {}, app.model.about.name));
  }
  parts.prompt.addEventListener("input", () => {
    const { prompt, more, branches } = app.state;
    const changes = { prompt: parts.prompt.value, ...ANEW };
    if (more.length) changes.branches = withBranch(branches, { prompt, more });
    app.set(changes);
  });
  parts.top.append(
    parts.models,
    parts.facts,
    element("div", { class: "prompt" }, element("label", { for: "prompt" }, "Prompt"), parts.prompt, parts.count),
  );
  for (const { id, title } of VIEWS) {
    parts.tabs.append(
      element(
        "button",
        { type: "button", role: "tab", id: `tab-${id}`, "aria-controls": `view-${id}`, on: { click: () => open(app, id) } },
        title,
      ),
    );
  }
  arrows(parts.tabs, () => [...parts.tabs.children], () => 1, (tab) => tab.click());
  parts.main.append(element("div", { class: "bar-of-tabs" }, parts.tabs, parts.busy), parts.alert);
  document.body.append(parts.code);
  parts.code.addEventListener("close", () => app.state.line !== null && app.set({ line: null }));
}

/** Another view. */
function open(app, id) {
  if (app.state.view !== id) step(app, { view: id });
}

/** Change the state by a step in the browser's history: its Back brings all of this one again. */
function step(app, changes) {
  keep(app);
  app.set(changes);
  history.pushState(null, "", writeState(app.state));
}

/** The address, which may be a little behind, becomes that of the state at once. */
function keep(app) {
  history.replaceState(null, "", writeState(app.state));
}

function showTop(app) {
  const { state, model } = app;
  const { config, about } = model;
  if (parts.prompt.value !== state.prompt) parts.prompt.value = state.prompt;
  parts.models.update?.();
  const shape = `${config.n_layer} layers of ${config.n_head} heads, width ${config.n_embd}`;
  const facts = [`${human(about.parameters)} parameters`, shape, `context ${config.block_size}`, about.precision];
  if (about.loss_said) facts.push(about.loss_said);
  parts.facts.textContent = facts.join(" · ");
  document.title = `${about.name} · minigpt`;
  for (const link of document.querySelectorAll("a[data-line]")) point(link, app);
  showCode(app);
}

/** Lead a link to a line of model.py to the state with this line. */
function point(link, { state }) {
  link.href = writeState({ ...state, line: Number(link.dataset.line) });
}

function showCount({ text, model }) {
  if (text === null) {
    parts.count.textContent = "";
    return;
  }
  const count = `${text.ids.length} ${text.ids.length === 1 ? "token" : "tokens"}`;
  const written = text.ids.length > text.typed ? `, ${text.ids.length - text.typed} of them written by the model` : "";
  const cut = text.cut > 0 ? `: more than the context, so the model reads the last ${model.config.block_size}` : "";
  parts.count.textContent = count + written + cut;
}

/** Make a view if it was not open yet, and show it alone. */
function showView(view, views, app) {
  for (const { id } of VIEWS) {
    const tab = document.getElementById(`tab-${id}`);
    tab.setAttribute("aria-selected", String(id === view.id));
    tab.tabIndex = id === view.id ? 0 : -1;
    const panel = document.getElementById(`view-${id}`);
    if (panel !== null) panel.hidden = id !== view.id;
  }
  if (views.has(view.id)) return;
  const line = lineOf(view.line);
  const click = ({ currentTarget }) => {
    keep(app);
    point(currentTarget, app); // the text may have grown since the link was made
  };
  const link = line === null ? null : element("a", { "data-line": line, on: { click } }, `model.py, line ${line}`);
  const panel = element(
    "section",
    { class: "view", id: `view-${view.id}`, role: "tabpanel", "aria-labelledby": `tab-${view.id}` },
    element("h2", { class: "hidden" }, view.title),
    element("p", { class: "sentence" }, view.sentence, link === null ? null : [" ", link]),
  );
  parts.main.append(panel);
  views.set(view.id, view.mount(panel, app));
}

// --- the window with model.py

let code = null; // its lines

function lineOf(text) {
  const place = (code ?? []).findIndex((line) => line.includes(text));
  return place < 0 ? null : place + 1;
}

function showCode(app) {
  const { line } = app.state;
  if (line === null || code === null) {
    if (parts.code.open) parts.code.close();
    return;
  }
  if (parts.code.open) return;
  const lines = code.map((text, i) => element("li", { class: i + 1 === line ? "now" : "" }, element("code", {}, text || " ")));
  const close = element("button", { type: "button", on: { click: () => parts.code.close() } }, "Close");
  const list = element("ol", { class: "scroll", tabindex: "0" }, lines);
  refill(parts.code, element("div", { class: "row" }, element("h2", { id: "code-name" }, `minigpt/model.py, line ${line}`), close), list);
  parts.code.showModal();
  lines[Math.min(lines.length, Math.max(1, line)) - 1].scrollIntoView({ block: "center" });
}

const app = new App();
readCode()
  .then((text) => (code = text.split("\n")))
  .then(() => app.start())
  .catch((error) => fail(error.message));
