//! Tests of the dialer: what it is told, and what it does.

use super::*;

fn at(millis: u64) -> Timestamp {
    Timestamp::from_millis(1_000_000 + millis)
}

fn tell(dialer: &mut Dialer, millis: u64, input: DialInput) -> Vec<DialAction> {
    dialer.handle(at(millis), input);
    std::iter::from_fn(|| dialer.poll_action()).collect()
}

fn dialer(transports: usize) -> Dialer {
    let mut dialer = Dialer::new(DialerConfig::default(), transports, &[], 1);
    assert_eq!(tell(&mut dialer, 0, DialInput::Start), [DialAction::AskCredentials(None)]);
    dialer
}

/// Up over the first transport.
fn up(transports: usize) -> Dialer {
    let mut dialer = dialer(transports);
    let dialled = tell(&mut dialer, 0, DialInput::Credentials);
    assert_eq!(dialled, [DialAction::State(DialState::Connecting(0)), DialAction::Dial(0)]);
    assert_eq!(tell(&mut dialer, 0, DialInput::Stands), []);
    assert_eq!(tell(&mut dialer, 0, DialInput::Opened), [DialAction::State(DialState::Online(0))]);
    dialer
}

fn until(actions: &[DialAction]) -> u64 {
    match actions.last() {
        Some(DialAction::State(DialState::Offline(at, _))) => at.as_millis() - 1_000_000,
        other => panic!("offline was expected, not {other:?}"),
    }
}

#[test]
fn a_lost_connection_is_made_again_after_a_delay_and_a_hint_shortens_it() {
    let mut dialer = up(1);
    let lost = tell(&mut dialer, 5000, DialInput::Lost(Code::TransportLost, None));
    assert!((5500..=6000).contains(&until(&lost)), "{lost:?}");
    assert_eq!(dialer.poll_timeout(), Some(at(until(&lost))));
    assert_eq!(tell(&mut dialer, 5400, DialInput::Tick), []);
    let hinted = tell(&mut dialer, 5400, DialInput::NetworkChanged(vec![]));
    assert_eq!(hinted, [DialAction::State(DialState::Connecting(0)), DialAction::Dial(0)]);
}

#[test]
fn what_the_peer_asked_for_is_obeyed_whatever_the_host_hints() {
    let mut dialer = up(1);
    let after = Some(Duration::from_secs(30));
    let lost = tell(&mut dialer, 0, DialInput::Lost(Code::Draining, after));
    assert!((30_000..=33_750).contains(&until(&lost)), "{lost:?}");
    let hinted = tell(&mut dialer, 1000, DialInput::NetworkChanged(vec![]));
    assert_eq!(until(&hinted), until(&lost));
}

#[test]
fn who_was_asked_to_leave_comes_back_in_its_slot_however_the_connection_ends() {
    let mut dialer = up(1);
    tell(&mut dialer, 0, DialInput::GoingAway(Some(Duration::from_secs(60))));
    let lost = tell(&mut dialer, 1000, DialInput::Lost(Code::TransportLost, None));
    assert!((60_000..=67_500).contains(&until(&lost)), "{lost:?}");
}

#[test]
fn refused_credentials_are_asked_for_again_and_not_tried_at_once() {
    let mut dialer = up(1);
    let lost = tell(&mut dialer, 0, DialInput::Lost(Code::SessionExpired, None));
    assert_eq!(lost, [DialAction::AskCredentials(Some(Code::SessionExpired))]);
    let again = tell(&mut dialer, 1, DialInput::Credentials);
    assert!((500..=1000).contains(&until(&again)));
    assert_eq!(tell(&mut dialer, 1000, DialInput::Tick).last(), Some(&DialAction::Dial(0)));
}

#[test]
fn without_credentials_the_host_is_asked_again_later() {
    let mut dialer = dialer(1);
    let none = tell(&mut dialer, 0, DialInput::NoCredentials);
    assert_eq!(none, [DialAction::State(DialState::NeedsCredentials(None))]);
    assert_eq!(tell(&mut dialer, 2000, DialInput::Tick), [DialAction::AskCredentials(None)]);
    tell(&mut dialer, 2000, DialInput::NoCredentials);
    let given = tell(&mut dialer, 2001, DialInput::Credentials);
    assert_eq!(given.last(), Some(&DialAction::Dial(0)), "or it is given some, unasked");
}

