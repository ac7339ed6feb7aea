//! Credentials are renewed, expire and are refused on connections that stand: nothing is lost, and nobody stays who may not.
#![cfg(all(feature = "runtime", feature = "sled", feature = "testing"))]

#[path = "session/support.rs"]
mod support;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lastmile::ports::{Authenticator, Claim, CredentialSource, Denied, Identity};
use lastmile::session::frame::Credentials;
use lastmile::session::{AdmissionConfig, Code, Rate};
use lastmile::storage::MemoryStore;
use lastmile::testing::{Network, NetworkWeather, VirtualTime};
use lastmile::{Acceptor, Client, ClientState, Engine};
use tokio::sync::Notify;

use support::{LONG, Server, message, online};

/// Longer than anything here takes in virtual time.
const HOUR: Duration = Duration::from_secs(3600);

/// Credentials that are good for a while, and counted.
#[derive(Clone, Default)]
struct Tokens(Arc<AtomicUsize>);

impl CredentialSource for Tokens {
    async fn credentials(&self, _why: Option<Code>) -> Option<Credentials> {
        let n = self.0.fetch_add(1, Ordering::SeqCst);
        Some(Credentials(format!("token {n}").into()))
    }
}

struct ShortLived(Duration);

impl Authenticator for ShortLived {
    async fn authenticate(&self, claim: Claim) -> Result<Identity, Denied> {
        if claim.credentials.0.as_ref() == b"token 0" && claim.renews.is_some() {
            return Err(Denied::refused("the old token"));
        }
        let user = claim.user.ok_or_else(|| Denied::refused("no name"))?;
        Ok(Identity::new(user).expires_in(self.0))
    }
}

#[tokio::test(start_paused = true)]
async fn credentials_are_renewed_on_the_open_session_before_they_expire() {
    let time = VirtualTime::start();
    let engine = Engine::builder(MemoryStore::new()).clock(time.clock()).build().unwrap();
    let acceptor = Acceptor::builder(engine.clone(), ShortLived(Duration::from_secs(90))).build().unwrap();
    let server = Server { engine, acceptor };
    let tokens = Tokens::default();
    let alice = Client::builder(Engine::builder(MemoryStore::new()).clock(time.clock()), "alice", "phone")
        .connector(support::to(&server))
        .credentials(tokens.clone())
        .build()
        .unwrap();
    online(&alice).await;
    let third = async {
        while tokens.0.load(Ordering::SeqCst) < 3 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(300), third).await.expect("a third token");
    assert_eq!(server.acceptor.stats().opened, 1, "and the connection stood all the while");
    assert!(alice.state().is_online());
}

#[tokio::test(start_paused = true)]
async fn expired_credentials_end_the_session_and_leave_the_outbox() {
    let time = VirtualTime::start();
    let engine = Engine::builder(MemoryStore::new()).clock(time.clock()).build().unwrap();
    let acceptor = Acceptor::builder(engine.clone(), ShortLived(Duration::from_secs(30))).build().unwrap();
    let server = Server { engine, acceptor };
    struct Once(AtomicUsize);
    impl CredentialSource for Once {
        async fn credentials(&self, _why: Option<Code>) -> Option<Credentials> {
            (self.0.fetch_add(1, Ordering::SeqCst) == 0).then(|| Credentials("token".into()))
        }
    }
    let alice = Client::builder(Engine::builder(MemoryStore::new()).clock(time.clock()), "alice", "phone")
        .connector(support::to(&server))
        .credentials(Once(AtomicUsize::new(0)))
        .build()
        .unwrap();
    let mut watch = alice.watch();
    let needs = watch.wait_for(|state| matches!(state, ClientState::NeedsCredentials { .. }));
    let needs = tokio::time::timeout(Duration::from_secs(120), needs).await.unwrap();
    assert_eq!(needs, Some(ClientState::NeedsCredentials { why: Some(Code::SessionExpired) }));
    assert_eq!(server.acceptor.stats().sessions, 0, "cleaned up at once");
    server.engine.send(message("alice", "waits")).await.unwrap();
    let screen = support::screen(&alice);
    alice.renew(Credentials("another".into())).await.unwrap();
    let got = tokio::time::timeout(Duration::from_secs(120), screen.next()).await.unwrap();
    assert_eq!(got.delivery.message.payload().as_ref(), b"waits");
}

