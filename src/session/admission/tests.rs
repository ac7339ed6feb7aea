//! Who is let in, when the others come back, and what failures cost.

use std::collections::BTreeMap;

use super::*;

fn at(millis: u64) -> Timestamp {
    Timestamp::from_millis(10_000_000 + millis)
}

fn generous() -> AdmissionConfig {
    let many = Rate { every: Duration::from_micros(1), burst: 1_000_000 };
    AdmissionConfig { address: many, user: many, global: many, ..AdmissionConfig::default() }
}

/// 100,000 clients that come at once, and again when they were told to, or as much later as `delay` makes of it: how many were
/// let in and asked in each second, and how often somebody had to ask.
fn crowd(mut delay: impl FnMut(u64, Duration) -> Duration) -> [BTreeMap<u64, u64>; 2] {
    const CROWD: u64 = 100_000;
    // Two hundred clients behind each address.
    let address = Rate { every: Duration::from_millis(10), burst: 200 };
    let mut admission = Admission::new(AdmissionConfig { address, ..AdmissionConfig::default() }, 1, 2);
    let mut due: BTreeMap<(u64, u64), u32> = (0..CROWD).map(|client| ((0, client), 0)).collect();
    let (mut let_in, mut asked) = (BTreeMap::<u64, u64>::new(), BTreeMap::<u64, u64>::new());
    while let Some(((now, client), tried)) = due.pop_first() {
        *asked.entry(now / 1000).or_default() += 1;
        match admission.arrive(at(now), &(client / 200).to_be_bytes(), &client.to_be_bytes()) {
            Ok(()) => {
                *let_in.entry(now / 1000).or_default() += 1;
                assert!(tried < 2, "somebody had to come {} times", tried + 1);
            }
            Err(refused) => {
                assert_eq!(refused.code, Code::Overloaded);
                let after = delay(client, refused.retry_after.unwrap());
                due.insert((now + u64::try_from(after.as_millis()).unwrap(), client), tried + 1);
            }
        }
    }
    assert_eq!(let_in.values().sum::<u64>(), CROWD);
    for (second, count) in asked.iter().filter(|(second, _)| **second > 0) {
        assert!(*count <= 650, "a wave of {count} in second {second}");
    }
    [let_in, asked]
}

#[test]
fn a_crowd_that_comes_back_at_once_is_let_in_at_the_rate_without_waves_and_nobody_starves() {
    let [let_in, _] = crowd(|_, retry_after| retry_after);
    let last = *let_in.keys().last().unwrap();
    assert!((197..=199).contains(&last), "99,000 behind a burst at 500 a second took {last} s");
    for (second, count) in let_in.iter().filter(|(second, _)| (1..197).contains(*second)) {
        assert!((400..=600).contains(count), "{count} were let in in second {second}");
    }
}

#[test]
fn slots_are_kept_for_those_who_spread_themselves_behind_them() {
    let mut backoffs = BTreeMap::new();
    let [let_in, _] = crowd(|client, retry_after| {
        let (floor, cap) = (Duration::from_millis(500), Duration::from_secs(20));
        let backoff =
            backoffs.entry(client).or_insert_with(|| super::super::Backoff::new(floor, cap, client));
        backoff.next_delay(Some(retry_after))
    });
    let last = *let_in.keys().last().unwrap();
    assert!((197..=198 + 26).contains(&last), "99,000 behind a burst at 500 a second took {last} s");
}

