//! Messages of every kind that the limits of a plan allow.

use core::time::Duration;

use super::plan::Plan;
use super::random::Random;
use crate::id::{MessageId, UserId};
use crate::message::{DevicePolicy, Durability, Message, MessageBuilder, Otherwise, Priority};
use crate::time::Timestamp;

/// A recipient.
pub(super) fn person(number: u64) -> UserId {
    UserId::new(format!("user-{number}")).expect("a short name is a user id")
}

/// The `number`th message, for somebody.
pub(super) fn compose(plan: &Plan, random: &mut Random, number: usize, now: Timestamp) -> Message {
    let to = person(random.below(plan.users));
    compose_for(plan, random, number, to, now)
}

/// A message for this one.
pub(super) fn compose_for(
    plan: &Plan,
    random: &mut Random,
    number: usize,
    to: UserId,
    now: Timestamp,
) -> Message {
    let size = match random.below(20) {
        0 => 4000 + random.below(4300),
        1..4 => random.below(2000),
        _ => random.below(64),
    };
    let body: Vec<u8> = number.to_le_bytes().into_iter().cycle().take(size as usize).collect();
    let durability = match random.below(10) {
        0 => Durability::Volatile,
        1 | 2 => Durability::Buffered,
        _ => Durability::Synced,
    };
    let event = if random.chance(25) { "sim.hint.moved" } else { "sim.message" };
    let builder = Message::to(to, event, body)
        .id(MessageId::from_u128(1 + number as u128))
        .priority(Priority::ALL[random.index(4)])
        .durability(durability);
    let builder = match random.below(plan.keys + 1) {
        0 => builder,
        key => builder.ordering_key(format!("k{key}")),
    };
    let builder = match random.below(plan.senders + 1) {
        0 => builder,
        sender => builder.sender(format!("sender-{sender}")),
    };
    let builder = match random.below(10) {
        0 => builder.ttl(Duration::from_millis(1 + random.below(200))),
        1 => builder.ttl(Duration::from_millis(1 + random.below(20_000))),
        2 => builder.ttl(Duration::from_secs(1 + random.below(100_000))),
        _ => builder,
    };
    let builder = match random.below(12) {
        0 => builder.collapse_key("state"),
        1 => builder.collapse_key("state").version(random.below(12)),
        2 => builder.collapse_key("other"),
        _ => builder,
    };
    let builder = match random.below(8) {
        0 | 1 => builder.devices(DevicePolicy::EveryDevice),
        2 => builder.devices(DevicePolicy::AnyDevice),
        3 => builder.devices(DevicePolicy::RingAll),
        _ => builder,
    };
    let builder = match random.below(40) {
        _ if durability == Durability::Volatile => builder,
        0 => builder.not_before(now),
        1..4 => builder.not_before(now.after(Duration::from_millis(random.below(3000)))),
        4 => builder.not_before(now.after(Duration::from_secs(random.below(1000)))),
        _ => builder,
    };
    builder.build().expect("a simulated message is within the limits")
}

/// The `number`th message, which waits for another one.
pub(super) fn compose_after(
    plan: &Plan,
    random: &mut Random,
    number: usize,
    parent: &Message,
    now: Timestamp,
) -> Message {
    let base = compose_for(plan, random, number, parent.recipient().clone(), now);
    let durability = if random.chance(20) { Durability::Buffered } else { Durability::Synced };
    let otherwise = if random.chance(50) { Otherwise::Release } else { Otherwise::Cancel };
    let mut builder = Message::to(base.recipient(), base.event().clone(), base.payload().clone())
        .id(base.id())
        .priority(base.priority())
        .durability(durability)
        .after(parent.id(), otherwise);
    builder = base.ordering_key().into_iter().fold(builder, |builder, key| builder.ordering_key(key));
    builder = base.ttl().into_iter().fold(builder, MessageBuilder::ttl);
    builder = base.not_before().into_iter().fold(builder, MessageBuilder::not_before);
    builder = parent.sender().into_iter().fold(builder, |builder, sender| builder.sender(sender));
    builder.build().expect("a simulated message is within the limits")
}

/// The `number`th message, for many: large enough to be worth sharing, most times.
pub(super) fn compose_for_many(plan: &Plan, random: &mut Random, number: usize, now: Timestamp) -> Message {
    let message = compose(plan, random, number, now);
    if random.chance(20) {
        return message;
    }
    let size = if random.chance(5) { 2500 } else { 128 + random.below(300) };
    let body: Vec<u8> = number.to_le_bytes().into_iter().cycle().take(size as usize).collect();
    let mut builder = Message::to(message.recipient(), message.event().clone(), body)
        .id(message.id())
        .priority(message.priority());
    if let Some(sender) = message.sender() {
        builder = builder.sender(sender);
    }
    if let Some(ttl) = message.ttl() {
        builder = builder.ttl(ttl);
    }
    if let Some(policy) = message.devices() {
        builder = builder.devices(policy);
    }
    builder.header("kind", "fan-out").build().expect("a simulated message is within the limits")
}

/// The same id with another durability, or (forged) with another content.
pub(super) fn altered(message: &Message, forge: bool, random: &mut Random) -> Message {
    let body =
        if forge { bytes::Bytes::from(vec![7; 65 + random.index(9)]) } else { message.payload().clone() };
    let mut builder = Message::to(message.recipient(), message.event().clone(), body)
        .id(message.id())
        .priority(message.priority())
        .durability(if random.chance(50) { Durability::Synced } else { Durability::Buffered });
    if let Some(key) = message.ordering_key() {
        builder = builder.ordering_key(key);
    }
    if let Some(sender) = message.sender() {
        builder = builder.sender(sender);
    }
    if let Some(key) = message.collapse_key() {
        builder = message.version().into_iter().fold(builder.collapse_key(key), MessageBuilder::version);
    }
    builder.build().expect("a simulated message is within the limits")
}
