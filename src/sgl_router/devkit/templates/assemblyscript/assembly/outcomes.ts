/**
 * Tells `complete` of `policy.ts` how requests have ended. Part of the module where `needs` in
 * plugin.toml has `outcomes`. A policy's author need not touch this file.
 */

import { readOutcome } from "./input";
import { complete } from "./policy";
import { Reader } from "./reader";

export function on_request_complete(pointer: usize, length: usize): void {
  __collect();
  const reader = new Reader(pointer, length);
  const outcome = readOutcome(reader);
  assert(!reader.problem.length, reader.problem);
  complete(outcome);
}
