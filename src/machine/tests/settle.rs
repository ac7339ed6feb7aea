//! Settling and loading: what leaves memory, and how it comes back.

use super::*;

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
    assert!(matches!(query, Query::User(_) | Query::Row(_)));
    let found = Found::User { row: None, held: Some(held(1, old.cost())), reflects: parts[0].before };
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
        assert!(matches!(query, Query::User(_) | Query::Row(_)));
        let found = Found::User { row: None, held: Some(held(1, 1)), reflects: settled };
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

/// Found by review: with as many users to be read as one slice takes, settling was never taken up again.
#[test]
fn settling_goes_on_when_many_rows_must_be_read_first() {
    const USERS: usize = 300;
    let mut rig = born_of_exposures(USERS);
    rig.input(Input::Settle { before: rig.next });
    let mut read = 0;
    while let Some((load, query)) = rig.loads.pop() {
        assert!(matches!(query, Query::User(_) | Query::Row(_)), "{query:?}");
        let found = Found::User { row: None, held: Some(held(0, 0)), reflects: Seq::ZERO };
        rig.input(Input::Loaded { load, found: Box::new(found) });
        read += 1;
    }
    assert_eq!(read, USERS);
    assert!(rig.survivors.last().unwrap().last);
    assert_eq!(rig.survivors.iter().map(|part| part.rows.len()).sum::<usize>(), USERS);
}

/// A machine that was born of a journal with one exposure for each of so many users.
fn born_of_exposures(users: usize) -> Rig {
    let mut rig = Rig::born(Birth { store_empty: false, ..birth(Config::default()) });
    for n in 0..users {
        let user = UserId::new(format!("user-{n}")).unwrap();
        let exposed = Record::Exposed(crate::record::Exposed { user, epoch: Epoch(1) });
        rig.machine.replay(rig.next, &exposed, true);
        rig.next = rig.next.plus(1);
    }
    rig
}

/// Found by the settle benchmark: 128 rows and totals were asked for at once, and somebody who came waited 50 ms.
#[test]
fn somebody_who_comes_while_settling_reads_rows_waits_behind_few_of_them() {
    let mut rig = born_of_exposures(300);
    rig.input(Input::Settle { before: rig.next });
    assert!(rig.loads.len() <= 8, "{}", rig.loads.len());
    assert!(rig.loads.iter().all(|(_, query)| matches!(query, Query::Row(_))));
    rig.attach(1, "alice", "phone");
    assert!(matches!(rig.loads.last(), Some((_, Query::User(_)))));
}

#[test]
fn somebody_who_comes_while_their_row_is_read_gets_their_totals_and_then_their_messages() {
    let mut rig = born_of_exposures(1);
    rig.input(Input::Settle { before: rig.next });
    rig.attach(1, "user-0", "phone");
    let reflects = Seq::ZERO;
    let (load, query) = rig.loads.pop().unwrap();
    assert!(matches!(query, Query::Row(_)) && rig.loads.is_empty());
    rig.input(Input::Loaded { load, found: Box::new(Found::User { row: None, held: None, reflects }) });
    let (load, query) = rig.loads.pop().unwrap();
    assert!(matches!(query, Query::User(_)) && rig.loads.is_empty());
    let found = Found::User { row: None, held: Some(held(1, 1)), reflects };
    rig.input(Input::Loaded { load, found: Box::new(found) });
    assert!(matches!(rig.loads.last(), Some((_, Query::Page { .. }))));
}

/// Found by the simulator: a send that had waited for the row asked for the totals, and settling went on waiting.
#[test]
fn settling_goes_on_with_a_row_though_the_totals_are_still_being_read() {
    let mut rig = born_of_exposures(1);
    rig.input(Input::Settle { before: rig.next });
    rig.send(&message("user-0"));
    let (load, _) = rig.loads.pop().unwrap();
    rig.input(Input::Loaded { load, found: Box::new(Found::Sender(Vec::new())) });
    let (load, query) = rig.loads.pop().unwrap();
    assert!(matches!(query, Query::Row(_)) && rig.loads.is_empty());
    let found = Found::User { row: None, held: None, reflects: Seq::ZERO };
    rig.input(Input::Loaded { load, found: Box::new(found) });
    assert!(matches!(rig.loads.as_slice(), [(_, Query::User(_))]));
    assert!(rig.survivors.last().is_some_and(|part| part.last));
}

