//! lastmile on the web: sessions over WebSocket, Server-Sent Events and long-poll.
//!
//! A host mounts [`router`] in its axum app, and serves it with [`serve`], which has the time-outs that the internet needs.
//! A Rust client connects with [`WebClient`]'s three connectors, the best first: they are rungs of its ladder. Browsers have
//! `client.mjs`, in `browser/`. All three ways carry the same frames of one session, which goes on over whichever works.
//!
//! | feature | default | adds |
//! |---|---|---|
//! | `server` | yes | [`router`], [`Web`], [`serve`] |
//! | `client` | yes | [`WebClient`] and its connectors |
//! | `jwt` | yes | [`JwtAuthenticator`] |
//! | `tls` | yes | `https` and `wss` on both sides, by rustls |
//!
//! The wire is in docs/PROTOCOL.md of the core ("Over HTTP").

#![forbid(unsafe_code)]

#[cfg(feature = "client")]
mod client;
#[cfg(feature = "server")]
mod config;
#[cfg(feature = "jwt")]
mod jwt;
#[cfg(any(feature = "server", feature = "client"))]
mod line;
#[cfg(feature = "server")]
mod server;
#[cfg(any(feature = "server", feature = "client"))]
mod tasks;
#[cfg(any(feature = "server", feature = "client"))]
mod ws;

#[cfg(feature = "client")]
pub use client::{
    ClientConfig, InvalidUrl, PollConnector, PollReader, PollTransport, SseConnector, SseReader,
    SseTransport, UpWriter, WebClient, WsConnector, WsReader, WsTransport, WsWriter,
};
#[cfg(feature = "server")]
pub use config::{Origins, WebConfig};
#[cfg(feature = "jwt")]
pub use jwt::{Algorithm, JwtAuthenticator, JwtIssuer, JwtKey, JwtKeyError};
#[cfg(feature = "server")]
pub use server::{
    Accept, Closed, Kind, Peer, Refusal, ServeConfig, SocketRefusal, Web, WebReader, WebStats, WebTransport,
    WebWriter, router, serve,
};
#[cfg(all(feature = "server", feature = "tls"))]
pub use server::{TlsError, tls_from_pem};

/// Compiles the README's examples.
#[cfg(all(doctest, feature = "server", feature = "client", feature = "jwt", feature = "tls"))]
#[doc = include_str!("../README.md")]
struct Readme;
