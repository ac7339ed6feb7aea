//! What sessions count. Relaxed: each number is right by itself.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::session::frame::Frame;

/// Counted since the start, over all sessions of one end.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) frames_in: AtomicU64,
    pub(super) bytes_in: AtomicU64,
    pub(super) frames_out: AtomicU64,
    pub(super) sent: AtomicU64,
    pub(super) received: AtomicU64,
    pub(super) violations: AtomicU64,
    pub(super) panics: AtomicU64,
}

impl Counters {
    pub(super) fn frame_in(&self, bytes: usize) {
        self.frames_in.fetch_add(1, Ordering::Relaxed);
        self.bytes_in.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn frame_out(&self, frame: &Frame) {
        self.frames_out.fetch_add(1, Ordering::Relaxed);
        if let Frame::Deliver(deliver) = frame {
            self.sent.fetch_add(deliver.items.len() as u64, Ordering::Relaxed);
        }
    }
}