/// Found by an audit: it was said to be online for as long as a login screen was open.
#[tokio::test(start_paused = true)]
async fn a_client_whose_host_takes_its_time_to_give_credentials_is_not_said_to_be_online() {
    struct LoginScreen(AtomicUsize);
    impl CredentialSource for LoginScreen {
        async fn credentials(&self, _why: Option<Code>) -> Option<Credentials> {
            match self.0.fetch_add(1, Ordering::SeqCst) {
                0 => Some(Credentials("token".into())),
                _ => std::future::pending().await,
            }
        }
    }
    let time = VirtualTime::start();
    let server = server(&time, ShortLived(Duration::from_secs(30)));
    let screen = LoginScreen(AtomicUsize::new(0));
    let alice = alice(&time).connector(support::to(&server)).credentials(screen).build().unwrap();
    online(&alice).await;
    let mut watch = alice.watch();
    let left = tokio::time::timeout(HOUR, watch.wait_for(|state| !state.is_online())).await;
    let why = Some(Code::SessionExpired);
    assert_eq!(left, Ok(Some(ClientState::NeedsCredentials { why })));
    alice.renew(Credentials("typed in at last".into())).await.unwrap();
    online(&alice).await;
}

/// Found by an audit: whoever came back after a night said hello with yesterday's token, at the cost of everybody at its
/// address.
#[tokio::test(start_paused = true)]
async fn a_client_that_was_away_for_longer_than_its_token_is_good_asks_for_another_one_first() {
    let time = VirtualTime::start();
    let server = server(&time, ShortLived(Duration::from_secs(40)));
    let (tokens, gate) = (Tokens::default(), support::Gate::opened());
    let asked = tokens.0.clone();
    let alice = alice(&time).connector(gate.connector(&server)).credentials(tokens).build().unwrap();
    online(&alice).await;
    gate.close();
    let phone = lastmile::Peer::new("alice".try_into().unwrap(), "phone".try_into().unwrap());
    assert!(server.acceptor.close(&phone, Code::Done).await);
    let mut watch = alice.watch();
    let asks = async {
        while asked.load(Ordering::SeqCst) < 2 {
            watch.changed().await.expect("it goes on");
        }
    };
    tokio::time::timeout(HOUR, asks).await.expect("another token is asked for");
    gate.open();
    online(&alice).await;
    assert_eq!(asked.load(Ordering::SeqCst), 2);
    assert_eq!(server.acceptor.stats().rejected, 0, "nothing was shown that is not good");
}

/// Found by an audit: one laptop that woke up with an old token was enough to keep all behind its address out for a while, and
/// a few of them for a quarter of an hour.
#[tokio::test(start_paused = true)]
async fn an_office_that_wakes_up_with_expired_tokens_is_online_soon_and_no_penalty_is_left() {
    struct Dated;
    impl Authenticator for Dated {
        async fn authenticate(&self, claim: Claim) -> Result<Identity, Denied> {
            if claim.credentials.0.as_ref() == b"token 0" {
                return Err(Denied::expired("a token of yesterday"));
            }
            claim.user.map(Identity::new).ok_or_else(|| Denied::refused("no name"))
        }
    }
    let time = VirtualTime::start();
    let engine = Engine::builder(MemoryStore::new()).clock(time.clock()).build().unwrap();
    let mut admission = AdmissionConfig::default();
    admission.address = Rate { every: Duration::from_millis(10), burst: 100 };
    let acceptor = Acceptor::builder(engine.clone(), Dated).admission(admission).build().unwrap();
    let server = Server { engine, acceptor };
    let clients: Vec<_> = (0..50)
        .map(|n| {
            let engine = Engine::builder(MemoryStore::new()).clock(time.clock());
            let client = Client::builder(engine, format!("user {n}"), "laptop").seed(n);
            client.connector(support::to(&server)).credentials(Tokens::default()).build().unwrap()
        })
        .collect();
    for client in &clients {
        let mut watch = client.watch();
        let online = watch.wait_for(|state| state.is_online());
        assert!(tokio::time::timeout(Duration::from_secs(10), online).await.is_ok(), "{:?}", client.state());
    }
    assert_eq!((server.acceptor.stats().rejected, server.acceptor.stats().open), (50, 50));
    online(&alice(&time).connector(support::to(&server)).build().unwrap()).await;
}

