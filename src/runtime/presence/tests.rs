use super::*;
use crate::error::Closed;

#[derive(Debug, Default)]
struct At(AtomicU64);

impl Clock for Arc<At> {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.0.load(Ordering::Relaxed))
    }
}

const BOUNDS: Bounds = Bounds { keyed: 3, of_one_key: 3, wide: 2, buffer: 4 };

/// At 1,000 ms, remembering so many users.
fn presences(max_gone: usize) -> (Presences, Arc<At>) {
    let clock = Arc::new(At(AtomicU64::new(1000)));
    (Presences::new(Arc::new(clock.clone()), BOUNDS, max_gone), clock)
}

fn user(name: &str) -> UserId {
    UserId::new(name).unwrap()
}

fn attach(presences: &Presences, of: &str, device: &str, link: u64) -> Sign {
    presences.attach(&user(of), &DeviceId::new(device).unwrap(), LinkId(link), || ())
}

fn detach(presences: &Presences, of: &str, link: u64) {
    presences.detach(&user(of), LinkId(link), Detached::Dropped);
}

fn at(ms: u64) -> Timestamp {
    Timestamp::from_millis(ms)
}

/// Device, since when it is attached, when it was last seen.
fn devices(presences: &Presences, of: &str) -> Vec<(String, Option<u64>, u64)> {
    let devices = presences.of(&user(of)).devices;
    let ms = |at: Timestamp| at.as_millis();
    devices.iter().map(|d| (d.device.to_string(), d.attached_since.map(ms), ms(d.last_seen))).collect()
}

fn watch(presences: &Presences, of: Option<&str>) -> Listener<(), PresenceChange> {
    presences.hub.listen(of.map(user).map_or(Key::Wide, Key::User), ()).unwrap()
}

/// User, what happened, how many are attached then.
fn heard(watch: &mut Listener<(), PresenceChange>) -> Vec<(String, PresenceKind, usize)> {
    core::iter::from_fn(|| watch.try_recv().unwrap())
        .map(|change| (change.user.to_string(), change.kind, change.attached))
        .collect()
}

#[test]
fn a_device_is_here_since_it_attached_and_its_last_sign_outlives_its_attachment() {
    let (presences, clock) = presences(10);
    assert!(devices(&presences, "alice").is_empty());
    let sign = attach(&presences, "alice", "phone", 1);
    clock.0.store(2000, Ordering::Relaxed);
    attach(&presences, "alice", "laptop", 2);
    sign.seen();
    let laptop = ("laptop".to_owned(), Some(2000), 2000);
    assert_eq!(devices(&presences, "alice"), [laptop.clone(), ("phone".to_owned(), Some(1000), 2000)]);
    clock.0.store(3000, Ordering::Relaxed);
    detach(&presences, "alice", 1);
    assert_eq!(devices(&presences, "alice"), [laptop, ("phone".to_owned(), None, 3000)]);
    assert!(presences.of(&user("alice")).is_present());
    detach(&presences, "alice", 2);
    let alice = presences.of(&user("alice"));
    assert_eq!((alice.is_present(), alice.last_seen(), alice.devices.len()), (false, Some(at(3000)), 2));
    attach(&presences, "alice", "phone", 3);
    assert_eq!(devices(&presences, "alice").len(), 2, "a device that is here again is not gone as well");
}

#[test]
fn a_device_that_takes_over_stays_here_when_its_old_attachment_ends() {
    let (presences, _) = presences(10);
    let mut changes = watch(&presences, Some("alice"));
    attach(&presences, "alice", "phone", 1);
    attach(&presences, "alice", "phone", 2);
    detach(&presences, "alice", 1);
    assert!(presences.of(&user("alice")).is_present());
    detach(&presences, "alice", 2);
    detach(&presences, "alice", 2);
    let kinds = [
        ("alice".to_owned(), PresenceKind::Attached, 1),
        ("alice".to_owned(), PresenceKind::TakenOver, 1),
        ("alice".to_owned(), PresenceKind::Detached(Detached::Dropped), 0),
    ];
    assert_eq!(heard(&mut changes), kinds);
}

