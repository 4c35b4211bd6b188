//! Picks the healthy worker with the fewest requests in flight.
//!
//! `choose` is the whole policy; what follows it only carries JSON in and out.

use serde::{Deserialize, Serialize};
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
    /// 53 random bits, new for each call.
    #[serde(default)]
    entropy: u64,
}

#[derive(Deserialize)]
struct WorkerInfo {
    healthy: bool,
    load: isize,
}

#[derive(Serialize)]
struct PolicyOutput {
    selected_worker: Option<usize>,
    error: Option<String>,
}

/// Returns the index of a healthy worker whose load is lowest, or `None` when no worker is healthy.
fn choose(input: &PolicyInput) -> Option<usize> {
    let workers = &input.workers;
    let healthy = workers.iter().filter(|worker| worker.healthy);
    let lowest = healthy.map(|worker| worker.load).min()?;
    let tied: Vec<usize> = (0..workers.len())
        .filter(|&index| workers[index].healthy && workers[index].load == lowest)
        .collect();
    // Always taking the first one would send the requests of an idle pool to a single worker.
    Some(tied[(input.entropy % tied.len() as u64) as usize])
}

fn decide(input: &[u8]) -> Result<Option<usize>, Box<dyn Error>> {
    // To check the text as a whole is quicker than to check each string in it (`from_slice`).
    let input: PolicyInput = serde_json::from_str(std::str::from_utf8(input)?)?;
    Ok(choose(&input))
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
