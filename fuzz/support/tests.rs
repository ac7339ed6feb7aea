//! The corpora reach what they are named for. Their seeds are what real engines have left on their disks, field by field.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lastmile::machine::{Input as Event, Operation, Ticket, Verdict};
use lastmile::ports::{Flow, Store};
use lastmile::storage::disk::{Disk, MemoryDisk};
use lastmile::storage::frame;
use lastmile::storage::journal::FileJournal;
use lastmile::storage::journal::forge::{GroupFields, Segment};
use lastmile::storage::outbox::keys::Key;
use lastmile::{DeviceId, DevicePolicy, Message, MessageBuilder, MessageId, Timestamp, UserId};

use crate::input::Input;
use crate::op::{Group, Op};
use crate::outbox::{Reached, copy, import, read, users_of};
use crate::shell::{Shell, TODAY};
use crate::store::Rotten;
use crate::stream;
use crate::world::{JOURNAL, TABLE, World, groups, shared};

const BLOCK: usize = 4096;
const HOUR: Duration = Duration::from_secs(3600);

/// What an engine lives through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scene {
    /// Two messages wait.
    Plain,
    /// A body in parts.
    Large,
    /// One message to many.
    Many,
    /// Messages that expire, or whose time is still to come.
    Due,
    /// Messages that could not be delivered.
    Dead,
    /// Messages for each device.
    Devices,
    /// What was delivered, collapsed, or waits for another.
    Mixed,
}

const SCENES: [Scene; 7] =
    [Scene::Plain, Scene::Large, Scene::Many, Scene::Due, Scene::Dead, Scene::Devices, Scene::Mixed];

struct Life {
    disk: MemoryDisk,
    store: Rotten,
    shell: Shell,
    sent: u64,
}

fn user(name: &str) -> UserId {
    UserId::new(name).unwrap()
}

impl Life {
    fn new() -> Self {
        let (disk, store) = (MemoryDisk::new(), Rotten::default());
        let shell = Shell::open(shared(&disk), Arc::new(store.clone())).unwrap();
        Self { disk, store, shell, sent: 0 }
    }

    /// Lives through the scene, settles, and lives through it once more.
    fn of(scenes: &[Scene]) -> Self {
        let mut life = Self::new();
        scenes.iter().for_each(|scene| life.live(*scene));
        life.shell.settle().unwrap();
        scenes.iter().for_each(|scene| life.live(*scene));
        life
    }

    fn send(&mut self, message: MessageBuilder) {
        self.sent += 1;
        let message = message.id(MessageId::from_u128(self.sent.into())).sender("s").build().unwrap();
        let ticket = Ticket(self.sent);
        self.shell.tell(&message.recipient().clone(), Event::Send { ticket, message });
    }

    fn live(&mut self, scene: Scene) {
        match scene {
            Scene::Plain => {
                self.send(Message::to("bob", "a.b", "hello"));
                self.send(Message::to("al", "a.b", "hello").header("h", "v").ordering_key("k"));
            }
            Scene::Large => self.send(Message::to("bob", "a.b", vec![7; 5000])),
            Scene::Many => {
                let message = Message::to("al", "a.b", vec![9; 200]).sender("s").build().unwrap();
                for name in ["al", "bob"] {
                    let recipients = ["x", "y"].map(|end| user(&format!("{name}{end}")));
                    for shard_of in recipients {
                        self.sent += 1;
                        let (first, message) = (Ticket(self.sent), message.clone());
                        let fan = Event::FanOut { first, message, recipients: vec![shard_of.clone()] };
                        self.shell.tell(&shard_of, fan);
                    }
                }
            }
            Scene::Due => {
                self.send(Message::to("bob", "a.b", "soon").ttl(HOUR));
                self.send(Message::to("bob", "a.b", "later").not_before(TODAY.after(HOUR)));
            }
            Scene::Dead => {
                self.shell.verdicts = vec![Verdict::Rejected];
                self.send(Message::to("dee", "a.b", "no"));
                self.send(Message::to("dee", "a.b", "never"));
                let link = self.shell.attach(&user("dee"), "d");
                self.shell.tell(&user("dee"), Event::Detach(link));
                self.shell.verdicts = vec![Verdict::Delivered];
            }
            Scene::Devices => {
                for device in ["p", "q"] {
                    self.sent += 1;
                    let operation = Operation::Register(user("eve"), DeviceId::new(device).unwrap());
                    let ticket = Ticket(self.sent);
                    self.shell.tell(&user("eve"), Event::Operate { ticket, operation });
                }
                self.send(Message::to("eve", "a.b", "each").devices(DevicePolicy::EveryDevice));
                let link = self.shell.attach(&user("eve"), "p");
                self.shell.tell(&user("eve"), Event::Detach(link));
            }
            Scene::Mixed => {
                self.send(Message::to("bob", "a.b", "one").collapse_key("c").version(self.sent));
                self.send(Message::to("bob", "a.b", "two").collapse_key("c").version(self.sent));
                let parent = MessageId::from_u128(self.sent.into());
                self.send(Message::to("bob", "a.b", "child").after(parent, lastmile::Otherwise::Release));
                self.send(Message::to("fay", "a.b", "delivered"));
                let link = self.shell.attach(&user("fay"), "d");
                self.shell.tell(&user("fay"), Event::Detach(link));
            }
        }
    }
}