#[test]
fn a_user_comes_with_the_first_device_and_goes_with_the_last() {
    let (presences, _) = presences(10);
    let mut changes = watch(&presences, None);
    let mut of_bob = watch(&presences, Some("bob"));
    attach(&presences, "alice", "phone", 1);
    attach(&presences, "alice", "laptop", 2);
    attach(&presences, "alice", "laptop", 3);
    detach(&presences, "alice", 1);
    let first: Vec<_> = (0..4).map(|_| changes.try_recv().unwrap().unwrap()).collect();
    let first: Vec<_> = first.iter().map(|c| (c.user_came(), c.user_went())).collect();
    assert_eq!(first, [(true, false), (false, false), (false, false), (false, false)]);
    detach(&presences, "alice", 3);
    let last = changes.try_recv().unwrap().unwrap();
    assert!(last.user_went() && !last.user_came() && last.device.attached_since.is_none());
    assert!(heard(&mut of_bob).is_empty());
}

#[test]
fn pages_name_everybody_who_is_here_once_and_in_order() {
    let (presences, _) = presences(10);
    for (link, name) in ["dave", "alice", "carol", "bob", "erin"].into_iter().enumerate() {
        attach(&presences, name, "phone", link as u64);
    }
    detach(&presences, "carol", 2);
    let (mut behind, mut pages) = (None, Vec::new());
    loop {
        let page = presences.page(behind.as_ref(), 2);
        pages.push(page.users.iter().map(|user| user.user.to_string()).collect::<Vec<_>>());
        match page.next {
            Some(next) => behind = Some(next),
            None => break,
        }
    }
    assert_eq!(pages, [vec!["alice", "bob"], vec!["dave", "erin"], vec![]]);
    assert_eq!(presences.page(None, 0).users.len(), 1, "a page has room for one at least");
    assert_eq!(presences.users(), 4);
}

#[test]
fn at_the_bound_those_are_forgotten_who_left_longest_ago_and_nothing_is_kept_of_them() {
    let (presences, _) = presences(2);
    for (link, name) in ["alice", "bob", "carol"].into_iter().enumerate() {
        attach(&presences, name, "phone", link as u64);
        detach(&presences, name, link as u64);
    }
    let remembered = ["alice", "bob", "carol"].map(|name| devices(&presences, name).len());
    assert_eq!(remembered, [0, 1, 1]);
    assert_eq!((presences.here.len(), presences.users(), presences.gone.lock().len()), (0, 0, 2));
    for link in 10..10 + MAX_ABSENT_DEVICES as u64 + 1 {
        attach(&presences, "dave", &format!("device-{link}"), link);
        detach(&presences, "dave", link);
    }
    assert_eq!(devices(&presences, "dave").len(), MAX_ABSENT_DEVICES);
}

#[test]
fn nobody_is_remembered_when_none_are_to_be() {
    let (presences, _) = presences(0);
    attach(&presences, "alice", "phone", 1);
    detach(&presences, "alice", 1);
    assert!(devices(&presences, "alice").is_empty());
}

#[test]
fn one_who_does_not_read_is_told_how_much_was_dropped_and_there_are_no_more_watches_than_allowed() {
    let (presences, _) = presences(10);
    let mut slow = watch(&presences, None);
    for link in 0..3 {
        attach(&presences, "alice", "phone", link);
        detach(&presences, "alice", link);
    }
    assert_eq!(slow.try_recv(), Err(HearError::Lagged(2)));
    assert_eq!(heard(&mut slow).len(), 4);
    let _another = watch(&presences, None);
    assert_eq!(presences.hub.listen(Key::Wide, ()).unwrap_err(), SubscribeError::TooMany(2));
    presences.close();
    assert_eq!(slow.try_recv(), Err(HearError::Closed(Closed)));
}

#[test]
fn nobody_is_woken_while_the_place_of_the_user_is_locked() {
    struct Looks(Arc<Presences>);
    impl std::task::Wake for Looks {
        fn wake(self: Arc<Self>) {
            assert!(self.0.here.try_get(&user("alice")).try_unwrap().is_some(), "the map is locked");
        }
    }
    let presences = Arc::new(presences(10).0);
    let mut changes = watch(&presences, Some("alice"));
    let waker = Arc::new(Looks(presences.clone())).into();
    let mut wait = Box::pin(changes.recv());
    assert!(Future::poll(wait.as_mut(), &mut core::task::Context::from_waker(&waker)).is_pending());
    attach(&presences, "alice", "phone", 1);
    drop(wait);
    assert_eq!(heard(&mut changes).len(), 1);
}
