/**
 * Carries `policy.ts` to the router: memory, JSON in and out. A policy's author need not touch this
 * file.
 */

export { sgl_panic_message } from "./panic";
import { Decision, fail, readInput } from "./input";
import { quoted } from "./json";
import { choose } from "./policy";
import { Reader } from "./reader";

export function init(): void {}

export function alloc(size: usize): usize {
  return heap.alloc(size);
}

export function dealloc(pointer: usize, size: usize): void {
  heap.free(pointer);
}

/** Takes the input as JSON and returns the output as NUL-terminated JSON. */
export function select_worker(pointer: usize, length: usize): usize {
  __collect(); // Here nothing of the garbage collector's is on the stack, as it has to be.
  const reader = new Reader(pointer, length);
  const input = readInput(reader);
  const output = written(reader.problem.length ? fail(reader.problem) : choose(input));
  const size = String.UTF8.byteLength(output, true);
  const result = heap.alloc(size);
  const text = changetype<usize>(output);
  String.UTF8.encodeUnsafe(text, output.length, result, true, String.UTF8.ErrorMode.REPLACE);
  return result;
}

function written(decision: Decision): string {
  const error = decision.error;
  if (error !== null) return `{"selected_worker":null,"error":${quoted(error)}}`;
  const index = decision.selectedWorker;
  const selected = index < 0 ? "null" : index.toString();
  const state = decision.state;
  if (state === null) return `{"selected_worker":${selected}}`;
  return `{"selected_worker":${selected},"state":${state}}`;
}
