//! What waits for another message, after a crash, from the store, and when that cannot be read.

use super::*;

#[test]
fn a_crash_between_the_end_of_a_parent_and_what_follows_changes_nothing() {
    for otherwise in [Otherwise::Release, Otherwise::Cancel] {
        for delivered in [true, false] {
            let mut rig = Rig::new();
            rig.attach(1, "alice", "phone");
            let (parent, dependent) = pair(otherwise);
            let entry = rig.accept(&parent);
            rig.accept(&dependent);
            let verdict = if delivered { Verdict::Delivered } else { Verdict::Rejected };
            rig.input(Input::Verdicts { link: LinkId(1), verdicts: vec![(entry, verdict)] });
            let (commit, records) = rig.open.pop_front().unwrap();
            for record in records {
                rig.log.push((rig.next, record));
                rig.next = rig.next.plus(1);
            }
            let _ = commit;
            // The end is durable, and the process dies.
            let mut again = rig.again();
            assert_eq!(again.dependents().iter().filter(|row| row.ended.is_some()).count(), 1);
            again.attach(2, "alice", "phone");
            again.commit();
            let goes = delivered || otherwise == Otherwise::Release;
            assert_eq!(again.offered_ids(), if goes { vec![dependent.id()] } else { vec![] });
            assert_eq!(ended(&again, EndReason::Cancelled), u64::from(!goes));
        }
    }
}

#[test]
fn what_has_settled_is_read_and_goes_also_when_its_recipient_is_not_there() {
    let mut rig = Rig::new();
    let parents = [message("alice"), message("alice")];
    for parent in &parents {
        rig.accept(parent);
    }
    let dependents = parents.clone().map(|parent| after(&parent, Otherwise::Cancel));
    for dependent in &dependents {
        rig.accept(dependent);
    }
    let (row, store, reflects) = rig.settle_row();
    assert_eq!((row.dependents.len(), store.len()), (2, 4));
    let mut rig = Rig::over(&store, 2);
    let cancel = rig.operate(Operation::Cancel(target(parents[1].id())));
    rig.load_with(&store, &row, reflects);
    assert_eq!(rig.done(cancel).unwrap().unwrap().messages, 1);
    rig.load_with(&store, &row, reflects);
    assert_eq!((ended(&rig, EndReason::Cancelled), rig.machine.stats().counters.live()), (2, 2));
    rig.attach(1, "alice", "phone");
    rig.load_with(&store, &row, reflects);
    assert_eq!(rig.offered_ids(), [parents[0].id()]);
    rig.say(1, rig.offers[0].1.entry, Verdict::Delivered);
    rig.load_with(&store, &row, reflects);
    assert_eq!(rig.offered_ids(), [parents[0].id(), dependents[0].id()]);
}

/// The row says what the journal does not any more; what the journal says comes on top of it, wherever it begins.
#[test]
fn a_row_and_the_journal_together_say_how_a_parent_ended() {
    let (parent, dependent) = pair(Otherwise::Cancel);
    for from in 0..4 {
        let mut rig = Rig::new();
        rig.accept(&parent);
        rig.accept(&dependent);
        let (row, store, reflects) = rig.settle_row();
        let mut live = Rig::over(&store, 2);
        let mut log = Vec::new();
        match from {
            0 => {}
            1 => {
                let end = End {
                    user: alice(),
                    lane: LaneId::Normal,
                    seq: store[0].0,
                    id: None,
                    reason: EndReason::Delivered,
                    upgrades: None,
                    possibly_delivered: true,
                    attempts: 0,
                    cost: parent.cost(),
                    at: live.now,
                };
                log.push(Record::End(end));
            }
            moves => {
                // It was moved, and perhaps delivered where it went.
                let message = parent.with_priority(Priority::High);
                let admission = Admission::Moved;
                let moved = Accept { admission, ..Accept::new(message, live.now) };
                let end = |lane, seq, reason| End {
                    user: alice(),
                    lane,
                    seq,
                    id: None,
                    reason,
                    upgrades: None,
                    possibly_delivered: false,
                    attempts: 0,
                    cost: parent.cost(),
                    at: Timestamp::ZERO,
                };
                let to = Seq::first_of(Epoch(2));
                log.push(Record::Accept(Arc::new(moved)));
                log.push(Record::End(end(LaneId::Normal, store[0].0, EndReason::Moved)));
                if moves == 3 {
                    log.push(Record::End(end(LaneId::High, to, EndReason::Delivered)));
                }
            }
        }
        for record in &log {
            live.machine.replay(live.next, record, true);
            live.next = live.next.plus(1);
        }
        live.next = Seq::first_of(Epoch(3));
        live.attach(1, "alice", "phone");
        live.load_with(&store, &row, reflects);
        live.load_with(&store, &row, reflects);
        let goes = from == 1 || from == 3;
        let expected = if goes { dependent.id() } else { parent.id() };
        assert_eq!(live.offered_ids(), [expected], "{from}");
        if !goes {
            live.say(1, live.offers[0].1.entry, Verdict::Delivered);
            live.load_with(&store, &row, reflects);
            assert_eq!(live.offered_ids(), [parent.id(), dependent.id()], "{from}");
        }
    }
}

