//! Operations on messages that wait: withdrawing one, or all of a person's.

use std::sync::Arc;

use super::*;
use crate::record::Accept;

pub(super) fn alice() -> UserId {
    UserId::new("alice").unwrap()
}

pub(super) fn target(id: MessageId) -> Target {
    Target { user: alice(), id, sender: None }
}

fn outcome(messages: u32, possibly_delivered: u32) -> Result<Outcome, OperationError> {
    Ok(Outcome { messages, possibly_delivered, ..Outcome::default() })
}

impl Rig {
    pub(super) fn operate(&mut self, operation: Operation) -> Ticket {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.input(Input::Operate { ticket, operation });
        ticket
    }

    fn cancel(&mut self, message: &Message) -> Ticket {
        self.operate(Operation::Cancel(target(message.id())))
    }

    pub(super) fn done(&self, ticket: Ticket) -> Option<Result<Outcome, OperationError>> {
        let mut found = self.done.iter().filter(|(t, _)| *t == ticket);
        let done = found.next().map(|(_, result)| result.clone());
        assert!(found.next().is_none(), "answered twice");
        done
    }

    /// Answers loads from this store until there are none.
    pub(super) fn load_from(&mut self, store: &[(Seq, Arc<Accept>)], reflects: Seq) {
        while let Some((load, query)) = self.loads.pop() {
            self.load_one(load, query, store, reflects);
        }
    }

    pub(super) fn load_one(
        &mut self,
        load: LoadId,
        query: Query,
        store: &[(Seq, Arc<Accept>)],
        reflects: Seq,
    ) {
        let found = match query {
            Query::User(_) | Query::Row(_) => {
                let mut held = Holdings::default();
                store.iter().for_each(|(_, accept)| held.add(accept.lane(), accept.message.cost()));
                Found::User { row: self.row.clone().map(Box::new), held: Some(held), reflects }
            }
            Query::Page { lane, after, ended, max_messages, .. } => {
                let of_lane = |(seq, accept): &&(Seq, Arc<Accept>)| {
                    accept.lane() == lane && *seq > after && !ended.contains(seq)
                };
                let mut entries: Vec<_> = store.iter().filter(of_lane).cloned().collect();
                let more = entries.len() > max_messages;
                entries.truncate(max_messages);
                let more_after = entries.last().map(|(seq, _)| *seq).filter(|_| more);
                Found::Page(Page { entries, damaged: Vec::new(), more_after, reflects })
            }
            Query::Place { lanes, seq, .. } => {
                let is_there =
                    |(at, accept): &&(Seq, Arc<Accept>)| *at == seq && lanes.contains(&accept.lane());
                let entries = store.iter().filter(is_there).cloned().collect();
                Found::Matches(Matches { entries, ..Matches::default() })
            }
            Query::Id { id, max_messages, .. } => {
                let has_id = |(_, accept): &&(Seq, Arc<Accept>)| accept.message.id() == id;
                let mut entries: Vec<_> = store.iter().filter(has_id).cloned().collect();
                let is_cut = entries.len() > max_messages;
                entries.truncate(max_messages);
                Found::Matches(Matches { entries, is_cut, ..Matches::default() })
            }
            Query::Sender { .. } => Found::Sender(Vec::new()),
            Query::Due { until, since, .. } => {
                let dues = || store.iter().map(|(_, accept)| (accept.due(), accept.message.recipient()));
                let now = dues().filter(|(due, _)| since.0 < *due && *due <= until);
                let mut users: Vec<_> = now.map(|(_, user)| user.clone()).collect();
                users.dedup();
                let later = dues().map(|(due, _)| due).filter(|due| *due > until).min();
                let next = later.unwrap_or(Timestamp::NEVER);
                Found::Due { users, more: None, next, table: 1 }
            }
        };
        self.input(Input::Loaded { load, found: Box::new(found) });
    }
}

/// A rig whose messages, so many per lane, are all in the store.
pub(super) fn settled(messages: &[Message]) -> (Rig, Vec<(Seq, Arc<Accept>)>, Seq) {
    let mut rig = Rig::new();
    for message in messages {
        rig.accept(message);
    }
    let (store, reflects) = settled_with(&mut rig);
    assert_eq!((store.len(), rig.machine.stats().resident_users), (messages.len(), 0));
    (rig, store, reflects)
}

/// Settles everything; what is in the store then.
pub(super) fn settled_with(rig: &mut Rig) -> (Vec<(Seq, Arc<Accept>)>, Seq) {
    let reflects = rig.next;
    (settle(rig).into_iter().flat_map(|part| part.entries).collect(), reflects)
}

