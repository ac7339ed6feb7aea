//! The loss ledger of each user, and the gaps that their receiver is told of.
//!
//! Both are folds of the records: an end that is no delivery adds a row and perhaps widens a gap, a late confirmation takes
//! the row away again, and what a receiver was told of leaves the gap. The newest rows are kept, as many and as long as is
//! configured; the counters of the machine are exact for ever. What another device has settled is no loss: its rows say where
//! a copy stands, and have a window of their own, so that they push no loss out.

use std::collections::VecDeque;

use super::Machine;
use super::commit::Pending;
use super::io::{Action, LinkId};
use crate::config::Config;
use crate::id::{MessageId, UserId};
use crate::record::{Accept, Admission, End, Gap, LedgerRow, LedgerRows, Record, Seq, Slot, Told};
use crate::status::EndReason;
use crate::time::Timestamp;

/// How much is kept of a user's ledger.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keep {
    rows: usize,
    /// Rows from before are dropped.
    since: Timestamp,
    /// How many conversations it is known how far they were read.
    marks: usize,
}

impl Keep {
    pub(super) fn new(config: &Config, now: Timestamp) -> Self {
        let age = u64::try_from(config.ledger_age.as_millis()).unwrap_or(u64::MAX);
        let since = Timestamp::from_millis(now.as_millis().saturating_sub(age));
        Self { rows: config.ledger_rows, since, marks: config.max_read_marks.get() }
    }

    pub(super) fn marks(self) -> usize {
        self.marks
    }
}

/// What a record says to a ledger.
#[derive(Clone, Copy, Debug)]
enum Event {
    Ended(Option<LedgerRow>, Option<Gap>),
    Confirmed(Seq),
    /// A dead letter with this id, for this device, is sent once more: the ledger begins anew for it.
    Lives(MessageId, Option<Slot>),
    Told(Gap),
    /// The device in this slot is no more, and nobody else missed anything of it.
    Gone(Slot),
}

/// The newest rows of a kind, in the order of the ends.
#[derive(Debug, Default)]
struct Window {
    rows: VecDeque<LedgerRow>,
    /// No row of a message behind this place was dropped.
    forgotten: Seq,
}

impl Window {
    fn merge(&mut self, rows: &[LedgerRow], forgotten: Seq) {
        self.rows = rows.iter().copied().collect();
        self.forgotten = self.forgotten.max(forgotten);
    }

    fn trim(&mut self, keep: Keep) {
        while let Some(first) = self.rows.front()
            && (self.rows.len() > keep.rows || first.at < keep.since)
        {
            self.forgotten = self.forgotten.max(first.place);
            self.rows.pop_front();
        }
    }

    /// What this is the row of is sent once more.
    fn lives(&mut self, id: MessageId, slot: Option<Slot>) {
        let lives = |row: &LedgerRow| row.id == Some(id) && row.lane.slot() == slot;
        // A place that is in no row any more would be taken for one that was delivered.
        let gone = self.rows.iter().filter(|row| lives(row) && slot.is_some()).map(|row| row.place);
        self.forgotten = gone.max().map_or(self.forgotten, |place| self.forgotten.max(place));
        self.rows.retain(|row| !lives(row));
    }
}

/// One user's ledger.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    lost: Window,
    /// What rang, and another device has answered.
    elsewhere: Window,
    /// At most one for each lane, in their order.
    gaps: Vec<Gap>,
    /// What was said before the row was known, and where: the row may reflect it already.
    early: Vec<(Seq, Event)>,
    /// Who is being told, and of what.
    teller: Option<(LinkId, Vec<Gap>)>,
    /// What a receiver was told of, until that is recorded.
    recording: Vec<Gap>,
}

