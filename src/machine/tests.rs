//! Tests of the machine: state and emitted actions.

use core::time::Duration;

use super::*;
use crate::message::{Durability, Message, MessageBuilder, Priority};
use crate::record::{Record, UserRow};
use crate::status::Status;
use crate::{DeviceId, EndReason, MessageId};

/// A machine with the smallest shell: commits succeed when the test says so.
struct Rig {
    machine: Machine,
    now: Timestamp,
    next: Seq,
    log: Vec<(Seq, Record)>,
    open: VecDeque<(CommitId, Vec<Record>)>,
    answers: Vec<(Ticket, Result<Accepted, Refusal>)>,
    offers: Vec<(LinkId, Delivery)>,
    changes: Vec<Change>,
    loads: Vec<(LoadId, Query)>,
    survivors: Vec<Survivors>,
    dismissed: Vec<LinkId>,
    tickets: u64,
}

fn birth(config: Config) -> Birth {
    Birth {
        config,
        stream: StreamId::from_u128(1),
        epoch: Epoch(1),
        digest_key: 7,
        seed: 1,
        settled: Seq::ZERO,
        counters: Counters::default(),
        store_empty: true,
    }
}

impl Rig {
    fn new() -> Self {
        Self::with(Config::default())
    }

    fn with(config: Config) -> Self {
        Self::born(birth(config))
    }

    fn born(birth: Birth) -> Self {
        Self {
            next: Seq::first_of(birth.epoch),
            machine: Machine::new(birth),
            now: Timestamp::from_millis(1000),
            log: Vec::new(),
            open: VecDeque::new(),
            answers: Vec::new(),
            offers: Vec::new(),
            changes: Vec::new(),
            loads: Vec::new(),
            survivors: Vec::new(),
            dismissed: Vec::new(),
            tickets: 0,
        }
    }

    fn input(&mut self, input: Input) {
        self.machine.handle(self.now, input);
        self.drain();
    }

    fn drain(&mut self) {
        for _ in 0..10_000 {
            while let Some(action) = self.machine.poll_action() {
                self.act(action);
            }
            if self.machine.poll_timeout() != Some(Timestamp::ZERO) {
                return;
            }
            self.machine.handle(self.now, Input::Tick);
        }
        panic!("the machine never comes to rest");
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Persist { commit, records, .. } => self.open.push_back((commit, records)),
            Action::Answer { ticket, result } => self.answers.push((ticket, result)),
            Action::Offer { link, batch } => self.offers.extend(batch.into_iter().map(|d| (link, d))),
            Action::Load { load, query } => self.loads.push((load, query)),
            Action::Announce(change) => self.changes.push(change),
            Action::Survivors(part) => self.survivors.push(part),
            Action::Dismiss(link) => self.dismissed.push(link),
        }
    }

    fn send(&mut self, message: &Message) -> Ticket {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.input(Input::Send { ticket, message: message.clone() });
        ticket
    }

    /// Makes everything that was handed out durable, and what follows from it.
    fn commit(&mut self) {
        while let Some((commit, records)) = self.open.pop_front() {
            let first = self.next;
            for record in records {
                self.log.push((self.next, record));
                self.next = self.next.plus(1);
            }
            self.input(Input::Persisted { commit, first });
        }
    }

    fn answer(&self, ticket: Ticket) -> Option<&Result<Accepted, Refusal>> {
        let mut found = self.answers.iter().filter(|(t, _)| *t == ticket);
        let answer = found.next().map(|(_, result)| result);
        assert!(found.next().is_none(), "answered twice");
        answer
    }

    fn accept(&mut self, message: &Message) -> EntryRef {
        let ticket = self.send(message);
        self.commit();
        self.answer(ticket).unwrap().as_ref().unwrap().entry
    }

    fn attach(&mut self, link: u64, user: &str, device: &str) {
        let user = UserId::new(user).unwrap();
        let device = DeviceId::new(device).unwrap();
        self.input(Input::Attach { link: LinkId(link), user, device });
        self.commit();
    }

    fn say(&mut self, link: u64, entry: EntryRef, verdict: Verdict) {
        self.input(Input::Verdicts { link: LinkId(link), verdicts: vec![(entry, verdict)] });
        self.commit();
    }

    fn offered(&self) -> Vec<EntryRef> {
        self.offers.iter().map(|(_, delivery)| delivery.entry).collect()
    }

    fn pass(&mut self, by: Duration) {
        self.now = self.now.after(by);
        self.input(Input::Tick);
        self.commit();
    }

    /// A machine born of this one's log.
    fn replayed(&self) -> Machine {
        let mut machine = Machine::new(Birth { epoch: Epoch(2), ..birth(self.machine.config.clone()) });
        for (seq, record) in &self.log {
            machine.replay(*seq, record, true);
        }
        machine
    }
}

