//! How good a connection is: smoothed round-trip time and its variation (RFC 6298), loss and stalls, as a score and a
//! grade that does not flap.
//!
//! The score is 100 less what each trouble costs: up to 40 for the round-trip time (nothing below 100 ms, all of it from
//! 2 s), up to 15 for its variation (from 1 s), up to 45 for losses and up to 30 for stalls (both are shares of recent
//! samples, each sample with a weight of 1/8).

use core::time::Duration;

/// How good a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Grade {
    /// A score below 40: another transport may be better.
    Poor,
    /// In between.
    Fair,
    /// A score of 70 or more.
    Good,
}

/// By how much a score must pass a bound before the grade follows.
const HYSTERESIS: u8 = 8;

/// Measures a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quality {
    /// Smoothed round-trip time and variation, in microseconds.
    rtt: Option<(u64, u64)>,
    /// Recent losses and stalls, in 1/1024.
    loss: u64,
    stalls: u64,
    grade: Grade,
}

impl Default for Quality {
    fn default() -> Self {
        Self { rtt: None, loss: 0, stalls: 0, grade: Grade::Good }
    }
}

impl Quality {
    /// Another connection: what the one before was like says nothing of its round trips, and of its losses that it may break
    /// as that one did, but no more than a good connection may lose.
    pub(super) fn begin(&mut self) {
        *self = Self { loss: self.loss.min(512), ..Self::default() };
    }

    /// A round trip took this long. It is also a sample without loss.
    pub fn sample(&mut self, rtt: Duration) {
        let sample = u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX).min(3_600_000_000);
        // RFC 6298, 2.2 and 2.3: alpha 1/8, beta 1/4.
        self.rtt = Some(match self.rtt {
            None => (sample, sample / 2),
            Some((smoothed, variation)) => (
                (smoothed.saturating_mul(7).saturating_add(sample)) / 8,
                (variation.saturating_mul(3).saturating_add(smoothed.abs_diff(sample))) / 4,
            ),
        });
        self.loss = decay(self.loss, false);
        self.settle();
    }

    /// The peer, which measures round trips itself, says how long they take: smoothed already.
    pub(super) fn told(&mut self, rtt: Duration) {
        let now = u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX).min(3_600_000_000);
        let variation = self.rtt.map_or(now / 2, |(before, variation)| {
            (variation.saturating_mul(3).saturating_add(before.abs_diff(now))) / 4
        });
        self.rtt = Some((now, variation));
        self.loss = decay(self.loss, false);
        self.settle();
    }

    /// A round trip was not answered, or the connection broke.
    pub fn lost(&mut self) {
        self.loss = decay(self.loss, true);
        self.settle();
    }

    /// The peer took something in time (`false`), or took nothing for too long (`true`).
    pub fn stalled(&mut self, stalled: bool) {
        self.stalls = decay(self.stalls, stalled);
        self.settle();
    }

    /// The smoothed round-trip time.
    #[must_use]
    pub fn rtt(&self) -> Option<Duration> {
        self.rtt.map(|(smoothed, _)| Duration::from_micros(smoothed))
    }

    /// The variation of the round-trip time.
    #[must_use]
    pub fn variation(&self) -> Option<Duration> {
        self.rtt.map(|(_, variation)| Duration::from_micros(variation))
    }

    /// How many of the recent round trips had no answer, weighted by how recent they are: 0 for none, 1 for all. A connection that
    /// broke counts as one.
    #[must_use]
    pub const fn loss(&self) -> f32 {
        share(self.loss)
    }

    /// How many of the recent acknowledgements came too late or not at all, weighted by how recent they are: 0 for none, 1 for
    /// all.
    #[must_use]
    pub const fn stalls(&self) -> f32 {
        share(self.stalls)
    }

    /// How good it is, from all of these: 0 to 100.
    #[must_use]
    pub fn score(&self) -> u8 {
        let (rtt, variation) = self.rtt.unwrap_or((0, 0));
        let cost = |value: u64, from: u64, to: u64, most: u64| {
            value.saturating_sub(from).min(to - from) * most / (to - from)
        };
        let costs = cost(rtt, 100_000, 2_000_000, 40)
            + cost(variation, 0, 1_000_000, 15)
            + cost(self.loss, 0, 1024, 45)
            + cost(self.stalls, 0, 1024, 30);
        u8::try_from(100_u64.saturating_sub(costs)).unwrap_or(0)
    }

    /// The grade, which follows the score with some inertia.
    #[must_use]
    pub const fn grade(&self) -> Grade {
        self.grade
    }

    fn settle(&mut self) {
        let score = self.score();
        let of = |score: u8| match score {
            0..40 => Grade::Poor,
            40..70 => Grade::Fair,
            _ => Grade::Good,
        };
        // It moves only if it would also move with the score somewhat nearer to where it was.
        let better = of(score.saturating_sub(HYSTERESIS));
        let worse = of(score.saturating_add(HYSTERESIS));
        self.grade = self.grade.max(better).min(worse);
    }
}