#[test]
fn a_transport_that_takes_too_long_is_dropped_and_the_next_one_gets_its_turn() {
    let mut dialer = dialer(2);
    tell(&mut dialer, 0, DialInput::Credentials);
    let mut now = 0;
    for _ in 0..2 {
        now += 10_000;
        let slow = tell(&mut dialer, now, DialInput::Tick);
        assert_eq!(slow.first(), Some(&DialAction::Abandon));
        now = until(&slow);
        tell(&mut dialer, now, DialInput::Tick);
    }
    assert_eq!(dialer.phase, Phase::Dialing(1, at(now)));
}

#[test]
fn a_better_transport_is_tried_beside_the_one_that_stands_and_a_failure_costs_nothing() {
    let mut dialer = dialer(2);
    tell(&mut dialer, 0, DialInput::Credentials);
    tell(&mut dialer, 0, DialInput::Failed(Code::TransportLost, None));
    tell(&mut dialer, 2000, DialInput::Tick);
    let left = tell(&mut dialer, 2000, DialInput::Failed(Code::TransportLost, None));
    let now = until(&left);
    assert_eq!(tell(&mut dialer, now, DialInput::Tick).last(), Some(&DialAction::Dial(1)));
    tell(&mut dialer, now, DialInput::Stands);
    tell(&mut dialer, now, DialInput::Opened);
    // It has stood for long enough to be remembered, and then the better one has rested.
    assert_eq!(dialer.poll_timeout(), Some(at(now + 8000)));
    assert_eq!(tell(&mut dialer, now + 8000, DialInput::Tick), []);
    let rested = dialer.poll_timeout().expect("the better one rests").as_millis() - 1_000_000;
    assert_eq!(tell(&mut dialer, rested, DialInput::Tick), [DialAction::Dial(0)]);
    assert_eq!(tell(&mut dialer, rested, DialInput::Failed(Code::TransportLost, None)), []);
    assert_eq!(dialer.phase, Phase::Up(1, None));
    let longer = dialer.poll_timeout().expect("it is tried again").as_millis() - 1_000_000;
    assert!(longer >= rested + 40_000, "{longer} after {rested}");
    assert_eq!(tell(&mut dialer, longer, DialInput::Tick), [DialAction::Dial(0)]);
    assert_eq!(tell(&mut dialer, longer, DialInput::Stands), []);
    let climbed = tell(&mut dialer, longer, DialInput::Opened);
    assert_eq!(climbed, [DialAction::State(DialState::Online(0))]);
    let proven = dialer.poll_timeout().expect("it has to stand for a while").as_millis() - 1_000_000;
    assert_eq!((proven, dialer.memory()), (longer + 8000, vec![1]));
    tell(&mut dialer, proven, DialInput::Tick);
    assert_eq!((dialer.poll_timeout(), dialer.memory()), (None, vec![0, 1]));
}

#[test]
fn a_poor_connection_is_left_for_the_next_transport_once_that_stands() {
    let mut dialer = up(2);
    assert_eq!(tell(&mut dialer, 8000, DialInput::Graded(Grade::Poor)), [DialAction::Dial(1)]);
    assert_eq!(dialer.phase, Phase::Up(0, Some((1, at(8000)))));
    // If that fails, nothing is left but the poor one.
    tell(&mut dialer, 8000, DialInput::Failed(Code::TransportLost, None));
    assert_eq!(dialer.phase, Phase::Up(0, None));
}

#[test]
fn who_has_given_up_tries_again_when_the_host_says_so() {
    let mut dialer = up(2);
    tell(&mut dialer, 0, DialInput::Lost(Code::TakenOver, None));
    let dials = [DialAction::State(DialState::Connecting(0)), DialAction::Dial(0)];
    assert_eq!(tell(&mut dialer, 10, DialInput::Reopen), dials);
    tell(&mut dialer, 10, DialInput::Stands);
    assert_eq!(tell(&mut dialer, 10, DialInput::Opened), [DialAction::State(DialState::Online(0))]);
    assert_eq!(tell(&mut dialer, 20, DialInput::Reopen), [], "it is up");
    // Given up with a time to come back at: that is kept to.
    let lost = tell(&mut dialer, 30, DialInput::GoingAway(Some(Duration::from_secs(60))));
    assert_eq!(lost, []);
    tell(&mut dialer, 30, DialInput::Lost(Code::Forbidden, None));
    assert!((60_030..=67_530).contains(&until(&tell(&mut dialer, 40, DialInput::Reopen))));
    // While it waits for its own sake, it need not.
    let mut dialer = up(1);
    tell(&mut dialer, 0, DialInput::Lost(Code::TransportLost, None));
    assert_eq!(tell(&mut dialer, 1, DialInput::Reopen), dials);
    // A peer that sent garbage three times is given the same chances again.
    let mut now = 100_000;
    for round in 0..2 {
        let mut codes = Vec::new();
        for _ in 0..3 {
            tell(&mut dialer, now, DialInput::Stands);
            codes.push(tell(&mut dialer, now, DialInput::Lost(Code::Malformed, None)));
            now += 100_000;
            tell(&mut dialer, now, DialInput::Tick);
        }
        let closed = [DialAction::State(DialState::Closed(Code::Malformed))];
        assert_eq!(codes.iter().position(|code| *code == closed), Some(2), "round {round}: {codes:?}");
        assert_eq!(tell(&mut dialer, now, DialInput::Reopen), dials);
    }
}