/// Found by the simulator: a settlement had written the row and came to nothing, and what had ended since waited again.
#[test]
fn what_a_row_names_and_the_journal_has_ended_does_not_wait_again() {
    let mut rig = Rig::new();
    let (parent, dependent) = pair(Otherwise::Cancel);
    rig.accept(&parent);
    rig.accept(&dependent);
    rig.input(Input::Settle { before: rig.next });
    let rows = core::mem::take(&mut rig.survivors).into_iter().flat_map(|part| part.rows);
    let (_, row) = rows.last().unwrap();
    let reflects = rig.next;
    rig.operate(Operation::Cancel(target(dependent.id())));
    rig.commit();
    assert_eq!(row.dependents.len(), 1);
    let born = Birth { store_empty: false, epoch: Epoch(2), ..birth(Config::default()) };
    let mut again = Rig::born(born);
    for (seq, record) in &rig.log {
        again.machine.replay(*seq, record, true);
    }
    again.attach(1, "alice", "phone");
    again.load_with(&[], &row, reflects);
    assert_eq!(again.dependents(), []);
}

#[test]
fn a_row_that_says_that_a_parent_has_ended_is_acted_upon_by_whoever_reads_it() {
    let mut rig = Rig::new();
    let (parent, dependent) = pair(Otherwise::Cancel);
    let entry = rig.accept(&parent);
    rig.accept(&dependent);
    let (mut row, store, reflects) = rig.settle_row();
    row.lanes[LaneId::Normal.index()].cursor = entry.seq;
    row.dependents[0].ended = Some(ParentEnd::Otherwise);
    let mut rig = Rig::over(&store, 2);
    let locate = rig.operate(Operation::Locate(target(dependent.id())));
    rig.load_with(&store, &row, reflects);
    rig.load_with(&store, &row, reflects);
    assert!(rig.done(locate).unwrap().is_ok());
    assert_eq!(ended(&rig, EndReason::Cancelled), 1);
}

#[test]
fn a_store_that_cannot_be_read_delays_it_and_loses_nothing() {
    let mut rig = Rig::new();
    let (parent, dependent) = pair(Otherwise::Cancel);
    rig.accept(&parent);
    rig.accept(&dependent);
    let (row, store, reflects) = rig.settle_row();
    let mut rig = Rig::over(&store, 2);
    rig.attach(1, "alice", "phone");
    rig.load_with(&store, &row, reflects);
    rig.input(Input::Verdicts {
        link: LinkId(1),
        verdicts: vec![(rig.offers[0].1.entry, Verdict::Delivered)],
    });
    let (commit, _) = rig.open.pop_front().unwrap();
    rig.input(Input::Persisted { commit, first: rig.next });
    rig.next = rig.next.plus(1);
    let pages: Vec<_> =
        rig.loads.drain(..).filter(|(_, query)| matches!(query, Query::Page { .. })).collect();
    for (load, _) in pages {
        rig.input(Input::LoadFailed(load));
    }
    assert_eq!(rig.offers.len(), 1);
    rig.pass(Duration::from_secs(2));
    rig.load_with(&store, &row, reflects);
    assert_eq!(rig.offered_ids(), [parent.id(), dependent.id()]);
}
