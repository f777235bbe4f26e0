// Where the page gets its models: from `minigpt explore`, which serves it, or from the file that it is in.
//
// In a file each answer of the server is an element instead: #minigpt-model-N is /model/N/model.json, #minigpt-run-N its
// run.json, and .minigpt-weights-N its weights.bin in base64, a few megabytes in each. Behind them is #minigpt-whole,
// which is missing if the file was cut off.

import { InputError } from "./errors.js";
import { crc32, decodeWeights } from "./weights.js";

const START = "start minigpt explore again, then reload this page";
const GET_AGAIN = "get it again from where it came from, or make it anew with minigpt explore -o";

const isFile = () => typeof document !== "undefined" && document.getElementById("minigpt-file") !== null;

// The names of the models, the first of which is the one to begin with.
export async function modelNames() {
  if (!isFile()) return fetchJSON("models.json");
  checkWhole();
  return [...document.querySelectorAll("script[id^='minigpt-model-']")].map((part) => JSON.parse(part.textContent).about.name);
}

// A model: {config, tokenizer, ends, weights: {name: Float32Array}, about, run}.
//
// progress(bytes so far, all bytes) is called while the weights come. In float32 the arrays look into one buffer, so that
// nothing is copied. ends: the ids at which a text ends. about: {name, kind: "run" | "model", parameters, precision: "float32" | "float16" | "int8",
// prompt: what to begin with, or null, loss_cost: nats that the precision costs, or null, loss_said: a sentence on it}.
export async function openModel({ index = 0, progress = () => {} } = {}) {
  const model = isFile() ? modelInFile(index) : await fetchJSON(`model/${index}/model.json`);
  const bytes = isFile() ? await bytesInFile(index, model, progress) : await fetchBytes(index, model, progress);
  const { config, tokenizer, ends, tensors, about } = model;
  return { config, tokenizer, ends, weights: decodeWeights(tensors, bytes), about, run: await readRun(index) };
}

// The losses and samples of the model's run as they are now, or null: {name, step, max_steps, train: [[step, loss]],
// validation: [[step, loss]], samples: [{step, text}]}. While `minigpt train` is at work they grow.
export async function readRun(index = 0) {
  if (!isFile()) return fetchJSON(`model/${index}/run.json`);
  const part = document.getElementById(`minigpt-run-${index}`);
  return part ? JSON.parse(part.textContent) : null;
}

// The text of minigpt's model.py, to whose lines the views point.
export async function readCode() {
  return isFile() ? JSON.parse(document.getElementById("minigpt-code").textContent) : (await fetched("model.py")).text();
}

// Whether `readRun` may give something new later.
export const runMayGrow = () => !isFile();

// The worker: from its module, or in a file from its text, because a page that was opened from a disk may read no other.
export function openWorker() {
  const text = typeof document !== "undefined" && document.getElementById("minigpt-worker");
  if (!text) return new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
  const address = URL.createObjectURL(new Blob([text.textContent], { type: "text/javascript" }));
  return new Worker(address); // no module: Chromium takes none of a blob from a page that was opened from a disk
}

async function fetchJSON(path) {
  return (await fetched(path)).json();
}

async function fetched(path) {
  let answer;
  try {
    answer = await fetch(new URL(path, document.baseURI));
  } catch {
    throw new InputError("minigpt explore does not answer: it was stopped", START);
  }
  if (!answer.ok) throw new InputError(`minigpt explore does not give ${path} (${answer.status})`, START);
  return answer;
}

async function fetchBytes(index, model, progress) {
  const answer = await fetched(`model/${index}/weights.bin`);
  const bytes = new Uint8Array(model.bytes);
  const reader = answer.body.getReader();
  let end = 0;
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      if (end + value.length > bytes.length) throw new RangeError("more bytes than the model has");
      bytes.set(value, end);
      end += value.length;
      progress(end, bytes.length);
    }
  } catch {
    // what is missing is said below
  }
  if (end !== bytes.length) {
    throw new InputError(`the weights broke off after ${megabytes(end)} of ${megabytes(bytes.length)}`, START);
  }
  return bytes.buffer;
}

function checkWhole() {
  if (document.getElementById("minigpt-whole") === null) {
    throw new InputError("this file was cut off while it was copied or downloaded: its end is missing", GET_AGAIN);
  }
}

function modelInFile(index) {
  checkWhole();
  const part = document.getElementById(`minigpt-model-${index}`);
  if (part === null) throw new InputError(`this file has no model ${index}`, "choose one that it has");
  return JSON.parse(part.textContent);
}

async function bytesInFile(index, model, progress) {
  const bytes = new Uint8Array(model.bytes);
  let end = 0;
  let crc = 0;
  for (const part of document.querySelectorAll(`.minigpt-weights-${index}`)) {
    const text = atob(part.textContent);
    for (let i = 0; i < text.length && end + i < bytes.length; i++) bytes[end + i] = text.charCodeAt(i);
    crc = crc32(bytes.subarray(end, end + text.length), crc);
    end += text.length;
    progress(end, bytes.length);
    await new Promise((resume) => setTimeout(resume)); // so that the progress can be seen
  }
  if (end !== bytes.length || crc !== model.crc32) {
    const found = end === bytes.length ? "have another checksum" : `are ${megabytes(end)} of ${megabytes(bytes.length)}`;
    throw new InputError(`this file is damaged: its weights ${found}`, GET_AGAIN);
  }
  return bytes.buffer;
}

const megabytes = (bytes) => `${(bytes / 1e6).toFixed(bytes < 1e7 ? 2 : 0)} MB`;