// -------------------------------------------------------------------------------------------------------- scripts of it

/// The operations that make a disk.
fn ops_of_disk(disk: &MemoryDisk) -> Vec<Op> {
    let mut ops = Vec::new();
    for name in disk.list().unwrap() {
        let id = name.trim_start_matches("segment-").trim_end_matches(".journal").parse().unwrap();
        let file = disk.contents(&name).unwrap();
        let Some(segment) = Segment::decode(&file, id) else { continue };
        assert_eq!(segment.encode(), file[..BLOCK], "the forge writes what the journal does");
        ops.push(Op::Segment { segment, has_chain: true, blocks: (file.len() / BLOCK) as u8 });
        let (mut at, mut number) = (BLOCK, segment.first_number);
        while let Some((fields, _, records)) =
            file.get(at..).and_then(|rest| GroupFields::decode(rest, segment.salt))
        {
            let (blocks, _) = fields.encode(segment.salt, records);
            assert_eq!(blocks, file[at..at + blocks.len()], "the forge writes what the journal does");
            let mut group = Group { first: fields.first.get(), durable: fields.durable, ..Group::default() };
            group.number = (fields.number != number).then_some(fields.number);
            let mut rest = records;
            while !rest.is_empty() {
                let (len, behind) = rest.split_first_chunk::<4>().unwrap();
                let (record, behind) = behind.split_at(u32::from_le_bytes(*len) as usize);
                group.records.push(record.to_vec());
                rest = behind;
            }
            group.count = (fields.count as usize != group.records.len()).then_some(fields.count);
            ops.push(Op::Group(Box::new(group)));
            (at, number) = (at + blocks.len(), fields.number + 1);
        }
    }
    ops
}

/// The operations that fill a store.
fn ops_of_store(store: &dyn Store) -> Vec<Op> {
    let (mut ops, mut table) = (Vec::new(), Vec::new());
    store
        .scan(&[0], &[0xFF], &mut |key, value| {
            let value = value.unwrap();
            match Key::decode(key).unwrap() {
                Key::Meta { .. } => table.extend_from_slice(&value[2..]),
                key => ops.push(Op::Row { key, value: value.to_vec() }),
            }
            Flow::Continue
        })
        .unwrap();
    let (version, framed) = table.split_first().expect("there is a table");
    let body = frame::decode(TABLE, framed).expect("its frame is bound to this name").to_vec();
    ops.push(Op::Table { version: *version, body });
    ops
}

fn script(ops: &[Op]) -> Vec<u8> {
    let mut out = Vec::new();
    ops.iter().for_each(|op| op.write(&mut out));
    let (mut input, mut back) = (Input(&out), Vec::new());
    while !input.is_empty() {
        back.push(Op::read(&mut input).unwrap());
    }
    assert_eq!(back, ops, "what is written is read");
    out
}

/// Seeds by target and name.
fn seeds() -> BTreeMap<(&'static str, String), Vec<u8>> {
    let mut seeds = BTreeMap::new();
    let all = ("all".to_owned(), Life::of(&SCENES));
    let each = SCENES.map(|scene| (format!("{scene:?}").to_lowercase(), Life::of(&[scene])));
    for (name, life) in each.into_iter().chain([all]) {
        let (disk, store) = (ops_of_disk(&life.disk), ops_of_store(&life.store));
        seeds.insert(("group_decode", name.clone()), script(&disk));
        seeds.insert(("recovery", name.clone()), script(&[store, disk].concat()));
        let (_, export) = copy(&life.shell.outbox).unwrap();
        let input = stream::script(&export);
        assert_eq!(stream::of(&mut Input(&input)), export, "the script makes the export");
        if name == "plain" {
            seeds.insert(("import", "raw".to_owned()), [&[u8::MAX][..], &export].concat());
        }
        seeds.insert(("import", name), input);
    }
    seeds
}