fn to(user: &str) -> MessageBuilder {
    Message::to(user, "chat.message", "hello")
}

fn message(user: &str) -> Message {
    to(user).build().unwrap()
}

#[test]
fn nothing_is_answered_or_offered_before_it_is_durable() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    let ticket = rig.send(&message("alice"));
    assert_eq!(rig.open.len(), 1);
    assert!(rig.answer(ticket).is_none() && rig.offers.is_empty());
    rig.commit();
    assert!(rig.answer(ticket).unwrap().is_ok());
    assert_eq!(rig.offers.len(), 1);
}

#[test]
fn a_buffered_message_is_answered_when_written_but_offered_when_durable() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    let ticket = rig.send(&to("alice").durability(Durability::Buffered).build().unwrap());
    let commit = rig.open.front().unwrap().0;
    rig.input(Input::Written(commit));
    assert!(rig.answer(ticket).unwrap().is_ok() && rig.offers.is_empty());
    rig.commit();
    assert_eq!(rig.offers.len(), 1);
}

#[test]
fn a_buffered_message_that_was_answered_goes_into_the_next_commit_when_its_own_fails() {
    let mut rig = Rig::new();
    let ticket = rig.send(&to("alice").durability(Durability::Buffered).build().unwrap());
    let commit = rig.open.pop_front().unwrap().0;
    rig.input(Input::Written(commit));
    rig.input(Input::Writable(false));
    rig.input(Input::PersistFailed { commit, unknown: true });
    assert!(rig.answer(ticket).unwrap().is_ok() && rig.open.is_empty());
    rig.input(Input::Writable(true));
    rig.commit();
    assert_eq!(rig.machine.stats().counters.accepted, 1);
}

#[test]
fn a_failed_commit_is_an_unknown_outcome_and_the_same_id_may_be_sent_again() {
    let mut rig = Rig::new();
    let message = message("alice");
    let ticket = rig.send(&message);
    let commit = rig.open.pop_front().unwrap().0;
    rig.input(Input::PersistFailed { commit, unknown: true });
    assert_eq!(rig.answer(ticket), Some(&Err(Refusal::OutcomeUnknown)));
    let again = rig.send(&message);
    rig.commit();
    assert!(!rig.answer(again).unwrap().as_ref().unwrap().duplicate);
    assert_eq!(rig.machine.stats().counters.live(), 1);
}

#[test]
fn a_repeat_waits_for_the_commit_of_the_first_and_is_accepted_once() {
    let mut rig = Rig::new();
    let message = message("alice");
    let (first, second) = (rig.send(&message), rig.send(&message));
    assert!(rig.answer(second).is_none());
    rig.commit();
    assert!(!rig.answer(first).unwrap().as_ref().unwrap().duplicate);
    assert!(rig.answer(second).unwrap().as_ref().unwrap().duplicate);
    let third = rig.send(&message);
    assert!(rig.answer(third).unwrap().as_ref().unwrap().duplicate);
    assert_eq!(rig.machine.stats().counters.accepted, 1);
}

#[test]
fn the_same_id_with_another_body_is_a_conflict_and_to_another_person_another_message() {
    let mut rig = Rig::new();
    let id = MessageId::from_u128(9);
    rig.accept(&to("alice").id(id).build().unwrap());
    let ticket = rig.send(&Message::to("alice", "chat.message", "other").id(id).build().unwrap());
    assert_eq!(rig.answer(ticket), Some(&Err(Refusal::Conflict)));
    rig.accept(&to("bob").id(id).build().unwrap());
    assert_eq!(rig.machine.stats().counters.accepted, 2);
}

#[test]
fn an_acknowledgement_frees_the_window_at_once_but_is_announced_when_durable() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    let entry = rig.accept(&message("alice"));
    rig.input(Input::Verdicts { link: LinkId(1), verdicts: vec![(entry, Verdict::Delivered)] });
    assert_eq!(rig.machine.stats().in_flight, 0);
    let delivered = |rig: &Rig| rig.changes.iter().any(|c| c.status == Status::Ended(EndReason::Delivered));
    assert!(!delivered(&rig));
    rig.commit();
    assert!(delivered(&rig));
    assert_eq!(rig.machine.stats().counters.live(), 0);
}

