//! Sends the requests of one session to one healthy worker, by rendezvous hashing: where a worker
//! goes or comes, only its own sessions move. A request without a session goes to the healthy worker
//! with the fewest requests in flight.

mod abi;

use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// What this policy reads of its input; all other keys are skipped.
#[derive(Deserialize)]
pub struct PolicyInput {
    pub workers: Vec<WorkerInfo>,
    pub request: Request,
    /// 53 random bits, new for each decision.
    pub entropy: u64,
}

#[derive(Deserialize)]
pub struct Request {
    pub session: Option<String>,
}

#[derive(Deserialize)]
pub struct WorkerInfo {
    pub url: String,
    pub healthy: bool,
    /// Requests in flight.
    pub load: u64,
}

/// An index into `workers`, or `None` for "no worker should take this request".
/// `state` is merged into the state of the next input key by key, `None` leaves it as it is.
#[derive(Default, Serialize)]
pub struct PolicyOutput {
    pub selected_worker: Option<usize>,
    pub state: Option<HashMap<String, serde_json::Value>>,
    pub error: Option<String>,
}

#[inline(never)] // so that the backtrace of a trap names it
pub fn choose(input: &PolicyInput) -> PolicyOutput {
    let selected_worker = match &input.request.session {
        Some(session) if !session.is_empty() => highest_score(&input.workers, session),
        _ => lowest_load(&input.workers, input.entropy),
    };
    PolicyOutput {
        selected_worker,
        ..PolicyOutput::default()
    }
}

fn highest_score(workers: &[WorkerInfo], session: &str) -> Option<usize> {
    let key = fnv1a64(session);
    let mut best = None;
    for (index, worker) in workers.iter().enumerate() {
        let score = fmix64(key ^ fnv1a64(&worker.url));
        if worker.healthy && best.map_or(true, |(_, highest)| score > highest) {
            best = Some((index, score));
        }
    }
    best.map(|(index, _)| index)
}

/// FNV-1a of 64 bits.
fn fnv1a64(text: &str) -> u64 {
    (text.bytes()).fold(0xcbf29ce484222325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100000001b3)
    })
}

/// The finalizer of MurmurHash3: makes one score of two hashes.
fn fmix64(mut hash: u64) -> u64 {
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51afd7ed558ccd);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xc4ceb9fe1a85ec53);
    hash ^ hash >> 33
}

fn lowest_load(workers: &[WorkerInfo], entropy: u64) -> Option<usize> {
    let healthy = (0..workers.len()).filter(|&index| workers[index].healthy);
    let lowest = healthy.clone().map(|index| workers[index].load).min();
    let ties: Vec<usize> = healthy
        .filter(|&index| Some(workers[index].load) == lowest)
        .collect();
    let number = entropy.checked_rem(ties.len() as u64)?;
    Some(ties[number as usize])
}