/// Found by the simulator: the last row came while settling still handed out others.
#[test]
fn rows_that_come_before_settling_waits_for_them_do_not_leave_it_waiting() {
    const USERS: u64 = 200;
    let mut rig = born_of_exposures(USERS as usize);
    let nothing = |live| Box::new(Found::User { row: None, held: live, reflects: Seq::ZERO });
    for n in 0..USERS - 1 {
        rig.attach(n, &format!("user-{n}"), "phone");
        let (load, _) = rig.loads.pop().unwrap();
        rig.input(Input::Loaded { load, found: nothing(Some(held(0, 0))) });
    }
    rig.machine.handle(rig.now, Input::Settle { before: rig.next });
    for _ in 0..USERS {
        while let Some(action) = rig.machine.poll_action() {
            match action {
                Action::Load { load, .. } => {
                    rig.machine.handle(rig.now, Input::Loaded { load, found: nothing(None) });
                }
                other => rig.act(other),
            }
        }
        rig.machine.handle(rig.now, Input::Tick);
    }
    assert!(rig.survivors.last().is_some_and(|part| part.last));
    assert_eq!(rig.survivors.iter().map(|part| part.rows.len()).sum::<usize>(), USERS as usize);
}

/// Found by review: somebody who left and came back while it was recorded had the same damage counted twice; and their
/// row said that it had ended before that was durable.
#[test]
fn a_damaged_message_ends_once_and_not_before_its_end_is_durable() {
    let mut rig = Rig::born(Birth { store_empty: false, settled: Seq::new(100), ..birth(Config::default()) });
    let (entry, reflects) = (Seq::new(50), Seq::new(100));
    let alice = UserId::new("alice").unwrap();
    let mut rows = 0;
    for link in 1..4 {
        let device = DeviceId::new("phone").unwrap();
        rig.input(Input::Attach { link: LinkId(link), user: alice.clone(), device });
        while let Some((load, query)) = rig.loads.pop() {
            let found = match query {
                Query::User(_) | Query::Row(_) => Found::User { row: None, held: Some(held(1, 1)), reflects },
                Query::Page { lane, .. } => {
                    let damaged = if lane == Priority::Normal { vec![(entry, 1)] } else { Vec::new() };
                    Found::Page(Page { entries: Vec::new(), damaged, more_after: None, reflects })
                }
                other => panic!("{other:?}"),
            };
            rig.input(Input::Loaded { load, found: Box::new(found) });
        }
        if link == 1 {
            // That somebody was attached has settled: this does not keep the user in memory.
            let (commit, records) = rig.open.pop_front().unwrap();
            assert!(matches!(records[..], [Record::Exposed(_)]), "{records:?}");
            rig.log.push((rig.next, records[0].clone()));
            rig.next = rig.next.plus(1);
            rig.input(Input::Persisted { commit, first: rig.next.prev() });
            rows += settle(&mut rig).into_iter().map(|part| part.rows.len()).sum::<usize>();
        }
        rig.input(Input::Detach(LinkId(link)));
        assert!(rig.machine.snapshot(&alice).unwrap().lanes[Priority::Normal.index()].cursor < entry);
    }
    assert_eq!(rows, 1);
    rig.commit();
    let stats = rig.machine.stats();
    assert_eq!((stats.damaged, stats.counters.ended[EndReason::Dead.index()]), (1, 1));
    settle(&mut rig);
    assert_eq!(rig.machine.stats().resident_users, 0);
}

#[test]
fn what_leaves_memory_leaves_no_timer_behind() {
    let (few, one) = (core::num::NonZeroUsize::new(4).unwrap(), core::num::NonZeroU32::MIN);
    let mut rig = Rig::with(Config { max_resident: few, max_in_flight: one, ..Config::default() });
    rig.attach(1, "alice", "phone");
    for _ in 0..100 {
        rig.accept(&to("alice").ttl(Duration::from_secs(3600)).build().unwrap());
    }
    settle(&mut rig);
    let alice = rig.machine.users.get(&UserId::new("alice").unwrap()).unwrap();
    let lane = alice.lane_ref(Priority::Normal);
    assert_eq!((lane.entries.len(), lane.timers()), (4, 4));
}

/// Found by the simulator: a message that was accepted and ended before anything of its user was read, and was never
/// stored, was taken off the totals that were read later.
#[test]
fn a_message_that_ended_before_it_could_settle_is_not_taken_off_totals_that_are_read_later() {
    let mut rig = Rig::new();
    rig.attach(1, "alice", "phone");
    let entry = rig.accept(&message("alice"));
    rig.say(1, entry, Verdict::Delivered);
    let mut reborn = Rig::born(Birth { epoch: Epoch(2), store_empty: false, ..birth(Config::default()) });
    for (seq, record) in rig.log.iter().filter(|(_, record)| !matches!(record, Record::Exposed(_))) {
        reborn.machine.replay(*seq, record, true);
    }
    let reflects = reborn.next;
    settle(&mut reborn);
    reborn.operate(Operation::Purge(UserId::new("alice").unwrap()));
    let (load, query) = reborn.loads.pop().unwrap();
    assert!(matches!(query, Query::User(_)), "{query:?}");
    let live = Some(held(3, 3000));
    reborn.input(Input::Loaded { load, found: Box::new(Found::User { row: None, held: live, reflects }) });
    let totals = reborn.machine.snapshot(&UserId::new("alice").unwrap()).unwrap().totals;
    assert_eq!(totals, live);
}

