/** Picks the healthy worker with the fewest requests in flight. */

import { Decision, Input, none, pick } from "./input";

/** `pick` of an index into `workers`, or `none` for "no worker should take this request". */
export function choose(input: Input): Decision {
  const workers = input.workers;
  let lowest = u64.MAX_VALUE;
  let ties: i32[] = [];
  for (let index = 0; index < workers.length; ++index) {
    const worker = workers[index];
    if (!worker.healthy || worker.load > lowest) continue;
    if (worker.load < lowest) ties = [];
    lowest = worker.load;
    ties.push(index);
  }
  if (ties.length == 0) return none();

  // Always taking the first one would send the requests of an idle pool to a single worker.
  return pick(ties[<i32>(input.entropy % ties.length)]);
}
