//! What the benchmarks share: arguments, time, medians, numbers for people.

#![allow(dead_code, reason = "each benchmark takes what it needs")]

use std::time::{Duration, Instant};

use clap::Parser;

/// The arguments of every benchmark.
#[derive(Clone, Debug, Parser)]
pub(crate) struct Options {
    /// A short form, for a machine that is to say only whether the benchmark still works.
    #[arg(long)]
    pub(crate) quick: bool,
    /// Cargo passes this to every benchmark.
    #[arg(long, hide = true)]
    pub(crate) bench: bool,
}

impl Options {
    /// `full`, or `quick` in the short form.
    pub(crate) fn pick<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }
}

/// A point in time.
#[expect(clippy::disallowed_methods, reason = "a benchmark measures the real clock")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// How long `work` takes.
pub(crate) fn time<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let began = now();
    let done = work();
    (done, began.elapsed())
}

/// So many of something in that time, a second.
pub(crate) fn rate(count: usize, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64().max(1e-9)
}

/// The middle one (the lower of two).
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len().saturating_sub(1) / 2).copied().unwrap_or(f64::NAN)
}

/// A rate or a count, short: `812 k`, `1.25 M`.
pub(crate) fn short(value: f64) -> String {
    match value {
        v if v >= 1e7 => format!("{:.0} M", v / 1e6),
        v if v >= 1e6 => format!("{:.2} M", v / 1e6),
        v if v >= 1e4 => format!("{:.0} k", v / 1e3),
        v if v >= 1e3 => format!("{:.1} k", v / 1e3),
        v => format!("{v:.0}"),
    }
}

/// SplitMix64: small, seeded, the same on every machine.
#[derive(Clone, Debug)]
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}
