//! What rings: one answer settles it for all devices, and whoever was offered it is told when it is over.

use super::devices::{alice, device, every, ring};
use super::*;
use crate::message::DevicePolicy;

#[test]
fn what_rings_stops_everywhere_in_the_commit_of_the_first_confirmation() {
    let mut rig = Rig::new();
    for name in ["phone", "laptop", "tablet"] {
        rig.register(name);
    }
    rig.attach(1, "alice", "phone");
    rig.attach(2, "alice", "laptop");
    let accepted = rig.accepted(&ring());
    let entries = accepted.entries();
    assert_eq!((rig.offered_to(1), rig.offered_to(2)), (vec![entries[0]], vec![entries[1]]));
    rig.input(Input::Verdicts { link: LinkId(2), verdicts: vec![(entries[1], Verdict::Delivered)] });
    let records = &rig.open.back().unwrap().1;
    assert_eq!(records.len(), 3, "{records:?}");
    assert!(rig.withdrawn.is_empty(), "told before it is durable");
    rig.commit();
    let told: Vec<_> = rig.withdrawn.iter().map(|(link, withdrawn)| (*link, withdrawn.entry)).collect();
    assert_eq!(told, [(LinkId(1), entries[0])], "the one who was offered it, and nobody else");
    assert_eq!((rig.count_of(EndReason::Delivered), rig.count_of(EndReason::Elsewhere)), (1, 2));
    let ends = rig.log.iter().filter_map(|(_, record)| match record {
        Record::End(end) => Some((end.seq, end.reason, end.possibly_delivered)),
        _ => None,
    });
    let ends: Vec<_> = ends.collect();
    let elsewhere = EndReason::Elsewhere;
    assert_eq!(ends[1..], [(entries[0].seq, elsewhere, true), (entries[2].seq, elsewhere, false)]);
    // A confirmation that was under way is true all the same.
    rig.say(1, entries[0], Verdict::Delivered);
    assert_eq!((rig.count_of(EndReason::Delivered), rig.count_of(EndReason::Elsewhere)), (2, 1));
    rig.attach(3, "alice", "tablet");
    assert!(rig.offered_to(3).is_empty());
}

#[test]
fn who_was_not_offered_what_rings_is_not_told_that_it_stopped() {
    let max_in_flight = core::num::NonZeroU32::MIN;
    let mut rig = Rig::with(Config { max_in_flight, critical_reserve: 0, ..Config::default() });
    rig.join_two();
    let busy = rig.accepted(&every().build().unwrap()).entries();
    rig.say(1, busy[0], Verdict::Delivered);
    let call = rig.accepted(&ring()).entries();
    assert_eq!(rig.offers.last().unwrap().1.entry, call[0], "the laptop has its window full");
    rig.say(1, call[0], Verdict::Delivered);
    assert_eq!((rig.count_of(EndReason::Elsewhere), rig.withdrawn.len()), (1, 0));
}

/// A phone, a laptop and a tablet that rang, of which the tablet is away, and what it was.
fn ringing(config: Config) -> (Rig, Message, Vec<EntryRef>) {
    let mut rig = Rig::with(config);
    rig.join_two();
    rig.register("tablet");
    let call =
        to("alice").devices(DevicePolicy::RingAll).priority(Priority::Critical).ttl(Duration::from_secs(20));
    let call = call.build().unwrap();
    let entries = rig.accepted(&call).entries();
    assert_eq!((rig.offered_to(1), rig.offered_to(2)), (vec![entries[0]], vec![entries[1]]));
    (rig, call, entries)
}

fn target(call: &Message) -> Target {
    Target { user: alice(), id: call.id(), sender: None }
}

impl Rig {
    /// Who was told that what rings no more, and why.
    fn stopped(&mut self) -> Vec<(u64, EntryRef, EndReason)> {
        let told = core::mem::take(&mut self.withdrawn).into_iter();
        let mut told: Vec<_> =
            told.map(|(link, withdrawn)| (link.0, withdrawn.entry, withdrawn.reason)).collect();
        told.sort_unstable_by_key(|(link, ..)| *link);
        told
    }

    /// Asks for an operation, the records of which are not durable yet.
    fn ask(&mut self, operation: Operation) {
        self.tickets += 1;
        self.input(Input::Operate { ticket: Ticket(self.tickets), operation });
    }
}

#[test]
fn whoever_hangs_up_stops_every_device_that_was_offered_the_call_when_that_is_durable() {
    type HangUp = fn(&Message) -> Operation;
    let hang_ups: [(HangUp, EndReason); 3] = [
        (|call| Operation::Cancel(target(call)), EndReason::Cancelled),
        (|call| Operation::Replace(target(call), message("alice")), EndReason::Replaced),
        (|_| Operation::Purge(alice()), EndReason::Cancelled),
    ];
    for (operation, reason) in hang_ups {
        let (mut rig, call, entries) = ringing(Config::default());
        rig.ask(operation(&call));
        assert!(rig.withdrawn.is_empty(), "told before it is durable");
        rig.commit();
        assert_eq!(rig.stopped(), [(1, entries[0], reason), (2, entries[1], reason)]);
        assert_eq!(rig.count_of(reason), 3);
        // An answer that was under way is true all the same, and nobody has to be told of it.
        rig.say(1, entries[0], Verdict::Delivered);
        assert_eq!((rig.count_of(EndReason::Delivered), rig.stopped()), (1, vec![]));
    }
}

#[test]
fn a_call_that_nobody_answers_in_time_stops() {
    let (mut rig, _, entries) = ringing(Config::default());
    rig.pass(Duration::from_secs(21));
    let expired = EndReason::Expired;
    assert_eq!(rig.stopped(), [(1, entries[0], expired), (2, entries[1], expired)]);
}

