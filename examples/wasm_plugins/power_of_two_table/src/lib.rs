//! Draws two different healthy workers at random and picks the one with fewer requests in flight.
//!
//! `choose` is the whole policy. It reads the router's table, in which each worker has a record of
//! 64 bytes: nothing is parsed, and nothing is allocated for a decision.

use std::alloc::Layout;

/// Read by the router without running the module.
#[cfg_attr(target_arch = "wasm32", link_section = "sgl-router.manifest")]
#[used]
static MANIFEST: [u8; include_bytes!("../manifest.json").len()] =
    *include_bytes!("../manifest.json");

/// A worker's record; what this policy does not read is left out by name only.
#[repr(C)]
pub struct Worker {
    _worker_id: u32,
    flags: u32,
    load: i32,
    _rest: [u32; 13],
}

impl Worker {
    fn healthy(&self) -> bool {
        self.flags & 1 == 1
    }
}

/// The request's record: here its 53 random bits, new for each decision, and its flags.
#[repr(C)]
pub struct Request {
    entropy: u64,
    _hashes_and_text: [u32; 9],
    flags: u32,
    _rest: [u32; 4],
}

/// Of a request's flags: none of the workers is unhealthy, so that none need be looked at for that.
const ALL_HEALTHY: u32 = 2;

/// Returns the index of a healthy worker, or `None` when no worker is healthy.
fn choose(workers: &[Worker], request: &Request) -> Option<usize> {
    let entropy = request.entropy;
    let healthy = if request.flags & ALL_HEALTHY != 0 {
        workers.len()
    } else {
        workers.iter().filter(|worker| worker.healthy()).count()
    } as u64;
    if healthy == 0 {
        return None;
    }
    let first = entropy % healthy;
    if healthy == 1 {
        return nth_healthy(workers, healthy, first);
    }
    // One of the others, all equally likely: those from `first` on move up by one.
    let mut second = entropy / healthy % (healthy - 1);
    if second >= first {
        second += 1;
    }
    let first = nth_healthy(workers, healthy, first)?;
    let second = nth_healthy(workers, healthy, second)?;
    Some(if workers[second].load < workers[first].load {
        second
    } else {
        first
    })
}

/// The index of the `nth` healthy worker, counted from 0.
fn nth_healthy(workers: &[Worker], healthy: u64, nth: u64) -> Option<usize> {
    if healthy == workers.len() as u64 {
        return Some(nth as usize);
    }
    let mut indexes = (0..workers.len()).filter(|&index| workers[index].healthy());
    indexes.nth(nth as usize)
}

#[no_mangle]
pub extern "C" fn init() {}

/// Returns the index of the chosen worker, or -1 for none.
///
/// # Safety
/// `table` must point to `count` records of workers and `request` to one of a request, where
/// `alloc` has put them.
#[no_mangle]
pub unsafe extern "C" fn sgl_table_v1_select(
    table: *const Worker,
    count: usize,
    request: *const Request,
) -> i32 {
    let workers = std::slice::from_raw_parts(table, count);
    choose(workers, &*request).map_or(-1, |index| index as i32)
}

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

/// Frees what `alloc` returned.
///
/// # Safety
/// `ptr` must come from it, and `size` must be the size that it was asked for.
#[no_mangle]
pub unsafe extern "C" fn dealloc(ptr: *mut u8, size: usize) {
    if let Some(layout) = layout(size) {
        std::alloc::dealloc(ptr, layout);
    }
}
