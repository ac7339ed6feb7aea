//! How far people have read.

use super::devices::alice;
use super::*;
use crate::id::OrderingKey;
use crate::record::{ReadMark, ReadRow};

fn room(name: &str) -> Option<OrderingKey> {
    Some(OrderingKey::new(name).unwrap())
}

impl Rig {
    fn mark(&mut self, name: &str, up_to: Seq) -> Option<ReadMark> {
        self.settled_by(Operation::MarkRead(alice(), room(name), up_to)).unwrap().read
    }

    fn read(&mut self, name: &str) -> Option<Seq> {
        self.settled_by(Operation::ReadUpTo(alice(), room(name))).unwrap().read.map(|mark| mark.up_to)
    }

    fn marks(&self) -> Vec<ReadRow> {
        self.machine.snapshot(&alice()).and_then(|user| user.reads).unwrap_or_default()
    }
}

#[test]
fn a_mark_only_rises_and_never_over_what_was_accepted() {
    let mut rig = Rig::new();
    let places: Vec<_> = (0..3).map(|_| rig.accept(&message("alice")).seq).collect();
    assert_eq!(rig.read("a"), None);
    let first = rig.mark("a", places[1]);
    assert_eq!(first, Some(ReadMark { up_to: places[1], at: rig.now }));
    rig.pass(Duration::from_secs(1));
    assert_eq!(rig.mark("a", places[0]), first, "since when it was first said");
    assert_eq!((rig.mark("a", places[1]), rig.read("a"), rig.read("b")), (first, Some(places[1]), None));
    let applied = rig.next.prev();
    assert_eq!(
        rig.mark("a", Seq::MAX).map(|mark| mark.up_to),
        Some(applied),
        "nobody has read what is to come"
    );
    let later = rig.accept(&message("alice"));
    assert!(rig.read("a").unwrap() < later.seq);
}

#[test]
fn a_mark_is_said_to_be_there_when_it_is_durable_and_comes_back() {
    let mut rig = Rig::new();
    let place = rig.accept(&message("alice")).seq;
    rig.tickets += 2;
    let [first, second] = [Ticket(rig.tickets - 1), Ticket(rig.tickets)];
    for ticket in [first, second] {
        rig.input(Input::Operate { ticket, operation: Operation::MarkRead(alice(), room("a"), place) });
    }
    assert!(rig.done.is_empty(), "nothing is durable");
    let records: usize = rig.open.iter().map(|(_, records)| records.len()).sum();
    assert_eq!(records, 1, "the second has nothing to add");
    assert_eq!(rig.machine.snapshot(&alice()).and_then(|user| user.reads), Some(vec![]));
    rig.commit();
    let told: Vec<_> = rig.done.iter().map(|(ticket, done)| (*ticket, done.as_ref().unwrap().read)).collect();
    let mark = Some(ReadMark { up_to: place, at: rig.now });
    assert_eq!(told, [(first, mark), (second, mark)]);
    let marks = rig.marks();
    assert_eq!(rig.replayed().snapshot(&alice()).and_then(|user| user.reads), Some(marks.clone()));
    let rows: Vec<_> = settle(&mut rig).into_iter().flat_map(|part| part.rows).collect();
    assert_eq!(rows.iter().map(|(_, row)| row.reads.clone()).collect::<Vec<_>>(), [marks]);
}

#[test]
fn a_mark_whose_commit_failed_goes_into_the_next_one() {
    let mut rig = Rig::new();
    let place = rig.accept(&message("alice")).seq;
    rig.tickets += 1;
    let ticket = Ticket(rig.tickets);
    rig.input(Input::Operate { ticket, operation: Operation::MarkRead(alice(), room("a"), place) });
    let (commit, _) = rig.open.pop_front().unwrap();
    rig.input(Input::Writable(false));
    rig.input(Input::PersistFailed { commit, unknown: false });
    assert!(rig.done.is_empty());
    rig.input(Input::Writable(true));
    rig.commit();
    assert_eq!((rig.done.len(), rig.read("a")), (1, Some(place)));
}

#[test]
fn of_more_conversations_than_are_kept_those_that_lie_furthest_back_are_forgotten() {
    let max = 2;
    let mut rig = Rig::with(Config { max_read_marks: NonZeroUsize::new(max).unwrap(), ..Config::default() });
    let places: Vec<_> = (0..5).map(|_| rig.accept(&message("alice")).seq).collect();
    for (n, name) in ["a", "b", "c"].into_iter().enumerate() {
        assert!(rig.mark(name, places[n]).is_some());
        assert_eq!(rig.marks().len(), (n + 1).min(max));
    }
    assert_eq!(["a", "b", "c"].map(|name| rig.read(name)), [None, Some(places[1]), Some(places[2])]);
    assert_eq!(rig.mark("d", places[0]), None, "and so it is said");
    assert_eq!(rig.mark("a", places[4]).map(|mark| mark.up_to), Some(places[4]));
    assert_eq!(["a", "b", "c"].map(|name| rig.read(name)), [Some(places[4]), None, Some(places[2])]);
    // Whatever comes first: the store's rows, or what the journal says.
    assert_eq!(rig.replayed().snapshot(&alice()).and_then(|user| user.reads), Some(rig.marks()));
}

/// Found by a review: whoever waited until it was read went on waiting.
#[test]
fn a_mark_that_is_forgotten_in_its_own_commit_is_announced_all_the_same() {
    let max_read_marks = NonZeroUsize::new(1).unwrap();
    let mut rig = Rig::with(Config { max_read_marks, ..Config::default() });
    let [behind, ahead] = [(); 2].map(|()| rig.accept(&message("alice")).seq);
    rig.mark("a", ahead);
    rig.marked.clear();
    assert_eq!(rig.mark("b", behind), None);
    assert_eq!(rig.marked, [ReadMark { up_to: behind, at: rig.now }]);
}

#[test]
fn each_mark_is_announced_once_it_is_durable_once_and_as_what_it_is() {
    let mut rig = Rig::new();
    let places: Vec<_> = (0..3).map(|_| rig.accept(&message("alice")).seq).collect();
    for place in [places[0], places[0], places[1], places[0]] {
        rig.tickets += 1;
        let operation = Operation::MarkRead(alice(), room("a"), place);
        rig.input(Input::Operate { ticket: Ticket(rig.tickets), operation });
    }
    assert_eq!(rig.marked, [], "nothing is durable");
    rig.commit();
    rig.mark("a", places[1]);
    rig.mark("a", places[2]);
    let up_to: Vec<_> = rig.marked.iter().map(|mark| mark.up_to).collect();
    assert_eq!(up_to, places);
}
