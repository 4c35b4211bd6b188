//! Picks the first of the healthy workers with the fewest requests in flight, by the table ABI.

use std::alloc::Layout;

#[repr(C)]
pub struct Worker {
    pub worker_id: u32,
    pub flags: u32,
    pub load: i32,
    pub running: i32,
    pub queued: i32,
    pub kv_usage: f32,
    pub ttft_ms: f32,
    pub weight: f32,
    pub url_hash: u64,
    pub metrics_age_ms: u32,
    pub pending_tokens: u32,
    pub prefix_match_tokens: u32,
    _zero: [u32; 3],
}

/// # Safety
/// `table` must point to `count` records, where `alloc` has put them.
#[no_mangle]
pub unsafe extern "C" fn sgl_table_v1_select(
    table: *const Worker,
    count: usize,
    _request: *const u8,
) -> i32 {
    let workers = std::slice::from_raw_parts(table, count);
    (0..count)
        .filter(|&index| workers[index].flags & 1 == 1)
        .min_by_key(|&index| workers[index].load)
        .map_or(-1, |index| index as i32)
}

#[no_mangle]
pub extern "C" fn init() {}

/// Aligned for any number in a record.
fn layout(size: usize) -> Option<Layout> {
    Layout::from_size_align(size.max(1), 16).ok()
}

#[no_mangle]
pub extern "C" fn alloc(size: usize) -> *mut u8 {
    match layout(size) {
        Some(layout) => unsafe { std::alloc::alloc(layout) }, // null where no memory is left
        None => std::ptr::null_mut(),
    }
}

/// # Safety
/// `ptr` must come from `alloc`, and `size` must be the size that it was asked for.
#[no_mangle]
pub unsafe extern "C" fn dealloc(ptr: *mut u8, size: usize) {
    if let Some(layout) = layout(size) {
        std::alloc::dealloc(ptr, layout);
    }
}
