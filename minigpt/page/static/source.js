// Where the page gets its models: from `minigpt explore`, which serves it, or from the file that it is in.
//
// A file holds each model as elements: #model-N, the JSON that the server gives as /model/N/model.json; #run-N, its
// run.json; and .weights-N, the bytes of its weights.bin in base64, in order, a few megabytes in each. They end with
// #whole, which is missing if the file was cut off.

import { crc32, decodeWeights } from "./weights.js";

// A sentence for whoever opened the page: what is wrong, and what to do.
export class SourceError extends Error {}

const isFile = () => typeof document !== "undefined" && document.getElementById("minigpt-file") !== null;

// The names of the models, the first of which is the one to begin with.
export async function modelNames() {
  if (!isFile()) return fetchJSON("models.json");
  checkWhole();
  return [...document.querySelectorAll("script[id^='model-']")].map((part) => JSON.parse(part.textContent).about.name);
}

// A model: {config, tokenizer, weights: {name: Float32Array}, about, run}.
//
// progress(bytes so far, all bytes) is called while the weights come. The arrays look into one buffer, about.buffer is
// not kept: to hand the weights to a worker without copying them, transfer `weights[name].buffer`.
export async function openModel({ index = 0, progress = () => {} } = {}) {
  const model = isFile() ? modelInFile(index) : await fetchJSON(`model/${index}/model.json`);
  const bytes = isFile() ? await bytesInFile(index, model, progress) : await fetchBytes(index, model, progress);
  const { config, tokenizer, tensors, about } = model;
  return { config, tokenizer, weights: decodeWeights(tensors, bytes), about, run: await readRun(index) };
}

// The losses and samples of the model's run as they are now, or null: {name, step, max_steps, train: [[step, loss]],
// validation: [[step, loss]], samples: [{step, text}]}. While `minigpt train` is at work they grow.
export async function readRun(index = 0) {
  if (!isFile()) return fetchJSON(`model/${index}/run.json`);
  const part = document.getElementById(`run-${index}`);
  return part ? JSON.parse(part.textContent) : null;
}

// Whether `readRun` may give something new later.
export const runMayGrow = () => !isFile();

// The text of model.py: the page shows the lines that compute what is seen. A file holds it as #model-code.
export async function readCode() {
  const part = isFile() ? document.getElementById("model-code") : await fetched("model.py");
  return part instanceof Response ? part.text() : (part?.textContent ?? "");
}

// The worker: from its module, or in a file from its text, because a page that was opened from a disk may read no other.
export function openWorker() {
  const text = typeof document !== "undefined" && document.getElementById("worker-code");
  if (!text) return new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
  const address = URL.createObjectURL(new Blob([text.textContent], { type: "text/javascript" }));
  const worker = new Worker(address, { type: "module" });
  return worker;
}

async function fetchJSON(path) {
  return (await fetched(path)).json();
}

async function fetched(path) {
  let answer;
  try {
    answer = await fetch(new URL(path, document.baseURI));
  } catch {
    throw new SourceError("minigpt explore does not answer: it was stopped. Start it again, then reload this page.");
  }
  if (!answer.ok) throw new SourceError(`minigpt explore has no ${path} (${answer.status}). Start it again, then reload.`);
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
    throw new SourceError(
      `The weights broke off after ${megabytes(end)} of ${megabytes(bytes.length)}. Reload this page; if that does not ` +
        "help, start minigpt explore again.",
    );
  }
  return bytes.buffer;
}

function checkWhole() {
  if (document.getElementById("whole") === null) {
    throw new SourceError(
      "This file is not whole: its end is missing, so it was cut off while it was copied or downloaded. Get it again " +
        "from where it came from, or make it anew with minigpt explore -o.",
    );
  }
}

function modelInFile(index) {
  checkWhole();
  const part = document.getElementById(`model-${index}`);
  if (part === null) throw new SourceError(`This file has no model number ${index}.`);
  return JSON.parse(part.textContent);
}

async function bytesInFile(index, model, progress) {
  const bytes = new Uint8Array(model.bytes);
  let end = 0;
  let crc = 0;
  for (const part of document.querySelectorAll(`.weights-${index}`)) {
    const text = atob(part.textContent);
    for (let i = 0; i < text.length && end + i < bytes.length; i++) bytes[end + i] = text.charCodeAt(i);
    crc = crc32(bytes.subarray(end, end + text.length), crc);
    end += text.length;
    progress(end, bytes.length);
    await new Promise((resume) => setTimeout(resume)); // so that the progress can be seen
  }
  if (end !== bytes.length || crc !== model.crc32) {
    throw new SourceError(
      `This file is damaged: ${megabytes(end)} of ${megabytes(bytes.length)} of weights are there, and their checksum ` +
        `is ${crc === model.crc32 ? "right" : "wrong"}. Get it again from where it came from, or make it anew with ` +
        "minigpt explore -o.",
    );
  }
  return bytes.buffer;
}

const megabytes = (bytes) => `${(bytes / 1e6).toFixed(bytes < 1e7 ? 2 : 0)} MB`;
