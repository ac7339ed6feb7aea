//! The main job in a browser: a chat whose messages wait for people who are away, and survive the server's death.
//!
//! ```console
//! cargo run --release --example chat                       # then open http://127.0.0.1:3000
//! cargo run --release --example chat -- --connect alice    # the same chat in a terminal
//! ```
//!
//! The server is an engine, an acceptor of sessions on `lastmile-web`'s router, and the few requests of `api.rs`. Whoever
//! signs in as somebody is that person: it is a demonstration, so it listens on 127.0.0.1 alone. `README.md` has what page
//! and server say to each other.

mod api;
mod people;
mod server;
mod snapshot;
mod statuses;
mod terminal;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

/// A chat on lastmile: in a browser, or with --connect in this terminal.
#[derive(Debug, Parser)]
struct Cli {
    /// Where the server listens, on 127.0.0.1; 0 takes any free port.
    #[arg(long, default_value_t = 3000)]
    port: u16,
    /// Where everything is kept.
    #[arg(long, default_value = "target/chat")]
    dir: PathBuf,
    /// Chat as this person in the terminal, instead of serving.
    #[arg(long, value_name = "NAME")]
    connect: Option<String>,
    /// The server to connect to. [default: http://127.0.0.1:PORT]
    #[arg(long)]
    url: Option<String>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.connect {
        Some(name) => {
            let url = cli.url.unwrap_or_else(|| format!("http://127.0.0.1:{}", cli.port));
            terminal::run(&name, &url, &cli.dir).await
        }
        None => serve(SocketAddr::from((Ipv4Addr::LOCALHOST, cli.port)), cli.dir).await,
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("chat: {why}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(address: SocketAddr, dir: PathBuf) -> Result<(), Box<dyn std::error::Error>> {
    let chat = server::start(address, &dir).await?;
    println!("chat: open http://{} in two windows, and sign in as two people", chat.address);
    println!(
        "      messages are kept in {}; Ctrl-C stops the server, and kill -9 loses nothing either",
        dir.display()
    );
    tokio::signal::ctrl_c().await?;
    println!("{}", chat.stop().await);
    Ok(())
}
