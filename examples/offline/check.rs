//! The verdict: what the logs say, against what was promised. A message for each device counts once for each of them: it is
//! as many copies as there are devices; every other message is one copy.
//!
//! - **accepted**: copies of messages with an `ok` line.
//! - **delivered**: copies with a `got` line.
//! - **lost**: accepted, never applied, and not ended with a reason either. A message without a TTL has no reason to
//!   end. Of those whose TTL passed, at most as many may be missing as the two engines' ledgers count as expired.
//! - **duplicated**: applied as new more than once, or accepted twice by the receiver's inbox (two places). A handler
//!   that runs again for the same inbox entry *and is told so* is the promise, not a breach of it: nobody can know
//!   whether a process that was killed had finished.
//! - **inverted**: among first applications of one recipient, device, priority and ordering key, one that comes before
//!   another although the outbox gave it the later place, or the same sender sent it later.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::time::Duration;

use hdrhistogram::Histogram;
use lastmile::{EndReason, Priority};

use super::logs::{self, Entry, Got};
use super::plan::{Copy, Line, Plan, Planned};

/// Longer waits count as this long: a day.
const MAX_WAIT_MS: u64 = 86_400_000;

/// What the engines' ledgers said at the end.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ledger {
    /// How many copies ended in the outbox, by reason.
    pub(crate) ended: [u64; EndReason::ALL.len()],
    /// Copies that ended as expired, in all engines.
    pub(crate) expired: u64,
    /// Repeats that the inboxes recognised, in the last life.
    pub(crate) inbox_repeats: u64,
}

impl Ledger {
    /// In the words that [`Ledger::of`] understands.
    pub(crate) fn to_words(self) -> String {
        let all = [self.expired, self.inbox_repeats].into_iter().chain(self.ended);
        all.map(|n| n.to_string()).collect::<Vec<_>>().join(" ")
    }

    pub(crate) fn of(numbers: &[u64]) -> Option<Self> {
        let [expired, inbox_repeats, ended @ ..] = numbers else { return None };
        Some(Self { expired: *expired, inbox_repeats: *inbox_repeats, ended: ended.try_into().ok()? })
    }
}

/// What became of everything.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) accepted: u64,
    pub(crate) delivered: u64,
    pub(crate) lost: u64,
    pub(crate) duplicated: u64,
    pub(crate) inverted: u64,
    /// Accepted and ended by their TTL.
    pub(crate) expired: u64,
    /// Sends of an id that had been accepted.
    pub(crate) repeats_refused: u64,
    /// Handlers that ran again and were told so.
    pub(crate) reruns: u64,
    pub(crate) torn_lines: u64,
    /// By which copy it is, and priority.
    pub(crate) waits: [[Histogram<u64>; Priority::ALL.len()]; Copy::ALL.len()],
    /// The first few violations, in words.
    pub(crate) complaints: Vec<String>,
}

/// What is known of one message.
#[derive(Clone, Copy, Debug, Default)]
struct Story {
    accepted_at: Option<u64>,
    place: u64,
    copies: [Applied; Copy::ALL.len()],
}

/// What is known of one copy.
#[derive(Clone, Copy, Debug, Default)]
struct Applied {
    first: Option<Got>,
    /// Some application of it was not told that there may have been another.
    was_fresh: bool,
}

/// The newest first application of one line, for each way to tell the order.
#[derive(Clone, Debug, Default)]
struct Heads {
    place: (u64, u32),
    numbers: HashMap<u32, u32>,
}

impl Outcome {
    /// Reads both logs and judges.
    pub(crate) fn of(dir: &Path, plan: &Plan, ledger: Ledger) -> io::Result<Self> {
        let bounds = || Histogram::new_with_bounds(1, MAX_WAIT_MS, 3).expect("the bounds are in order");
        let waits = [(); Copy::ALL.len()].map(|()| [(); Priority::ALL.len()].map(|()| bounds()));
        let mut outcome = Self {
            accepted: 0,
            delivered: 0,
            lost: 0,
            duplicated: 0,
            inverted: 0,
            expired: 0,
            repeats_refused: 0,
            reruns: 0,
            torn_lines: 0,
            waits,
            complaints: Vec::new(),
        };
        let mut stories = vec![Story::default(); plan.messages as usize];
        outcome.read_senders(dir, &mut stories)?;
        outcome.read_receivers(dir, plan, &mut stories)?;
        outcome.judge(plan, &stories, ledger);
        Ok(outcome)
    }

    /// Whether every promise was kept.
    pub(crate) fn is_clean(&self) -> bool {
        self.lost == 0 && self.duplicated == 0 && self.inverted == 0
    }

    fn complain(&mut self, what: String) {
        if self.complaints.len() < 20 {
            self.complaints.push(what);
        }
    }