#[test]
fn so_does_one_whose_attempts_are_spent_by_silence() {
    let max_attempts = core::num::NonZeroU32::MIN;
    let ack_deadline = Duration::from_secs(5);
    let (mut rig, _, entries) = ringing(Config { max_attempts, ack_deadline, ..Config::default() });
    rig.pass(Duration::from_secs(6));
    assert_eq!(rig.stopped(), [(1, entries[0], EndReason::Dead), (2, entries[1], EndReason::Dead)]);
}

#[test]
fn a_device_that_refused_the_call_is_told_nothing_when_the_caller_hangs_up() {
    let skip = [crate::OnFailure::Skip; 4];
    let (mut rig, call, entries) = ringing(Config { on_failure: skip, ..Config::default() });
    rig.say(1, entries[0], Verdict::Rejected);
    rig.settled_by(Operation::Cancel(target(&call))).unwrap();
    assert_eq!(rig.stopped(), [(2, entries[1], EndReason::Cancelled)]);
}

#[test]
fn a_device_that_is_removed_rings_no_more() {
    let (mut rig, _, entries) = ringing(Config::default());
    rig.settled_by(Operation::Unregister(alice(), device("phone"))).unwrap();
    assert_eq!(rig.stopped(), [(1, entries[0], EndReason::DeviceGone)]);
}

#[test]
fn what_does_not_ring_is_withdrawn_without_a_word() {
    let mut rig = Rig::with_two();
    let message = every().build().unwrap();
    rig.accepted(&message);
    rig.settled_by(Operation::Cancel(target(&message))).unwrap();
    assert_eq!((rig.count_of(EndReason::Cancelled), rig.stopped()), (2, vec![]));
}

/// Another life of the same, in which everything settles; then the phone comes, and is offered what waits for it in this lane.
fn settled_in_another_life(rig: &Rig, for_phone: &[EntryRef]) -> Rig {
    let birth = Birth { epoch: Epoch(2), store_empty: false, ..birth(rig.machine.config.clone()) };
    let mut late = Rig::born(birth);
    for (seq, record) in &rig.log {
        late.machine.replay(*seq, record, true);
    }
    let before = late.next;
    let waits = |(seq, record): &(Seq, Record)| match record {
        Record::Accept(accept) if for_phone.iter().any(|entry| entry.seq == *seq) => {
            Some((*seq, accept.clone()))
        }
        _ => None,
    };
    let waits: Vec<_> = rig.log.iter().filter_map(waits).collect();
    let cost = waits.iter().map(|(_, accept)| accept.message.cost()).sum();
    let answer_loads = |late: &mut Rig| {
        while let Some((load, query)) = late.loads.pop() {
            let mut rows = late.survivors.iter().flat_map(|part| &part.rows);
            let row = rows.rfind(|(id, _)| *id == alice()).map(|(_, row)| Box::new(row.clone()));
            let reflects = if row.is_some() { before } else { Seq::ZERO };
            let found = match query {
                Query::Page { lane, .. } => {
                    let entries = if lane == for_phone[0].lane { waits.clone() } else { Vec::new() };
                    Found::Page(Page { entries, damaged: Vec::new(), more_after: None, reflects })
                }
                Query::User(_) => Found::User { row, held: Some(held(waits.len() as u32, cost)), reflects },
                _ => Found::User { row, held: None, reflects },
            };
            late.input(Input::Loaded { load, found: Box::new(found) });
            late.commit();
        }
    };
    late.input(Input::Settle { before });
    answer_loads(&mut late);
    assert!(late.survivors.last().unwrap().last);
    late.input(Input::Settled { before });
    late.attach(1, "alice", "phone");
    answer_loads(&mut late);
    late.commit();
    assert_eq!(late.offered(), for_phone);
    late
}

impl Rig {
    /// How many ends were recorded, and how many of them because another device was first.
    fn ends(&self) -> (usize, u64) {
        let ends = self.log.iter().filter(|(_, record)| matches!(record, Record::End(_)));
        (ends.count(), self.count_of(EndReason::Elsewhere))
    }
}

/// Found by the simulator: a copy that was accepted and ended before either settled is in no row and no run, and ended once
/// more when another device confirmed the message.
#[test]
fn a_copy_that_ended_before_it_settled_does_not_end_again_when_another_is_confirmed() {
    let mut rig = Rig::of_two();
    let entries = rig.accepted(&ring()).entries();
    rig.settled_by(Operation::Unregister(alice(), device("laptop"))).unwrap();
    let mut late = settled_in_another_life(&rig, &entries[..1]);
    late.say(1, entries[0], Verdict::Delivered);
    assert_eq!(late.ends(), (1, 0));
}

#[test]
fn nor_does_one_that_ended_behind_another_which_still_waits() {
    let skip = [crate::OnFailure::Skip; 4];
    let mut rig = Rig::with(Config { on_failure: skip, ..Config::default() });
    rig.register_two();
    rig.attach(2, "alice", "laptop");
    let rings = |room: &str| to("alice").devices(DevicePolicy::RingAll).ordering_key(room).build().unwrap();
    let [first, second] = ["a", "b"].map(|room| rig.accepted(&rings(room)).entries());
    rig.say(2, second[1], Verdict::Rejected);
    assert_eq!(rig.ends(), (1, 0));
    let mut late = settled_in_another_life(&rig, &[first[0], second[0]]);
    late.say(1, second[0], Verdict::Delivered);
    assert_eq!(late.ends(), (1, 0), "the laptop's copy had ended");
    late.say(1, first[0], Verdict::Delivered);
    assert_eq!(late.ends(), (3, 1), "and that of the first had not");
}
