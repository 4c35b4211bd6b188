//! Picks a healthy worker at random, each as often as its weight says.
//!
//! `choose` is the whole policy; what follows it only carries JSON in and out.

use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::error::Error;

/// Read by the router without running the module.
#[cfg_attr(target_arch = "wasm32", link_section = "sgl-router.manifest")]
#[used]
static MANIFEST: [u8; include_bytes!("../manifest.json").len()] =
    *include_bytes!("../manifest.json");

/// What this policy reads of its input; serde skips all other keys.
#[derive(Deserialize)]
struct PolicyInput {
    workers: Vec<WorkerInfo>,
    config: Config,
    /// 53 random bits, new for each call.
    #[serde(default)]
    entropy: u64,
}

#[derive(Deserialize)]
struct WorkerInfo {
    url: String,
    healthy: bool,
}

#[derive(Deserialize)]
struct Config {
    /// Worker URL to weight; a worker that is not in it has weight 1.
    #[serde(default)]
    weights: HashMap<String, f64>,
}

#[derive(Serialize)]
struct PolicyOutput {
    selected_worker: Option<usize>,
    error: Option<String>,
}

/// Returns the index of a healthy worker, each with probability weight / total, or `None` when no
/// healthy worker has a weight above zero.
fn choose(input: &PolicyInput) -> Result<Option<usize>, Box<dyn Error>> {
    let weights = &input.config.weights;
    if let Some((url, weight)) = weights.iter().find(|(_, weight)| **weight < 0.0) {
        return Err(format!("weight of {url} must be a number >= 0, not {weight}").into());
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
    let mut selected = None;
    for (index, weight) in candidates {
        if begin > target {
            break;
        }
        selected = Some(index);
        begin += weight;
    }
    Ok(selected)
}

fn decide(input: &[u8]) -> Result<Option<usize>, Box<dyn Error>> {
    // To check the text as a whole is quicker than to check each string in it (`from_slice`).
    let input: PolicyInput = serde_json::from_str(std::str::from_utf8(input)?)?;
    choose(&input)
}

#[no_mangle]
pub extern "C" fn init() {}

/// Takes the input as JSON and returns the output as NUL-terminated JSON.
///
/// # Safety
/// `input_ptr` must point to `input_len` readable bytes.
#[no_mangle]
pub unsafe extern "C" fn select_worker(input_ptr: *const u8, input_len: usize) -> *mut u8 {
    let output = match decide(std::slice::from_raw_parts(input_ptr, input_len)) {
        Ok(selected_worker) => PolicyOutput {
            selected_worker,
            error: None,
        },
        Err(error) => PolicyOutput {
            selected_worker: None,
            error: Some(error.to_string()),
        },
    };
    let mut json = serde_json::to_vec(&output).expect("an output is always valid JSON");
    json.push(0);
    // The host frees the result as length + 1 bytes, so its capacity must be exactly that.
    Box::into_raw(json.into_boxed_slice()) as *mut u8
}

#[no_mangle]
pub extern "C" fn alloc(size: usize) -> *mut u8 {
    let mut buf = Vec::with_capacity(size);
    let ptr = buf.as_mut_ptr();
    std::mem::forget(buf);
    ptr
}

/// Frees what `alloc` or `select_worker` returned.
///
/// # Safety
/// `ptr` must come from one of them, and `size` must be the size it was made with.
#[no_mangle]
pub unsafe extern "C" fn dealloc(ptr: *mut u8, size: usize) {
    drop(Vec::from_raw_parts(ptr, size, size));
}
