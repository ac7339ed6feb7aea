//! A sink for tests in which it only matters that somebody is there.
#![allow(dead_code, reason = "every test file uses a part of it")]

use lastmile::machine::{Delivery, EntryRef, Verdict};
use lastmile::ports::Sink;

/// Confirms everything, or panics.
pub(crate) struct Phone {
    pub(crate) panics: bool,
}

/// One that confirms everything.
pub(crate) const PHONE: Phone = Phone { panics: false };

impl Sink for Phone {
    async fn deliver(&mut self, batch: Vec<Delivery>) -> Vec<(EntryRef, Verdict)> {
        assert!(!self.panics, "as asked");
        batch.iter().map(|delivery| (delivery.entry, Verdict::Delivered)).collect()
    }
}
