//! What the router calls: an input comes in as JSON, goes to `choose` in lib.rs, and its answer
//! goes out as JSON. Nothing here needs to be touched to write a policy.

use crate::{choose, PolicyInput, PolicyOutput};
use serde::de::DeserializeOwned;

const MESSAGE_BYTES: usize = 1024;

/// Where the router reads, after a panic, what was said of it: NUL-terminated UTF-8.
#[no_mangle]
#[allow(non_upper_case_globals)]
pub static mut sgl_panic_message: [u8; MESSAGE_BYTES] = [0; MESSAGE_BYTES];

/// Called once, before anything else.
#[no_mangle]
pub extern "C" fn init() {
    // The text of a panic has its message, file and line.
    std::panic::set_hook(Box::new(|panic| keep(&panic.to_string())));
}

fn keep(text: &str) {
    let mut length = text.len().min(MESSAGE_BYTES - 1);
    while !text.is_char_boundary(length) {
        length -= 1;
    }
    unsafe {
        let message = std::ptr::addr_of_mut!(sgl_panic_message) as *mut u8;
        message.copy_from_nonoverlapping(text.as_ptr(), length);
        message.add(length).write(0);
    }
}

/// Takes the input as JSON and returns the output as NUL-terminated JSON.
///
/// # Safety
/// `input_ptr` must point to `input_len` readable bytes.
#[no_mangle]
pub unsafe extern "C" fn select_worker(input_ptr: *const u8, input_len: usize) -> *mut u8 {
    let output = match read::<PolicyInput>(input_ptr, input_len) {
        Ok(input) => choose(&input),
        Err(error) => PolicyOutput {
            error: Some(error),
            ..PolicyOutput::default()
        },
    };
    let mut json = serde_json::to_vec(&output).expect("an output is always valid JSON");
    json.push(0);
    // The router frees the result as length + 1 bytes, so its capacity must be exactly that.
    Box::into_raw(json.into_boxed_slice()) as *mut u8
}

/// What the router has written as JSON.
///
/// # Safety
/// `ptr` must point to `len` readable bytes.
pub unsafe fn read<T: DeserializeOwned>(ptr: *const u8, len: usize) -> Result<T, String> {
    // To check the text as a whole is quicker than to check each string in it (`from_slice`).
    let text = std::str::from_utf8(std::slice::from_raw_parts(ptr, len))
        .map_err(|error| error.to_string())?;
    serde_json::from_str(text).map_err(|error| format!("the input does not fit: {error}"))
}

/// Returns `size` writable bytes, or null where memory does not suffice.
#[no_mangle]
pub extern "C" fn alloc(size: usize) -> *mut u8 {
    let mut buffer: Vec<u8> = Vec::new();
    if buffer.try_reserve_exact(size).is_err() {
        return std::ptr::null_mut();
    }
    std::mem::ManuallyDrop::new(buffer).as_mut_ptr()
}

/// Frees what `alloc` or `select_worker` returned.
///
/// # Safety
/// `ptr` must come from one of them, and `size` must be the size it was made with.
#[no_mangle]
pub unsafe extern "C" fn dealloc(ptr: *mut u8, size: usize) {
    drop(Vec::from_raw_parts(ptr, 0, size));
}