#[test]
fn whom_the_host_has_closed_nothing_opens_again() {
    for mut dialer in [up(1), {
        let mut d = up(1);
        tell(&mut d, 0, DialInput::Lost(Code::TakenOver, None));
        d
    }] {
        tell(&mut dialer, 0, DialInput::Close(Code::Ended));
        assert_eq!(tell(&mut dialer, 1, DialInput::Reopen), []);
    }
}

#[test]
fn what_breaks_for_good_closes_it_and_nothing_opens_it_again() {
    let mut dialer = up(1);
    let closed = tell(&mut dialer, 0, DialInput::Lost(Code::TakenOver, None));
    assert_eq!(closed, [DialAction::State(DialState::Closed(Code::TakenOver))]);
    for input in [DialInput::NetworkChanged(vec![]), DialInput::Credentials, DialInput::Tick] {
        assert_eq!(tell(&mut dialer, 100_000, input), []);
    }
    assert_eq!(dialer.poll_timeout(), None);
}

/// One client's way through an outage, and through refusals after it: when it is up, and when it is up over the best
/// transport.
fn through_an_outage(seed: u64, ends: u64, refused: Option<Duration>) -> (u64, u64) {
    let mut dialer = Dialer::new(DialerConfig::default(), 2, &[0], seed);
    let (mut now, mut refusals, mut up) = (0, u64::from(refused.is_some()), None);
    let mut actions: VecDeque<_> = tell(&mut dialer, 0, DialInput::Start).into();
    loop {
        let Some(action) = actions.pop_front() else {
            if let (Some(up), Phase::Up(0, _)) = (up, dialer.phase) {
                return (up, now);
            }
            now = dialer.poll_timeout().expect("it goes on").as_millis() - 1_000_000;
            actions.extend(tell(&mut dialer, now, DialInput::Tick));
            continue;
        };
        match action {
            DialAction::AskCredentials(_) => {
                actions.extend(tell(&mut dialer, now, DialInput::Credentials));
            }
            DialAction::Dial(_) if now < ends => {
                actions.extend(tell(&mut dialer, now, DialInput::Failed(Code::TransportLost, None)));
            }
            DialAction::Dial(_) => {
                actions.extend(tell(&mut dialer, now, DialInput::Stands));
                if refusals > 0 {
                    refusals -= 1;
                    actions.extend(tell(&mut dialer, now, DialInput::Lost(Code::Overloaded, refused)));
                } else {
                    actions.extend(tell(&mut dialer, now, DialInput::Opened));
                    up = up.or(Some(now));
                }
            }
            _ => {}
        }
    }
}

#[test]
fn an_outage_of_any_length_keeps_nobody_from_the_best_transport_for_longer_than_it_rests_once() {
    let rest = 20_000 + 8_000;
    for seed in 0..2000_u64 {
        let ends = (seed * 7919) % 7_200_000;
        let (up, best) = through_an_outage(seed, ends, None);
        assert!(up <= ends + 20_000 && best <= up + rest, "seed {seed}: {ends}, {up}, {best}");
    }
}

#[test]
fn a_hundred_thousand_clients_come_back_after_an_outage_and_after_the_same_refusal_without_waves() {
    const CROWD: u64 = 100_000;
    for refused in [None, Some(Duration::from_secs(60))] {
        let mut tenths = std::collections::BTreeMap::<u64, u64>::new();
        for seed in 0..CROWD {
            let (up, _) = through_an_outage(seed, 60_000, refused);
            *tenths.entry(up / 100).or_default() += 1;
        }
        let most = tenths.into_values().max().expect("somebody came");
        assert!(most <= CROWD * 3 / 200, "{most} came within a tenth of a second, {refused:?}");
    }
}