impl Ledger {
    fn fold(&mut self, at: Seq, event: Event, row_known: bool, keep: Keep) {
        if !row_known {
            return self.early.push((at, event));
        }
        match event {
            Event::Ended(row, gap) => {
                if let Some(row) = row {
                    let is_lost = row.reason != EndReason::Elsewhere;
                    let window = if is_lost { &mut self.lost } else { &mut self.elsewhere };
                    window.rows.push_back(row);
                }
                gap.into_iter().for_each(|gap| widen(&mut self.gaps, gap));
            }
            Event::Confirmed(place) => {
                self.windows().into_iter().for_each(|window| window.rows.retain(|row| row.place != place));
            }
            Event::Lives(id, slot) => {
                self.windows().into_iter().for_each(|window| window.lives(id, slot));
            }
            Event::Told(told) => {
                narrow(&mut self.gaps, told);
                narrow(&mut self.recording, told);
            }
            Event::Gone(slot) => {
                // Also of what is being told: the next device in that slot may have the same connection.
                let being_told = self.teller.as_mut().map(|(_, gaps)| gaps);
                for gaps in [&mut self.gaps, &mut self.recording].into_iter().chain(being_told) {
                    gaps.retain(|gap| gap.lane.slot() != Some(slot));
                }
            }
        }
        self.trim(Keep { since: Timestamp::ZERO, ..keep });
    }

    fn windows(&mut self) -> [&mut Window; 2] {
        [&mut self.lost, &mut self.elsewhere]
    }

    fn trim(&mut self, keep: Keep) {
        self.windows().into_iter().for_each(|window| window.trim(keep));
    }

    /// Puts what the store has under what the journal has said since.
    pub(super) fn merge(&mut self, stored: &LedgerRows, reflects: Seq, keep: Keep) {
        self.lost.merge(&stored.rows, stored.forgotten);
        self.elsewhere.merge(&stored.elsewhere, stored.elsewhere_forgotten);
        self.gaps.clone_from(&stored.gaps);
        for (at, event) in core::mem::take(&mut self.early) {
            if at >= reflects {
                self.fold(at, event, true, keep);
            }
        }
        self.trim(keep);
    }

    pub(super) fn rows(&mut self, keep: Keep) -> LedgerRows {
        self.trim(keep);
        self.known()
    }

    pub(super) fn known(&self) -> LedgerRows {
        let rows = |window: &Window| window.rows.iter().copied().collect();
        LedgerRows {
            rows: rows(&self.lost),
            forgotten: self.lost.forgotten,
            elsewhere: rows(&self.elsewhere),
            elsewhere_forgotten: self.elsewhere.forgotten,
            gaps: self.gaps.clone(),
        }
    }

    /// Somebody was told of something, and no record says so yet.
    pub(super) fn is_recording(&self) -> bool {
        !self.recording.is_empty()
    }

    fn all(&self) -> impl Iterator<Item = &LedgerRow> {
        self.lost.rows.iter().chain(&self.elsewhere.rows)
    }

    /// How the copies of a message ended that were accepted at this place or later, as far as that is known, in the order of
    /// their ends.
    pub(super) fn all_of(&self, id: MessageId, first: Seq) -> Vec<LedgerRow> {
        let theirs = self.all().filter(|row| row.id == Some(id) && row.place >= first);
        let mut theirs: Vec<_> = theirs.copied().collect();
        theirs.sort_unstable_by_key(|row| row.ended);
        theirs
    }

    /// How what was at this place ended, if that is known.
    pub(super) fn at(&self, place: Seq) -> Option<&LedgerRow> {
        self.all().find(|row| row.place == place)
    }

    /// Whether a message that was accepted at this place, does not wait, and has no row was delivered for sure. What was
    /// damaged has no id and may have been any of its copies, or where it was moved to, which all have later places.
    pub(super) fn knows_all_since(&self, place: Seq) -> bool {
        place > self.lost.forgotten && self.lost.rows.iter().all(|row| row.id.is_some() || row.place < place)
    }

    /// The same of one copy of a message that may have rung: it was not settled elsewhere either.
    pub(super) fn knows_copies_since(&self, place: Seq) -> bool {
        place > self.elsewhere.forgotten && self.knows_all_since(place)
    }

    /// What somebody who can be told of gaps should be told now.
    fn untold(&self) -> Vec<Gap> {
        let mut untold = self.gaps.clone();
        self.recording.iter().for_each(|gap| narrow(&mut untold, *gap));
        untold
    }
}