#[test]
fn an_address_and_a_user_have_buckets_of_their_own() {
    let rate = Rate { every: Duration::from_secs(1), burst: 3 };
    let mut admission = Admission::new(AdmissionConfig { address: rate, user: rate, ..generous() }, 1, 2);
    for _ in 0..3 {
        assert!(admission.arrive(at(0), b"one", b"").is_ok());
        assert!(admission.identify(at(0), &"alice".try_into().unwrap()).is_ok());
    }
    let refused = admission.arrive(at(0), b"one", b"").unwrap_err();
    assert_eq!(refused.code, Code::RateLimited);
    let after = refused.retry_after.unwrap();
    assert!((Duration::from_secs(1)..=Duration::from_millis(1201)).contains(&after), "{after:?}");
    assert!(admission.identify(at(0), &"alice".try_into().unwrap()).is_err());
    assert!(admission.arrive(at(0), b"two", b"").is_ok());
    assert!(admission.identify(at(0), &"bob".try_into().unwrap()).is_ok());
    assert!(admission.arrive(at(999), b"one", b"").is_err());
    assert!(admission.arrive(at(1000), b"one", b"").is_ok());
}

#[test]
fn a_slot_stands_however_often_somebody_asks_and_others_get_later_ones() {
    let config = AdmissionConfig {
        global: Rate { every: Duration::from_secs(1), burst: 1 },
        jitter: Duration::ZERO,
        ..generous()
    };
    let mut admission = Admission::new(config, 1, 2);
    assert!(admission.arrive(at(0), b"a", b"").is_ok());
    let wait = |admission: &mut Admission, now, who: &[u8]| {
        admission.arrive(at(now), who, b"").unwrap_err().retry_after.unwrap().as_millis()
    };
    assert_eq!(wait(&mut admission, 0, b"b"), 1000);
    assert_eq!(wait(&mut admission, 0, b"c"), 2000);
    assert_eq!(wait(&mut admission, 100, b"b"), 900, "asking again costs nothing and gains nothing");
    assert_eq!(wait(&mut admission, 100, b"d"), 2900);
    assert!(admission.arrive(at(1000), b"b", b"").is_ok());
    let away = admission.farewell(at(1000), b"e", b"");
    assert_eq!(away, Duration::from_secs(3), "who is sent away comes behind those");
    assert_eq!(wait(&mut admission, 1000, b"f"), 3000, "and pushes nobody back");
}

#[test]
fn nobody_can_take_all_slots_for_ever() {
    let config = AdmissionConfig {
        global: Rate { every: Duration::from_secs(1), burst: 1 },
        max_wait: Duration::from_secs(10),
        ..generous()
    };
    let mut admission = Admission::new(config, 1, 2);
    for n in 0..10_000_u64 {
        let _ = admission.arrive(at(0), &n.to_be_bytes(), b"");
    }
    let wait = admission.arrive(at(0), b"honest", b"").unwrap_err().retry_after.unwrap();
    assert!((10..=21).contains(&wait.as_secs()), "{wait:?}");
    let wait = admission.arrive(at(9_000), b"honest", b"").unwrap_err().retry_after.unwrap();
    assert!(wait.as_secs() <= 3, "the slots that nobody came for are over: {wait:?}");
}

#[test]
fn one_address_takes_no_more_slots_than_it_may_connect_whatever_its_clients_call_themselves() {
    let config = AdmissionConfig {
        address: Rate { every: Duration::from_secs(1), burst: 10 },
        global: Rate { every: Duration::from_secs(1), burst: 1 },
        jitter: Duration::ZERO,
        ..generous()
    };
    let mut admission = Admission::new(config, 1, 2);
    assert!(admission.arrive(at(0), b"first", b"").is_ok());
    let codes = (0..1000_u32)
        .map(|client| admission.arrive(at(0), b"greedy", &client.to_be_bytes()).unwrap_err().code)
        .collect::<Vec<_>>();
    assert_eq!(codes.iter().filter(|code| **code == Code::Overloaded).count(), 10);
    assert_eq!(codes.iter().filter(|code| **code == Code::RateLimited).count(), 990);
    let wait = admission.arrive(at(0), b"honest", b"").unwrap_err().retry_after.unwrap();
    assert_eq!(wait, Duration::from_secs(11));
    // Whoever has a slot has paid for it.
    assert!(admission.arrive(at(1000), b"greedy", &0_u32.to_be_bytes()).is_ok());
}