/// Found by the simulator, in a long life: a page that was read before a message settled was taken for the truth after it
/// had left memory, and the message was never offered again.
#[test]
fn a_page_that_was_read_before_something_left_memory_is_read_again() {
    let mut rig = Rig::born(Birth { store_empty: false, ..birth(Config::default()) });
    let accept = crate::record::Accept::new(message("alice"), rig.now);
    let (entry, accept) = (rig.next, std::sync::Arc::new(accept));
    rig.machine.replay(entry, &Record::Accept(accept.clone()), true);
    rig.next = rig.next.plus(1);
    let attach = |rig: &mut Rig, link| {
        let (user, device) = (UserId::new("alice").unwrap(), DeviceId::new("phone").unwrap());
        rig.input(Input::Attach { link: LinkId(link), user, device });
    };
    attach(&mut rig, 1);
    let (load, query) = rig.loads.pop().unwrap();
    assert!(matches!(query, Query::User(_)), "{query:?}");
    let live = Some(held(1, 1));
    rig.input(Input::Loaded {
        load,
        found: Box::new(Found::User { row: None, held: live, reflects: entry }),
    });
    let early = core::mem::take(&mut rig.loads);
    rig.commit();
    settle(&mut rig);
    rig.input(Input::Detach(LinkId(1)));
    attach(&mut rig, 2);
    let page =
        |entries| Box::new(Found::Page(Page { entries, damaged: vec![], more_after: None, reflects: entry }));
    for (load, _) in early {
        rig.input(Input::Loaded { load, found: page(vec![]) });
    }
    while let Some((load, query)) = rig.loads.pop() {
        let Query::Page { lane, .. } = query else { panic!("{query:?}") };
        let entries = if lane == Priority::Normal { vec![(entry, accept.clone())] } else { vec![] };
        rig.input(Input::Loaded { load, found: page(entries) });
    }
    rig.commit();
    assert_eq!(rig.offers.iter().filter(|(link, _)| *link == LinkId(2)).count(), 1);
}

/// Whoever comes does not wait for the store and then for the disk; and what was exposed in earlier lives is not
/// mistaken for what is exposed now.
#[test]
fn somebody_who_must_be_read_is_exposed_meanwhile_and_gets_new_messages_as_new() {
    for (exposed, commits_first) in [(0, false), (0, true), (1, false), (1, true)] {
        let birth = Birth { epoch: Epoch(2), store_empty: false, ..birth(Config::default()) };
        let mut rig = Rig::born(Birth { settled: Seq::first_of(Epoch(2)), ..birth });
        let (user, device) = (UserId::new("alice").unwrap(), DeviceId::new("phone").unwrap());
        rig.input(Input::Attach { link: LinkId(1), user, device });
        assert_eq!((rig.open.len(), rig.loads.len()), (1, 1));
        if commits_first {
            rig.commit();
        }
        let message = message("alice");
        let (seq, reflects) = (Seq::new((1 << Seq::EPOCH_SHIFT) + 7), Seq::first_of(Epoch(2)));
        let row = UserRow { exposed: Epoch(exposed), reflects, ..UserRow::default() };
        let live = Some(held(1, message.cost()));
        let (load, _) = rig.loads.pop().unwrap();
        rig.input(Input::Loaded {
            load,
            found: Box::new(Found::User { row: Some(Box::new(row)), held: live, reflects }),
        });
        let at = Timestamp::from_millis(5);
        let accept = std::sync::Arc::new(crate::record::Accept::new(message, at));
        for (load, query) in core::mem::take(&mut rig.loads) {
            let Query::Page { lane, .. } = query else { panic!("{query:?}") };
            let entries = if lane == Priority::Normal { vec![(seq, accept.clone())] } else { Vec::new() };
            let page = Page { entries, damaged: Vec::new(), more_after: None, reflects };
            rig.input(Input::Loaded { load, found: Box::new(Found::Page(page)) });
        }
        assert_eq!(rig.offers.is_empty(), !commits_first);
        rig.commit();
        let redelivered: Vec<_> = rig.offers.iter().map(|(_, delivery)| delivery.redelivered).collect();
        assert_eq!(redelivered, [exposed > 0], "{exposed} {commits_first}");
        let exposures = rig.log.iter().filter(|(_, record)| matches!(record, Record::Exposed(_)));
        assert_eq!(exposures.count(), 1);
    }
}