#[test]
fn a_cancelled_message_is_not_offered_and_its_caller_is_answered_when_that_is_durable() {
    let mut rig = Rig::new();
    let (first, second) = (message("alice"), message("alice"));
    rig.accept(&first);
    let kept = rig.accept(&second);
    let ticket = rig.cancel(&first);
    assert_eq!(rig.done(ticket), None);
    rig.commit();
    assert_eq!(rig.done(ticket), Some(outcome(1, 0)));
    rig.attach(1, "alice", "phone");
    assert_eq!(rig.offered(), [kept]);
    let counters = rig.machine.stats().counters;
    assert_eq!((counters.ended[EndReason::Cancelled.index()], counters.live()), (1, 1));
    assert_eq!(rig.changes[0].status, Status::Ended(EndReason::Cancelled));
    let replayed = rig.replayed();
    assert_eq!(replayed.stats().counters, counters);
}

#[test]
fn cancelling_what_is_in_flight_admits_that_it_may_arrive_and_a_late_confirmation_is_believed() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    let message = message("alice");
    let entry = rig.accept(&message);
    let ticket = rig.cancel(&message);
    assert_eq!(rig.machine.stats().in_flight, 0);
    rig.commit();
    assert_eq!(rig.done(ticket), Some(outcome(1, 1)));
    rig.say(1, entry, Verdict::Delivered);
    let counters = rig.machine.stats().counters;
    assert_eq!((counters.ended[0], counters.ended[EndReason::Cancelled.index()]), (1, 0));
}

#[test]
fn what_waits_behind_a_cancelled_message_goes_when_its_end_is_durable() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    let first = message("alice");
    let one = rig.accept(&first);
    rig.say(1, one, Verdict::Nack(None));
    let two = rig.accept(&message("alice"));
    rig.cancel(&first);
    assert_eq!(rig.offered(), [one]);
    rig.commit();
    assert_eq!(rig.offered(), [one, two]);
}

#[test]
fn what_does_not_wait_cannot_be_cancelled() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    let done = message("alice");
    let entry = rig.accept(&done);
    rig.input(Input::Verdicts { link: LinkId(1), verdicts: vec![(entry, Verdict::Delivered)] });
    let being_recorded = rig.cancel(&done);
    assert_eq!(rig.done(being_recorded), None, "its end may still be lost");
    rig.commit();
    let ended = rig.cancel(&done);
    let unknown = rig.cancel(&message("alice"));
    for ticket in [being_recorded, ended, unknown] {
        assert_eq!(rig.done(ticket), Some(Err(OperationError::NotWaiting)));
    }
    assert_eq!(rig.machine.stats().pending, 0);
}

#[test]
fn of_two_senders_with_one_id_only_the_named_ones_message_is_cancelled() {
    let mut rig = Rig::new();
    let id = MessageId::from_u128(5);
    let from = |sender: &str| to("alice").id(id).sender(sender).build().unwrap();
    rig.accept(&from("bob"));
    rig.accept(&from("carol"));
    let sender = Some(UserId::new("carol").ok());
    let of_carol = Operation::Cancel(Target { sender: sender.clone(), ..target(id) });
    let ticket = rig.operate(of_carol.clone());
    rig.commit();
    assert_eq!(rig.done(ticket), Some(outcome(1, 0)));
    let again = rig.operate(of_carol);
    assert_eq!(rig.done(again), Some(Err(OperationError::NotWaiting)));
    let without = rig.operate(Operation::Cancel(Target { sender: Some(None), ..target(id) }));
    assert_eq!(rig.done(without), Some(Err(OperationError::NotWaiting)));
    let any = rig.operate(Operation::Cancel(target(id)));
    rig.commit();
    assert_eq!(rig.done(any), Some(outcome(1, 0)));
}

#[test]
fn a_message_in_the_store_is_found_however_deep_it_lies() {
    let messages: Vec<_> = (0..600)
        .map(|n| to("alice").priority(Priority::ALL[n % 2]).build().unwrap())
        .chain([to("alice").priority(Priority::Low).build().unwrap()])
        .collect();
    for n in [0, 1, 300, 599, 600] {
        let (mut rig, store, reflects) = settled(&messages);
        let ticket = rig.cancel(&messages[n]);
        rig.load_from(&store, reflects);
        let again = rig.cancel(&messages[n]);
        rig.load_from(&store, reflects);
        rig.commit();
        assert_eq!(rig.done(ticket), Some(outcome(1, 0)), "message {n}");
        assert_eq!(rig.done(again), Some(outcome(1, 0)), "joins the first");
        assert_eq!(rig.machine.stats().counters.live(), 600);
        let parts = settle(&mut rig);
        let died: Vec<_> = parts.iter().flat_map(|part| part.died.clone()).collect();
        assert_eq!(died, [store[n].0]);
        assert_eq!(rig.machine.stats().resident_users, 0, "nothing keeps the user in memory");
    }
}