/// A share of 1024 as one of 1.
const fn share(of: u64) -> f32 {
    of as f32 / 1024.0
}

/// A moving share of 1024 with a weight of 1/8.
const fn decay(share: u64, hit: bool) -> u64 {
    (share * 7 + if hit { 1024 } else { 0 }) / 8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_are_smoothed_as_rfc_6298_says() {
        let mut quality = Quality::default();
        quality.sample(Duration::from_millis(100));
        assert_eq!(
            (quality.rtt(), quality.variation()),
            (Some(Duration::from_millis(100)), Some(Duration::from_millis(50)))
        );
        quality.sample(Duration::from_millis(180));
        assert_eq!(quality.rtt(), Some(Duration::from_millis(110)));
        assert_eq!(quality.variation(), Some(Duration::from_micros(57_500)));
    }

    #[test]
    fn what_the_peer_has_smoothed_is_not_smoothed_again() {
        let mut quality = Quality::default();
        quality.told(Duration::from_millis(100));
        quality.told(Duration::from_millis(180));
        assert_eq!(quality.rtt(), Some(Duration::from_millis(180)));
        assert_eq!(quality.variation(), Some(Duration::from_micros(57_500)));
    }

    #[test]
    fn each_trouble_costs_and_a_quiet_line_recovers() {
        let mut quality = Quality::default();
        quality.sample(Duration::from_millis(20));
        assert_eq!((quality.score(), quality.grade()), (100, Grade::Good));
        (0..40).for_each(|_| quality.lost());
        assert!(quality.score() <= 56, "{}", quality.score());
        assert_eq!(quality.grade(), Grade::Fair);
        (0..40).for_each(|_| quality.stalled(true));
        assert_eq!(quality.grade(), Grade::Poor);
        (0..60).for_each(|_| {
            quality.sample(Duration::from_millis(20));
            quality.stalled(false);
        });
        assert_eq!((quality.score(), quality.grade()), (100, Grade::Good));
    }

    #[test]
    fn another_connection_begins_as_a_good_one_whatever_the_one_before_was_like() {
        let mut quality = Quality::default();
        (0..40).for_each(|_| {
            quality.sample(Duration::from_secs(2));
            quality.lost();
            quality.stalled(true);
        });
        assert_eq!(quality.grade(), Grade::Poor);
        quality.begin();
        assert_eq!((quality.rtt(), quality.variation(), quality.grade()), (None, None, Grade::Good));
        quality.sample(Duration::from_millis(20));
        assert_eq!((quality.rtt(), quality.grade()), (Some(Duration::from_millis(20)), Grade::Good));
        quality.lost();
        assert!(quality.score() < 80, "that connections break here is not forgotten: {}", quality.score());
    }

    #[test]
    fn a_score_that_wavers_around_a_bound_does_not_change_the_grade() {
        let mut quality = Quality::default();
        (0..200).for_each(|_| quality.sample(Duration::from_millis(1700)));
        let mut changes = 0;
        let mut before = quality.grade();
        for i in 0..400 {
            quality.sample(Duration::from_millis(if i % 2 == 0 { 1500 } else { 1700 }));
            changes += u32::from(core::mem::replace(&mut before, quality.grade()) != before);
        }
        assert!(changes <= 1, "{changes} changes at a score of {}", quality.score());
    }
}
