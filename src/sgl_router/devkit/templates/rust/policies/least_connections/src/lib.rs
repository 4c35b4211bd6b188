//! Picks the healthy worker with the fewest requests in flight.

mod abi;

use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// What this policy reads of its input; all other keys are skipped.
#[derive(Deserialize)]
pub struct PolicyInput {
    pub workers: Vec<WorkerInfo>,
    /// 53 random bits, new for each decision.
    pub entropy: u64,
}

#[derive(Deserialize)]
pub struct WorkerInfo {
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
    let workers = &input.workers;
    let healthy = (0..workers.len()).filter(|&index| workers[index].healthy);
    let lowest = healthy.clone().map(|index| workers[index].load).min();
    let ties: Vec<usize> = healthy
        .filter(|&index| Some(workers[index].load) == lowest)
        .collect();
    // Always taking the first one would send the requests of an idle pool to a single worker.
    let number = input.entropy.checked_rem(ties.len() as u64);
    PolicyOutput {
        selected_worker: number.map(|number| ties[number as usize]),
        ..PolicyOutput::default()
    }
}