fn server(time: &VirtualTime, authenticator: impl Authenticator) -> Server {
    let engine = Engine::builder(MemoryStore::new()).clock(time.clock()).build().unwrap();
    let acceptor = Acceptor::builder(engine.clone(), authenticator).build().unwrap();
    Server { engine, acceptor }
}

fn alice(time: &VirtualTime) -> lastmile::ClientBuilder {
    Client::builder(Engine::builder(MemoryStore::new()).clock(time.clock()), "alice", "phone").seed(1)
}

#[tokio::test(start_paused = true)]
async fn credentials_that_a_host_gives_unasked_prolong_the_open_session() {
    let time = VirtualTime::start();
    let server = server(&time, ShortLived(Duration::from_secs(90)));
    /// There is one token, until the host has another.
    struct One(AtomicUsize);
    impl CredentialSource for One {
        async fn credentials(&self, _why: Option<Code>) -> Option<Credentials> {
            (self.0.fetch_add(1, Ordering::SeqCst) == 0).then(|| Credentials("first".into()))
        }
    }
    let alice =
        alice(&time).connector(support::to(&server)).credentials(One(AtomicUsize::new(0))).build().unwrap();
    online(&alice).await;
    let screen = support::screen(&alice);
    for round in 0..3 {
        tokio::time::sleep(Duration::from_secs(45)).await;
        alice.renew(Credentials(format!("renewed {round}").into())).await.unwrap();
        server.engine.send(message("alice", &round.to_string())).await.unwrap();
        let got = tokio::time::timeout(HOUR, screen.next()).await.unwrap();
        assert_eq!(got.delivery.message.payload().as_ref(), round.to_string().as_bytes());
    }
    assert_eq!(server.acceptor.stats().opened, 1, "after 135 s it is the first connection still");
}

/// Refuses whom it is told to refuse, and remembers what it was asked.
#[derive(Clone, Default)]
struct Guard {
    refused: &'static [&'static str],
    asked: Arc<Mutex<Vec<(String, bool)>>>,
}

impl Authenticator for Guard {
    async fn authenticate(&self, claim: Claim) -> Result<Identity, Denied> {
        let token = String::from_utf8(claim.credentials.0.to_vec()).unwrap();
        self.asked.lock().unwrap().push((token.clone(), claim.renews.is_some()));
        if self.refused.contains(&token.as_str()) {
            return Err(Denied::refused("not this one"));
        }
        Ok(Identity::new(claim.user.expect("it says who it is")).expires_in(Duration::from_secs(90)))
    }
}

#[tokio::test(start_paused = true)]
async fn when_new_credentials_are_refused_the_session_ends_at_once_and_goes_on_with_others() {
    let time = VirtualTime::start();
    let guard = Guard { refused: &["token 1", "token 2"], ..Guard::default() };
    let server = server(&time, guard.clone());
    let tokens = Tokens::default();
    let alice = alice(&time).connector(support::to(&server)).credentials(tokens.clone()).build().unwrap();
    online(&alice).await;
    let screen = support::screen(&alice);
    // Token 1, on the open connection, before token 0 expires.
    let left = |state: &ClientState| !state.is_online();
    tokio::time::timeout(HOUR, alice.watch().wait_for(left)).await.expect("refused").unwrap();
    let receipt = alice.send(message("bob", "written meanwhile")).await.unwrap();
    server.engine.send(message("alice", "waits")).await.unwrap();
    // Token 2 is refused in the handshake, token 3 is good.
    let got = tokio::time::timeout(HOUR, screen.next()).await.expect("let in again");
    assert_eq!(got.delivery.message.payload().as_ref(), b"waits");
    tokio::time::timeout(HOUR, receipt.reached(lastmile::Stage::Delivered)).await.unwrap().unwrap();
    let asked = guard.asked.lock().unwrap().iter().take(4).cloned().collect::<Vec<_>>();
    let expected = [("token 0", false), ("token 1", true), ("token 2", false), ("token 3", false)];
    assert_eq!(asked, expected.map(|(token, renews)| (token.to_owned(), renews)));
    assert_eq!(server.acceptor.stats().opened, 2);
}