#[test]
fn failures_cost_twice_as_much_each_time_and_are_forgiven() {
    let mut admission = Admission::new(AdmissionConfig { jitter: Duration::ZERO, ..generous() }, 1, 2);
    let wait = |admission: &mut Admission, now| {
        admission.arrive(at(now), b"x", b"").err().map(|refused| {
            assert_eq!(refused.code, Code::Penalised);
            refused.retry_after.unwrap().as_secs()
        })
    };
    for expected in [1, 2, 4, 8] {
        admission.failed(at(0), b"x");
        assert_eq!(wait(&mut admission, 0), Some(expected));
    }
    (0..50).for_each(|_| admission.failed(at(0), b"x"));
    assert_eq!(wait(&mut admission, 0), Some(900), "up to a bound");
    assert!(admission.arrive(at(0), b"y", b"").is_ok(), "and only there");
    assert_eq!(wait(&mut admission, 900_000), None);
    admission.failed(at(10 * 300_000), b"x");
    assert_eq!(wait(&mut admission, 10 * 300_000), Some(1), "ten half-lives later they are forgiven");
}

/// Found by review: whoever failed each time as soon as it was let in was never made to wait longer than a minute.
#[test]
fn whoever_fails_as_soon_as_it_may_waits_twice_as_long_each_time_up_to_the_bound() {
    let mut admission = Admission::new(AdmissionConfig { jitter: Duration::ZERO, ..generous() }, 1, 2);
    let mut now = 0;
    for expected in [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900] {
        admission.failed(at(now), b"x");
        let refused = admission.arrive(at(now), b"x", b"").unwrap_err();
        assert_eq!(refused.retry_after.unwrap().as_secs(), expected);
        now += expected * 1000;
    }
}

#[test]
fn whoever_knows_nothing_but_how_to_connect_pushes_nobodys_slot_back() {
    let config = AdmissionConfig { global: Rate { every: Duration::from_secs(1), burst: 1 }, ..generous() };
    let mut admission = Admission::new(config, 1, 2);
    assert!(admission.arrive(at(0), b"first", b"").is_ok());
    let waits: Vec<_> =
        (0..10_000).map(|_| admission.later(Code::Overloaded).retry_after.unwrap().as_secs()).collect();
    assert!(waits.iter().all(|wait| (5..=30).contains(wait)));
    assert!(waits.contains(&5) && waits.contains(&29), "they are spread over all of it");
    let wait = admission.arrive(at(0), b"honest", b"").unwrap_err().retry_after.unwrap();
    assert!(wait < Duration::from_millis(1300), "{wait:?}");
}

#[test]
fn a_farewell_to_more_than_there_are_slots_for_takes_no_more_than_those() {
    let config = AdmissionConfig {
        global: Rate { every: Duration::from_secs(1), burst: 1 },
        max_wait: Duration::from_secs(10),
        ..generous()
    };
    let mut admission = Admission::new(config, 1, 2);
    let slots: Vec<_> =
        (0..1000_u64).map(|n| admission.farewell(at(0), b"", &n.to_be_bytes()).as_secs()).collect();
    assert!(slots.iter().all(|slot| *slot <= 20));
    assert_eq!(admission.farewells.len(), 11);
    assert!(admission.arrive(at(0), b"honest", b"").is_ok(), "nobody has come yet");
}

/// Found by an audit: each who was sent away took a token of all in advance, and nobody remembered for whom.
#[test]
fn rebalancing_keeps_no_newcomer_out_and_whoever_comes_back_here_in_its_slot_is_let_in() {
    let mut admission = Admission::new(AdmissionConfig::default(), 1, 2);
    let slots: Vec<_> =
        (0..50_000_u32).map(|n| admission.farewell(at(0), b"office", &n.to_be_bytes())).collect();
    assert!(slots.iter().all(|slot| *slot <= Duration::from_secs(99)));
    assert!(admission.arrive(at(0), b"stranger", b"").is_ok());
    for (n, slot) in slots.iter().enumerate().step_by(500) {
        let (n, due) = (u32::try_from(n).unwrap(), u64::try_from(slot.as_millis()).unwrap() + 1);
        let back = admission.arrive(at(due), b"office", &n.to_be_bytes());
        assert!(back.is_ok(), "{n} at {due}: {back:?}");
        assert!(admission.arrive(at(due), &n.to_be_bytes(), b"stranger").is_ok());
    }
    assert_eq!(admission.farewells.len(), 50_000 - 100);
}

