/** Values of JSON. A policy's author need not touch this file, and may use what it has. */

/** A value of which only the reader knows what it is, such as a plugin's configuration. */
export class Json {
  /** What it is: `null`, `boolean`, `number`, `string`, `array` or `object`. */
  kind: string = "null";
  boolean: bool = false;
  number: f64 = 0;
  string: string = "";
  array: Json[] = NO_ITEMS;
  object: Map<string, Json> = NO_KEYS;

  /** What an object has under a key; a null where it is no object or has none. */
  get(key: string): Json {
    return this.object.has(key) ? this.object.get(key) : NOTHING;
  }

  /** For messages; of an array or an object only what it is. */
  toString(): string {
    if (this.kind == "number") return this.number.toString();
    if (this.kind == "boolean") return this.boolean.toString();
    return this.kind == "string" ? quoted(this.string) : this.kind;
  }
}

/** Shared by all that are no array or no object. */
const NO_ITEMS: Json[] = [];
const NO_KEYS: Map<string, Json> = new Map();

/** A value that is null. */
export const NOTHING = new Json();

/** A text as JSON, with its quotes. */
export function quoted(text: string): string {
  const pieces: string[] = ['"'];
  let from = 0;
  for (let i = 0; i < text.length; ++i) {
    const code = text.charCodeAt(i);
    if (code >= 0x20 && code != 0x22 && code != 0x5c) continue;
    pieces.push(text.substring(from, i));
    if (code >= 0x20) pieces.push(code == 0x22 ? '\\"' : "\\\\");
    else pieces.push("\\u00" + (code < 16 ? "0" : "1") + (code & 15).toString(16));
    from = i + 1;
  }
  pieces.push(text.substring(from));
  pieces.push('"');
  return pieces.join("");
}