#[test]
fn a_message_that_is_read_into_memory_while_it_is_looked_for_is_found() {
    let messages = [Priority::High, Priority::Normal].map(|lane| to("alice").priority(lane).build().unwrap());
    let (mut rig, store, reflects) = settled(&messages);
    let device = DeviceId::new("phone").unwrap();
    rig.input(Input::Attach { link: LinkId(1), user: alice(), device });
    let (load, query) = rig.loads.pop().unwrap();
    assert!(matches!(query, Query::User(_) | Query::Row(_)), "{query:?}");
    let bytes = store.iter().map(|(_, accept)| accept.message.cost()).sum();
    rig.input(Input::Loaded {
        load,
        found: Box::new(Found::User { row: None, held: Some(held(2, bytes)), reflects }),
    });
    // The lanes are being read for offering when the search begins. The search reads the first ones, and meanwhile the
    // lane it comes to last is read into memory.
    let mut refills = core::mem::take(&mut rig.loads);
    let of_normal =
        refills.iter().position(|(_, query)| matches!(query, Query::Page { lane: LaneId::Normal, .. }));
    let of_normal = refills.remove(of_normal.unwrap());
    let ticket = rig.cancel(&messages[1]);
    let search = rig.loads.pop().unwrap();
    assert!(matches!(search.1, Query::Page { lane: LaneId::Critical, .. }), "{search:?}");
    rig.loads.push(of_normal);
    rig.load_from(&store, reflects);
    rig.loads.push(search);
    rig.load_from(&store, reflects);
    rig.loads = refills;
    rig.load_from(&store, reflects);
    rig.commit();
    assert_eq!(rig.done(ticket).unwrap().unwrap().messages, 1);
}

/// Its body may be gone from the store, which would look like damage.
#[test]
fn what_ended_while_an_operation_looks_elsewhere_is_not_asked_for() {
    let messages = [message("alice")];
    let (mut rig, store, reflects) = settled(&messages);
    rig.attach(1, "alice", "phone");
    let row = rig.loads.pop().unwrap();
    let mut pages = core::mem::replace(&mut rig.loads, vec![row]);
    let answer_row = |rig: &mut Rig| {
        let (load, _) = rig.loads.remove(0);
        let live = Some(held(1, messages[0].cost()));
        let found = Found::User { row: None, held: live, reflects };
        rig.input(Input::Loaded { load, found: Box::new(found) });
    };
    answer_row(&mut rig);
    pages.append(&mut rig.loads);
    let ticket = rig.cancel(&message("alice"));
    let mut search = core::mem::replace(&mut rig.loads, pages);
    rig.load_from(&store, reflects);
    rig.commit();
    let ended = rig.offered()[0];
    rig.say(1, ended, Verdict::Delivered);
    // The floor of the next offer goes beyond it.
    rig.accept(&message("alice"));
    while rig.done(ticket).is_none() {
        let (_, query) = search.last().unwrap();
        if let Query::Page { lane: LaneId::Normal, after, ended: known, .. } = query {
            assert!(ended.seq <= *after || known.contains(&ended.seq), "{query:?}");
        }
        rig.loads = core::mem::take(&mut search);
        let (load, _) = rig.loads.pop().unwrap();
        let nothing = Page { entries: Vec::new(), damaged: Vec::new(), more_after: None, reflects };
        rig.input(Input::Loaded { load, found: Box::new(Found::Page(nothing)) });
        search.append(&mut rig.loads);
    }
    assert_eq!(rig.done(ticket), Some(Err(OperationError::NotWaiting)));
}

#[test]
fn a_store_that_cannot_be_read_is_said_and_nothing_is_changed() {
    let message = message("alice");
    let (mut rig, store, reflects) = settled(core::slice::from_ref(&message));
    let row = rig.cancel(&message);
    let (load, _) = rig.loads.pop().unwrap();
    rig.input(Input::LoadFailed(load));
    assert_eq!(rig.done(row), Some(Err(OperationError::StoreUnreadable)));
    let page = rig.cancel(&message);
    let (load, query) = rig.loads.pop().unwrap();
    assert!(matches!(query, Query::User(_) | Query::Row(_)), "{query:?}");
    let found = Found::User { row: None, held: Some(held(1, message.cost())), reflects };
    rig.input(Input::Loaded { load, found: Box::new(found) });
    let (load, query) = rig.loads.pop().unwrap();
    assert!(matches!(query, Query::Page { .. }), "{query:?}");
    rig.input(Input::LoadFailed(load));
    assert_eq!(rig.done(page), Some(Err(OperationError::StoreUnreadable)));
    let again = rig.cancel(&message);
    rig.load_from(&store, reflects);
    rig.commit();
    assert_eq!(rig.done(again), Some(outcome(1, 0)));
}