#[test]
fn whoever_was_sent_away_and_comes_back_here_counts_for_those_who_come_then() {
    let global = Rate { every: Duration::from_secs(1), burst: 1 };
    let config = AdmissionConfig { global, jitter: Duration::ZERO, ..generous() };
    let mut admission = Admission::new(config, 1, 2);
    assert_eq!(admission.farewell(at(0), b"a", b""), Duration::ZERO);
    assert_eq!(admission.farewell(at(0), b"b", b""), Duration::from_secs(1));
    assert_eq!(
        admission.farewell(at(400), b"b", b""),
        Duration::from_millis(600),
        "asked twice, told the same"
    );
    assert!(admission.arrive(at(1000), b"b", b"").is_ok());
    let wait = admission.arrive(at(1000), b"stranger", b"").unwrap_err().retry_after.unwrap();
    assert_eq!(wait, Duration::from_secs(1));
    let again = admission.arrive(at(1000), b"b", b"").unwrap_err().retry_after.unwrap();
    assert_eq!(again, Duration::from_secs(2), "its slot is used");
}

/// Found by an audit: all of them were told the same second, one was let in, and the others told the next.
#[test]
fn a_crowd_behind_one_address_has_turns_and_does_not_come_in_waves() {
    let mut admission = Admission::new(AdmissionConfig::default(), 1, 2);
    let mut due: BTreeMap<(u64, u64), u32> = (0..1000).map(|client| ((0, client), 0)).collect();
    let (mut asked, mut last) = (BTreeMap::<u64, u64>::new(), 0);
    while let Some(((now, client), tried)) = due.pop_first() {
        *asked.entry(now / 1000).or_default() += 1;
        assert!(tried < 3, "client {client} had to come {} times", tried + 1);
        match admission.arrive(at(now), b"office", &client.to_be_bytes()) {
            Ok(()) => last = now,
            Err(refused) => {
                assert_eq!(refused.code, Code::RateLimited);
                let after = u64::try_from(refused.retry_after.unwrap().as_millis()).unwrap();
                due.insert((now + after, client), tried + 1);
            }
        }
    }
    asked.remove(&0);
    assert!(asked.values().all(|count| *count <= 4), "{asked:?}");
    assert!((985_000..1_000_000).contains(&last), "990 behind a burst at one a second took {last} ms");
}

#[test]
fn devices_of_one_user_that_come_at_once_do_not_come_back_at_once() {
    let config = AdmissionConfig { jitter: Duration::ZERO, ..AdmissionConfig::default() };
    let mut admission = Admission::new(config, 1, 2);
    let alice = "alice".try_into().unwrap();
    (0..10).for_each(|_| assert!(admission.identify(at(0), &alice).is_ok()));
    let told = (0..5).map(|_| admission.identify(at(0), &alice).unwrap_err().retry_after.unwrap().as_secs());
    assert_eq!(told.collect::<Vec<_>>(), [2, 4, 6, 8, 10]);
}

/// Found by an audit: whoever failed more often than once in a half-life was never forgiven anything.
#[test]
fn failures_that_are_less_than_a_half_life_apart_are_forgiven_in_part() {
    let mut admission = Admission::new(AdmissionConfig { jitter: Duration::ZERO, ..generous() }, 1, 2);
    let mut waits = Vec::new();
    for n in 0..100 {
        let now = n * 240_000;
        admission.failed(at(now), b"x");
        waits.push(admission.arrive(at(now), b"x", b"").unwrap_err().retry_after.unwrap().as_secs());
    }
    // 1 + 0.574 + 0.574² … = 2.35 failures.
    assert!(waits.iter().all(|wait| *wait <= 2), "{waits:?}");
    for part in 0..=20_u64 {
        let exact = (-(part as f64) / 10.0).exp2();
        let left = forgiven(1000 * FAILURE, part * 30, 300) as f64 / (1000 * FAILURE) as f64;
        assert!((left - exact).abs() < 0.005, "{part}: {left} is not {exact}");
    }
}