fn widen(gaps: &mut Vec<Gap>, gap: Gap) {
    match gaps.binary_search_by_key(&gap.lane, |known| known.lane) {
        Ok(i) => gaps.iter_mut().skip(i).take(1).for_each(|known| *known = known.with(gap)),
        Err(i) => gaps.insert(i, gap),
    }
}

fn narrow(gaps: &mut Vec<Gap>, told: Gap) {
    let left = |gap: Gap| if gap.lane == told.lane { gap.without(told) } else { Some(gap) };
    *gaps = gaps.iter().copied().filter_map(left).collect();
}

impl Machine {
    pub(super) fn keep(&self) -> Keep {
        Keep::new(&self.config, self.now)
    }

    /// Folds an end into its user's ledger.
    pub(super) fn fold_ledger(&mut self, at: Seq, end: &End) {
        let event = match end.upgrades {
            Some(_) => Event::Confirmed(end.seq),
            None => Event::Ended(LedgerRow::of(at, end), Gap::of(end)),
        };
        if !matches!(event, Event::Ended(None, None)) {
            self.fold_event(at, &end.user, event);
        }
    }

    /// Folds an acceptance into its user's ledger.
    pub(super) fn fold_ledger_accept(&mut self, at: Seq, accept: &Accept) {
        if matches!(accept.admission, Admission::Requeued { .. }) {
            let slot = accept.device.map(|device| device.slot);
            self.fold_event(at, accept.message.recipient(), Event::Lives(accept.message.id(), slot));
        }
    }

    pub(super) fn apply_told(&mut self, at: Seq, told: &Told) {
        self.fold_event(at, &told.user, Event::Told(told.gap));
    }

    fn fold_event(&mut self, at: Seq, id: &UserId, event: Event) {
        let keep = self.keep();
        let user = self.user_mut(id);
        let row_known = user.row_known;
        user.ledger.fold(at, event, row_known, keep);
        self.touch(id, at);
    }

    pub(super) fn apply_gone(&mut self, at: Seq, id: &UserId, slot: Slot) {
        self.fold_event(at, id, Event::Gone(slot));
    }

    /// Tells one of the sinks of what its user will not get, or its device if it has an outbox of its own, unless one is
    /// being told.
    pub(super) fn tell_gaps(&mut self, id: &UserId) {
        let Some(user) = self.users.get_mut(id).filter(|user| user.ledger.teller.is_none()) else { return };
        let untold = user.ledger.untold();
        let misses = |link: &LinkId| {
            let link = self.links.get(link).filter(|link| link.paused_until.is_none());
            let missed = link.map(|link| untold.iter().filter(|gap| link.misses(gap)).copied().collect());
            missed.filter(|gaps: &Vec<_>| !gaps.is_empty())
        };
        let told = user.links.iter().find_map(|link| Some((*link, misses(link)?)));
        let Some((link, gaps)) = told else { return };
        user.ledger.teller = Some((link, gaps.clone()));
        self.actions.push_back(Action::TellGaps { link, gaps });
    }

    /// A sink was told of the gaps that it was to be told of, or is gone or too busy: then another one is, or it is asked
    /// again with the next thing that happens.
    pub(super) fn handle_gaps_told(&mut self, link: LinkId, told: bool) {
        let Some(teller) = self.links.get(&link) else { return };
        let id = teller.user.clone();
        let Some(user) = self.users.get_mut(&id) else { return };
        let Some((_, gaps)) = user.ledger.teller.take_if(|(teller, _)| *teller == link) else { return };
        if !told {
            return;
        }
        // A device that was removed meanwhile says nothing of the next one in its slot.
        for gap in gaps.into_iter().filter(|gap| teller.misses(gap)) {
            widen(&mut user.ledger.recording, gap);
            self.current.push(Pending::Fact(Record::Told(Told { user: id.clone(), gap })));
        }
        // There may be gaps of another device.
        self.mark_ready(&id);
    }
}
