//! What fuzz targets share: the allocator that counts, and disks, stores and streams that are built from fields, so that their
//! checksums fit and what lies behind them is reached.
//!
//! `cargo test --manifest-path fuzz/Cargo.toml -p lastmile-fuzz-support` checks that the corpora reach what they are named for;
//! with `LASTMILE_BLESS=1` it writes their seeds anew, from what real engines leave on their disks.

pub mod counting;
pub mod input;
pub mod op;
pub mod outbox;
pub mod shell;
pub mod store;
pub mod stream;
#[cfg(test)]
mod tests;
pub mod world;

pub use counting::{Counting, bounded, peak_of, within};
