//! Picks the healthy worker with the lowest product of the prompt tokens that it would have to
//! prefill and the requests that it would serve (LMetric, arXiv 2603.15202).

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
    /// Estimated tokens of this request's prompt.
    #[serde(default)]
    pub prompt_tokens: u64,
}

#[derive(Deserialize)]
pub struct WorkerInfo {
    pub healthy: bool,
    /// Requests in flight.
    pub load: u64,
    /// Prompt tokens sent to it that have not been answered yet.
    #[serde(default)]
    pub pending_tokens: u64,
    /// Tokens of this prompt that it still holds.
    #[serde(default)]
    pub prefix_match: u64,
}

impl WorkerInfo {
    fn cost(&self, prompt_tokens: u64) -> u64 {
        let prefill = self.pending_tokens + prompt_tokens.saturating_sub(self.prefix_match);
        prefill * (self.load + 1)
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
    let costs: Vec<(usize, u64)> = (input.workers.iter().enumerate())
        .filter(|(_, worker)| worker.healthy)
        .map(|(index, worker)| (index, worker.cost(input.request.prompt_tokens)))
        .collect();
    let lowest = costs.iter().map(|(_, cost)| *cost).min();
    let ties: Vec<usize> = (costs.iter())
        .filter(|(_, cost)| Some(*cost) == lowest)
        .map(|(index, _)| *index)
        .collect();
    let number = input.entropy.checked_rem(ties.len() as u64);
    PolicyOutput {
        selected_worker: number.map(|number| ties[number as usize]),
        ..PolicyOutput::default()
    }
}
