/** The errors that a user can cause and mend: two sentences, as in errors.py. */

/** Something that was given cannot be used. */
export class InputError extends Error {
  /**
   * @param {string} what what is wrong, with the values.
   * @param {string} how how to mend it.
   */
  constructor(what, how) {
    super(`${what}\n${how}`);
    this.name = "InputError";
    this.what = what;
    this.how = how;
  }
}
