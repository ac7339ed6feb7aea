//! Delivery to a webhook on loopback, which fails in every way: `cargo run --example custom_sink`. What it refuses for
//! good becomes a dead letter, is looked at, and is sent again when the webhook is mended.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use axum::{Router, http::StatusCode, routing::post};
use lastmile::machine::{DeadLetters, Delivery, EntryRef, Verdict};
use lastmile::{Engine, Message, Stage, UserId, ports::Sink, record::Seq, storage::SledStore};

/// Posts each message. Of one ordering key, what follows a failed one waits for it.
struct Webhook(reqwest::Client, String);

impl Webhook {
    async fn post(&self, message: &Message) -> Verdict {
        // A webhook may be called twice for a message: it knows repeats by their id.
        let call = self.0.post(&self.1).header("idempotency-key", message.id().to_string());
        match call.body(message.payload().clone()).send().await.map(|answer| answer.status().as_u16()) {
            Ok(200..300) => Verdict::Delivered,
            Ok(429 | 503) => Verdict::Busy(Duration::from_millis(50)),
            Ok(400..500) => Verdict::Rejected,
            _ => Verdict::Nack(None),
        }
    }
}

impl Sink for Webhook {
    async fn deliver(&mut self, batch: Vec<Delivery>) -> Vec<(EntryRef, Verdict)> {
        let (mut verdicts, mut held) = (Vec::new(), Vec::new());
        for delivery in batch {
            let line = (delivery.entry.lane, delivery.message.ordering_key().cloned());
            let waits = held.contains(&line);
            let verdict =
                if waits { Verdict::Busy(Duration::ZERO) } else { self.post(&delivery.message).await };
            held.extend(matches!(verdict, Verdict::Busy(_) | Verdict::Nack(_)).then_some(line));
            verdicts.push((delivery.entry, verdict));
        }
        verdicts
    }
}

static CALLS: AtomicU32 = AtomicU32::new(0);
static MENDED: AtomicBool = AtomicBool::new(false);
/// Too busy at first, then broken, then well; but what a refund is it does not know until it is mended.
async fn hook(body: String) -> StatusCode {
    println!("  POST {body}");
    match CALLS.fetch_add(1, Relaxed) {
        0 => StatusCode::SERVICE_UNAVAILABLE,
        1 => StatusCode::INTERNAL_SERVER_ERROR,
        _ if body.starts_with("refund") && !MENDED.load(Relaxed) => StatusCode::UNPROCESSABLE_ENTITY,
        _ => StatusCode::OK,
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let server = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let webhook = Webhook(reqwest::Client::new(), format!("http://{}/", server.local_addr()?));
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(axum::serve(server, Router::new().fallback(post(hook))).into_future());
    let dir = tempfile::tempdir()?;
    let engine = Engine::builder(SledStore::open(dir.path())?).build()?;
    let _attached = engine.attach("shop", "webhook", webhook)?;
    for body in ["order 1", "refund 1", "order 2"] {
        let receipt = engine.send(Message::to("shop", "order.changed", body).build()?).await?;
        println!("{body}: {:?}", receipt.reached(Stage::Delivered).await?);
    }
    let letters = DeadLetters::of(UserId::new("shop")?);
    for letter in engine.dead_letters(letters.clone(), Seq::ZERO, 100).await? {
        println!("dead letter {}: {:?}", letter.message.id(), letter.burial);
    }
    MENDED.store(true, Relaxed);
    println!("sent again: {}", engine.requeue(letters).await?.messages);
    while engine.stats().await?.waiting > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    println!("{}", engine.shutdown(Duration::from_secs(5)).await);
    Ok(())
}
