/**
 * Sends the requests of one session to one healthy worker, by rendezvous hashing: where a worker
 * goes or comes, only its own sessions move. A request without a session goes to the healthy worker
 * with the fewest requests in flight.
 */

import { Decision, Input, none, pick, Worker } from "./input";

/** `pick` of an index into `workers`, or `none` for "no worker should take this request". */
export function choose(input: Input): Decision {
  const session = input.request.session;
  if (session === null || session.length == 0) return lowestLoad(input.workers, input.entropy);
  return highestScore(input.workers, session);
}

function highestScore(workers: Worker[], session: string): Decision {
  const key = fnv1a64(session);
  let best = -1;
  let highest: u64 = 0;
  for (let index = 0; index < workers.length; ++index) {
    if (!workers[index].healthy) continue;
    const score = fmix64(key ^ fnv1a64(workers[index].url));
    if (best >= 0 && score <= highest) continue;
    best = index;
    highest = score;
  }
  return best < 0 ? none() : pick(best);
}

/** FNV-1a of 64 bits, of the text in UTF-8. */
function fnv1a64(text: string): u64 {
  const bytes = Uint8Array.wrap(String.UTF8.encode(text));
  let hash: u64 = 0xcbf29ce484222325;
  for (let i = 0; i < bytes.length; ++i) hash = (hash ^ bytes[i]) * 0x100000001b3;
  return hash;
}

/** The finalizer of MurmurHash3: makes one score of two hashes. */
function fmix64(hash: u64): u64 {
  hash = (hash ^ hash >> 33) * 0xff51afd7ed558ccd;
  hash = (hash ^ hash >> 33) * 0xc4ceb9fe1a85ec53;
  return hash ^ hash >> 33;
}

function lowestLoad(workers: Worker[], entropy: u64): Decision {
  let lowest = u64.MAX_VALUE;
  let ties: i32[] = [];
  for (let index = 0; index < workers.length; ++index) {
    const worker = workers[index];
    if (!worker.healthy || worker.load > lowest) continue;
    if (worker.load < lowest) ties = [];
    lowest = worker.load;
    ties.push(index);
  }
  return ties.length == 0 ? none() : pick(ties[<i32>(entropy % ties.length)]);
}
