/** Reads JSON from memory. A policy's author need not touch this file. */

import { Json } from "./json";
import { decimal } from "./number";

const MAX_DEPTH = 256; // The host writes at most 255 levels.

/**
 * Reads one value after the other. Where something else stands than was asked for, `problem` says
 * so, and all that is asked afterwards is empty: there are no exceptions in this language.
 */
export class Reader {
  /** What was wrong first; empty where nothing was. */
  problem: string = "";
  private start: usize;
  private at: usize;
  private end: usize;
  private depth: i32 = 0;
  private first: bool = false;
  private keyAt: usize = 0;
  private keyEnd: usize = 0;
  private keyText: string | null = null;

  constructor(at: usize, length: usize) {
    this.start = at;
    this.at = at;
    this.end = at + length;
  }

  /** To be asked last: nothing may follow. */
  finish(): void {
    if (this.peek() || this.at < this.end) this.refuse("the end");
  }

  beginObject(): void {
    this.begin(0x7b, "an object");
  }

  beginArray(): void {
    this.begin(0x5b, "an array");
  }

  /** Whether another key follows, which `is` then compares; its value must be read or skipped. */
  nextKey(): bool {
    if (!this.another(0x7d)) return false;
    if (this.peek() != 0x22) return this.refuse("a key");
    const from = this.at + 1;
    const escaped = this.passString();
    if (this.problem.length) return false;
    this.keyAt = from;
    this.keyEnd = this.at - 1;
    this.keyText = escaped ? this.text(from, this.keyEnd) : null;
    if (this.peek() != 0x3a) return this.refuse("a colon");
    ++this.at;
    return true;
  }

  /** Whether another item of an array follows. */
  nextItem(): bool {
    return this.another(0x5d);
  }

  /** Whether the key is this name, which is ASCII. */
  is(name: string): bool {
    const text = this.keyText;
    if (text !== null) return text == name;
    if (<i32>(this.keyEnd - this.keyAt) != name.length) return false;
    for (let i = 0; i < name.length; ++i) {
      if (load<u8>(this.keyAt + i) != <u8>name.charCodeAt(i)) return false;
    }
    return true;
  }

  key(): string {
    const text = this.keyText;
    return text !== null ? text : String.UTF8.decodeUnsafe(this.keyAt, this.keyEnd - this.keyAt);
  }

  /** Whether null stands here, which is then read. */
  isNull(): bool {
    return this.peek() == 0x6e && this.word("null");
  }

  bool(): bool {
    if (this.peek() == 0x74) return this.word("true");
    if (this.peek() == 0x66) this.word("false");
    else this.refuse("true or false");
    return false;
  }

  u64(): u64 {
    return this.whole(u64.MAX_VALUE);
  }

  u32(): u32 {
    return <u32>this.whole(u32.MAX_VALUE);
  }

  f64(): f64 {
    this.peek();
    const from = this.at;
    if (!this.passNumber()) return 0;
    const negative = load<u8>(from) == 0x2d;
    const value = decimal(negative ? from + 1 : from, this.at);
    if (value == Infinity) {
      this.at = from;
      this.refuse("a number up to 1.8e308");
    }
    return negative ? -value : value;
  }

  string(): string {
    if (this.peek() != 0x22) {
      this.refuse("a string");
      return "";
    }
    const from = this.at + 1;
    const escaped = this.passString();
    if (this.problem.length) return "";
    const end = this.at - 1;
    return escaped ? this.text(from, end) : String.UTF8.decodeUnsafe(from, end - from);
  }

  json(): Json {
    const value = new Json();
    const next = this.peek();
    if (next == 0x7b) {
      value.kind = "object";
      value.object = new Map();
      this.beginObject();
      while (this.nextKey()) {
        const key = this.key();
        value.object.set(key, this.json());
      }
    } else if (next == 0x5b) {
      value.kind = "array";
      value.array = [];
      this.beginArray();
      while (this.nextItem()) value.array.push(this.json());
    } else if (next == 0x22) {
      value.kind = "string";
      value.string = this.string();
    } else if (next == 0x74 || next == 0x66) {
      value.kind = "boolean";
      value.boolean = this.bool();
    } else if (!this.isNull()) {
      value.kind = "number";
      value.number = this.f64();
    }
    return value;
  }

  skip(): void {
    const next = this.peek();
    if (next == 0x7b) {
      this.beginObject();
      while (this.nextKey()) this.skip();
    } else if (next == 0x5b) {
      this.beginArray();
      while (this.nextItem()) this.skip();
    } else if (next == 0x22) this.passString();
    else if (next == 0x74 || next == 0x66) this.bool();
    else if (!this.isNull()) this.passNumber();
  }

  // ---- pieces

  /** The next byte that is no space; 0 at the end. */
  private peek(): u8 {
    while (this.at < this.end) {
      const byte = load<u8>(this.at);
      if (byte != 0x20 && byte != 0x0a && byte != 0x0d && byte != 0x09) return byte;
      ++this.at;
    }
    return 0;
  }

  private begin(bracket: u8, expected: string): void {
    if (this.peek() != bracket) this.refuse(expected);
    else if (++this.depth > MAX_DEPTH) this.refuse("at most 256 levels");
    else {
      ++this.at;
      this.first = true;
    }
  }