#[tokio::test(start_paused = true)]
async fn a_host_without_better_credentials_says_so_and_is_let_in_when_it_has_some() {
    let time = VirtualTime::start();
    let server = server(&time, Guard { refused: &["token 1"], ..Guard::default() });
    /// Two tokens, of which the second is no good.
    struct Two(AtomicUsize);
    impl CredentialSource for Two {
        async fn credentials(&self, _why: Option<Code>) -> Option<Credentials> {
            let n = self.0.fetch_add(1, Ordering::SeqCst);
            (n < 2).then(|| Credentials(format!("token {n}").into()))
        }
    }
    let alice =
        alice(&time).connector(support::to(&server)).credentials(Two(AtomicUsize::new(0))).build().unwrap();
    let needs = |state: &ClientState| matches!(state, ClientState::NeedsCredentials { .. });
    let state = tokio::time::timeout(HOUR, alice.watch().wait_for(needs)).await.expect("refused").unwrap();
    assert_eq!(state, ClientState::NeedsCredentials { why: Some(Code::CredentialsRefused) });
    assert_eq!(server.acceptor.stats().sessions, 0, "nobody stays who may not");
    let receipt = alice.send(message("bob", "kept")).await.unwrap();
    alice.renew(Credentials("token 7".into())).await.unwrap();
    tokio::time::timeout(HOUR, receipt.reached(lastmile::Stage::Delivered)).await.unwrap().unwrap();
    assert!(alice.state().is_online());
}

#[tokio::test(start_paused = true)]
async fn a_source_that_fails_once_is_asked_again_before_the_old_credentials_expire() {
    let time = VirtualTime::start();
    let server = server(&time, ShortLived(Duration::from_secs(40)));
    /// Has none at the second question, and panics at the third.
    struct Moody(AtomicUsize);
    impl CredentialSource for Moody {
        async fn credentials(&self, _why: Option<Code>) -> Option<Credentials> {
            let n = self.0.fetch_add(1, Ordering::SeqCst);
            assert_ne!(n, 2, "a bug of the host");
            (n != 1).then(|| Credentials(format!("from the {n}th question").into()))
        }
    }
    let alice =
        alice(&time).connector(support::to(&server)).credentials(Moody(AtomicUsize::new(0))).build().unwrap();
    online(&alice).await;
    tokio::time::sleep(Duration::from_secs(50)).await;
    assert!(alice.state().is_online());
    assert_eq!(server.acceptor.stats().opened, 1, "on the first connection still");
}

/// Answers renewals when it is told to, with a refusal.
#[derive(Clone, Default)]
struct Slow {
    asked: Arc<Notify>,
    answer: Arc<Notify>,
}

impl Authenticator for Slow {
    async fn authenticate(&self, claim: Claim) -> Result<Identity, Denied> {
        if claim.renews.is_some() {
            self.asked.notify_one();
            self.answer.notified().await;
            return Err(Denied::refused("too late"));
        }
        Ok(Identity::new(claim.user.expect("it says who it is")))
    }
}

#[tokio::test]
async fn an_answer_about_credentials_of_a_connection_that_is_gone_says_nothing_of_the_next_one() {
    let (slow, network) = (Slow::default(), Network::new(5, NetworkWeather::calm()));
    let engine = Engine::builder(MemoryStore::new()).build().unwrap();
    let acceptor = Acceptor::builder(engine.clone(), slow.clone()).build().unwrap();
    let alice = support::lonely("alice").connector(network.to(&acceptor, "network")).build().unwrap();
    online(&alice).await;
    alice.renew(Credentials("a question that takes long".into())).await.unwrap();
    tokio::time::timeout(LONG, slow.asked.notified()).await.expect("asked");
    network.cut_all();
    let screen = support::screen(&alice);
    engine.send(message("alice", "over the next connection")).await.unwrap();
    assert_eq!(support::texts(&screen, 1).await[0].0, "over the next connection");
    // If anybody still waits for it, this is heard at once.
    slow.answer.notify_one();
    engine.send(message("alice", "and over the same one again")).await.unwrap();
    assert_eq!(support::texts(&screen, 1).await[0].0, "and over the same one again");
    assert_eq!(acceptor.stats().opened, 2);
}
