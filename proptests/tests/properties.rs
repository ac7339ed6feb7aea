//! Properties that hold for every input.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use lastmile::codec::{decode_records, encode_records};
use lastmile::machine::{Found, Query, Survivors};
use lastmile::record::{
    Accept, Admission, Attempt, Burial, Copies, DeviceChange, DeviceEvent, End, Epoch, Exposed, ForDevice,
    Gap, LaneId, Origin, Parent, Record, Seq, Slot, Slots, Told,
};
use lastmile::storage::MemoryStore;
use lastmile::storage::outbox::keys::Key;
use lastmile::storage::outbox::{Identity, Merge, OutboxStore, Progress, Settlement};
use lastmile::testing::sim::{self, Script};
use lastmile::{
    Config, DeviceId, DevicePolicy, EndReason, MessageId, Otherwise, Priority, StreamId, Timestamp, UserId,
};
use lastmile_proptests::{Op, Shell, builder};
use proptest::prelude::*;

fn priority() -> impl Strategy<Value = Priority> {
    (0_u8..4).prop_map(|index| Priority::from_index(index).unwrap())
}

fn op() -> impl Strategy<Value = Op> {
    let send = (0_u8..3, 0_u8..5, 0_u8..40, priority(), prop::collection::vec(any::<u8>(), 0..2));
    prop_oneof![
        6 => send.prop_map(|(sender, user, id, priority, body)| Op::Send { sender, user, id, priority, body }),
        1 => (0_u8..5, 0_u8..3).prop_map(|(user, device)| Op::Attach(user, device)),
        1 => (0_u8..5, 0_u8..3).prop_map(|(user, device)| Op::Register(user, device)),
        1 => (0_u8..10, 0_u8..3).prop_map(|(user, device)| Op::Unregister(user, device)),
        1 => any::<u16>().prop_map(Op::Wait),
    ]
}

/// Few people and ids, so that most of what is waited for is there.
fn waiting() -> impl Strategy<Value = Op> {
    let (sender, user, id) = (0_u8..2, 0_u8..3, 0_u8..24);
    let send = (sender.clone(), user.clone(), id.clone(), priority());
    let otherwise = prop_oneof![Just(Otherwise::Release), Just(Otherwise::Cancel)];
    let after = (sender, user.clone(), id.clone(), 1_u8..24, otherwise);
    // Nothing waits for itself.
    let after = after.prop_map(|(sender, user, id, other, otherwise)| Op::After {
        sender,
        user,
        id,
        parent: (id + other) % 24,
        otherwise,
    });
    prop_oneof![
        6 => send.prop_map(|(sender, user, id, priority)| Op::Send { sender, user, id, priority, body: vec![] }),
        6 => after,
        2 => (user.clone(), id).prop_map(|(user, id)| Op::Cancel { user, id }),
        1 => user.prop_map(|user| Op::Attach(user, 0)),
        1 => any::<u16>().prop_map(Op::Wait),
    ]
}

fn lane() -> impl Strategy<Value = LaneId> {
    (0_u8..134).prop_map(|index| LaneId::from_index(index).unwrap())
}

fn user() -> impl Strategy<Value = UserId> {
    prop::collection::vec(any::<u8>(), 1..=255).prop_map(|bytes| UserId::new(bytes).unwrap())
}

fn a_slot(bits: u32) -> Slot {
    Slot::new((bits % 32) as u8).unwrap()
}

fn for_device(bits: u32) -> Option<ForDevice> {
    let (slot, among) = (a_slot(bits), Slots::from_bits(bits));
    let (rings, is_copy) = (bits.is_multiple_of(3), bits.is_multiple_of(5));
    (!bits.is_multiple_of(7)).then(|| ForDevice {
        slot,
        among: among.with(slot),
        rings,
        is_copy,
        stride: 1 + (bits % 2) as u8,
    })
}

