/**
 * Text to ids and back, as in tokenizers.py: characters, GPT-2's byte pairs, and text that arrives token by token.
 *
 * Every token is a byte string, so decoding is the same for both: join the bytes, read them as UTF-8. A character may
 * be spread over several byte-pair tokens, so tokens must never be decoded one at a time: `TextStream` holds back the
 * bytes of an unfinished character. No text turns into a special token: `<|endoftext|>` is read as the letters it is.
 */

import { InputError } from "./errors.js";

const END_OF_TEXT = "<|endoftext|>";
const utf8 = new TextEncoder();

// A BOM is a character like any other.
const decoder = (fatal = false) => new TextDecoder("utf-8", { fatal, ignoreBOM: true });

/** What the page knows of a tokenizer; the kinds below differ in how they encode. */
class Tokenizer {
  /**
   * @param {Uint8Array[]} tokens the bytes of each token, in the order of the ids.
   * @param {string[]} added names of the special tokens behind the vocabulary.
   */
  constructor(tokens, added) {
    /** Number of ids that a text can give; they run from 0 to `vocab_size - 1`. */
    this.vocab_size = tokens.length;
    this.tokens = [...tokens, ...added.map((name) => utf8.encode(name))];
    /** The ids that are no text. */
    this.special_ids = new Set(added.map((_, n) => tokens.length + n));
    /** What an empty prompt starts from, or null if nothing could serve. */
    this.start_token_id = null;
  }

  /**
   * Text of ids. Bytes that are not UTF-8 become U+FFFD, and special tokens give no text.
   *
   * @param {Iterable<number>} ids
   * @returns {string}
   */
  decode(ids) {
    const stream = new TextStream(this);
    return Array.from(ids, (id) => stream.feed(id)).join("") + stream.flush();
  }

  /** The bytes of one token, which need not be whole characters; none for an id that only pads a vocabulary. */
  token_bytes(id) {
    return this.tokens[id] ?? new Uint8Array();
  }

  /**
   * Tokens for display, one by one: a part of a character is written as escapes, \xe4; an id without text as #50300.
   *
   * @param {Iterable<number>} ids
   * @returns {Array<{id: number, text: string, bytes: Uint8Array, special: boolean}>}
   */
  pieces(ids) {
    return Array.from(ids, (id) => {
      const bytes = this.token_bytes(id);
      const text = id < this.tokens.length ? escaped(bytes) : `#${id}`;
      return { id, text, bytes, special: this.special_ids.has(id) };
    });
  }

  /**
   * Ids of a prompt, at least one of them: an empty one becomes the start token.
   *
   * @param {string} text
   * @throws {InputError} as `encode`, or if it is empty and there is no token to start from.
   */
  encodePrompt(text) {
    const ids = this.encode(text);
    if (ids.length) return ids;
    if (this.start_token_id === null) {
      throw new InputError(
        "the prompt is empty, and this tokenizer has no token to start from",
        "give a prompt of at least one character of the vocabulary",
      );
    }
    return [this.start_token_id];
  }
}

/** One id per character: its place in `characters`. */
export class CharTokenizer extends Tokenizer {
  constructor(characters, added = []) {
    const all = Array.from(characters); // by code points, not by UTF-16's halves
    super(
      all.map((character) => utf8.encode(character)),
      added,
    );
    this.ids = new Map(all.map((character, id) => [character, id]));
    this.start_token_id = this.ids.get("\n") ?? null;
  }

  /**
   * @param {string} text
   * @returns {number[]} one id per character.
   * @throws {InputError} if a character is unknown; it is named.
   */
  encode(text) {
    checkUnicode(text);
    const characters = Array.from(text);
    const strangers = [...new Set(characters.filter((character) => !this.ids.has(character)))].sort();
    if (strangers.length) {
      const named = strangers.slice(0, 5).map((character) => `'${character}' (${codePoint(character)})`);
      const more = strangers.length > 5 ? ` and ${strangers.length - 5} more` : "";
      throw new InputError(
        `the text has characters outside this tokenizer's vocabulary of ${this.vocab_size}: ${named.join(", ")}${more}`,
        "remove them, or write others in their place",
      );
    }
    return characters.map((character) => this.ids.get(character));
  }
}

// GPT-2's files spell each byte as one visible character: printable Latin-1 as itself, the other 68 bytes as U+0100,
// U+0101 and so on (a space is "Ġ"). In this order they are the ids 0 to 255.
const PRINTABLE = Array.from({ length: 256 }, (_, byte) => byte).filter(
  (byte) => (byte >= 0x21 && byte < 0x7f) || (byte >= 0xa1 && byte < 0xad) || byte >= 0xae,
);
const UNPRINTABLE = Array.from({ length: 256 }, (_, byte) => byte).filter((byte) => !PRINTABLE.includes(byte));
const LETTERS = [
  ...PRINTABLE.map((byte) => [String.fromCodePoint(byte), byte]),
  ...UNPRINTABLE.map((byte, n) => [String.fromCodePoint(0x100 + n), byte]),
];
const BYTE_OF = new Map(LETTERS);
const LETTER_OF = Array.from({ length: 256 });
for (const [letter, byte] of LETTERS) LETTER_OF[byte] = letter;

