//! JSON Web Tokens over real connections: who shows a bad one gets no session by any way, a session lives as long as its
//! token, and a new one makes it live longer.

mod common;

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use common::light::Light;
use common::{request, spawn, within};
use futures_util::{SinkExt as _, StreamExt as _};
use lastmile::ports::Connector;
use lastmile::session::frame::{Credentials, Frame};
use lastmile::session::{AdmissionConfig, Code, Rate};
use lastmile::storage::MemoryStore;
use lastmile::{Acceptor, Engine};
use lastmile_web::{
    JwtAuthenticator, JwtIssuer, JwtKey, ServeConfig, WebClient, WebConfig, WsTransport, router,
};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{self, Message};

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
const HOUR: Duration = Duration::from_secs(3600);

struct World {
    acceptor: Acceptor,
    address: std::net::SocketAddr,
    client: WebClient,
    _stop: oneshot::Sender<()>,
}

async fn world() -> World {
    let engine = Engine::builder(MemoryStore::new()).build().unwrap();
    let key = JwtKey::hmac(SECRET).unwrap();
    let tokens = JwtAuthenticator::new("chat", "me", [(None, key)]).unwrap().leeway(Duration::ZERO);
    let mut admission = AdmissionConfig::default();
    let any = Rate { every: Duration::from_micros(10), burst: 100_000 };
    (admission.address, admission.user, admission.global) = (any, any, any);
    admission.penalty = Duration::from_millis(1);
    admission.max_penalty = Duration::from_millis(1);
    let acceptor = Acceptor::builder(engine, tokens).admission(admission).build().unwrap();
    let app = router(acceptor.clone(), WebConfig::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    spawn(async move {
        let stopped = async { drop(stopped.await) };
        lastmile_web::serve(listener, app, ServeConfig::default(), stopped).await.unwrap();
    });
    let client = WebClient::new(&format!("http://{address}/lastmile")).unwrap().no_proxy();
    World { acceptor, address, client, _stop: stop }
}

fn token(user: &str, expires_in: Duration) -> String {
    JwtIssuer::hmac("chat", "me", None, SECRET).unwrap().issue(user, expires_in).unwrap()
}

/// Tokens that let nobody in, each with what is wrong with it.
fn bad() -> Vec<(&'static str, String)> {
    let good = token("alice", HOUR);
    let claims = good.split('.').nth(1).unwrap();
    let none = URL_SAFE_NO_PAD.encode(json!({"alg": "none", "typ": "JWT"}).to_string());
    let of = |audience: &str, issuer: &str, secret: &[u8]| {
        JwtIssuer::hmac(audience, issuer, None, secret).unwrap().issue("alice", HOUR).unwrap()
    };
    vec![
        ("none at all", String::new()),
        ("no token", "alice".into()),
        ("unsigned", format!("{none}.{claims}.")),
        ("signed by another algorithm", by_another_algorithm()),
        ("signed with another secret", of("chat", "me", b"fedcba9876543210fedcba9876543210")),
        ("for another audience", of("mail", "me", SECRET)),
        ("of another issuer", of("chat", "you", SECRET)),
        ("expired", token("alice", Duration::ZERO)),
    ]
}

/// With the right secret.
fn by_another_algorithm() -> String {
    let header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::HS512);
    let claims = json!({"sub": "alice", "aud": "chat", "iss": "me", "exp": jsonwebtoken::get_current_timestamp() + 600});
    jsonwebtoken::encode(&header, &claims, &jsonwebtoken::EncodingKey::from_secret(SECRET).unwrap()).unwrap()
}

async fn refused_by(connector: &impl Connector, token: &str) -> Code {
    match within(Light::try_connect(connector, token, "phone", true)).await {
        Ok(_) => panic!("it was let in"),
        Err(refused) => refused.code,
    }
}

#[tokio::test]
async fn a_bad_token_is_rejected_by_every_way_and_counted() {
    let world = world().await;
    let mut count = 0;
    for (what, token) in bad() {
        let expected = match what {
            _ if token.is_empty() => Code::CredentialsNeeded,
            "expired" => Code::SessionExpired,
            _ => Code::CredentialsRefused,
        };
        assert_eq!(refused_by(&world.client.websocket(), &token).await, expected, "{what}");
        assert_eq!(refused_by(&world.client.sse(), &token).await, expected, "{what}");
        assert_eq!(refused_by(&world.client.long_poll(), &token).await, expected, "{what}");
        count += 3;
        assert_eq!(world.acceptor.stats().rejected, count, "{what}");
    }
    assert_eq!(world.acceptor.stats().opened, 0);
    within(Light::connect(&world.client.websocket(), &token("alice", HOUR), "phone", true)).await;
}

