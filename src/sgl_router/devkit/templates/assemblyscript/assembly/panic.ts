/** Tells the router why the module ended itself. A policy's author need not touch this file. */

const PANIC_BYTES = 1024;

/** Read by the router after a trap. */
export const sgl_panic_message: usize = memory.data(PANIC_BYTES);

/** What the compiler calls where a program ends itself. */
export function panic(message: string | null, file: string | null, line: u32, column: u32): void {
  const said = message === null ? "abort" : message;
  const where = file === null ? "" : ` (${file}:${line.toString()}:${column.toString()})`;
  const text = said + where;
  const length = min(text.length, (PANIC_BYTES - 1) / 3); // UTF-16 takes up to three bytes a unit.
  String.UTF8.encodeUnsafe(changetype<usize>(text), length, sgl_panic_message, true);
  unreachable();
}