#[test]
fn a_key_waits_for_its_failed_message_while_other_keys_go_on() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    let a1 = rig.accept(&to("alice").ordering_key("a").build().unwrap());
    rig.say(1, a1, Verdict::Nack(None));
    let a2 = rig.accept(&to("alice").ordering_key("a").build().unwrap());
    let b1 = rig.accept(&to("alice").ordering_key("b").build().unwrap());
    assert_eq!(rig.offered(), [a1, b1]);
    rig.pass(Duration::from_secs(400));
    assert_eq!(rig.offered(), [a1, b1, a1, a2]);
    assert_eq!(rig.offers[2].1.attempts, 1);
    assert!(rig.offers[2].1.redelivered && !rig.offers[3].1.redelivered);
}

#[test]
fn a_lost_connection_burns_no_attempt_and_keeps_order() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    let entries: Vec<_> = (0..3).map(|_| rig.accept(&message("alice"))).collect();
    rig.input(Input::Detach(LinkId(1)));
    rig.offers.clear();
    rig.attach(2, "alice", "phone");
    assert_eq!(rig.offered(), entries);
    assert!(rig.offers.iter().all(|(_, d)| d.attempts == 0));
    assert!(rig.offers[0].1.redelivered);
}

#[test]
fn an_attempt_ends_at_the_budget_as_dead() {
    let config = Config { max_attempts: core::num::NonZeroU32::new(3).unwrap(), ..Config::default() };
    let mut rig = Rig::with(config);
    rig.attach(1, "alice", "phone");
    rig.accept(&message("alice"));
    for _ in 0..10 {
        rig.pass(Duration::from_secs(400));
    }
    assert_eq!(rig.offers.len(), 3);
    assert_eq!(rig.machine.stats().counters.ended[EndReason::Dead.index()], 1);
}

#[test]
fn a_message_expires_in_flight_and_a_late_confirmation_upgrades_it() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    let entry = rig.accept(&to("alice").ttl(Duration::from_secs(1)).build().unwrap());
    rig.pass(Duration::from_secs(2));
    assert_eq!(rig.machine.stats().counters.ended[EndReason::Expired.index()], 1);
    assert!(rig.changes.last().unwrap().possibly_delivered);
    rig.say(1, entry, Verdict::Delivered);
    let counters = rig.machine.stats().counters;
    assert_eq!((counters.ended[EndReason::Expired.index()], counters.ended[0], counters.upgraded), (0, 1, 1));
    rig.say(1, entry, Verdict::Delivered);
    assert_eq!(rig.machine.stats().counters.upgraded, 1);
}

#[test]
fn full_outbox_rejects_without_evicting() {
    let config = Config { max_user_messages: core::num::NonZeroU32::new(2).unwrap(), ..Config::default() };
    let mut rig = Rig::with(config);
    rig.accept(&message("alice"));
    rig.accept(&message("alice"));
    let ticket = rig.send(&message("alice"));
    assert!(matches!(rig.answer(ticket), Some(Err(Refusal::OutboxFull { messages: 2, .. }))));
    rig.accept(&message("bob"));
    assert_eq!(rig.machine.stats().counters.live(), 3);
}

#[test]
fn a_full_window_leaves_room_for_critical_messages_only() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    for i in 0..80 {
        rig.accept(&to("alice").ordering_key(format!("k{i}")).build().unwrap());
    }
    assert_eq!(rig.offers.len(), 64);
    let ring = rig.accept(&to("alice").priority(Priority::Critical).build().unwrap());
    assert_eq!(rig.offers.len(), 65);
    assert_eq!(rig.offers[64].1.entry, ring);
}

