//! The healthy worker with the fewest requests in flight; of equals the first.

use serde::{Deserialize, Serialize};

/// What this policy reads of its input; all other keys are skipped.
#[derive(Deserialize)]
struct PolicyInput {
    workers: Vec<WorkerInfo>,
}

#[derive(Deserialize)]
struct WorkerInfo {
    healthy: bool,
    load: u64,
}

#[derive(Default, Serialize)]
struct PolicyOutput {
    selected_worker: Option<usize>,
    error: Option<String>,
}

fn choose(input: &PolicyInput) -> PolicyOutput {
    let workers = &input.workers;
    let healthy = (0..workers.len()).filter(|&index| workers[index].healthy);
    PolicyOutput {
        selected_worker: healthy.min_by_key(|&index| workers[index].load),
        error: None,
    }
}

/// Called once, before anything else.
#[no_mangle]
pub extern "C" fn init() {}

/// JSON in, a pointer to JSON out, ended by a NUL byte; the host frees it with its exact length.
#[no_mangle]
pub unsafe extern "C" fn select_worker(input: *const u8, len: usize) -> *mut u8 {
    let input = std::slice::from_raw_parts(input, len);
    let output = match serde_json::from_slice(input) {
        Ok(input) => choose(&input),
        Err(error) => PolicyOutput {
            error: Some(error.to_string()),
            ..PolicyOutput::default()
        },
    };
    let mut json = serde_json::to_vec(&output).unwrap();
    json.push(0);
    Box::into_raw(json.into_boxed_slice()) as *mut u8
}

#[no_mangle]
pub extern "C" fn alloc(size: usize) -> *mut u8 {
    Box::into_raw(vec![0; size].into_boxed_slice()) as *mut u8
}

#[no_mangle]
pub unsafe extern "C" fn dealloc(ptr: *mut u8, size: usize) {
    drop(Box::from_raw(std::ptr::slice_from_raw_parts_mut(ptr, size)));
}
