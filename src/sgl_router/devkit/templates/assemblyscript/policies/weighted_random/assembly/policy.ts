/** Picks a healthy worker at random, each as often as its weight says. */

import { Decision, fail, Input, none, pick, Worker } from "./input";
import { Json } from "./json";

/** `pick` of an index into `workers`, or `none` for "no worker should take this request". */
export function choose(input: Input): Decision {
  const workers = input.workers;
  const weights = input.config.get("weights");
  const urls = weights.object.keys();
  for (let i = 0; i < urls.length; ++i) {
    const weight = weights.get(urls[i]);
    if (weight.kind == "number" && weight.number >= 0) continue;
    return fail(`weight of ${urls[i]} must be a number >= 0, not ${weight.toString()}`);
  }

  let total: f64 = 0;
  for (let index = 0; index < workers.length; ++index) {
    if (workers[index].healthy) total += weightOf(workers[index], weights);
  }
  const target = <f64>input.entropy / <f64>((<u64>1) << 53) * total;

  // The candidates lie side by side on a line from 0 to total. The one under the target is the last
  // that begins at or before it; asking for the beginning, not the end, leaves no gap at total into
  // which a rounded target could fall.
  let begin: f64 = 0;
  let selected = -1;
  for (let index = 0; index < workers.length; ++index) {
    const weight = weightOf(workers[index], weights);
    if (!workers[index].healthy || weight == 0) continue;
    if (begin > target) break;
    selected = index;
    begin += weight;
  }
  return selected < 0 ? none() : pick(selected);
}

/** A worker that is not named has weight 1. */
function weightOf(worker: Worker, weights: Json): f64 {
  const weight = weights.get(worker.url);
  return weight.kind == "null" ? 1 : weight.number;
}