    fn read_senders(&mut self, dir: &Path, stories: &mut [Story]) -> io::Result<()> {
        let mut repeats = 0;
        self.torn_lines += logs::read(&dir.join(logs::SENDERS), |entry| {
            let Entry::Ok { number, ok } = entry else { return };
            let Some(story) = stories.get_mut(number as usize) else { return };
            repeats += u64::from(ok.duplicate);
            story.accepted_at.get_or_insert(ok.at);
            story.place = story.place.max(ok.place);
        })?;
        self.repeats_refused = repeats;
        Ok(())
    }

    fn read_receivers(&mut self, dir: &Path, plan: &Plan, stories: &mut [Story]) -> io::Result<()> {
        let mut heads: HashMap<Line, Heads> = HashMap::new();
        let torn = logs::read(&dir.join(logs::RECEIVERS), |entry| {
            let Entry::Got { number, got } = entry else { return };
            let Some(story) = stories.get_mut(number as usize) else { return };
            let Some(applied) = story.copies.get_mut(got.copy.code()) else { return };
            let was_fresh = applied.was_fresh;
            applied.was_fresh |= !got.redelivered;
            if let Some(first) = applied.first {
                return self.applied_again(number, first, got, was_fresh);
            }
            applied.first = Some(got);
            let (planned, place) = (plan.message(number), story.place);
            if !planned.copies().contains(&got.copy) {
                self.duplicated += 1;
                return self.complain(format!("message {number} has no such copy: {got:?}, {planned:?}"));
            }
            let heads = heads.entry(planned.line(got.copy)).or_default();
            if let Some(what) = heads.pass(&planned, place) {
                self.inverted += 1;
                self.complain(what);
            }
        })?;
        self.torn_lines += torn;
        Ok(())
    }

    fn applied_again(&mut self, number: u32, first: Got, again: Got, was_fresh: bool) {
        if again.entry == first.entry && (again.redelivered || !was_fresh) {
            self.reruns += 1;
            return;
        }
        self.duplicated += 1;
        self.complain(format!("message {number} was applied twice: {first:?}, then {again:?}"));
    }

    fn judge(&mut self, plan: &Plan, stories: &[Story], ledger: Ledger) {
        let ended = logs::now_ms();
        for (number, story) in (0..).zip(stories) {
            let planned = plan.message(number);
            for copy in planned.copies() {
                self.accepted += u64::from(story.accepted_at.is_some());
                let first = story.copies.get(copy.code()).and_then(|applied| applied.first);
                match (story.accepted_at, first) {
                    (accepted, Some(got)) => self.delivered(planned.priority, accepted, got),
                    (Some(at), None) if expired(&planned, at, ended) => self.expired += 1,
                    (Some(_), None) => {
                        self.lost += 1;
                        self.complain(format!(
                            "message {number} was accepted and is gone: {copy:?}, {planned:?}"
                        ));
                    }
                    (None, None) => {}
                }
            }
        }
        let unexplained = self.expired.saturating_sub(ledger.expired);
        if unexplained > 0 {
            self.lost += unexplained;
            self.expired -= unexplained;
            self.complain(format!("{unexplained} copies with a TTL are gone and no ledger says expired"));
        }
    }

    fn delivered(&mut self, priority: Priority, accepted: Option<u64>, got: Got) {
        self.delivered += 1;
        // Delivered before its sender heard of it: no wait at all.
        let wait = got.at.saturating_sub(accepted.unwrap_or(got.at));
        let of_copy = self.waits.get_mut(got.copy.code());
        let waits = of_copy.and_then(|waits| waits.get_mut(priority.index()));
        waits.into_iter().for_each(|waits| waits.saturating_record(wait));
    }
}

/// Whether the message's time may have been over before the end.
fn expired(planned: &Planned, accepted: u64, ended: u64) -> bool {
    planned.ttl.is_some_and(|ttl| Duration::from_millis(ended.saturating_sub(accepted)) >= ttl)
}