  private another(bracket: u8): bool {
    if (this.problem.length) return false;
    const first = this.first;
    this.first = false;
    const next = this.peek();
    if (next == bracket) {
      ++this.at;
      --this.depth;
      return false;
    }
    if (first) return true;
    if (next != 0x2c) return this.refuse("a comma or the end of an array or object");
    ++this.at;
    return true;
  }

  private word(name: string): bool {
    if (<i32>(this.end - this.at) < name.length) return this.refuse(name);
    for (let i = 0; i < name.length; ++i) {
      if (load<u8>(this.at + i) != <u8>name.charCodeAt(i)) return this.refuse(name);
    }
    this.at += name.length;
    return true;
  }

  /** Passes a string, whose escapes are right then; returns whether it has any. */
  private passString(): bool {
    let escaped = false;
    let at = this.at + 1;
    const end = this.end;
    while (at < end) {
      const byte = load<u8>(at);
      if (byte == 0x22) {
        this.at = at + 1;
        return escaped;
      }
      if (byte < 0x20) break;
      if (byte == 0x5c) {
        escaped = true;
        if (++at < end && load<u8>(at) == 0x75) {
          if (at + 4 >= end || hex(at + 1) < 0) break;
        } else if (at < end && plain(load<u8>(at)) < 0) break;
      }
      ++at;
    }
    return this.refuse("a string");
  }

  /** What stands in a string that has escapes: without them it is shorter, in UTF-8 too. */
  private text(at: usize, end: usize): string {
    const buffer = heap.alloc(end - at);
    let to = buffer;
    while (at < end) {
      let unit: i32 = load<u8>(at++);
      if (unit == 0x5c) {
        unit = load<u8>(at++);
        if (unit == 0x75) {
          unit = hex(at);
          at += 4;
        } else unit = plain(<u8>unit);
        to = put(to, unit);
      } else store<u8>(to++, <u8>unit);
    }
    const text = String.UTF8.decodeUnsafe(buffer, to - buffer);
    heap.free(buffer);
    return text;
  }

  private passNumber(): bool {
    const from = this.at;
    if (this.peek() == 0x2d) ++this.at;
    const zero = this.at < this.end && load<u8>(this.at) == 0x30;
    const count = this.passDigits();
    let good = count == 1 || (count > 1 && !zero);
    if (good && this.at < this.end && load<u8>(this.at) == 0x2e) {
      ++this.at;
      good = this.passDigits() > 0;
    }
    if (good && this.at < this.end && (load<u8>(this.at) | 0x20) == 0x65) {
      ++this.at;
      const sign = this.at < this.end ? load<u8>(this.at) : 0;
      if (sign == 0x2b || sign == 0x2d) ++this.at;
      good = this.passDigits() > 0;
    }
    if (good) return true;
    this.at = from;
    return this.refuse("a number");
  }

  private passDigits(): usize {
    const from = this.at;
    while (this.at < this.end && <u8>(load<u8>(this.at) - 0x30) <= 9) ++this.at;
    return this.at - from;
  }

  private whole(most: u64): u64 {
    this.peek();
    const from = this.at;
    if (!this.passNumber()) return 0;
    let value: u64 = 0;
    for (let at = from; at < this.at; ++at) {
      const digit = load<u8>(at) - 0x30;
      if (digit > 9 || value > (most - digit) / 10) {
        this.at = from;
        this.refuse("a whole number from 0 to " + most.toString());
        return 0;
      }
      value = value * 10 + digit;
    }
    return value;
  }

  private refuse(expected: string): bool {
    if (!this.problem.length) {
      const length = min<usize>(this.end - this.at, 20);
      const found = length ? String.UTF8.decodeUnsafe(this.at, length) : "the end";
      const key = this.keyAt ? ", after the key " + this.key() : "";
      const byte = (this.at - this.start).toString();
      this.problem = `the input's byte ${byte}${key}: expected ${expected}, found ${found}`;
    }
    this.at = this.end;
    return false;
  }
}

const ESCAPES = '"\\/bfnrt';
const PLAIN = '"\\/\b\f\n\r\t';

/** What the letter after a backslash stands for; -1 where for nothing. */
function plain(letter: u8): i32 {
  for (let i = 0; i < ESCAPES.length; ++i) {
    if (ESCAPES.charCodeAt(i) == letter) return PLAIN.charCodeAt(i);
  }
  return -1;
}

/** A unit of UTF-16 as UTF-8. A pair of surrogates, each on its own, is decoded as a pair again. */
function put(to: usize, unit: i32): usize {
  if (unit < 0x80) {
    store<u8>(to, <u8>unit);
    return to + 1;
  }
  if (unit < 0x800) {
    store<u8>(to, <u8>(0xc0 | unit >> 6));
    store<u8>(to + 1, <u8>(0x80 | unit & 63));
    return to + 2;
  }
  store<u8>(to, <u8>(0xe0 | unit >> 12));
  store<u8>(to + 1, <u8>(0x80 | unit >> 6 & 63));
  store<u8>(to + 2, <u8>(0x80 | unit & 63));
  return to + 3;
}

/** Four hexadecimal digits; -1 where they are none. */
function hex(at: usize): i32 {
  let value = 0;
  for (let i = 0; i < 4; ++i) {
    const byte = load<u8>(at + i);
    const letter = (byte | 0x20) - 0x61;
    if (<u8>(byte - 0x30) <= 9) value = value << 4 | (byte - 0x30);
    else if (<u8>letter <= 5) value = value << 4 | (letter + 10);
    else return -1;
  }
  return value;
}
