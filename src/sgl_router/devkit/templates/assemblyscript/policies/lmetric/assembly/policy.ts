/**
 * Picks the healthy worker with the lowest product of the prompt tokens that it would have to
 * prefill and the requests that it would serve (LMetric, arXiv 2603.15202).
 */

import { Decision, Input, none, pick, Worker } from "./input";

/** `pick` of an index into `workers`, or `none` for "no worker should take this request". */
export function choose(input: Input): Decision {
  const workers = input.workers;
  let lowest = u64.MAX_VALUE;
  let ties: i32[] = [];
  for (let index = 0; index < workers.length; ++index) {
    if (!workers[index].healthy) continue;
    const cost = costOf(workers[index], input.request.promptTokens);
    if (cost > lowest) continue;
    if (cost < lowest) ties = [];
    lowest = cost;
    ties.push(index);
  }
  return ties.length == 0 ? none() : pick(ties[<i32>(input.entropy % ties.length)]);
}

function costOf(worker: Worker, promptTokens: u64): u64 {
  const held = min(worker.prefixMatch, promptTokens);
  return (worker.pendingTokens + promptTokens - held) * (worker.load + 1);
}
