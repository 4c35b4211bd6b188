//! Picks a healthy worker at random, each as often as its weight says.

mod abi;

use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// What this policy reads of its input; all other keys are skipped.
#[derive(Deserialize)]
pub struct PolicyInput {
    pub workers: Vec<WorkerInfo>,
    pub config: Config,
    /// 53 random bits, new for each decision.
    pub entropy: u64,
}

#[derive(Deserialize)]
pub struct WorkerInfo {
    pub url: String,
    pub healthy: bool,
}

#[derive(Deserialize)]
pub struct Config {
    /// Worker URL to weight; a worker that is not in it has weight 1.
    #[serde(default)]
    pub weights: HashMap<String, f64>,
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
    let weights = &input.config.weights;
    if let Some((url, weight)) = weights.iter().find(|(_, weight)| **weight < 0.0) {
        return PolicyOutput {
            error: Some(format!(
                "weight of {url} must be a number >= 0, not {weight}"
            )),
            ..PolicyOutput::default()
        };
    }
    let mut candidates = Vec::new();
    for (index, worker) in input.workers.iter().enumerate() {
        let weight = *weights.get(&worker.url).unwrap_or(&1.0);
        if worker.healthy && weight > 0.0 {
            candidates.push((index, weight));
        }
    }
    let total: f64 = candidates.iter().map(|(_, weight)| weight).sum();
    let target = input.entropy as f64 / (1u64 << 53) as f64 * total;

    // The candidates lie side by side on a line from 0 to total. The one under the target is the
    // last that begins at or before it; asking for the beginning, not the end, leaves no gap at
    // total into which a rounded target could fall.
    let mut begin = 0.0;
    let mut selected_worker = None;
    for (index, weight) in candidates {
        if begin > target {
            break;
        }
        selected_worker = Some(index);
        begin += weight;
    }
    PolicyOutput {
        selected_worker,
        ..PolicyOutput::default()
    }
}