#[test]
fn critical_goes_first_and_every_lane_gets_its_turn() {
    let share = |bytes| core::num::NonZeroU32::new(bytes).unwrap();
    let config = Config { shares: [share(1), share(400), share(200), share(100)], ..Config::default() };
    let mut rig = Rig::with(config);
    for i in 0..40 {
        for priority in Priority::ALL {
            rig.accept(&to("alice").priority(priority).ordering_key(format!("k{i}")).build().unwrap());
        }
    }
    rig.attach(1, "alice", "phone");
    let lanes: Vec<_> = rig.offered().iter().map(|entry| entry.lane).collect();
    assert!(lanes[..16].iter().all(|lane| *lane == Priority::Critical));
    for priority in Priority::ALL {
        assert!(lanes.contains(&priority), "{priority:?} starves in {lanes:?}");
    }
    let first_round: Vec<_> = lanes[16..].iter().take_while(|lane| **lane != Priority::Critical).collect();
    let count = |priority| first_round.iter().filter(|lane| ***lane == priority).count();
    // 22 bytes a message: 400, 200 and 100 bytes are worth 18, 9 and 4 of them.
    assert_eq!([count(Priority::High), count(Priority::Normal), count(Priority::Low)], [18, 9, 4]);
}

#[test]
fn volatile_messages_are_only_for_those_who_are_there() {
    let mut rig = Rig::new();
    let hint = to("alice").durability(Durability::Volatile).build().unwrap();
    let ticket = rig.send(&hint);
    assert_eq!(rig.answer(ticket), Some(&Err(Refusal::NobodyAttached)));
    rig.attach(1, "alice", "phone");
    let ticket = rig.send(&hint);
    assert!(rig.answer(ticket).unwrap().is_ok());
    assert_eq!(rig.offers.len(), 1);
    assert_eq!(rig.machine.stats().counters.accepted, 0);
}

#[test]
fn replay_gives_the_state_that_was() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    let first = rig.accept(&message("alice"));
    let second = rig.accept(&message("alice"));
    rig.accept(&message("bob"));
    rig.say(1, first, Verdict::Delivered);
    rig.say(1, second, Verdict::Nack(None));
    let replayed = rig.replayed();
    assert_eq!(replayed.stats().counters, rig.machine.stats().counters);
    for user in ["alice", "bob"] {
        let user = UserId::new(user).unwrap();
        assert_eq!(replayed.snapshot(&user), rig.machine.snapshot(&user));
    }
}

#[test]
fn a_repeat_is_recognised_after_replay() {
    let mut rig = Rig::new();
    let message = message("alice");
    rig.accept(&message);
    let mut machine = rig.replayed();
    machine.handle(rig.now, Input::Send { ticket: Ticket(99), message });
    assert!(matches!(
        machine.poll_action(),
        Some(Action::Answer { result: Ok(Accepted { duplicate: true, .. }), .. })
    ));
}

#[test]
fn an_inbox_takes_a_delivery_once_and_forgets_below_the_floor() {
    let mut sender = Rig::new();
    sender.attach(1, "alice", "phone");
    sender.accept(&message("alice"));
    let delivery = sender.offers[0].1.clone();
    let mut inbox = Rig::new();
    let receive = |rig: &mut Rig, n, delivery: &Delivery| {
        rig.input(Input::Receive { ticket: Ticket(n), delivery: Box::new(delivery.clone()) });
    };
    receive(&mut inbox, 1, &delivery);
    receive(&mut inbox, 2, &delivery);
    inbox.commit();
    receive(&mut inbox, 3, &delivery);
    let duplicates: Vec<_> =
        (1..4).map(|n| inbox.answer(Ticket(n)).unwrap().as_ref().unwrap().duplicate).collect();
    assert_eq!(duplicates, [false, true, true]);
    let next = Delivery {
        floor: delivery.entry.seq,
        entry: EntryRef { seq: delivery.entry.seq.plus(5), ..delivery.entry },
        ..delivery.clone()
    };
    receive(&mut inbox, 4, &next);
    inbox.commit();
    let row = &inbox.machine.snapshot(delivery.message.recipient()).unwrap().inbox[0];
    assert_eq!((row.floor, row.seen.as_slice()), (delivery.entry.seq, &[next.entry.seq][..]));
    receive(&mut inbox, 5, &delivery);
    assert_eq!(inbox.answer(Ticket(5)), Some(&Err(Refusal::Obsolete)));
}

fn settle(rig: &mut Rig) -> Vec<Survivors> {
    let before = rig.next;
    rig.input(Input::Settle { before });
    let parts = core::mem::take(&mut rig.survivors);
    assert!(parts.last().unwrap().last);
    rig.input(Input::Settled { before });
    parts
}

