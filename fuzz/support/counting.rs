//! An allocator that knows how much was held at once, for targets that must not allocate more than their input allows.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

/// Counts, and leaves the work to the system's allocator.
#[derive(Debug)]
pub struct Counting;

// SAFETY: every call is passed on unchanged to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(held, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(place, layout) }
    }
}

/// How many bytes `work` held at once, beyond what was held before.
pub fn peak_of(work: impl FnOnce()) -> usize {
    let before = HELD.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    work();
    PEAK.load(Ordering::Relaxed).saturating_sub(before)
}

/// Fails when `work` holds more than twice the input and 4 KiB.
pub fn bounded(input: usize, work: impl FnOnce()) {
    let peak = peak_of(work);
    assert!(peak <= 2 * input + 4096, "{peak} bytes held for {input} bytes of input");
}

/// Fails when `work` holds more than this at once.
pub fn within(limit: usize, work: impl FnOnce()) {
    let peak = peak_of(work);
    assert!(peak <= limit, "{peak} bytes held where {limit} are enough");
}
