use serde::{Deserialize, Serialize};
use std::collections::HashMap;

#[derive(Debug, Serialize, Deserialize)]
struct PolicyInput {
    workers: Vec<WorkerInfo>,
    request_text: Option<String>,
    config: HashMap<String, serde_json::Value>,
    state: HashMap<String, serde_json::Value>,
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

// 必需的导出函数
#[no_mangle]
pub extern "C" fn init() {
    // 初始化策略
}

#[no_mangle]
pub extern "C" fn select_worker(input_ptr: *const u8, input_len: usize) -> *mut u8 {
    // 实现负载均衡逻辑
    // 返回选择的 worker 索引
    let input = unsafe { std::slice::from_raw_parts(input_ptr, input_len) };
    let output = match serde_json::from_slice(input) {
        Ok(input) => round_robin(&input),
        Err(error) => PolicyOutput {
            selected_worker: None,
            state: None,
            error: Some(error.to_string()),
        },
    };
    let mut json = serde_json::to_vec(&output).unwrap();
    json.push(0);
    Box::into_raw(json.into_boxed_slice()) as *mut u8
}

#[no_mangle]
pub extern "C" fn alloc(size: usize) -> *mut u8 {
    let mut buf = Vec::with_capacity(size);
    let ptr = buf.as_mut_ptr();
    std::mem::forget(buf);
    ptr
}

#[no_mangle]
pub extern "C" fn dealloc(ptr: *mut u8, size: usize) {
    unsafe {
        let _buf = Vec::from_raw_parts(ptr, size, size);
    }
}

/// Takes the first healthy worker after the one picked last, which `state` remembers.
fn round_robin(input: &PolicyInput) -> PolicyOutput {
    let count = input.workers.len();
    let last = input.state.get("last").and_then(|last| last.as_u64());
    let first = last.map_or(0, |last| last as usize + 1);
    let selected_worker = (first..first + count)
        .map(|index| index % count)
        .find(|index| input.workers[*index].healthy);
    PolicyOutput {
        selected_worker,
        state: selected_worker.map(|index| HashMap::from([("last".to_string(), index.into())])),
        error: None,
    }
}