fn record() -> impl Strategy<Value = Record> {
    let parts = (user(), priority(), any::<u64>(), 0_usize..10, any::<bool>(), any::<u32>(), any::<u64>());
    (parts, 0_u8..7, prop::collection::vec(any::<u8>(), 0..5000)).prop_map(|(parts, kind, body)| {
        let (user, priority, seq, reason, flag, attempts, at) = parts;
        let lane = LaneId::from_index((attempts % 134) as u8).unwrap();
        let (seq, at) = (Seq::new(seq), Timestamp::from_millis(at));
        let burial = Burial { reason: EndReason::Dead, attempts, possibly_delivered: flag, at };
        let admissions = [
            Admission::New,
            Admission::Moved,
            Admission::Requeued { possibly_delivered: flag },
            Admission::Buried(burial),
        ];
        let admission = admissions[(seq.get() % 4) as usize];
        let scheduled = (admission == Admission::New || admission == Admission::Moved).then_some(at);
        let scheduled = scheduled.filter(|_| attempts % 2 == 0);
        let waits = matches!(admission, Admission::New | Admission::Moved) && attempts % 3 == 0;
        let otherwise = if flag { Otherwise::Cancel } else { Otherwise::Release };
        let plain = builder(1, 2, 3, priority, &body);
        let plain =
            if waits { plain.after(MessageId::from_u128(at.as_millis().into()), otherwise) } else { plain };
        match kind {
            0 => Record::Accept(Arc::new(Accept {
                message: scheduled.map_or(plain.clone(), |at| plain.not_before(at)).build().unwrap(),
                at,
                origin: flag.then_some(Origin { stream: StreamId::from_u128(9), seq }),
                admission,
                parent: waits.then_some(Parent::at(lane, seq)),
                device: (scheduled.is_none() && !waits).then(|| for_device(attempts)).flatten(),
            })),
            5 => {
                let (slot, device) = (a_slot(attempts), DeviceId::new(user.as_bytes()).unwrap());
                let events = [
                    DeviceEvent::Registered,
                    DeviceEvent::Seen,
                    DeviceEvent::Exposed(Epoch(attempts)),
                    DeviceEvent::Leaving,
                    DeviceEvent::Gone,
                ];
                let event = events[attempts as usize % events.len()];
                Record::Device(DeviceChange { user, slot, device, event, at })
            }
            6 => {
                let otherwise = if flag { Otherwise::Release } else { Otherwise::Cancel };
                let policies = [DevicePolicy::AnyDevice, DevicePolicy::RingAll, DevicePolicy::EveryDevice];
                let plain = plain.after(MessageId::from_u128(77), otherwise);
                let message = match policies.get(attempts as usize % 4) {
                    Some(policy) => plain.devices(*policy),
                    None => plain,
                };
                let parent = match for_device(attempts) {
                    Some(ForDevice { slot, among, stride, .. }) => {
                        let copies = Some(Copies { among, left: Slots::one(slot), stride });
                        Parent { copies, ..Parent::at(LaneId::Device(slot, priority), seq) }
                    }
                    None => Parent::at(priority.into(), seq),
                };
                let accept = Accept::new(message.build().unwrap(), at);
                Record::Accept(Arc::new(Accept { parent: Some(parent), ..accept }))
            }
            1 => Record::End(End {
                user,
                lane,
                seq,
                id: flag.then(|| MessageId::from_u128(u128::from(seq.get()) << 64)),
                reason: EndReason::ALL[reason],
                upgrades: flag.then_some(EndReason::Expired),
                possibly_delivered: flag,
                attempts,
                cost: seq.get(),
                at,
            }),
            2 => Record::Attempt(Attempt { user, lane, seq, attempts, not_before: at }),
            3 => {
                let (first, last, dead) = (seq, seq.next(), attempts / 2);
                Record::Told(Told {
                    user,
                    gap: Gap { lane, first, last, expired: attempts, dead, evicted: 0 },
                })
            }
            _ => Record::Exposed(Exposed { user, epoch: Epoch(attempts) }),
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn shards_are_routing_only(ops in prop::collection::vec(op(), 0..120), shards in 2_usize..6) {
        let config = Config::default();
        let (mut one, mut many) = (Shell::new(1, &config), Shell::new(shards, &config));
        for op in &ops {
            one.play(op);
            many.play(op);
        }
        for user in 0..5 {
            prop_assert_eq!(one.delivered_to(user), many.delivered_to(user));
        }
        let kinds = |shell: &Shell| {
            shell.answers.iter().map(|(ticket, result)| (*ticket, result.clone().map(|a| a.duplicate))).collect::<Vec<_>>()
        };
        prop_assert_eq!(kinds(&one), kinds(&many));
    }

    #[test]
    fn no_place_is_given_to_two_devices_and_no_device_gets_a_message_twice(ops in prop::collection::vec(op(), 0..200)) {
        let mut shell = Shell::new(1, &Config::default());
        ops.iter().for_each(|op| shell.play(op));
        let mut places = std::collections::HashSet::new();
        // Everybody confirms at once: a device has one copy at most, and of what is for any device one has it.
        let mut got = std::collections::HashSet::new();
        for (user, device, entry, message) in &shell.places {
            prop_assert!(places.insert(entry.seq), "{:?} was offered twice", entry);
            let one = (user.clone(), *device, message.sender().cloned(), message.id());
            prop_assert!(got.insert(one), "{:?} got {:?} twice", device, message);
        }
    }

    #[test]
    fn an_id_is_accepted_once_and_a_conflict_refused(ops in prop::collection::vec(op(), 0..200)) {
        let mut shell = Shell::new(1, &Config::default());
        let mut known: HashMap<(u8, u8, u8), (Priority, Vec<u8>)> = HashMap::new();
        for op in &ops {
            shell.play(op);
            let Op::Send { sender, user, id, priority, body } = op else { continue };
            let (_, result) = shell.answers.last().unwrap();
            let content = (*priority, body.clone());
            match known.get(&(*sender, *user, *id)) {
                None => prop_assert!(matches!(result, Ok(accepted) if !accepted.duplicate), "{:?}", result),
                Some(first) if *first == content => {
                    prop_assert!(matches!(result, Ok(accepted) if accepted.duplicate), "{:?}", result);
                }
                Some(_) => prop_assert!(matches!(result, Err(lastmile::machine::Refusal::Conflict)), "{:?}", result),
            }
            known.entry((*sender, *user, *id)).or_insert(content);
        }
    }

    /// What waits for another message comes after it; if that did not come, as its sender has said. However many shards.
    #[test]
    fn what_waits_comes_after_its_parent_and_shards_are_routing_only(
        ops in prop::collection::vec(waiting(), 0..120),
        shards in 2_usize..6,
    ) {
        let config = Config::default();
        let (mut one, mut many) = (Shell::new(1, &config), Shell::new(shards, &config));
        // By recipient and id: what it waits for. Ids of two senders may be the same, so only those of one are looked at.
        let (mut parents, mut senders) = (HashMap::new(), HashMap::<(u8, u8), HashSet<u8>>::new());
        let mut withdrawn = HashSet::new();
        for op in &ops {
            one.play(op);
            many.play(op);
            let is_done = one.done.last().is_some_and(|(_, result)| result.as_ref().is_ok_and(|o| o.messages == 1));
            let is_new = one.answers.last().is_some_and(|(_, result)| result.as_ref().is_ok_and(|a| !a.duplicate));
            match op {
                Op::Send { sender, user, id, .. } => drop(senders.entry((*user, *id)).or_default().insert(*sender)),
                Op::After { sender, user, id, parent, otherwise } => {
                    senders.entry((*user, *id)).or_default().insert(*sender);
                    if is_new {
                        parents.insert((*user, *id), (*parent, *otherwise));
                    }
                }
                Op::Cancel { user, id } if is_done => drop(withdrawn.insert((*user, *id))),
                _ => {}
            }
        }
        for user in 0..3 {
            one.play(&Op::Attach(user, 0));
            many.play(&Op::Attach(user, 0));
        }
        for user in 0..3 {
            let came: Vec<_> = one.delivered_to(user).into_iter().map(|(_, id)| id).collect();
            prop_assert_eq!(one.delivered_to(user), many.delivered_to(user));
            let place = |id: u8| came.iter().position(|came| *came == MessageId::from_u128(u128::from(id)));
            let is_alone = |id: u8| senders.get(&(user, id)).is_some_and(|senders| senders.len() == 1);
            for ((_, id), (parent, otherwise)) in parents.iter().filter(|((of, _), _)| *of == user) {
                if !is_alone(*id) || !is_alone(*parent) {
                    continue;
                }
                match (place(*parent), place(*id)) {
                    (Some(parent), Some(child)) => prop_assert!(parent < child, "{} comes before {}", id, parent),
                    (None, Some(_)) => prop_assert_eq!(*otherwise, Otherwise::Release, "{} of {}", id, parent),
                    // Everybody is there, so nothing waits any more.
                    (Some(_), None) => prop_assert!(withdrawn.contains(&(user, *id)), "{} does not come after {}", id, parent),
                    (None, None) => {
                        let ended = *otherwise == Otherwise::Cancel || withdrawn.contains(&(user, *id));
                        prop_assert!(ended, "{} was not let go by {}", id, parent);
                    }
                }
            }
        }
        let answers = |shell: &Shell| {
            let sent: Vec<_> = shell.answers.iter().map(|(t, r)| (*t, r.clone().map(|a| a.duplicate))).collect();
            let done: Vec<_> = shell.done.iter().map(|(t, r)| (*t, r.clone().map(|o| o.messages))).collect();
            (sent, done)
        };
        prop_assert_eq!(answers(&one), answers(&many));
    }

    #[test]
    fn keys_come_back_and_users_keep_apart(a in user(), b in user(), run: u64, lane in lane(), seq: u64) {
        let key = |user: &UserId| Key::Chunk { run, user: user.clone(), lane, seq: Seq::new(seq) };
        prop_assert_eq!(Key::decode(&key(&a).encode()), Some(key(&a)));
        let row = Key::User { user: a.clone() };
        prop_assert_eq!(Key::decode(&row.encode()), Some(row.clone()));
        prop_assert_eq!(key(&a).encode() == key(&b).encode(), a == b);
        let other = Key::User { user: b.clone() }.encode();
        prop_assert_eq!(row.encode().starts_with(&other), a == b);
    }

    #[test]
    fn records_come_back(records in prop::collection::vec(record(), 1..6)) {
        let mut bytes = Vec::new();
        encode_records(&records, &mut bytes);
        let back: Result<Vec<_>, _> = decode_records(records.len() as u32, &bytes).collect();
        prop_assert_eq!(back, Ok(records));
    }

    #[test]
    fn any_script_survives_being_written(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        let script = Script::of_bytes(&bytes);
        prop_assert_eq!(script.to_string().parse::<Script>(), Ok(script.clone()));
        // Whatever is found, it is found again.
        prop_assert_eq!(sim::run(&script, None), sim::run(&script, None));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Loads skip the runs whose filter denies a user: what was settled must be found all the same, before and after
    /// merging and opening again, whatever the ids and the key of the digests are.
    #[test]
    fn no_filter_denies_a_user_of_its_run(
        users in prop::collection::vec(user(), 1..40),
        runs in prop::collection::vec(prop::collection::vec(any::<prop::sample::Index>(), 0..60), 1..8),
        digest_key in any::<u128>(),
        max_runs in 1_usize..4,
    ) {
        let store = Arc::new(MemoryStore::new());
        let identity = Identity { stream: StreamId::from_u128(1), digest_key };
        let open = || OutboxStore::open(store.clone(), None, Epoch(0), identity).unwrap();
        let (outbox, opened) = open();
        let (mut seq, mut expected) = (Seq::new(1), HashMap::new());
        for run in runs {
            let mut part = Survivors::default();
            for index in run {
                let user = index.get(&users);
                let message = lastmile::Message::to(user.clone(), "a.b", vec![1; 300]).build().unwrap();
                part.entries.push((seq, Arc::new(Accept::new(message, Timestamp::ZERO))));
                *expected.entry(user.clone()).or_insert(0_u32) += 1;
                seq = seq.plus(1);
            }
            let mut settlement = Settlement::new(vec![part], seq, Vec::new(), Timestamp::ZERO);
            while settlement.step(&outbox, opened.epoch).unwrap() != Progress::Done {}
        }
        let check = |outbox: &OutboxStore| {
            for user in &users {
                let Found::User { held, .. } = outbox.load(&Query::User(user.clone())).unwrap() else { panic!() };
                assert_eq!(held.unwrap().messages, expected.get(user).copied().unwrap_or(0), "{user}");
            }
        };
        check(&outbox);
        while let Some(mut merge) = Merge::plan(&outbox, max_runs, Timestamp::ZERO) {
            while merge.step(&outbox, opened.epoch).unwrap() != Progress::Done {}
        }
        check(&outbox);
        let (outbox, _) = open();
        check(&outbox);
        let report = outbox.verify(&mut |_| {}).unwrap();
        prop_assert_eq!(report.damage, Vec::new());
    }
}