#[test]
fn a_purge_withdraws_what_was_accepted_before_it_in_memory_and_in_the_store_and_nothing_later() {
    let messages: Vec<_> =
        (0..1000).map(|n| to("alice").priority(Priority::ALL[n % 4]).build().unwrap()).collect();
    let (mut rig, store, reflects) = settled(&messages);
    let (newer, later) = (message("alice"), message("alice"));
    rig.accept(&newer);
    let bob = rig.accept(&message("bob"));
    let ticket = rig.operate(Operation::Purge(alice()));
    let kept = rig.accept(&later);
    rig.load_from(&store, reflects);
    assert_eq!(rig.done(ticket), None);
    rig.commit();
    assert_eq!(rig.done(ticket), Some(outcome(1001, 0)));
    assert_eq!(rig.machine.stats().counters.live(), 2);
    rig.attach(1, "alice", "phone");
    rig.load_from(&store, reflects);
    assert_eq!(rig.offered(), [kept]);
    let standing = rig.machine.standing(&UserId::new("bob").unwrap(), bob);
    assert_eq!(standing, Standing::Live(Status::Accepted));
    let replayed = rig.replayed();
    assert_eq!(replayed.stats().counters, rig.machine.stats().counters);
}

#[test]
fn a_purge_of_somebody_for_whom_nothing_waits_is_done() {
    let mut rig = Rig::new();
    let ticket = rig.operate(Operation::Purge(alice()));
    assert_eq!(rig.done(ticket), Some(outcome(0, 0)));
    assert_eq!(rig.machine.stats().resident_users, 0);
}

#[test]
fn what_settles_while_an_operation_looks_in_memory_is_found_whoever_is_attached_or_leaves() {
    const MESSAGES: u32 = 600;
    for (attached, leaves) in [(false, false), (true, false), (true, true)] {
        let mut rig = Rig::new();
        for _ in 0..MESSAGES {
            rig.accept(&message("alice"));
        }
        if attached {
            rig.attach(1, "alice", "phone");
        }
        let before = rig.next;
        rig.input(Input::Settle { before });
        assert!(rig.survivors.last().unwrap().last);
        let operation = Operation::Purge(alice());
        rig.machine.handle(rig.now, Input::Operate { ticket: Ticket(9999), operation });
        // One slice.
        while let Some(action) = rig.machine.poll_action() {
            rig.act(action);
        }
        rig.machine.handle(rig.now, Input::Settled { before });
        if leaves {
            rig.machine.handle(rig.now, Input::Detach(LinkId(1)));
        }
        rig.drain();
        rig.commit();
        assert_eq!(rig.done(Ticket(9999)).unwrap().unwrap().messages, MESSAGES);
    }
}

#[test]
fn operations_are_refused_while_nothing_can_be_written_and_at_their_bound() {
    let config = Config { max_pending: core::num::NonZeroUsize::new(2).unwrap(), ..Config::default() };
    let mut rig = Rig::with(config);
    let message = message("alice");
    rig.accept(&message);
    rig.input(Input::Writable(false));
    let degraded = rig.cancel(&message);
    rig.input(Input::Writable(true));
    let open = [rig.cancel(&message), rig.cancel(&message)];
    let one_more = rig.cancel(&message);
    rig.commit();
    let room_again = rig.cancel(&message);
    rig.input(Input::Drain);
    let draining = rig.cancel(&message);
    let results = [degraded, one_more, room_again, draining].map(|ticket| rig.done(ticket).unwrap());
    let refusals = [
        OperationError::Degraded,
        OperationError::Overloaded,
        OperationError::NotWaiting,
        OperationError::ShuttingDown,
    ];
    assert_eq!(results, refusals.map(Err));
    assert_eq!(open.map(|ticket| rig.done(ticket)), [Some(outcome(1, 0)), Some(outcome(1, 0))]);
}

