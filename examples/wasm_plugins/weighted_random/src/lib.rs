//! Picks a healthy worker at random, each as often as its weight says.
//!
//! `choose` is the whole policy; what follows it only carries JSON in and out.

use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// Read by the router without running the module.
#[cfg_attr(target_arch = "wasm32", link_section = "sgl-router.manifest")]
#[used]
static MANIFEST: [u8; include_bytes!("../manifest.json").len()] =
    *include_bytes!("../manifest.json");

#[derive(Debug, Serialize, Deserialize)]
struct PolicyInput {
    workers: Vec<WorkerInfo>,
    request_text: Option<String>,
    config: HashMap<String, serde_json::Value>,
    state: HashMap<String, serde_json::Value>,
    /// 53 random bits, new for each call.
    #[serde(default)]
    entropy: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct PolicyOutput {
    selected_worker: Option<usize>,
    state: Option<HashMap<String, serde_json::Value>>,
    error: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct WorkerInfo {
    url: String,
    healthy: bool,
    load: isize,
}

/// Returns the index of a healthy worker, each with probability weight / total, or `None` when no
/// healthy worker has a weight above zero.
fn choose(input: &PolicyInput) -> Result<Option<usize>, String> {
    let weights = configured_weights(&input.config)?;
    let mut candidates = Vec::new();
    for (index, worker) in input.workers.iter().enumerate() {
        let weight = *weights.get(worker.url.as_str()).unwrap_or(&1.0);
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

/// Returns `config.weights`, worker URL to weight; empty when there is none.
fn configured_weights(
    config: &HashMap<String, serde_json::Value>,
) -> Result<HashMap<&str, f64>, String> {
    let weights = match config.get("weights") {
        None => return Ok(HashMap::new()),
        Some(serde_json::Value::Object(weights)) => weights,
        Some(other) => return Err(format!("weights must be an object, not {other}")),
    };
    weights
        .iter()
        .map(|(url, value)| match value.as_f64() {
            Some(weight) if weight >= 0.0 => Ok((url.as_str(), weight)),
            _ => Err(format!(
                "weight of {url} must be a number >= 0, not {value}"
            )),
        })
        .collect()
}

fn decide(input: &[u8]) -> PolicyOutput {
    let decision = serde_json::from_slice(input)
        .map_err(|error| format!("malformed input: {error}"))
        .and_then(|input| choose(&input));
    match decision {
        Ok(selected_worker) => PolicyOutput {
            selected_worker,
            state: None,
            error: None,
        },
        Err(error) => PolicyOutput {
            selected_worker: None,
            state: None,
            error: Some(error),
        },
    }
}

#[no_mangle]
pub extern "C" fn init() {}

/// Takes the input as JSON and returns the output as NUL-terminated JSON.
///
/// # Safety
/// `input_ptr` must point to `input_len` readable bytes.
#[no_mangle]
pub unsafe extern "C" fn select_worker(input_ptr: *const u8, input_len: usize) -> *mut u8 {
    let output = decide(std::slice::from_raw_parts(input_ptr, input_len));
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
