/** Fills engines one after the other, so that idle ones can be stopped. */

import { Decision, Input, none, pick } from "./input";

const DEFAULT_LIMIT: f64 = 8; // A worker with this many requests in flight is full.

/** `pick` of an index into `workers`, or `none` for "no worker should take this request". */
export function choose(input: Input): Decision {
  const given = input.config.get("limit");
  const limit = given.kind == "number" ? given.number : DEFAULT_LIMIT;
  const workers = input.workers;
  let fullest = -1; // of those that are not full
  let emptiest = -1;
  for (let index = 0; index < workers.length; ++index) {
    const worker = workers[index];
    if (!worker.healthy) continue;
    if (emptiest < 0 || worker.load < workers[emptiest].load) emptiest = index;
    if (<f64>worker.load >= limit) continue;
    if (fullest < 0 || worker.load > workers[fullest].load) fullest = index;
  }
  if (emptiest < 0) return none();
  return pick(fullest < 0 ? emptiest : fullest);
}