#[test]
fn settling_hands_over_what_lives_and_forgets_users_who_are_away() {
    let mut rig = Rig::new();
    let entry = rig.accept(&message("alice"));
    rig.attach(1, "bob", "phone");
    let done = rig.accept(&message("bob"));
    rig.say(1, done, Verdict::Delivered);
    rig.input(Input::Detach(LinkId(1)));
    let parts = settle(&mut rig);
    let seqs: Vec<_> = parts.iter().flat_map(|part| &part.entries).map(|(seq, _)| *seq).collect();
    assert_eq!(seqs, [entry.seq]);
    assert!(parts.iter().flat_map(|part| &part.rows).any(|(user, _)| user.as_bytes() == b"bob"));
    assert_eq!(parts.iter().map(|part| part.dedup.len()).sum::<usize>(), 2);
    let stats = rig.machine.stats();
    assert_eq!((stats.resident_users, stats.indexed_users, stats.resident_messages), (0, 1, 0));
}

#[test]
fn settled_messages_come_back_from_the_store_in_order() {
    let mut rig = Rig::new();
    let old = to("alice").build().unwrap();
    let entry = rig.accept(&old);
    let parts = settle(&mut rig);
    let newer = rig.accept(&message("alice"));
    let user = UserId::new("alice").unwrap();
    let device = DeviceId::new("phone").unwrap();
    rig.input(Input::Attach { link: LinkId(1), user, device });
    let (load, query) = rig.loads.pop().unwrap();
    assert!(matches!(query, Query::User(_)));
    let found = Found::User { row: None, live: (1, old.cost()), reflects: parts[0].before };
    rig.input(Input::Loaded { load, found: Box::new(found) });
    rig.commit();
    assert!(rig.offers.is_empty(), "newer messages must wait for older ones on disk");
    let accept = parts[0].entries[0].1.clone();
    for (load, query) in core::mem::take(&mut rig.loads) {
        let Query::Page { lane, .. } = query else { panic!("{query:?}") };
        let entries = if lane == Priority::Normal { vec![(entry.seq, accept.clone())] } else { Vec::new() };
        let page = Page { entries, damaged: Vec::new(), more_after: None, reflects: parts[0].before };
        rig.input(Input::Loaded { load, found: Box::new(Found::Page(page)) });
    }
    assert_eq!(rig.offered(), [entry, newer]);
}

#[test]
fn an_end_of_a_settled_message_is_written_with_the_next_settling() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    let entry = rig.accept(&message("alice"));
    settle(&mut rig);
    rig.say(1, entry, Verdict::Delivered);
    let parts = settle(&mut rig);
    let died: Vec<_> = parts.iter().flat_map(|part| part.died.clone()).collect();
    assert_eq!(died, [entry.seq]);
    let row: &UserRow = &parts.iter().flat_map(|part| &part.rows).next_back().unwrap().1;
    assert!(row.lanes[Priority::Normal.index()].cursor >= entry.seq);
}

#[test]
fn an_end_between_collecting_and_storing_counts_as_a_death_of_the_new_run() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    let entry = rig.accept(&message("alice"));
    let before = rig.next;
    rig.input(Input::Settle { before });
    rig.say(1, entry, Verdict::Delivered);
    rig.input(Input::Settled { before });
    rig.survivors.clear();
    let parts = settle(&mut rig);
    assert_eq!(parts.iter().flat_map(|part| part.died.clone()).collect::<Vec<_>>(), [entry.seq]);
}

/// Found by the offline example: a run was taken for dead and dropped while messages in it were alive.
#[test]
fn a_replayed_end_counts_as_a_death_only_if_the_settled_counters_do_not_reflect_it() {
    for counts in [false, true] {
        let mut rig = Rig::new();
        rig.attach(1, "alice", "phone");
        let entry = rig.accept(&message("alice"));
        let settled = rig.next;
        rig.say(1, entry, Verdict::Delivered);
        let birth = Birth { epoch: Epoch(2), settled, store_empty: false, ..birth(Config::default()) };
        let mut reborn = Rig::born(birth);
        for (seq, record) in rig.log.iter().filter(|(seq, _)| *seq >= settled) {
            reborn.machine.replay(*seq, record, counts);
        }
        reborn.input(Input::Settle { before: reborn.next });
        let (load, query) = reborn.loads.pop().unwrap();
        assert!(matches!(query, Query::User(_)));
        let found = Found::User { row: None, live: (1, 1), reflects: settled };
        reborn.input(Input::Loaded { load, found: Box::new(found) });
        let died: Vec<_> = reborn.survivors.iter().flat_map(|part| part.died.clone()).collect();
        assert_eq!(died, if counts { vec![entry.seq] } else { Vec::new() });
        assert!(reborn.survivors.last().unwrap().last);
    }
}