impl Heads {
    /// Notes a first application; says what is wrong if it comes too late.
    fn pass(&mut self, planned: &Planned, place: u64) -> Option<String> {
        let number = planned.number;
        let of_sender = self.numbers.entry(planned.sender).or_insert(number);
        let (by_number, earlier) = (number < *of_sender, *of_sender);
        *of_sender = number.max(earlier);
        let (head, by) = self.place;
        // A buffered message's place is not known to its sender.
        let by_place = place != 0 && place < head;
        if place > head {
            self.place = (place, number);
        }
        if by_number {
            return Some(format!(
                "message {number} was applied after {earlier} of the same sender: {planned:?}"
            ));
        }
        by_place.then(|| format!("message {number} at {place} was applied after {by} at {head}: {planned:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: Plan = Plan { users: 8, messages: 400, seed: 7 };

    /// The outcome of these lines.
    fn judged(senders: &[String], receivers: &[String], ledger: Ledger) -> Outcome {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(logs::SENDERS), senders.concat()).unwrap();
        std::fs::write(dir.path().join(logs::RECEIVERS), receivers.concat()).unwrap();
        Outcome::of(dir.path(), &PLAN, ledger).unwrap()
    }

    fn ok(number: u32) -> String {
        format!("ok {number} 1000 0 {}\n", number + 1)
    }

    fn got(number: u32, redelivered: u8, entry: u64) -> String {
        got_copy(number, redelivered, entry, 0)
    }

    fn got_copy(number: u32, redelivered: u8, entry: u64, copy: usize) -> String {
        format!("got {number} 1500 {redelivered} {entry} {copy}\n")
    }

    fn without_ttl(n: usize) -> Vec<u32> {
        let is_meant = |number: &u32| {
            let planned = PLAN.message(*number);
            planned.ttl.is_none() && !planned.everywhere
        };
        (0..PLAN.messages).filter(is_meant).take(n).collect()
    }

    #[test]
    fn accepted_and_never_applied_is_lost() {
        let [a, b] = without_ttl(2)[..] else { panic!("the plan has messages without a ttl") };
        let outcome = judged(&[ok(a), ok(b)], &[got(a, 0, 1)], Ledger::default());
        assert_eq!((outcome.accepted, outcome.delivered, outcome.lost), (2, 1, 1));
    }

    #[test]
    fn ttl_explains_no_more_than_the_ledger_says() {
        let brief = |p: &Planned| !p.everywhere && p.ttl.is_some_and(|ttl| ttl < Duration::from_secs(10));
        let number = (0..PLAN.messages).find(|number| brief(&PLAN.message(*number))).unwrap();
        let with = |expired| {
            let outcome = judged(&[ok(number)], &[], Ledger { expired, ..Ledger::default() });
            (outcome.expired, outcome.lost)
        };
        assert_eq!((with(1), with(0)), ((1, 0), (0, 1)));
    }

    #[test]
    fn running_again_is_a_duplicate_unless_it_is_the_same_entry_and_said_so() {
        let a = without_ttl(1)[0];
        let again = |line: String| {
            let outcome = judged(&[ok(a)], &[got(a, 0, 1), line], Ledger::default());
            (outcome.duplicated, outcome.reruns)
        };
        assert_eq!(again(got(a, 1, 1)), (0, 1));
        assert_eq!(again(got(a, 0, 1)), (1, 0));
        assert_eq!(again(got(a, 1, 2)), (1, 0));
    }

    #[test]
    fn overtaking_within_a_line_is_an_inversion() {
        let line = |number: &u32| {
            let planned = PLAN.message(*number);
            (!planned.everywhere).then(|| planned.line(Copy::Any))
        };
        let same = |a: &u32, b: &u32| line(a).is_some() && line(a) == line(b);
        let pairs = (0..PLAN.messages).flat_map(|a| (a + 1..PLAN.messages).map(move |b| (a, b)));
        let (a, b) = pairs.into_iter().find(|(a, b)| same(a, b)).unwrap();
        let inverted = |lines: &[String]| judged(&[ok(a), ok(b)], lines, Ledger::default()).inverted;
        assert_eq!(inverted(&[got(a, 0, 1), got(b, 0, 2)]), 0);
        assert_eq!(inverted(&[got(b, 0, 1), got(a, 0, 2)]), 1);
    }

    #[test]
    fn each_device_has_to_get_its_copy_once_and_no_other() {
        let everywhere = (0..PLAN.messages).find(|number| {
            let planned = PLAN.message(*number);
            planned.everywhere && planned.ttl.is_none()
        });
        let a = everywhere.unwrap();
        let judged = |lines: &[String]| {
            let outcome = judged(&[ok(a)], lines, Ledger::default());
            (outcome.accepted, outcome.delivered, outcome.lost, outcome.duplicated)
        };
        assert_eq!(judged(&[got_copy(a, 0, 1, 1)]), (2, 1, 1, 0));
        assert_eq!(judged(&[got_copy(a, 0, 1, 1), got_copy(a, 0, 1, 2)]), (2, 2, 0, 0));
        assert_eq!(judged(&[got_copy(a, 0, 1, 1), got_copy(a, 0, 2, 1)]), (2, 1, 1, 1));
        assert_eq!(judged(&[got_copy(a, 0, 1, 1), got_copy(a, 0, 1, 2), got(a, 0, 1)]), (2, 2, 0, 1));
    }

    #[test]
    fn torn_lines_prove_nothing() {
        let a = without_ttl(1)[0];
        let outcome = judged(&[format!("ok {a} 10")], &[], Ledger::default());
        assert_eq!((outcome.accepted, outcome.torn_lines), (0, 1));
    }
}