// Published in openai/gpt-2, src/encoder.py. JavaScript's own \s is not Unicode's: it has U+FEFF and lacks U+0085.
const PATTERN = /'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\p{space}\p{L}\p{N}]+|\p{space}+(?!\P{space})|\p{space}/gu;

/** GPT-2's byte pair encoding: 256 bytes, the merges, `<|endoftext|>`. */
export class GPT2Tokenizer extends Tokenizer {
  /**
   * @param {string[]} merges "left right" pairs in GPT-2's spelling of bytes, the first to be applied first.
   * @param {string[]} added names of the special tokens behind the vocabulary.
   */
  constructor(merges, added = []) {
    const spelled = [...LETTERS.map(([letter]) => letter), ...merges.map((merge) => merge.replace(" ", ""))];
    const bytes = spelled.map((token) => Uint8Array.from(token, (letter) => BYTE_OF.get(letter)));
    super([...bytes, utf8.encode(END_OF_TEXT)], added);
    this.ids = new Map(spelled.map((token, id) => [token, id])); // lower ids are merged first
    this.start_token_id = spelled.length;
    this.special_ids.add(spelled.length);
    this.words = new Map(); // word -> ids: most words of a text are there several times
  }

  /**
   * @param {string} text any text without lone surrogates.
   * @returns {number[]}
   */
  encode(text) {
    checkUnicode(text);
    const ids = [];
    for (const [word] of text.matchAll(PATTERN)) {
      if (!this.words.has(word)) this.words.set(word, this.merged(word));
      for (const id of this.words.get(word)) ids.push(id);
    }
    return ids;
  }

  /** The ids of one word: its bytes, merged pair by pair, the pair that makes the lowest id first. */
  merged(word) {
    const parts = Array.from(utf8.encode(word), (byte) => LETTER_OF[byte]);
    const whole = this.ids.get(parts.join(""));
    if (whole !== undefined) return [whole];
    const rank = (n) => (n + 1 < parts.length ? (this.ids.get(parts[n] + parts[n + 1]) ?? Infinity) : Infinity);
    const ranks = parts.map((_, n) => rank(n)); // of each part together with the one behind it
    for (;;) {
      let best = 0;
      for (let n = 1; n < ranks.length; n++) if (ranks[n] < ranks[best]) best = n;
      if (!(ranks[best] < Infinity)) break;
      parts.splice(best, 2, parts[best] + parts[best + 1]);
      ranks.splice(best, 1);
      ranks[best] = rank(best);
      if (best > 0) ranks[best - 1] = rank(best - 1);
    }
    return parts.map((part) => this.ids.get(part));
  }
}

/** Token ids in, text out, as they come: never half a character, never a character late, nothing taken back. */
export class TextStream {
  /**
   * @param {Tokenizer} tokenizer where the bytes of a token come from.
   * @param {Iterable<number>} prompt_ids what was there before; its text is not given out.
   */
  constructor(tokenizer, prompt_ids = []) {
    this.tokenizer = tokenizer;
    this.decoder = decoder();
    for (const id of prompt_ids) this.feed(id);
  }

  /** The text that this token completes: "" while a character is unfinished. */
  feed(id) {
    if (this.tokenizer.special_ids.has(id)) return "";
    return this.decoder.decode(this.tokenizer.token_bytes(id), { stream: true });
  }

  /** At the end: U+FFFD if the last character was never finished; else "". */
  flush() {
    return this.decoder.decode();
  }
}

/**
 * The tokenizer of a tokenizer.json, as `Tokenizer.save` writes it.
 *
 * @param {{type: string, characters?: string, merges?: string[], added_tokens?: object[]}} content
 * @returns {CharTokenizer | GPT2Tokenizer}
 * @throws {InputError} if it is of an unknown type.
 */
export function fromJSON(content) {
  const added = (content.added_tokens ?? []).map((token) => token.content);
  if (content.type === "char") return new CharTokenizer(content.characters, added);
  if (content.type === "gpt2") return new GPT2Tokenizer(content.merges, added);
  throw new InputError(`a tokenizer of type '${content.type}' is unknown here`, "use a char or a gpt2 tokenizer");
}

/** Bytes as text; those that are no UTF-8 as escapes. */
function escaped(bytes) {
  let text = "";
  for (let start = 0; start < bytes.length; ) {
    const length = [1, 2, 3, 4].find((n) => start + n <= bytes.length && isCharacter(bytes.subarray(start, start + n)));
    if (length === undefined) text += `\\x${bytes[start].toString(16).padStart(2, "0")}`;
    else text += decoder().decode(bytes.subarray(start, start + length));
    start += length ?? 1;
  }
  return text;
}

function isCharacter(bytes) {
  try {
    decoder(true).decode(bytes);
    return true;
  } catch {
    return false;
  }
}

function codePoint(character) {
  return `U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
}

function checkUnicode(text) {
  const surrogate = text.search(/[\ud800-\udfff]/u); // with the flag u, whole pairs are no surrogates
  if (surrogate >= 0) {
    throw new InputError(
      `the text has a lone surrogate at position ${surrogate}: half a character`,
      "take it out: no UTF-8 text can hold it",
    );
  }
}