/// Found by the simulator: the one that was ending anyway was taken for the one that was meant.
#[test]
fn of_two_messages_with_one_id_the_one_that_is_not_ending_is_cancelled() {
    let mut rig = Rig::new();
    let id = MessageId::from_u128(5);
    let from = |sender: &str| to("alice").id(id).sender(sender).ordering_key(sender).build().unwrap();
    let first = rig.accept(&from("bob"));
    rig.attach(1, "alice", "phone");
    rig.accept(&from("carol"));
    rig.input(Input::Verdicts { link: LinkId(1), verdicts: vec![(first, Verdict::Delivered)] });
    let ticket = rig.operate(Operation::Cancel(target(id)));
    rig.commit();
    assert_eq!(rig.done(ticket), Some(outcome(1, 1)));
    assert_eq!(rig.machine.stats().counters.live(), 0);
}

/// Found by the simulator: what settled between two reads was found in memory and in the store, and counted twice.
#[test]
fn what_is_found_in_memory_and_in_the_store_counts_once() {
    let mut rig = Rig::born(Birth { store_empty: false, ..birth(Config::default()) });
    let accept = |at: u64| {
        Arc::new(Accept {
            message: message("alice"),
            at: Timestamp::from_millis(at),
            origin: None,
            admission: Admission::New,
            parent: None,
            device: None,
        })
    };
    let store = [(Seq::new(5), accept(1)), (rig.next, accept(2))];
    rig.machine.replay(store[1].0, &Record::Accept(store[1].1.clone()), true);
    rig.next = rig.next.plus(1);
    let ticket = rig.operate(Operation::Purge(alice()));
    let (load, query) = rig.loads.pop().unwrap();
    assert!(matches!(query, Query::User(_)), "{query:?}");
    let live = Some(held(1, store[0].1.message.cost()));
    rig.input(Input::Loaded {
        load,
        found: Box::new(Found::User { row: None, held: live, reflects: Seq::new(6) }),
    });
    rig.load_from(&store, rig.next);
    rig.commit();
    // The one in the store is of an epoch in which somebody was attached, for all that is known.
    assert_eq!(rig.done(ticket), Some(outcome(2, 1)));
}

/// Found by the simulator: the second one counted what the first one withdrew besides its own.
#[test]
fn two_operations_at_once_on_two_messages_with_one_id_withdraw_one_each() {
    let mut rig = Rig::new();
    let id = MessageId::from_u128(5);
    for sender in ["bob", "carol"] {
        rig.accept(&to("alice").id(id).sender(sender).build().unwrap());
    }
    let tickets = [0, 1, 2].map(|_| rig.operate(Operation::Cancel(target(id))));
    rig.commit();
    assert_eq!(tickets.map(|ticket| rig.done(ticket)), [0, 1, 2].map(|_| Some(outcome(1, 0))));
    assert_eq!(rig.machine.stats().counters.ended[EndReason::Cancelled.index()], 2);
}

/// Found by the simulator: what another one had cancelled was counted, and then one more was cancelled.
#[test]
fn a_cancellation_that_another_one_has_done_does_not_look_further() {
    let id = MessageId::from_u128(5);
    let from = |sender: &str| to("alice").id(id).sender(sender).build().unwrap();
    let (mut rig, store, reflects) = settled(&[from("carol")]);
    rig.accept(&from("bob"));
    let bob = Target { sender: Some(UserId::new("bob").ok()), ..target(id) };
    let first = rig.operate(Operation::Cancel(bob));
    rig.load_from(&store, reflects);
    let second = rig.operate(Operation::Cancel(target(id)));
    let (load, query) = rig.loads.pop().unwrap();
    assert!(matches!(query, Query::Page { .. }));
    rig.commit();
    assert_eq!((rig.done(first), rig.done(second)), (Some(outcome(1, 0)), Some(outcome(1, 0))));
    let page = Page { entries: store, damaged: Vec::new(), more_after: None, reflects };
    rig.input(Input::Loaded { load, found: Box::new(Found::Page(page)) });
    rig.commit();
    assert_eq!(rig.machine.stats().counters.live(), 1);
}

#[test]
fn an_operation_on_many_counts_what_it_ended_itself_and_waits_for_what_others_are_ending() {
    let mut rig = Rig::new();
    let messages = [(); 3].map(|()| message("alice"));
    for message in &messages {
        rig.accept(message);
    }
    let one = rig.cancel(&messages[1]);
    let first = rig.operate(Operation::Purge(alice()));
    let second = rig.operate(Operation::Purge(alice()));
    assert_eq!([one, first, second].map(|ticket| rig.done(ticket)), [None, None, None]);
    rig.commit();
    assert_eq!(rig.done(one), Some(outcome(1, 0)));
    assert_eq!((rig.done(first), rig.done(second)), (Some(outcome(2, 0)), Some(outcome(0, 0))));
}