#[test]
fn one_address_has_so_many_handshakes_under_way_and_one_that_failed_has_one() {
    let config = AdmissionConfig { max_handshakes: NonZeroU32::new(3).unwrap(), ..generous() };
    let mut admission = Admission::new(config, 1, 2);
    let code = |began: Result<(), Refused>| began.err().map(|refused| refused.code);
    for _ in 0..3 {
        assert_eq!(code(admission.begin(at(0), b"x")), None);
    }
    let refused = admission.begin(at(0), b"x").unwrap_err();
    assert_eq!(refused.code, Code::RateLimited);
    assert!(refused.retry_after.unwrap() >= Duration::from_secs(5));
    assert_eq!(code(admission.begin(at(0), b"y")), None, "others do not notice");
    admission.done(b"x");
    assert_eq!(code(admission.begin(at(0), b"x")), None);
    (0..3).for_each(|_| admission.done(b"x"));
    admission.failed(at(0), b"x");
    assert_eq!(code(admission.begin(at(0), b"x")), None, "it is told in its own words how long to wait");
    assert_eq!(code(admission.begin(at(0), b"x")), Some(Code::Penalised));
    assert_eq!(code(admission.begin(at(1001), b"x")), None, "the penalty is over");
    admission.done(b"x");
    admission.done(b"x");
    admission.done(b"y");
    assert!(admission.handshakes.is_empty());
}

#[test]
fn when_no_more_slots_can_be_remembered_those_that_were_given_stand() {
    let config = AdmissionConfig { global: Rate { every: Duration::from_secs(1), burst: 1 }, ..generous() };
    let mut admission = Admission::new(config, 1, 2);
    admission.slots.max = 10;
    let waits: Vec<_> = (0..100_u64)
        .map(|n| admission.arrive(at(0), &n.to_be_bytes(), b"").err().and_then(|refused| refused.retry_after))
        .collect();
    assert_eq!(waits.iter().flatten().filter(|wait| wait.as_secs() <= 10).count(), 10);
    assert!(waits.iter().flatten().skip(10).all(|wait| wait.as_secs() >= 300));
    // The first of them comes in its slot.
    assert!(admission.arrive(at(1000), &1_u64.to_be_bytes(), b"").is_ok());
    // What nobody came for makes room again.
    let wait = admission.arrive(at(80_000), b"late", b"");
    assert!(wait.is_ok());
    assert_eq!(admission.slots.len(), 9, "nobody had to wait, so nobody looked");
    let wait = admission.arrive(at(80_000), b"later", b"").unwrap_err().retry_after.unwrap();
    assert!(wait.as_secs() <= 2, "{wait:?}");
    assert_eq!(admission.slots.len(), 1);
}

#[test]
fn memory_is_bounded_however_many_come() {
    let config = AdmissionConfig {
        max_remembered: NonZeroUsize::new(100).unwrap(),
        global: Rate { every: Duration::from_secs(1), burst: 1 },
        max_wait: Duration::from_secs(40),
        ..generous()
    };
    let mut admission = Admission::new(config, 1, 2);
    for n in 0..10_000_u64 {
        let _ = admission.arrive(at(0), &n.to_be_bytes(), b"");
        let _ = admission.identify(at(0), &UserId::new(n.to_be_bytes()).unwrap());
    }
    assert_eq!(
        admission.remembered(),
        100 + 100 + 40,
        "addresses, users, and a slot for each second of the wait"
    );
}