#[test]
fn a_failed_settling_is_asked_again_and_hands_over_everything() {
    let mut rig = Rig::new();
    let entry = rig.accept(&message("alice"));
    let before = rig.next;
    rig.input(Input::Settle { before });
    rig.survivors.clear();
    rig.input(Input::SettleFailed { before });
    let parts = settle(&mut rig);
    assert_eq!(
        parts.iter().flat_map(|part| &part.entries).map(|(seq, _)| *seq).collect::<Vec<_>>(),
        [entry.seq]
    );
}

#[test]
fn a_device_that_attaches_again_takes_over() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    let entry = rig.accept(&message("alice"));
    rig.attach(2, "alice", "phone");
    assert_eq!(rig.dismissed, [LinkId(1)]);
    assert_eq!(rig.offers.last().unwrap().0, LinkId(2));
    rig.say(2, entry, Verdict::Delivered);
    assert_eq!(rig.machine.stats().counters.live(), 0);
}

/// Found by the simulator: the attempt's record put a message that was queued again back into its backoff.
#[test]
fn an_attempt_that_becomes_durable_late_does_not_hold_a_message_that_is_offered_again() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    let entry = rig.accept(&message("alice"));
    rig.input(Input::Verdicts { link: LinkId(1), verdicts: vec![(entry, Verdict::Nack(None))] });
    rig.now = rig.now.after(Duration::from_secs(400));
    rig.input(Input::Tick);
    assert_eq!(rig.offers.len(), 2);
    rig.commit();
    let statuses: Vec<_> = rig.changes.iter().map(|change| change.status).collect();
    assert_eq!(statuses, [Status::Sent, Status::Sent]);
    rig.say(1, entry, Verdict::Delivered);
    assert_eq!(rig.machine.stats().counters.ended[0], 1);
    assert_eq!(rig.offers.len(), 2);
}

/// Found by the simulator: the repeat was answered with the buffered original, before it was durable.
#[test]
fn a_synced_repeat_of_a_buffered_message_waits_for_the_sync() {
    let mut rig = Rig::new();
    let builder = to("alice");
    rig.send(&builder.clone().durability(Durability::Buffered).build().unwrap());
    let commit = rig.open.front().unwrap().0;
    let repeat = rig.send(&builder.build().unwrap());
    rig.input(Input::Written(commit));
    assert!(rig.answer(repeat).is_none());
    rig.commit();
    assert!(rig.answer(repeat).unwrap().as_ref().unwrap().duplicate);
}

/// Found by the simulator: a message that is in no run, but whose end is replayed, was subtracted once too often.
#[test]
fn the_row_reflects_an_end_above_the_place_of_a_message_below_it() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    let waiting = rig.accept(&to("alice").ordering_key("other").ttl(Duration::from_secs(9)).build().unwrap());
    let entry = rig.accept(&message("alice"));
    let before = rig.next;
    rig.say(1, entry, Verdict::Delivered);
    rig.input(Input::Settle { before });
    let rows: Vec<_> = rig.survivors.iter().flat_map(|part| part.rows.clone()).collect();
    assert_eq!(rows.last().unwrap().1.lanes[Priority::Normal.index()].ended, [entry.seq]);
    let entries: Vec<_> =
        rig.survivors.iter().flat_map(|part| part.entries.clone()).map(|(seq, _)| seq).collect();
    assert_eq!(entries, [waiting.seq]);
}

/// Found by the simulator: the window that was read for a waiting send fell out of memory before the send went on.
#[test]
fn a_window_that_was_just_read_stays_until_the_send_that_needs_it_goes_on() {
    let one = core::num::NonZeroUsize::MIN;
    let config = Config { max_dedup_resident: one, dedup_ids: one, ..Config::default() };
    let mut rig = Rig::born(Birth { store_empty: false, ..birth(config) });
    let ticket = rig.send(&to("alice").sender("bob").build().unwrap());
    let (load, query) = rig.loads.pop().unwrap();
    let Query::Sender { sender, .. } = query else { panic!("{query:?}") };
    let row = |n: u128| crate::record::DedupRow {
        sender,
        key: n,
        content: 0,
        seq: Seq::new(n as u64),
        at: rig.now,
    };
    let rows = vec![row(1), row(2), row(3)];
    rig.input(Input::Loaded { load, found: Box::new(Found::Sender(rows)) });
    let (load, query) = rig.loads.pop().unwrap();
    assert!(matches!(query, Query::User(_)), "{query:?}");
    let found = Found::User { row: None, live: (0, 0), reflects: Seq::ZERO };
    rig.input(Input::Loaded { load, found: Box::new(found) });
    rig.commit();
    assert!(rig.answer(ticket).unwrap().is_ok());
}