/// Found by the simulator: what expired while its recipient was being read was said to be undelivered for certain.
#[test]
fn nothing_expires_before_it_is_known_what_may_have_been_delivered() {
    let birth = Birth { epoch: Epoch(2), store_empty: false, ..birth(Config::default()) };
    let mut rig = Rig::born(birth);
    let seq = Seq::new((1 << Seq::EPOCH_SHIFT) + 7);
    let message = to("alice").ttl(Duration::from_secs(1)).build().unwrap();
    let accept = crate::record::Accept::new(message, rig.now);
    rig.machine.replay(seq, &Record::Accept(std::sync::Arc::new(accept)), true);
    rig.attach(1, "alice", "phone");
    rig.pass(Duration::from_secs(2));
    assert!(rig.log.iter().all(|(_, record)| matches!(record, Record::Exposed(_))));
    let (load, _) = rig.loads.pop().unwrap();
    let row = UserRow { exposed: Epoch(1), ..UserRow::default() };
    let found = Found::User { row: Some(Box::new(row)), held: Some(held(0, 0)), reflects: Seq::ZERO };
    rig.input(Input::Loaded { load, found: Box::new(found) });
    rig.pass(Duration::from_secs(1));
    let ended = rig.log.iter().find_map(|(_, record)| match record {
        Record::End(end) => Some((end.reason, end.possibly_delivered)),
        _ => None,
    });
    assert_eq!(ended, Some((EndReason::Expired, true)));
}

/// Found by review: an exposure was recorded for every attachment of somebody who had left memory.
#[test]
fn somebody_who_comes_back_in_the_same_epoch_is_not_exposed_again() {
    let mut rig = Rig::born(Birth { store_empty: false, ..birth(Config::default()) });
    let mut rows = Vec::new();
    for link in 1..4 {
        rig.attach(link, "alice", "phone");
        while let Some((load, query)) = rig.loads.pop() {
            let row: Option<&UserRow> = rows.last();
            let found = match query {
                Query::User(_) | Query::Row(_) => {
                    let row = row.cloned().map(Box::new);
                    Found::User { row, held: Some(held(0, 0)), reflects: rig.machine.settled }
                }
                _ => Found::Page(Page {
                    entries: Vec::new(),
                    damaged: Vec::new(),
                    more_after: None,
                    reflects: rig.machine.settled,
                }),
            };
            rig.input(Input::Loaded { load, found: Box::new(found) });
        }
        rig.commit();
        rig.input(Input::Detach(LinkId(link)));
        rows.extend(settle(&mut rig).into_iter().flat_map(|part| part.rows).map(|(_, row)| row));
        assert_eq!(rig.machine.stats().resident_users, 0);
    }
    assert_eq!(rig.log.len(), 1, "{:?}", rig.log);
}

/// Found by review: nobody let go of somebody whose totals could not be read while what they had ended settled.
#[test]
fn somebody_who_could_not_be_read_leaves_memory_all_the_same() {
    let settled = Seq::first_of(Epoch(1));
    let birth = Birth { epoch: Epoch(2), settled, store_empty: false, ..birth(Config::default()) };
    let mut rig = Rig::born(birth);
    let end = crate::record::End {
        user: UserId::new("alice").unwrap(),
        lane: LaneId::Normal,
        seq: settled.prev(),
        reason: EndReason::Delivered,
        upgrades: None,
        possibly_delivered: true,
        attempts: 0,
        cost: 1,
        at: rig.now,
    };
    rig.machine.replay(settled, &Record::End(end), true);
    let before = rig.next;
    rig.input(Input::Settle { before });
    let (load, _) = rig.loads.pop().unwrap();
    let found = Found::User { row: None, held: None, reflects: settled };
    rig.input(Input::Loaded { load, found: Box::new(found) });
    rig.send(&message("alice"));
    let (load, _) = rig.loads.pop().unwrap();
    rig.input(Input::Loaded { load, found: Box::new(Found::Sender(Vec::new())) });
    rig.input(Input::Settled { before });
    let (load, query) = rig.loads.pop().unwrap();
    assert!(matches!(query, Query::User(_)));
    rig.input(Input::LoadFailed(load));
    rig.pass(Duration::from_secs(2));
    assert!(rig.loads.is_empty());
    assert_eq!(rig.machine.stats().resident_users, 0);
}