/// What a page says first.
fn hello(token: &str) -> String {
    let hello = json!({
        "frame": "hello", "oldest": 1, "newest": 1, "codecs": [{"codec": "json"}], "device": "page",
        "credentials": token, "stream": "0123456789abcdef0123456789abcdef", "capabilities": "5", "horizon_ms": 0,
        "window": {"messages": 64, "bytes": 1 << 20, "reserve": 8}, "heartbeat_ms": 25_000, "max_frame": 1 << 20,
    });
    hello.to_string()
}

#[tokio::test]
async fn the_close_after_a_rejection_says_why_by_every_way() {
    let world = world().await;
    let bad = hello(&token("alice", Duration::ZERO));

    let mut upgrade = format!("ws://{}/lastmile/ws", world.address).into_client_request().unwrap();
    upgrade.headers_mut().insert("sec-websocket-protocol", "lastmile.v1".parse().unwrap());
    let socket = TcpStream::connect(world.address).await.unwrap();
    let (mut socket, _) = tokio_tungstenite::client_async(upgrade, socket).await.unwrap();
    socket.send(Message::text(bad.as_str())).await.unwrap();
    let closed = within(async {
        loop {
            if let Message::Close(why) = socket.next().await.unwrap().unwrap() {
                break why.unwrap().code;
            }
        }
    })
    .await;
    assert_eq!(closed, tungstenite::protocol::frame::coding::CloseCode::from(4202));

    for (by, expected) in [("sse", "event: close\ndata: {\"code\":4202}"), ("poll", "{\"code\":4202}")] {
        let ask = async |head: &str, body: &str| request(world.address, head, body.as_bytes()).await;
        let (_, answer) = ask(&format!("POST /lastmile/open?by={by} HTTP/1.1"), "").await;
        let id = answer.rsplit('"').nth(1).unwrap().to_owned();
        let up = ask(&format!("POST /lastmile/up?c={id}&n=1 HTTP/1.1"), &bad).await;
        assert_eq!(up.0, 204, "{}", up.1);
        if by == "sse" {
            let (_, said) = ask(&format!("GET /lastmile/sse?c={id} HTTP/1.1"), "").await;
            assert!(said.contains("\"frame\":\"reject\"") && said.contains(expected), "{said}");
            continue;
        }
        let (status, said) = ask(&format!("GET /lastmile/poll?c={id}&n=1 HTTP/1.1"), "").await;
        assert!(status == 200 && said.contains("\"frame\":\"reject\""), "{said}");
        let (status, said) = ask(&format!("GET /lastmile/poll?c={id}&n=2 HTTP/1.1"), "").await;
        assert!(status == 410 && said.ends_with(expected), "{said}");
    }
}

/// The frame that is waited for; others are passed over.
async fn heard<T>(session: &mut Light<WsTransport>, wanted: impl Fn(&Frame) -> Option<T>) -> T {
    within(async {
        loop {
            match session.frame().await {
                Frame::Ping { nonce, .. } => session.say(&[Frame::Pong { nonce }]).await,
                frame => {
                    if let Some(found) = wanted(&frame) {
                        break found;
                    }
                }
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_session_ends_when_its_token_expires() {
    let world = world().await;
    // On a slow machine a token may have expired before it is shown.
    let mut session = within(async {
        loop {
            let token = token("alice", Duration::from_secs(2));
            let connected = Light::try_connect(&world.client.websocket(), &token, "phone", true).await;
            if let Ok(session) = connected {
                break session;
            }
        }
    })
    .await;
    let why = heard(&mut session, |frame| match frame {
        Frame::Close(refused) => Some(refused.code),
        _ => None,
    });
    assert_eq!(why.await, Code::SessionExpired);
}

#[tokio::test]
async fn a_new_token_of_the_same_user_renews_the_open_session_and_that_of_another_ends_it() {
    let world = world().await;
    let first = token("alice", Duration::from_secs(600));
    let mut session = within(Light::connect(&world.client.websocket(), &first, "phone", true)).await;
    let renew = |token: String| [Frame::Renew(Credentials(Bytes::from(token)))];
    session.say(&renew(token("alice", 10 * HOUR))).await;
    let left = heard(&mut session, |frame| match frame {
        Frame::Renewed { expires_in } => Some(expires_in.unwrap()),
        _ => None,
    });
    let left = left.await;
    assert!(left <= 10 * HOUR && left > 9 * HOUR, "{left:?}");
    session.say(&renew(token("bob", HOUR))).await;
    let why = heard(&mut session, |frame| match frame {
        Frame::Close(refused) => Some(refused.code),
        _ => None,
    });
    assert_eq!(why.await, Code::CredentialsRefused);
    assert_eq!(world.acceptor.stats().opened, 1);
}
