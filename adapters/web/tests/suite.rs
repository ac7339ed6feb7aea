//! Each of the three ways is a transport as the port wants it: its conformance suite, from client to server and back.

mod common;

use common::{Server, within};
use lastmile::ports::Connector;
use lastmile_web::{WebConfig, WebTransport};

/// Both ends of a new connection. Its server lives as long as this program.
async fn connect<C: Connector>(connector: impl FnOnce(&Server) -> C) -> (C::Transport, WebTransport) {
    let server: &'static Server = Box::leak(Box::new(Server::start(WebConfig::default()).await));
    let client = within(connector(server).connect()).await.unwrap();
    let (transport, _peer) = server.take().await;
    (client, transport)
}

mod websocket {
    lastmile::transport_suite!(super::connect(|server| server.client().websocket()).await);
}

mod websocket_from_the_other_end {
    lastmile::transport_suite!({
        let (client, server) = super::connect(|server| server.client().websocket()).await;
        (server, client)
    });
}

mod sse {
    lastmile::transport_suite!(super::connect(|server| server.client().sse()).await);
}

mod sse_from_the_other_end {
    lastmile::transport_suite!({
        let (client, server) = super::connect(|server| server.client().sse()).await;
        (server, client)
    });
}

mod long_poll {
    lastmile::transport_suite!(super::connect(|server| server.client().long_poll()).await);
}

mod long_poll_from_the_other_end {
    lastmile::transport_suite!({
        let (client, server) = super::connect(|server| server.client().long_poll()).await;
        (server, client)
    });
}
