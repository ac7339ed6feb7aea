//! Tells senders what became of their messages, as messages of their own: they wait like any other for whoever is away.

use lastmile::{
    Engine, EventName, Filter, HearError, Heard, Message, MessageId, Priority, Status, SubscribeError, UserId,
};
use serde_json::json;
use tokio::task::JoinHandle;

/// Listens to the engine, and tells.
pub(crate) fn start(engine: Engine) -> Result<JoinHandle<()>, SubscribeError> {
    let mut changes = engine.subscribe(Filter::all())?;
    Ok(tokio::runtime::Handle::current().spawn(async move {
        loop {
            match changes.recv().await {
                Ok(Heard::Changed(change)) => {
                    let (Some(sender), Some(id), Some(event)) = (change.sender, change.id, change.event)
                    else {
                        continue;
                    };
                    if let Status::Ended(reason) = change.status
                        && is_told(&event)
                    {
                        tell(&engine, &sender, &change.user, id, reason.as_str()).await;
                    }
                }
                // What was missed, pages ask for when they connect.
                Ok(_) | Err(HearError::Lagged(_)) => {}
                Err(_) => return,
            }
        }
    }))
}

fn is_told(event: &EventName) -> bool {
    ["chat.message", "call.ring"].contains(&event.as_str())
}

async fn tell(engine: &Engine, sender: &UserId, to: &UserId, id: MessageId, status: &str) {
    let text = json!({ "id": hex(id), "to": String::from_utf8_lossy(to.as_bytes()), "status": status });
    let message =
        Message::to(sender.clone(), "chat.status", text.to_string()).priority(Priority::Normal).build();
    if let Ok(message) = message
        && let Err(why) = engine.send(message).await
    {
        // Its outbox is full, or the engine stops: the page asks again when it connects.
        eprintln!("chat: a status was not told: {why}");
    }
}

/// An id as the protocol writes it.
pub(crate) fn hex(id: MessageId) -> String {
    format!("{:032x}", id.as_u128())
}
