//! Each of the three ways carries frames whole, in order and once, and ends when it should.

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::{Server, proxy::Proxy, read_some, read_to_end, within, write};
use lastmile::ports::{Connector, FrameReader as _, FrameWriter as _, TransportError};
use lastmile::session::Code;
use lastmile_web::{ClientConfig, WebClient, WebConfig};
use tokio::sync::oneshot;

/// Runs a test over each of the three ways.
macro_rules! over_each {
    ($($(#[$doc:meta])* async fn $name:ident($server:ident, $connector:ident) $body:block)*) => {
        $($(#[$doc])* mod $name {
            use super::*;

            async fn test($server: &Server, $connector: impl Connector) $body

            #[tokio::test]
            async fn websocket() {
                let server = Server::start(WebConfig::default()).await;
                test(&server, server.client().websocket()).await;
            }

            #[tokio::test]
            async fn sse() {
                let server = Server::start(WebConfig::default()).await;
                test(&server, server.client().sse()).await;
            }

            #[tokio::test]
            async fn long_poll() {
                let server = Server::start(WebConfig::default()).await;
                test(&server, server.client().long_poll()).await;
            }
        })*
    };
}

/// Frames of every kind that a transport could be tempted to change.
fn awkward() -> Vec<Bytes> {
    let mut frames: Vec<Bytes> = [
        b"{\"frame\":\"pong\"}".as_slice(),
        b"\x01",
        b"{\"text\":\"line\nbreak\"}",
        b"{\"text\":\"carriage\rreturn\"}",
        b"\x0d\x0a\x0d\x0a",
        b"data: {}\n\n",
        b"{\xff\xfe",
        "{\"text\":\"\u{20ac}\u{1f600}\"}".as_bytes(),
        b" ",
    ]
    .into_iter()
    .map(Bytes::from_static)
    .collect();
    frames.extend((0..=u8::MAX).map(|byte| Bytes::from(vec![byte; usize::from(byte) + 1])));
    frames.push(Bytes::from(vec![7; 1 << 20]));
    frames.push(Bytes::from(format!("{{{}", "x".repeat((1 << 20) - 1))));
    frames
}

over_each! {
    async fn frames_arrive_whole_in_order_and_unchanged_in_both_directions(server, connector) {
        let (mut client, mut reader, mut writer) = server.pair(&connector).await;
        let frames = awkward();
        let (up, down) = (frames.clone(), frames.clone());
        let up = async {
            for batch in up.chunks(7) {
                within(client.writer.write(batch.to_vec())).await.unwrap();
            }
        };
        let down = async {
            for batch in down.chunks(5) {
                within(writer.write(batch.to_vec())).await.unwrap();
            }
        };
        let ((), (), at_server, at_client) = tokio::join!(
            up, down, read_some(&mut reader, frames.len()), read_some(&mut client.reader, frames.len())
        );
        assert!(at_server == frames && at_client == frames);
    }

    async fn a_close_comes_after_what_was_written_before_it(server, connector) {
        let (mut client, mut reader, mut writer) = server.pair(&connector).await;
        write(&mut client.writer, &[b"{}", b"\x01"]).await;
        within(client.writer.close(Code::Done)).await;
        assert_eq!(read_to_end(&mut reader).await, Ok(2));

        let (mut client, _reader, mut second) = server.pair(&connector).await;
        write(&mut second, &[b"{}", b"\x01", b"\x02"]).await;
        within(second.close(Code::Draining)).await;
        assert_eq!(read_to_end(&mut client.reader).await, Ok(3));
        within(writer.close(Code::Done)).await;
    }

    async fn when_both_halves_are_dropped_the_other_end_hears_of_it(server, connector) {
        let (client, mut reader, writer) = server.pair(&connector).await;
        drop(client);
        let _either = read_to_end(&mut reader).await;
        drop((reader, writer));

        let (mut client, reader, writer) = server.pair(&connector).await;
        drop((reader, writer));
        let _either = read_to_end(&mut client.reader).await;
        within(async { while server.web.stats().connections > 1 { tokio::task::yield_now().await; } }).await;
    }

    async fn a_reader_that_is_interrupted_loses_nothing(server, connector) {
        let (mut client, mut reader, mut writer) = server.pair(&connector).await;
        let (mut got_up, mut got_down) = (Vec::new(), Vec::new());
        let count: usize = 200;
        let writing = async {
            for number in 0..count {
                let frame = number.to_le_bytes();
                write(&mut client.writer, &[&frame]).await;
                write(&mut writer, &[&frame]).await;
            }
        };
        let reading = async {
            while got_up.len() < count || got_down.len() < count {
                // Whichever comes first, the other one is dropped.
                tokio::select! {
                    frame = reader.read() => got_up.push(frame.unwrap().unwrap()),
                    frame = client.reader.read() => got_down.push(frame.unwrap().unwrap()),
                    () = tokio::task::yield_now() => {}
                }
            }
        };
        within(async { tokio::join!(writing, reading) }).await;
        let expected: Vec<_> = (0..count).map(|number| Bytes::copy_from_slice(&number.to_le_bytes())).collect();
        assert!(got_up == expected && got_down == expected);
    }

    async fn a_frame_over_the_limit_ends_the_connection_of_whoever_sends_it(server, connector) {
        let (mut client, mut reader, mut writer) = server.pair(&connector).await;
        let large = vec![Bytes::from(vec![7; (1 << 20) + 1])];
        let _refused = within(client.writer.write(large.clone())).await;
        assert_eq!(within(reader.read()).await, Err(TransportError::TooLarge { limit: 1 << 20 }));
        within(writer.close(Code::FrameTooLarge)).await;

        let (mut client, _reader, mut writer) = server.pair(&connector).await;
        within(writer.write(large)).await.unwrap();
        assert_eq!(within(client.reader.read()).await, Err(TransportError::TooLarge { limit: 1 << 20 }));
    }

    async fn whoever_writes_waits_for_a_reader_that_does_not_read(server, connector) {
        let (mut client, mut reader, mut writer) = server.pair(&connector).await;
        let frame = Bytes::from(vec![7; 64 << 10]);
        // Sockets' buffers and ours hold some megabytes, and no more.
        let (full, is_full) = oneshot::channel();
        let down = async {
            for written in 0..4096_u32 {
                let write = writer.write(vec![frame.clone()]);
                if tokio::time::timeout(Duration::from_millis(500), write).await.is_err() {
                    let _told = full.send(written);
                    return;
                }
            }
        };
        tokio::join!(down, async { assert!(within(is_full).await.unwrap() < 512) });
        let (full, is_full) = oneshot::channel();
        let up = async {
            for written in 0..4096_u32 {
                let write = client.writer.write(vec![frame.clone()]);
                if tokio::time::timeout(Duration::from_millis(500), write).await.is_err() {
                    let _told = full.send(written);
                    return;
                }
            }
        };
        tokio::join!(up, async { assert!(within(is_full).await.unwrap() < 512) });
        assert_eq!(within(reader.read()).await.unwrap().unwrap(), frame);
    }
}

#[tokio::test]
async fn lost_answers_and_requests_that_come_twice_neither_lose_nor_repeat_a_frame() {
    let server = Server::start(WebConfig::default()).await;
    let proxy = Proxy::start(server.address).await;
    let client = WebClient::new(&proxy.url()).unwrap().no_proxy();
    let (mut ends, mut reader, mut writer) = server.pair(&client.long_poll()).await;
    proxy.trouble.duplicate.store(true, std::sync::atomic::Ordering::SeqCst);
    let count = 100_usize;
    let writing = async {
        for number in 0..count {
            if number % 10 == 0 {
                proxy.trouble.lose_answers.store(2, std::sync::atomic::Ordering::SeqCst);
            }
            write(&mut ends.writer, &[&number.to_le_bytes()]).await;
            write(&mut writer, &[&number.to_le_bytes()]).await;
        }
    };
    let ((), up, down) =
        tokio::join!(writing, read_some(&mut reader, count), read_some(&mut ends.reader, count));
    let expected: Vec<_> = (0..count).map(|number| Bytes::copy_from_slice(&number.to_le_bytes())).collect();
    assert!(up == expected && down == expected);
}

#[tokio::test]
async fn a_blocked_upgrade_and_a_held_back_stream_are_told_as_such_and_polls_still_work() {
    let server = Server::start(WebConfig::default()).await;
    let proxy = Proxy::start(server.address).await;
    let mut config = ClientConfig::default();
    config.silence = Duration::from_millis(300);
    let patient = WebClient::new(&proxy.url()).unwrap().no_proxy();
    let client = WebClient::new(&proxy.url()).unwrap().no_proxy().config(config);
    proxy.block_upgrades(true);
    proxy.hold_streams(true);
    let blocked = within(client.websocket().connect()).await.unwrap_err();
    assert_eq!(
        (blocked.code, blocked.retry_after),
        (Code::TransportLost, None),
        "a proxy's 403 is not the server's"
    );
    let held = within(client.sse().connect()).await.unwrap_err();
    assert_eq!(held.code, Code::TransportLost);
    let _opened_for_the_stream = server.next().await;
    let (mut ends, mut reader, _writer) = server.pair(&patient.long_poll()).await;
    write(&mut ends.writer, &[b"{}"]).await;
    assert_eq!(read_some(&mut reader, 1).await, [b"{}".as_slice()]);

    proxy.block_upgrades(false);
    proxy.hold_streams(false);
    let (_ends, _reader, _writer) = server.pair(&patient.websocket()).await;
    let (_ends, _reader, _writer) = server.pair(&patient.sse()).await;
}

#[tokio::test]
async fn a_cut_connection_is_an_error_on_both_sides() {
    let server = Server::start(WebConfig::default()).await;
    let proxy = Proxy::start(server.address).await;
    let client = WebClient::new(&proxy.url()).unwrap().no_proxy();
    let (mut ends, mut reader, _writer) = server.pair(&client.websocket()).await;
    proxy.cut();
    assert!(read_to_end(&mut ends.reader).await.is_err());
    assert!(read_to_end(&mut reader).await.is_err());
    let (mut ends, mut reader, _writer) = server.pair(&client.sse()).await;
    proxy.cut();
    assert!(read_to_end(&mut ends.reader).await.is_err());
    assert!(read_to_end(&mut reader).await.is_err());
}

#[tokio::test]
async fn nobody_there_is_unreachable() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/lastmile", listener.local_addr().unwrap());
    drop(listener);
    let client = WebClient::new(&url).unwrap().no_proxy();
    assert_eq!(within(client.websocket().connect()).await.unwrap_err().code, Code::TransportLost);
    assert_eq!(within(client.sse().connect()).await.unwrap_err().code, Code::TransportLost);
    assert_eq!(within(client.long_poll().connect()).await.unwrap_err().code, Code::TransportLost);
}