/// Found by the simulator: after a crash the dead message would have been offered behind one that came later.
#[test]
fn what_waits_behind_a_dead_message_goes_when_the_end_is_durable_and_not_before() {
    let config = Config { max_attempts: core::num::NonZeroU32::MIN, ..Config::default() };
    let mut rig = Rig::with(config);
    let first = rig.accept(&message("alice"));
    rig.attach(1, "alice", "phone");
    let second = rig.accept(&message("alice"));
    assert_eq!(rig.offered(), [first]);
    rig.input(Input::Verdicts { link: LinkId(1), verdicts: vec![(first, Verdict::Nack(None))] });
    assert_eq!(rig.offered(), [first]);
    rig.commit();
    assert_eq!(rig.offered(), [first, second]);
}

/// Found by the simulator: at the gap bound only the first key in turn was looked at.
#[test]
fn at_the_gap_bound_the_oldest_message_goes_whoever_is_in_turn() {
    let one = core::num::NonZeroU32::MIN;
    let config = Config { max_gaps: core::num::NonZeroUsize::MIN, max_batch: one, ..Config::default() };
    let mut rig = Rig::with(config);
    let oldest = rig.accept(&to("alice").ordering_key("a").build().unwrap());
    let next = rig.accept(&to("alice").ordering_key("b").build().unwrap());
    rig.accept(&to("alice").ordering_key("c").build().unwrap());
    rig.attach(1, "alice", "phone");
    rig.say(1, oldest, Verdict::Nack(None));
    rig.say(1, next, Verdict::Delivered);
    rig.pass(Duration::from_secs(20));
    assert_eq!(rig.offered(), [oldest, next, oldest]);
}

/// Found by the simulator: a volatile message has no place of its own in the sender's log.
#[test]
fn an_inbox_hands_a_volatile_delivery_on_and_remembers_nothing_of_it() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "handler");
    let hint = to("alice").durability(Durability::Volatile).build().unwrap();
    let delivery = Delivery {
        message: hint,
        stream: StreamId::from_u128(2),
        entry: EntryRef { lane: Priority::Normal, seq: Seq::new(1) },
        floor: Seq::first_of(Epoch(9)),
        accepted_at: rig.now,
        attempts: 0,
        redelivered: false,
    };
    rig.input(Input::Receive { ticket: Ticket(1), delivery: Box::new(delivery) });
    assert!(rig.answer(Ticket(1)).unwrap().is_ok());
    assert_eq!(rig.offers.len(), 1);
    assert!(rig.machine.snapshot(&UserId::new("alice").unwrap()).unwrap().inbox.is_empty());
}

/// Found by the simulator: read again from the store, the message no longer admitted that it had been offered.
#[test]
fn a_message_that_was_offered_is_not_dropped_from_the_memory_of_somebody_attached() {
    let (one, few) = (core::num::NonZeroUsize::MIN, core::num::NonZeroU32::MIN);
    let mut rig = Rig::with(Config { max_resident: one, max_in_flight: few, ..Config::default() });
    rig.attach(1, "alice", "phone");
    rig.attach(2, "alice", "tablet");
    let ttl = Duration::from_secs(20);
    let entries = ["a", "b"].map(|key| rig.accept(&to("alice").ordering_key(key).ttl(ttl).build().unwrap()));
    let (holder, _) = rig.offers.iter().find(|(_, delivery)| delivery.entry == entries[1]).unwrap();
    let holder = *holder;
    rig.input(Input::Detach(holder));
    settle(&mut rig);
    rig.pass(Duration::from_secs(90));
    let ends = rig.log.iter().filter_map(|(_, record)| match record {
        Record::End(end) => Some((end.seq, end.possibly_delivered)),
        _ => None,
    });
    assert_eq!(ends.collect::<Vec<_>>(), entries.iter().map(|entry| (entry.seq, true)).collect::<Vec<_>>());
}
