//! Sessions that are held up, which no test from outside can make.

use tokio::sync::mpsc;

use super::*;
use crate::session::Grade;
use crate::storage::MemoryStore;
use crate::time::Timestamp;

struct Nobody;

impl Authenticator for Nobody {
    async fn authenticate(&self, _claim: Claim) -> Result<Identity, Denied> {
        Err(Denied::refused("nobody"))
    }
}

/// A session whose task takes no commands, and those that wait for it.
fn held_up(acceptor: &Acceptor, name: &str, room: usize) -> mpsc::Receiver<Command> {
    let peer = Peer::new(name.try_into().unwrap(), "phone".try_into().unwrap());
    let (commands, taken) = mpsc::channel(room);
    let entry = entry(acceptor, &peer, commands);
    acceptor.guard.0.registry.find_or(&peer, usize::MAX, || entry).expect("there is room");
    taken
}

/// A session with a connection, as the registry knows it.
pub(super) fn entry(acceptor: &Acceptor, peer: &Peer, commands: mpsc::Sender<Command>) -> Arc<Entry> {
    let info = Connection {
        peer: peer.clone(),
        transport: "memory",
        address: "here".to_owned(),
        is_open: true,
        since: Timestamp::ZERO,
        resumed: false,
        grade: Grade::Good,
        rtt: None,
        quality: None,
        is_parked: false,
    };
    let serial = acceptor.guard.0.next_serial.fetch_add(1, Ordering::Relaxed);
    Arc::new(Entry {
        serial,
        commands,
        info: Mutex::new(info),
        client: Mutex::new(peer.user.as_bytes().to_vec()),
    })
}

pub(super) fn acceptor() -> Acceptor {
    let engine = Engine::builder(MemoryStore::new()).build().unwrap();
    Acceptor::builder(engine, Nobody).build().unwrap()
}

#[tokio::test]
async fn a_session_that_is_held_up_holds_up_neither_a_shutdown_nor_the_others() {
    let acceptor = acceptor();
    let mut stuck = held_up(&acceptor, "alice", 4);
    let mut full = held_up(&acceptor, "bob", 1);
    let inner = &acceptor.guard.0;
    let bob = Peer::new("bob".try_into().unwrap(), "phone".try_into().unwrap());
    let entry = inner.registry.find(&bob).unwrap();
    let fills = Command::Close(inner.asked_to_leave(&entry, Code::Done));
    assert!(entry.commands.try_send(fills).is_ok(), "there is room for one");
    let drained = acceptor.shutdown(Duration::ZERO).await;
    assert_eq!(drained, Drained { connections: 2, cut: 2, stuck: 2 });
    // The one that has room was told to stop, once: no slot is taken for it a second time.
    let told = std::iter::from_fn(|| stuck.try_recv().ok());
    let stops = told.filter(|command| matches!(command, Command::Stop(why) if why.code == Code::Draining));
    assert_eq!(stops.count(), 1);
    // The other one is told when it has.
    assert!(matches!(full.recv().await, Some(Command::Close(_))));
    assert!(matches!(full.recv().await, Some(Command::Stop(_))));
}

#[tokio::test]
async fn those_that_are_to_go_elsewhere_are_asked_to_come_back_in_slots_of_their_own() {
    let engine = Engine::builder(MemoryStore::new()).build().unwrap();
    let global = crate::session::Rate { every: Duration::from_secs(10), burst: 1 };
    let admission = crate::session::AdmissionConfig { global, ..Default::default() };
    let acceptor = Acceptor::builder(engine, Nobody).admission(admission).build().unwrap();
    let mut taken: Vec<_> = ["a", "b", "c"].map(|name| held_up(&acceptor, name, 1)).into();
    let peers =
        ["a", "c", "unknown"].map(|name| Peer::new(name.try_into().unwrap(), "phone".try_into().unwrap()));
    assert_eq!(acceptor.rebalance(peers).await, 2);
    let slots = taken.iter_mut().map(|taken| match taken.try_recv() {
        Ok(Command::GoAway(refused)) => {
            assert_eq!(refused.code, Code::Rebalancing);
            refused.retry_after.map(|after| after.as_secs() / 10)
        }
        _ => None,
    });
    assert_eq!(slots.collect::<Vec<_>>(), [Some(0), None, Some(1)]);
}
