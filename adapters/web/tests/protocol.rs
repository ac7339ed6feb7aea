//! The exchanges of docs/PROTOCOL.md, "Over HTTP", are what the server says.

mod common;

use bytes::Bytes;
use common::{Server, read_some, within};
use lastmile::ports::FrameWriter as _;
use lastmile::session::Code;
use lastmile_web::{Refusal, WebConfig, WebWriter};

const DOC: &str = include_str!("../../../docs/PROTOCOL.md");

fn blocks(opening: &str) -> Vec<&'static str> {
    let parts = DOC.split(opening).skip(1);
    parts.map(|part| part.split("```").next().unwrap_or_default()).collect()
}

/// The frames that the examples send down.
fn pings() -> Vec<Bytes> {
    vec![
        Bytes::from_static(b"{\"frame\":\"ping\",\"nonce\":300,\"rtt_ms\":42}"),
        Bytes::from_static(&[0x0c, 0xac, 0x02, 0x01, 0x2a]),
    ]
}

fn pongs() -> Vec<Bytes> {
    vec![Bytes::from_static(b"{\"frame\":\"pong\",\"nonce\":300}"), Bytes::from_static(&[0x0d, 0xac, 0x02])]
}

#[tokio::test]
async fn every_exchange_goes_as_it_is_written() {
    let server = Server::start(WebConfig::default()).await;
    let exchanges = blocks("```http exchange\n");
    assert_eq!(exchanges.len(), 7);
    let mut id = String::new();
    let mut ends: Option<(WebWriter, tokio::task::JoinHandle<Vec<Bytes>>)> = None;
    for exchange in exchanges {
        let (request, answer) = exchange.split_once("\n\n").unwrap();
        let (line, body) = request.split_once('\n').unwrap_or((request, ""));
        let head = format!("{} HTTP/1.1", line.replace("ID", &id));
        let body = if body.is_empty() { String::new() } else { format!("{body}\n") };
        if answer.starts_with("410") {
            within(ends.as_mut().unwrap().0.close(Code::Done)).await;
        }
        let (status, said) = server.request(&head, body.as_bytes()).await;
        let (expected, expected_body) = answer.split_once('\n').unwrap();
        let (expected_status, kind) = expected.split_once(' ').unwrap_or((expected, ""));
        assert_eq!(status.to_string(), expected_status, "{exchange}{said}");
        assert!(kind.is_empty() || said.contains(&format!("content-type: {kind}\r\n")), "{exchange}{said}");
        let said = said.split_once("\r\n\r\n").unwrap().1;
        if line.contains("/open") {
            id = said.rsplit('"').nth(1).unwrap().to_owned();
            let (mut reader, mut writer, peer) = server.next().await;
            assert_eq!(peer.kind.name(), "long-poll");
            within(writer.write(pings())).await.unwrap();
            // What comes up is read by somebody else.
            ends = Some((writer, common::spawn(async move { read_some(&mut reader, 2).await })));
        }
        assert_eq!(said.trim_end().replace(&id, "ID"), expected_body.trim_end(), "{exchange}");
    }
    assert_eq!(within(ends.unwrap().1).await.unwrap(), pongs());
}

#[tokio::test]
async fn the_stream_goes_as_it_is_written() {
    let server = Server::start(WebConfig::default()).await;
    let id = server.open().await;
    let (_reader, mut writer, peer) = server.next().await;
    assert_eq!(peer.kind.name(), "sse", "which it is called unless the client says otherwise");
    within(writer.write(pings())).await.unwrap();
    within(writer.close(Code::Done)).await;
    let (status, said) = server.request(&format!("GET /lastmile/sse?c={id} HTTP/1.1"), b"").await;
    assert_eq!(status, 200);
    assert!(said.contains("content-type: text/event-stream\r\n"));
    // Without the lengths of its chunks.
    let hex = |line: &&str| line.is_empty() || !line.bytes().all(|byte| byte.is_ascii_hexdigit());
    let lines: Vec<&str> = said.split_once("\r\n\r\n").unwrap().1.lines().filter(hex).collect();
    let lines: Vec<&str> =
        lines.into_iter().filter(|line| !line.is_empty() && !line.starts_with(':')).collect();
    let written = blocks("```text stream\n")[0];
    assert_eq!(lines, written.lines().filter(|line| !line.is_empty()).collect::<Vec<_>>());
}

#[test]
fn every_refusal_has_its_row() {
    for refusal in Refusal::ALL {
        let row = format!("| {} | {} |", refusal.status().as_u16(), refusal.code().number());
        assert!(DOC.contains(&row), "{row}");
    }
}
