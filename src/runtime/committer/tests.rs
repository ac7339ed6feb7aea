//! What drivers are told, in which order, when the journal fails: with a journal that does as it is told.

use std::collections::VecDeque;

use super::super::mail::Note;
use super::*;
use crate::machine::{CommitId, JointId};
use crate::ports::{Appended, JournalSpace, Replay};

/// What a call of the journal does before it returns.
type Script<T> = VecDeque<(Result<T, JournalError>, Vec<Order>)>;

/// Answers by its script, then well; sends orders on the way.
struct Scripted {
    orders: Sender<Order>,
    appends: Script<Appended>,
    syncs: Script<()>,
    heals: Script<()>,
    /// The places of each group that it was given, written or not.
    groups: Arc<std::sync::Mutex<Vec<(u64, u32)>>>,
}

fn play<T>(script: &mut Script<T>, orders: &Sender<Order>, otherwise: T) -> Result<T, JournalError> {
    let (result, then) = script.pop_front().unwrap_or((Ok(otherwise), Vec::new()));
    then.into_iter().for_each(|order| orders.send(order).unwrap());
    result
}

impl Journal for Scripted {
    fn replay(
        &mut self,
        _: Seq,
        _: &mut dyn FnMut(Group<'_>) -> Result<(), String>,
    ) -> Result<Replay, JournalError> {
        Ok(Replay::default())
    }

    fn begin(&mut self, _: Epoch) -> Result<(), JournalError> {
        Ok(())
    }

    fn append(&mut self, _: Epoch, group: Group<'_>, _: bool) -> Result<Appended, JournalError> {
        self.groups.lock().unwrap().push((group.first.get() & 0xFF, group.count));
        play(&mut self.appends, &self.orders, Appended { sealed_before: None })
    }

    fn sync(&mut self, _: Epoch) -> Result<(), JournalError> {
        play(&mut self.syncs, &self.orders, ())
    }

    fn heal(&mut self, _: Epoch) -> Result<(), JournalError> {
        play(&mut self.heals, &self.orders, ())
    }

    fn recycle(&mut self, _: Epoch, _: Seq) -> Result<(), JournalError> {
        Ok(())
    }

    fn space(&self) -> JournalSpace {
        JournalSpace { segments: 4, free: 2, segment_bytes: 1 << 16, max_group_bytes: 1 << 14 }
    }
}

fn io() -> JournalError {
    JournalError::Io { op: "sync", source: std::io::Error::other("scripted") }
}

fn commit(shard: usize, commit: u64, generation: u64, accepts: bool) -> Order {
    let commit = CommitId(commit);
    Order::Commit(Request {
        ends: Vec::new(),
        whose: Whose::Shard { shard, generation, commit },
        count: 1,
        accepts,
        written: false,
        records: vec![0; 10],
    })
}

/// A batch with two records for the first shard and one for the second.
fn joint(joint: u64, generations: [u64; 2]) -> Order {
    let share = |(shard, generation)| Share { shard, generation, count: 2 - shard as u32 };
    let shares = generations.into_iter().enumerate().map(share).collect();
    Order::Commit(Request {
        ends: Vec::new(),
        whose: Whose::Joint { joint: JointId(joint), shares },
        count: 3,
        accepts: true,
        written: false,
        records: vec![0; 30],
    })
}

/// Runs a committer of two shards over these orders to its end; what each driver was told.
fn run(
    first: Vec<Order>,
    store_down: bool,
    script: impl FnOnce(&mut Scripted),
) -> Vec<Vec<(&'static str, u64)>> {
    run_on(first, store_down, |mut journal| {
        script(&mut journal);
        Box::new(journal)
    })
}

/// The same, on a journal that is made of a scripted one.
fn run_on(
    first: Vec<Order>,
    store_down: bool,
    make: impl FnOnce(Scripted) -> Box<dyn Journal>,
) -> Vec<Vec<(&'static str, u64)>> {
    let (sender, orders) = crossbeam_channel::unbounded();
    let (keeper, _events) = crossbeam_channel::unbounded();
    let journal = Scripted {
        orders: sender.clone(),
        appends: VecDeque::new(),
        syncs: VecDeque::new(),
        heals: VecDeque::new(),
        groups: Arc::default(),
    };
    let journal = make(journal);
    let mut told = Vec::new();
    let mut shards = Vec::new();
    for _ in 0..2 {
        let (notes, note) = tokio::sync::mpsc::unbounded_channel();
        let (mail, _) = tokio::sync::mpsc::channel(1);
        shards.push(Post { mail, notes });
        told.push(note);
    }
    let gauge = Arc::new(JournalGauge::default());
    gauge.store_down.store(store_down, Ordering::Relaxed);
    let (epoch, next) = (Epoch(1), Seq::first_of(Epoch(1)));
    let committer = Committer {
        journal,
        epoch,
        next,
        orders,
        shards,
        keeper,
        gauge,
        meters: Arc::default(),
        ends: Arc::default(),
        ended: tokio::sync::watch::Sender::new(Seq::ZERO),
        generation: 0,
        recycled: 0,
    };
    first.into_iter().for_each(|order| sender.send(order).unwrap());
    committer.run();
    told.into_iter()
        .map(|mut notes| {
            let mut seen = Vec::new();
            while let Ok(Note::Input(input)) = notes.try_recv() {
                seen.push(match input {
                    Input::Persisted { commit, .. } => ("stored", commit.0),
                    Input::PersistFailed { commit, unknown: true } => ("unknown", commit.0),
                    Input::PersistFailed { commit, unknown: false } => ("failed", commit.0),
                    Input::JointPersisted { first, .. } => ("joint", first.get() & 0xFF),
                    Input::JointFailed { joint, unknown: true } => ("joint unknown", joint.0),
                    Input::JointFailed { joint, unknown: false } => ("joint failed", joint.0),
                    Input::Writable(writable) => ("writable", u64::from(writable)),
                    Input::Written(_) => continue,
                    other => panic!("{other:?}"),
                });
            }
            seen
        })
        .collect()
}

#[test]
fn commits_that_wait_share_a_sync_and_are_stored_in_order_before_a_stop() {
    let orders = vec![commit(0, 1, 0, true), commit(1, 1, 0, true), commit(0, 2, 0, false), Order::Stop];
    let told = run(orders, false, |journal| {
        // A second sync would fail.
        journal.syncs = [(Ok(()), vec![]), (Err(io()), vec![])].into();
    });
    assert_eq!(told, [vec![("stored", 1), ("stored", 2)], vec![("stored", 1)]]);
}

/// Found by review: a commit that was still on its way when an earlier one failed was stored, and its messages came
/// before those that had failed and were sent again.
#[test]
fn a_commit_handed_out_before_its_driver_knew_of_a_failure_fails_even_after_the_heal() {
    let told = run(vec![commit(0, 1, 0, true)], false, |journal| {
        journal.syncs = [(Err(io()), vec![]), (Ok(()), vec![Order::Stop])].into();
        let late = vec![commit(0, 2, 0, true), commit(1, 1, 0, true), commit(0, 3, 1, true)];
        journal.heals = [(Ok(()), late)].into();
    });
    let around = [("writable", 0), ("unknown", 1), ("writable", 1), ("failed", 2), ("stored", 3)];
    assert_eq!(told[0], around);
    assert_eq!(told[1], [("writable", 0), ("writable", 1), ("failed", 1)]);
}

#[test]
fn while_the_journal_heals_every_commit_is_given_back() {
    let told = run(vec![commit(0, 1, 0, true)], false, |journal| {
        journal.appends = [(Err(io()), vec![commit(0, 2, 0, true)])].into();
        journal.heals = [(Err(io()), vec![commit(0, 3, 0, false)]), (Ok(()), vec![Order::Stop])].into();
    });
    assert_eq!(told[0], [("writable", 0), ("unknown", 1), ("failed", 2), ("writable", 1), ("failed", 3)]);
}

/// Found by review: facts went past a commit with messages of the same driver that had failed.
#[test]
fn a_full_journal_takes_facts_on_its_reserve_up_to_the_first_message_of_each_driver() {
    let orders = vec![
        commit(0, 1, 0, false),
        commit(0, 2, 0, true),
        commit(0, 3, 0, false),
        commit(1, 1, 0, false),
        commit(1, 2, 0, false),
    ];
    let told = run(orders, true, |journal| {
        journal.appends = [(Err(JournalError::Full), vec![])].into();
        journal.syncs = [(Ok(()), vec![Order::Recycle(Seq::ZERO), Order::Stop])].into();
    });
    let stored: Vec<_> = told
        .iter()
        .map(|told| told.iter().filter(|(what, _)| *what != "writable").copied().collect::<Vec<_>>())
        .collect();
    assert_eq!(stored[0], [("stored", 1), ("failed", 2), ("failed", 3)]);
    assert_eq!(stored[1], [("stored", 1), ("stored", 2)]);
    assert_eq!(told[0].last(), Some(&("writable", 1)));
}

/// Found by review: they were told to be gone, and their places were given out again. The journal then said of a place behind
/// theirs that it was sealed, and what was accepted before that place was reached counted as settled, and was lost.
#[test]
fn facts_whose_write_on_the_reserve_failed_are_unknown_and_their_places_are_not_given_out_again() {
    let mut groups = Arc::default();
    let full = || (Err(JournalError::Full), vec![]);
    let heals: [Script<()>; 2] = [
        [(Ok(()), vec![Order::Recycle(Seq::ZERO), commit(0, 9, 3, true), Order::Stop])].into(),
        // Room is made while it heals: nobody would say so again.
        [(Err(io()), vec![Order::Recycle(Seq::ZERO)]), (Ok(()), vec![commit(0, 9, 2, true), Order::Stop])]
            .into(),
    ];
    for heals in heals {
        let orders = vec![commit(0, 1, 0, false), commit(0, 2, 0, false), commit(0, 3, 0, true)];
        let told = run(orders, true, |journal| {
            journal.appends = [full(), (Err(io()), vec![])].into();
            journal.heals = heals;
            groups = journal.groups.clone();
        });
        let commits: Vec<_> = told[0].iter().filter(|(what, _)| *what != "writable").copied().collect();
        assert_eq!(commits, [("unknown", 1), ("unknown", 2), ("failed", 3), ("stored", 9)]);
        assert_eq!(*groups.lock().unwrap(), [(0, 3), (0, 2), (2, 1)]);
    }
}

/// Found by review.
#[test]
fn a_journal_that_panics_has_failed_and_heals() {
    struct Panics(Scripted, u32);
    impl Journal for Panics {
        fn replay(
            &mut self,
            from: Seq,
            visit: &mut dyn FnMut(Group<'_>) -> Result<(), String>,
        ) -> Result<Replay, JournalError> {
            self.0.replay(from, visit)
        }
        fn begin(&mut self, epoch: Epoch) -> Result<(), JournalError> {
            self.0.begin(epoch)
        }
        fn append(
            &mut self,
            epoch: Epoch,
            group: Group<'_>,
            reserve: bool,
        ) -> Result<Appended, JournalError> {
            self.0.append(epoch, group, reserve)
        }
        fn sync(&mut self, epoch: Epoch) -> Result<(), JournalError> {
            self.1 += 1;
            assert!(self.1 > 1, "the host's journal panics");
            self.0.sync(epoch)
        }
        fn heal(&mut self, epoch: Epoch) -> Result<(), JournalError> {
            self.0.heal(epoch)
        }
        fn recycle(&mut self, epoch: Epoch, before: Seq) -> Result<(), JournalError> {
            self.0.recycle(epoch, before)
        }
        fn space(&self) -> JournalSpace {
            self.0.space()
        }
    }
    let told = run_on(vec![commit(0, 1, 0, true)], false, |mut journal| {
        journal.heals = [(Ok(()), vec![commit(0, 2, 1, true), Order::Stop])].into();
        Shield::over(Box::new(Panics(journal, 0)))
    });
    assert_eq!(told[0], [("writable", 0), ("unknown", 1), ("writable", 1), ("stored", 2)]);
}

#[test]
fn a_group_that_is_too_large_takes_along_what_was_handed_out_after_it() {
    let told = run(vec![commit(0, 1, 0, true)], false, |journal| {
        let late = vec![commit(0, 2, 0, true), commit(0, 3, 1, true)];
        journal.appends = [(Err(JournalError::TooLarge { bytes: 2, max: 1 }), late)].into();
        journal.syncs = [(Ok(()), vec![Order::Stop])].into();
    });
    assert_eq!(told[0], [("writable", 0), ("failed", 1), ("writable", 1), ("failed", 2), ("stored", 3)]);
}

#[test]
fn a_batch_across_shards_is_one_part_of_a_group_and_each_shard_is_told_of_its_places_in_order() {
    let orders = vec![commit(1, 1, 0, true), joint(9, [0, 0]), commit(0, 1, 0, true), Order::Stop];
    let told = run(orders, false, |journal| {
        // A second sync would fail.
        journal.syncs = [(Ok(()), vec![]), (Err(io()), vec![])].into();
    });
    assert_eq!(told, [vec![("joint", 1), ("stored", 1)], vec![("stored", 1), ("joint", 3)]]);
}

#[test]
fn a_batch_across_shards_fails_as_a_whole_if_one_shard_did_not_know_of_a_failure_when_it_reserved() {
    for (generations, stored) in [([0, 1], false), ([1, 0], false), ([1, 1], true)] {
        let told = run(vec![commit(0, 1, 0, true)], false, |journal| {
            journal.syncs = [(Err(io()), vec![]), (Ok(()), vec![Order::Stop])].into();
            journal.heals = [(Ok(()), vec![joint(9, generations), commit(1, 1, 1, true)])].into();
        });
        let ends = |told: &[(&'static str, u64)]| {
            told.iter().find(|(what, _)| what.starts_with("joint")).map(|(what, _)| *what)
        };
        let end = if stored { "joint" } else { "joint failed" };
        assert_eq!([ends(&told[0]), ends(&told[1])], [Some(end); 2], "{generations:?}");
        assert!(told[1].contains(&("stored", 1)));
    }
}

#[test]
fn every_shard_of_a_batch_is_told_when_the_journal_fails_or_is_full_whatever_it_is_doing() {
    let failing = run(vec![joint(1, [0, 0])], false, |journal| {
        journal.appends = [(Err(io()), vec![joint(2, [0, 0])])].into();
        journal.heals =
            [(Err(io()), vec![joint(3, [0, 0])]), (Ok(()), vec![joint(4, [0, 1]), Order::Stop])].into();
    });
    let mut full = run(vec![joint(1, [0, 0]), commit(0, 1, 0, false)], true, |journal| {
        journal.appends = [(Err(JournalError::Full), vec![])].into();
        let after = vec![joint(2, [1, 1]), Order::Recycle(Seq::ZERO), Order::Stop];
        journal.syncs = [(Ok(()), after)].into();
    });
    // A fact of one shard does not stand in a row with a batch across shards.
    assert_eq!(full[0].iter().filter(|told| **told == ("stored", 1)).count(), 1);
    full[0].retain(|(what, _)| *what != "stored");
    let joints = |told: Vec<Vec<(&'static str, u64)>>| {
        let of = |told: Vec<(&'static str, u64)>| {
            told.into_iter().filter(|(what, _)| *what != "writable").collect::<Vec<_>>()
        };
        told.into_iter().map(of).collect::<Vec<_>>()
    };
    let given_back = [("joint unknown", 1), ("joint failed", 2), ("joint failed", 3), ("joint failed", 4)];
    assert_eq!(joints(failing), [given_back, given_back]);
    let refused = [("joint failed", 1), ("joint failed", 2)];
    assert_eq!(joints(full), [refused, refused]);
}
