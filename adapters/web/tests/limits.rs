//! What is over a limit, of the wrong origin, slow or no request at all is refused in the right way, and counted.

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::{Server, answer, read_some, within, write};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use lastmile::ports::{Connector as _, FrameReader as _, FrameWriter as _, TransportError};
use lastmile::session::Code;
use lastmile_web::{Origins, ServeConfig, SocketRefusal, WebConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const HANDSHAKE: &str = "GET /lastmile/ws HTTP/1.1\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";

fn config(change: impl FnOnce(&mut WebConfig)) -> WebConfig {
    let mut config = WebConfig::default();
    change(&mut config);
    config
}

#[tokio::test]
async fn pages_of_other_origins_are_refused_at_every_endpoint_and_counted() {
    let server = Server::start(WebConfig::default()).await;
    let requests = [
        "GET /lastmile/ws",
        "POST /lastmile/open",
        "GET /lastmile/sse?c=1",
        "GET /lastmile/poll?c=1&n=1",
        "POST /lastmile/up?c=1&n=1",
        "POST /lastmile/close?c=1",
    ];
    for request in requests {
        let head = format!("{request} HTTP/1.1\r\nOrigin: https://evil.example");
        let (status, answer) = server.request(&head, b"").await;
        assert_eq!(status, 403, "{answer}");
        assert!(answer.contains("\"code\":4309"), "{answer}");
        assert!(!answer.contains("access-control-allow-origin"), "{answer}");
    }
    assert_eq!(server.refused("origin"), 6);
}

#[tokio::test]
async fn pages_of_a_listed_origin_may_read_the_answers() {
    let server =
        Server::start(config(|c| c.origins = Origins::Also(vec!["https://app.example".into()]))).await;
    let (status, answer) =
        server.request("POST /lastmile/open HTTP/1.1\r\nOrigin: https://app.example", b"").await;
    assert_eq!(status, 200);
    assert!(answer.contains("access-control-allow-origin: https://app.example"), "{answer}");
    let (status, answer) =
        server.request("GET /lastmile/poll?c=1&n=1 HTTP/1.1\r\nOrigin: https://app.example", b"").await;
    assert_eq!(status, 404);
    assert!(answer.contains("access-control-allow-origin: https://app.example"), "also why it was refused");
}

#[tokio::test]
async fn a_handshake_that_is_none_or_of_another_protocol_is_refused() {
    let server = Server::start(WebConfig::default()).await;
    let another = format!("{HANDSHAKE}\r\nSec-WebSocket-Protocol: chat");
    for head in ["GET /lastmile/ws HTTP/1.1", another.as_str()] {
        let (status, answer) = server.request(head, b"").await;
        assert_eq!(status, 400, "{answer}");
    }
    let (status, _) = server.request("POST /lastmile/ws HTTP/1.1", b"").await;
    assert_eq!(status, 405);
    assert_eq!(server.refused("not_a_websocket"), 2);
}

#[tokio::test]
async fn connections_over_a_limit_are_told_when_to_come_back_and_places_come_free() {
    let server = Server::start(config(|c| {
        c.max_per_address = 2;
        c.retry_after = Duration::from_millis(1500);
    }))
    .await;
    let client = server.client();
    let first = within(client.websocket().connect()).await.unwrap();
    let _second = within(client.long_poll().connect()).await.unwrap();
    for refused in
        [client.websocket().connect().await.unwrap_err(), client.sse().connect().await.unwrap_err()]
    {
        assert_eq!(
            (refused.code, refused.retry_after),
            (Code::RateLimited, Some(Duration::from_millis(1500)))
        );
    }
    let (status, answer) = server.request("POST /lastmile/open HTTP/1.1", b"").await;
    assert_eq!(status, 429);
    assert!(answer.contains("retry-after: 1\r\n"), "{answer}");
    assert_eq!(server.refused("address"), 3);
    let theirs = server.next().await;
    drop((first, theirs));
    within(async {
        while server.web.stats().connections > 1 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    within(client.websocket().connect()).await.unwrap();
}

#[tokio::test]
async fn those_who_were_answered_nothing_yet_do_not_keep_others_out_for_long() {
    let server = Server::start(config(|c| c.max_pending = 1)).await;
    let client = server.client();
    let _first = within(client.websocket().connect()).await.unwrap();
    let refused = within(client.websocket().connect()).await.unwrap_err();
    assert_eq!((refused.code, server.refused("pending")), (Code::Overloaded, 1));
    let (_reader, mut writer, _) = server.next().await;
    write(&mut writer, &[b"{}"]).await;
    within(client.websocket().connect()).await.unwrap();
}

#[tokio::test]
async fn requests_that_make_no_sense_are_refused_each_with_its_status() {
    let server = Server::start(WebConfig::default()).await;
    let id = server.open().await;
    let nobody = "0".repeat(32);
    for (head, status) in [
        ("GET /lastmile/poll HTTP/1.1".to_owned(), 400),
        (format!("GET /lastmile/poll?c={id} HTTP/1.1"), 400),
        (format!("GET /lastmile/poll?c={id}&n=-1 HTTP/1.1"), 400),
        (format!("GET /lastmile/poll?c={id}&n=18446744073709551616 HTTP/1.1"), 400),
        (format!("GET /lastmile/poll?c={nobody}&n=1 HTTP/1.1"), 404),
        ("GET /lastmile/sse?c=%00 HTTP/1.1".to_owned(), 404),
        (format!("GET /lastmile/sse?c={}+1 HTTP/1.1", &id[2..]), 404),
        (format!("POST /lastmile/up?c={id}&n=2 HTTP/1.1"), 409),
        (format!("GET /lastmile/poll?c={id}&n=2 HTTP/1.1"), 409),
        (format!("GET /lastmile/up?c={id}&n=1 HTTP/1.1"), 405),
        ("POST /lastmile/open?by=pigeon HTTP/1.1".to_owned(), 400),
    ] {
        let (answered, answer) = server.request(&head, b"").await;
        assert_eq!(answered, status, "{head}: {answer}");
    }
    let (status, _) = server.request(&format!("POST /lastmile/up?c={id}&n=1 HTTP/1.1"), b"nonsense!").await;
    assert_eq!((status, server.refused("body")), (400, 1));
    let (status, _) = server.request(&format!("POST /lastmile/up?c={id}&n=1 HTTP/1.1"), b"{}").await;
    assert_eq!(status, 404, "whoever sends nonsense has no connection any more");
}

#[tokio::test]
async fn a_large_body_is_refused_before_it_is_read() {
    let server = Server::start(config(|c| {
        c.max_frame = 1000;
        c.max_buffered = 4000;
    }))
    .await;
    let id = server.open().await;
    let (mut reader, _writer, _) = server.next().await;
    let up = format!("POST /lastmile/up?c={id}&n=1 HTTP/1.1");
    let (status, answer) = server.request(&up, &vec![b' '; 1 << 20]).await;
    assert_eq!(status, 413, "{answer}");
    let (status, _) = server.request(&up, format!("{{{}", "x".repeat(999)).as_bytes()).await;
    assert_eq!(status, 204, "a frame of the limit's size is taken");
    assert_eq!(read_some(&mut reader, 1).await[0].len(), 1000);
    let up = format!("POST /lastmile/up?c={id}&n=2 HTTP/1.1");
    let (status, answer) = server.request(&up, format!("{{{}", "x".repeat(1000)).as_bytes()).await;
    assert_eq!(status, 413, "{answer}");
    assert!(within(reader.read()).await.is_err());
    assert_eq!(server.refused("too_large"), 2);
}

#[tokio::test]
async fn one_connection_cannot_make_the_server_hold_many_bodies() {
    let server = Server::start(WebConfig::default()).await;
    let id = server.open().await;
    let (mut reader, _writer, _) = server.next().await;
    let head = format!("POST /lastmile/up?c={id}&n=1 HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n{{");
    let refused = tokio::sync::Semaphore::new(0);
    // All of them begin, and none goes on.
    let mut answers: FuturesUnordered<_> = (0..7)
        .map(|_| async {
            let mut socket = TcpStream::connect(server.address).await.unwrap();
            socket.write_all(head.as_bytes()).await.unwrap();
            let mut first = [0; 12];
            tokio::select! {
                read = socket.read_exact(&mut first) => (socket, Some(read.map(|_| first).unwrap())),
                _ = refused.acquire() => (socket, None),
            }
        })
        .collect();
    for _ in 0..3 {
        let (_, answer) = within(answers.next()).await.unwrap();
        assert_eq!(answer.unwrap().as_slice(), b"HTTP/1.1 409");
    }
    assert_eq!(server.refused("out_of_turn"), 3);
    // The others are read: one, and three repeats of it.
    refused.add_permits(1);
    let mut read: Vec<_> = within(answers.collect()).await;
    assert!(read.iter().all(|(_, answer)| answer.is_none()));
    let mut slow: Vec<TcpStream> = read.drain(..).map(|(socket, _)| socket).collect();
    // One of them is completed: the others are no more than repeats of it.
    slow[0].write_all(b"\"a\":1234}").await.unwrap();
    assert_eq!(read_some(&mut reader, 1).await[0], b"{\"a\":1234}".as_slice());
    drop(slow);
    within(async {
        let next = format!("POST /lastmile/up?c={id}&n=2 HTTP/1.1");
        while server.request(&next, b"{}").await.0 != 204 {}
    })
    .await;
}

#[tokio::test]
async fn slow_bodies_and_slow_heads_are_cut_off() {
    let server = Server::start(config(|c| c.body_timeout = Duration::from_millis(300))).await;
    let id = server.open().await;
    let mut socket = TcpStream::connect(server.address).await.unwrap();
    let head = format!("POST /lastmile/up?c={id}&n=1 HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n{{");
    socket.write_all(head.as_bytes()).await.unwrap();
    let (status, said) = answer(&mut socket).await;
    assert_eq!((status, server.refused("slow_body")), (408, 1), "{said}");

    let mut serve = ServeConfig::default();
    serve.header_timeout = Duration::from_millis(300);
    let closed = serve.closed.clone();
    let server = Server::start_with(WebConfig::default(), serve).await;
    // One on which nothing comes is closed too, but nobody is to blame.
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    assert_eq!(answer(&mut silent).await.0, 0);
    assert_eq!(closed.count(SocketRefusal::SlowHead), 0);
    let mut socket = TcpStream::connect(server.address).await.unwrap();
    socket.write_all(b"POST /lastmile/open HTTP/1.1\r\nHost: a\r\nX-Slow: ").await.unwrap();
    let (status, said) = answer(&mut socket).await;
    assert_eq!(status, 0, "{said}");
    within(async {
        while closed.count(SocketRefusal::SlowHead) == 0 {
            tokio::task::yield_now().await
        }
    })
    .await;

    let mut socket = TcpStream::connect(server.address).await.unwrap();
    let long = format!("GET / HTTP/1.1\r\nHost: a\r\nX-Long: {}\r\n\r\n", "x".repeat(64 << 10));
    let _sent = socket.write_all(long.as_bytes()).await;
    // It may be closed before all that was sent has been read, and then the answer may be lost on its way.
    let (status, said) = answer(&mut socket).await;
    assert!(matches!(status, 0 | 431), "{said}");
    within(async {
        while closed.count(SocketRefusal::BadHead) == 0 {
            tokio::task::yield_now().await
        }
    })
    .await;
}

#[tokio::test]
async fn whoever_does_not_take_the_answer_is_given_up() {
    let mut serve = ServeConfig::default();
    serve.write_timeout = Duration::from_millis(300);
    let closed = serve.closed.clone();
    let server = Server::start_with(WebConfig::default(), serve).await;
    let _silent = within(server.client().websocket().connect()).await.unwrap();
    let (_reader, mut writer, _) = server.next().await;
    // Sockets hold some megabytes, and no more.
    let stuck = within(async {
        loop {
            if let Err(why) = writer.write(vec![Bytes::from(vec![7; 1 << 20])]).await {
                break why;
            }
        }
    })
    .await;
    assert!(matches!(stuck, TransportError::Broken(_)), "{stuck}");

    let mut socket = TcpStream::connect(server.address).await.unwrap();
    let many = "GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\n".repeat(1000);
    within(async { while socket.write_all(many.as_bytes()).await.is_ok() {} }).await;
    within(async {
        while closed.count(SocketRefusal::Stalled) == 0 {
            tokio::task::yield_now().await
        }
    })
    .await;
}

#[tokio::test]
async fn sockets_of_one_address_are_bounded() {
    let mut serve = ServeConfig::default();
    serve.max_sockets_per_address = 2;
    let closed = serve.closed.clone();
    let server = Server::start_with(WebConfig::default(), serve).await;
    let mut first = TcpStream::connect(server.address).await.unwrap();
    first.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n").await.unwrap();
    let mut second = TcpStream::connect(server.address).await.unwrap();
    second.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n").await.unwrap();
    let mut third = TcpStream::connect(server.address).await.unwrap();
    let _sent = third.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert_eq!(answer(&mut third).await.0, 0, "closed without a word");
    assert_eq!(closed.count(SocketRefusal::Address), 1);
    drop(second);
    within(async {
        loop {
            let mut socket = TcpStream::connect(server.address).await.unwrap();
            let _sent = socket.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
            if answer(&mut socket).await.0 == 404 {
                break;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn an_opened_connection_that_nobody_carries_is_given_up() {
    let server = Server::start(config(|c| c.open_timeout = Duration::from_millis(200))).await;
    let id = server.open().await;
    let (mut reader, writer, _) = server.next().await;
    assert!(within(reader.read()).await.is_err());
    drop((reader, writer));
    within(async {
        while server.web.stats().connections > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let (status, _) = server.request(&format!("GET /lastmile/poll?c={id}&n=1 HTTP/1.1"), b"").await;
    assert_eq!(status, 404);
}

#[tokio::test]
async fn a_poll_with_nothing_to_say_is_answered_in_time_and_the_next_one_goes_on() {
    let server = Server::start(config(|c| c.poll_wait = Duration::from_millis(200))).await;
    let id = server.open().await;
    let (_reader, mut writer, _) = server.next().await;
    let (status, answer) = server.request(&format!("GET /lastmile/poll?c={id}&n=1 HTTP/1.1"), b"").await;
    assert!(status == 200 && answer.ends_with("\r\n\r\n"), "{answer}");
    write(&mut writer, &[b"{\"a\":1}", b"\x01"]).await;
    for _ in 0..2 {
        let (status, answer) = server.request(&format!("GET /lastmile/poll?c={id}&n=2 HTTP/1.1"), b"").await;
        assert!(status == 200 && answer.ends_with("\r\n\r\n{\"a\":1}\nAQ==\n"), "{answer}");
    }
}

#[cfg(feature = "tls")]
mod tls {
    use std::sync::Arc;

    use lastmile_web::{WebClient, tls_from_pem};
    use tokio_rustls::rustls::crypto::aws_lc_rs;
    use tokio_rustls::rustls::{ClientConfig, RootCertStore};

    use super::*;

    #[tokio::test]
    async fn all_three_ways_go_over_tls_and_an_unknown_certificate_is_refused() {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let mut serve = ServeConfig::default();
        serve.tls = Some(
            tls_from_pem(made.cert.pem().as_bytes(), made.signing_key.serialize_pem().as_bytes()).unwrap(),
        );
        let server = Server::start_with(WebConfig::default(), serve).await;
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        let trusting = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let url = format!("https://localhost:{}/lastmile", server.address.port());
        let client = WebClient::new(&url).unwrap().no_proxy().tls(Arc::new(trusting));
        let (_ends, _reader, _writer) = server.pair(&client.websocket()).await;
        let (_ends, _reader, _writer) = server.pair(&client.sse()).await;
        let (mut ends, mut reader, _writer) = server.pair(&client.long_poll()).await;
        write(&mut ends.writer, &[b"{}"]).await;
        assert_eq!(read_some(&mut reader, 1).await, [b"{}".as_slice()]);

        let by_platform = WebClient::new(&url).unwrap().no_proxy();
        let refused = within(by_platform.websocket().connect()).await.unwrap_err();
        assert_eq!(refused.code, Code::TransportLost, "{refused}");
    }
}
