// Where the page hands in what is to be computed: requests go to the worker, answers come back.
//
// A request belongs to a lane, such as "attention". Where a later one of its lane has been handed in, the earlier one is
// outdated: the worker skips or stops it, and its answer is dropped here, even if it comes.

export class Desk {
  #worker;
  #failed;
  #last = 0;
  #open = new Map(); // id of a request -> what waits for it
  #newest = new Map(); // lane -> id of its latest request
  #notify;

  /**
   * @param {Worker} worker
   * @param {(busy: boolean) => void} notify is told whether anything is being computed
   * @param {(message: string) => void} failed is told if the worker itself has broken
   */
  constructor(worker, notify, failed) {
    this.#worker = worker;
    this.#notify = notify;
    this.#failed = failed;
    worker.addEventListener("message", ({ data }) => this.#receive(data));
    worker.addEventListener("error", (event) => this.#failed(event.message || "the worker could not be started"));
  }

  /**
   * Ask for something. The promise becomes the answer, or null if the request is outdated by then.
   * @param {(part: object) => void} partial is told what there is so far, by calls that take long
   * @param {Transferable[]} transfer what is handed over instead of copied
   */
  ask(lane, call, args, partial = () => {}, transfer = []) {
    this.#last += 1;
    const id = this.#last;
    this.#newest.set(lane, id);
    const answer = new Promise((resolve, reject) => this.#open.set(id, { lane, partial, resolve, reject }));
    this.#worker.postMessage({ id, lane, call, args }, transfer);
    this.#notify(true);
    return answer;
  }

  /** End what a lane is computing. What there is by then is its answer. */
  stop(lane) {
    const id = this.#newest.get(lane);
    if (this.#open.has(id)) this.#worker.postMessage({ stop: id });
  }

  /** The same, where nobody wants the answer any more: it is outdated. */
  drop(lane) {
    this.stop(lane);
    this.#newest.delete(lane);
  }

  /** End whatever is being computed: something else is more urgent. */
  stopAll() {
    for (const id of this.#open.keys()) this.#worker.postMessage({ stop: id });
  }

  #receive({ id, result, error, partial, outdated }) {
    const waiting = this.#open.get(id);
    if (waiting === undefined) return;
    const current = this.#newest.get(waiting.lane) === id;
    if (partial !== undefined) {
      if (current) waiting.partial(partial);
      return;
    }
    this.#open.delete(id);
    this.#notify(this.#open.size > 0);
    if (outdated || !current) waiting.resolve(null);
    else if (error !== undefined) waiting.reject(Object.assign(new Error(error.message), { name: error.name }));
    else waiting.resolve(result);
  }
}