/// The kept seeds of a target, by name.
fn kept(target: &str) -> Vec<(String, Vec<u8>)> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../corpus").join(target);
    if std::env::var_os("LASTMILE_BLESS").is_some() {
        for ((_, name), bytes) in seeds().iter().filter(|((of, _), _)| *of == target) {
            std::fs::write(dir.join(name), bytes).unwrap();
        }
    }
    let names = SCENES.iter().map(|scene| format!("{scene:?}").to_lowercase()).chain(["all".to_owned()]);
    names.map(|name| (name.clone(), std::fs::read(dir.join(&name)).unwrap())).collect()
}

// --------------------------------------------------------------------------------------------------- what they reach

#[test]
fn seeds_of_journals_replay_without_damage() {
    for (name, bytes) in kept("group_decode") {
        let world = World::of(Input(&bytes));
        let mut journal = FileJournal::open(shared(&world.disk), JOURNAL).unwrap();
        assert!(!groups(&mut journal).unwrap().is_empty(), "{name}");
        let shell = Shell::open(shared(&world.disk), Arc::new(Rotten::default())).unwrap();
        let replay = &shell.recovered.replay;
        assert!(
            replay.records > 0 && replay.damaged.is_empty() && replay.tail_cut.is_none(),
            "{name}: {replay:?}"
        );
        assert!(shell.recovered.bad.is_empty() && !shell.users.is_empty(), "{name}: {:?}", shell.recovered);
    }
}

/// What everything that can be read says, and what it is without the number of records, is not nothing.
fn check(name: &str, reached: &Reached) {
    let Reached { verified, pages, found, rows, ids, due, ends, letters, .. } = reached;
    assert!(verified.damage.is_empty(), "{name}: {:?}", verified.damage);
    assert!(*pages > 0 && *found >= 2 && *ids > 0 && verified.entries > 0, "{name}: {reached:?}");
    let has = |of: &str| name == of || name == "all";
    assert!(!has("due") || *due > 0, "{name}: {reached:?}");
    assert!(!has("dead") || (*letters > 0 && *ends > 0), "{name}: {reached:?}");
    assert!(!(has("dead") || has("devices")) || *rows > 0, "{name}: {reached:?}");
}

fn kinds_of(store: &dyn Store) -> Vec<u8> {
    let mut kinds = Vec::new();
    store
        .scan(&[0], &[0xFF], &mut |key, _| {
            if !kinds.contains(&key[0]) {
                kinds.push(key[0]);
            }
            Flow::Continue
        })
        .unwrap();
    kinds
}

#[test]
fn seeds_of_stores_open_and_everything_in_them_can_be_read() {
    for (name, bytes) in kept("recovery") {
        let world = World::of(Input(&bytes));
        if name == "all" {
            assert_eq!(kinds_of(&world.store), (1..=10).collect::<Vec<_>>(), "every kind of row is there");
        }
        let (users, senders) = users_of(&world.store);
        let shell = Shell::open(shared(&world.disk), Arc::new(world.store.clone())).unwrap();
        assert!(shell.opened.lost.is_empty() && shell.recovered.bad.is_empty(), "{name}");
        assert!(shell.recovered.replay.records > 0, "{name}");
        let late = Timestamp::from_millis(u64::MAX / 2);
        check(&name, &read(&shell.outbox, &users, &senders, late));
        let mut shell = shell;
        shell.settle().unwrap();
        assert!(shell.merge(Timestamp::ZERO), "{name}");
        check(&name, &read(&shell.outbox, &users, &senders, late));
        let (carried, export) = copy(&shell.outbox).unwrap();
        let (imported, _) = import(&export).unwrap();
        assert_eq!((imported.messages, carried.damaged), (carried.messages, 0), "{name}");
    }
}

#[test]
fn seeds_of_exports_are_imported() {
    let mut raw = kept("import");
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../corpus/import/raw");
    raw.push(("raw".to_owned(), std::fs::read(dir).unwrap()));
    for (name, bytes) in raw {
        let export = if name == "raw" { bytes[1..].to_vec() } else { stream::of(&mut Input(&bytes)) };
        let (carried, outbox) = import(&export).unwrap();
        assert!(carried.messages > 0 && carried.ids > 0, "{name}: {carried:?}");
        assert!(outbox.verify(&mut |_| {}).unwrap().damage.is_empty(), "{name}");
    }
}
