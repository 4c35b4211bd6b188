/** Fills engines one after the other, so that idle ones can be stopped. */

import { Decision, Input, pick } from "./input";

const DEFAULT_LIMIT: f64 = 8; // A worker with this many requests in flight is full.

/** `pick` of an index into `workers`, or `none` for "no worker should take this request". */
export function choose(input: Input): Decision {
  const given = input.config.get("limit");
  const limit = given.kind == "number" ? given.number : DEFAULT_LIMIT;
  const free: i32[] = []; // healthy and not full
  for (let index = 0; index < input.workers.length; ++index) {
    const worker = input.workers[index];
    if (worker.healthy && <f64>worker.load < limit) free.push(index);
  }
  let fullest = free[0];
  for (let i = 1; i < free.length; ++i) {
    if (input.workers[free[i]].load > input.workers[fullest].load) fullest = free[i];
  }
  return pick(fullest);
}
