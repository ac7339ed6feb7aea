//! Through the proxies that companies have: requests are passed on, everything else needs a tunnel.

mod common;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use common::{Server, read_some, spawn, within, write};
use lastmile::ports::Connector;
use lastmile_web::{WebClient, WebConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// A proxy that wants a password, passes on or opens tunnels, and remembers the first line of each request.
async fn forward_proxy(tunnels: bool) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            spawn(serve(client, tunnels, Arc::clone(&log)));
        }
    });
    (address, seen)
}

async fn serve(mut client: TcpStream, tunnels: bool, log: Arc<Mutex<Vec<String>>>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = client.read_u8().await else { return };
        head.push(byte);
    }
    let head = String::from_utf8(head).unwrap();
    let line = head.lines().next().unwrap().to_owned();
    log.lock().unwrap().push(line.clone());
    if !head.to_lowercase().contains("proxy-authorization: basic bwu6c2vjcmv0") {
        let _sent = client.write_all(b"HTTP/1.1 407 Who are you?\r\nContent-Length: 0\r\n\r\n").await;
        return;
    }
    let mut words = line.split(' ');
    let (method, target) = (words.next().unwrap(), words.next().unwrap());
    if method == "CONNECT" {
        if !tunnels {
            let _sent = client.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n").await;
            return;
        }
        let mut server = TcpStream::connect(target).await.unwrap();
        client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.unwrap();
        let _ended = tokio::io::copy_bidirectional(&mut client, &mut server).await;
        return;
    }
    // What is passed on goes on until it ends; our server does not mind whole addresses either.
    let authority = target.strip_prefix("http://").unwrap().split('/').next().unwrap();
    let mut server = TcpStream::connect(authority).await.unwrap();
    server.write_all(head.as_bytes()).await.unwrap();
    let _ended = tokio::io::copy_bidirectional(&mut client, &mut server).await;
}

async fn works(server: &Server, connector: &impl Connector) {
    let (mut ends, mut reader, mut writer) = server.pair(connector).await;
    write(&mut ends.writer, &[b"{}"]).await;
    write(&mut writer, &[b"\x01"]).await;
    assert_eq!(read_some(&mut reader, 1).await, [b"{}".as_slice()]);
    assert_eq!(read_some(&mut ends.reader, 1).await, [b"\x01".as_slice()]);
}

#[tokio::test]
async fn websockets_go_through_a_tunnel_and_requests_are_passed_on() {
    let server = Server::start(WebConfig::default()).await;
    let (proxy, seen) = forward_proxy(true).await;
    let client = WebClient::new(&server.url()).unwrap().proxy(&format!("http://me:secret@{proxy}")).unwrap();
    works(&server, &client.websocket()).await;
    assert_eq!(
        seen.lock().unwrap().drain(..).collect::<Vec<_>>(),
        [format!("CONNECT {} HTTP/1.1", server.address)]
    );
    works(&server, &client.sse()).await;
    works(&server, &client.long_poll()).await;
    let seen = seen.lock().unwrap();
    let whole = format!("http://{}/lastmile/", server.address);
    assert!(seen.len() >= 4 && seen.iter().all(|line| line.contains(&whole)), "{seen:?}");
}

#[tokio::test]
async fn where_no_tunnel_is_opened_requests_still_are() {
    let server = Server::start(WebConfig::default()).await;
    let (proxy, _) = forward_proxy(false).await;
    let client = WebClient::new(&server.url()).unwrap().proxy(&format!("http://me:secret@{proxy}")).unwrap();
    let refused = within(client.websocket().connect()).await.unwrap_err();
    assert!(refused.text.contains("no tunnel") && refused.text.contains("403"), "{refused}");
    works(&server, &client.sse()).await;
}

#[tokio::test]
async fn a_proxy_that_wants_a_password_is_named_and_no_password_is() {
    let server = Server::start(WebConfig::default()).await;
    let (proxy, _) = forward_proxy(true).await;
    let client = WebClient::new(&server.url()).unwrap().proxy(&format!("http://me:wrong@{proxy}")).unwrap();
    let refused = within(client.websocket().connect()).await.unwrap_err();
    assert!(refused.text.contains("407") && !refused.text.contains("wrong"), "{refused}");
    let refused = within(client.sse().connect()).await.unwrap_err();
    assert!(refused.text.contains("407"), "{refused}");
}
