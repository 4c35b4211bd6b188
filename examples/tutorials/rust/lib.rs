//! Fills engines one after the other, so that idle ones can be stopped.

mod abi;

use serde::{Deserialize, Serialize};
use std::cmp::Reverse;
use std::collections::HashMap;

/// What this policy reads of its input; all other keys are skipped.
#[derive(Deserialize)]
pub struct PolicyInput {
    pub workers: Vec<WorkerInfo>,
    #[serde(default)]
    pub config: Config,
}

#[derive(Deserialize)]
pub struct WorkerInfo {
    pub healthy: bool,
    /// Requests in flight.
    pub load: u64,
}

#[derive(Deserialize)]
#[serde(default)]
pub struct Config {
    /// A worker with this many requests in flight is full.
    pub limit: u64,
}

impl Default for Config {
    fn default() -> Self {
        Config { limit: 8 }
    }
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
    let load = |index: &usize| input.workers[*index].load;
    let healthy = (0..input.workers.len()).filter(|&index| input.workers[index].healthy);
    // Not max_by_key: of equals it takes the last.
    let fullest = healthy
        .clone()
        .filter(|index| load(index) < input.config.limit)
        .min_by_key(|index| Reverse(load(index)));
    PolicyOutput {
        selected_worker: fullest.or_else(|| healthy.min_by_key(load)),
        ..PolicyOutput::default()
    }
}
