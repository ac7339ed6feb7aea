//! The fields of each frame, in order. The one description that both codecs follow.

use super::wire::{CODECS, MAX_NUMBER, Put, Take, millis, narrow};
use super::{
    Ack, Capabilities, Codec, Codecs, Credentials, DecodeError, Deliver, Frame, Gap, GapReason, Hello, Item,
    MAX_CREDENTIALS_BYTES, MAX_RANGES, MAX_TEXT_BYTES, Missed, Nack, PROTOCOL_VERSION, Place, Places,
    Position, Published, Range, Refused, Token, Welcome, Window,
};
use crate::id::{CollapseKey, DeviceId, MAX_ID_BYTES, MessageId, OrderingKey, StreamId, UserId};
use crate::message::{
    Durability, MAX_HEADER_BYTES, MAX_HEADERS, Message, MessageBuilder, Otherwise, Priority,
};
use crate::record::{LaneId, Seq};
use crate::time::Timestamp;

const PRIORITIES: [&str; 4] = ["critical", "high", "normal", "low"];
const DURABILITIES: [&str; 3] = ["synced", "buffered", "volatile"];
const OTHERWISE: [&str; 2] = ["release", "cancel"];
const GAPS: [&str; GapReason::ALL.len()] =
    ["volatile", "expired", "overflow", "withdrawn", "damaged", "undeliverable"];

/// The kinds of frames, by their numbers in binary.
pub(super) const KINDS: [(u8, &str); 19] = [
    (1, "hello"),
    (2, "welcome"),
    (3, "reject"),
    (4, "deliver"),
    (5, "ack"),
    (6, "nack"),
    (7, "progress"),
    (8, "publish"),
    (9, "receipt"),
    (10, "reply"),
    (11, "floor"),
    (12, "ping"),
    (13, "pong"),
    (14, "gap"),
    (15, "go-away"),
    (16, "close"),
    (17, "renew"),
    (18, "renewed"),
    (19, "withdraw"),
];

pub(super) fn put(frame: &Frame, w: &mut impl Put) {
    match frame {
        Frame::Hello(hello) => put_hello(hello, w),
        Frame::Welcome(welcome) => put_welcome(welcome, w),
        Frame::Reject(why) | Frame::GoAway(why) | Frame::Close(why) => put_refused(why, w),
        Frame::Deliver(deliver) => put_deliver(deliver, w),
        Frame::Ack(ack) => put_ack(ack, w),
        Frame::Nack(nack) => put_nack(nack, w),
        Frame::Progress(range) | Frame::Withdraw(range) => put_range(*range, w),
        Frame::Publish { number, message } => {
            w.number("number", *number);
            put_message(message, w);
        }
        Frame::Receipt { number, outcome } => {
            w.number("number", *number);
            let refused = match outcome {
                Published::Accepted => None,
                Published::Refused(refused) => Some(refused),
            };
            w.option(refused, |w, refused| put_refused(refused, w));
        }
        Frame::Reply { number, payload } => {
            w.number("number", *number);
            w.payload("payload", payload);
        }
        Frame::Floor(place) => {
            w.choice("lane", &PRIORITIES, place.lane.index());
            w.wide("seq", place.seq.get());
        }
        Frame::Ping { nonce, rtt } => {
            w.number("nonce", *nonce);
            w.option(*rtt, |w, rtt| w.duration("rtt_ms", rtt));
        }
        Frame::Pong { nonce } => w.number("nonce", *nonce),
        Frame::Gap(gap) => put_gap(gap, w),
        Frame::Renew(credentials) => w.bytes("credentials", &credentials.0),
        Frame::Renewed { expires_in } => w.option(*expires_in, |w, in_| w.duration("expires_in_ms", in_)),
    }
}

pub(super) fn take(kind: u8, r: &mut impl Take) -> Result<Frame, DecodeError> {
    Ok(match kind {
        1 => Frame::Hello(Box::new(take_hello(r)?)),
        2 => Frame::Welcome(Box::new(take_welcome(r)?)),
        3 => Frame::Reject(take_refused(r)?),
        4 => Frame::Deliver(take_deliver(r)?),
        5 => Frame::Ack(take_ack(r)?),
        6 => Frame::Nack(take_nack(r)?),
        7 => Frame::Progress(take_range(r)?),
        8 => Frame::Publish { number: r.number("number")?, message: take_message(r)? },
        9 => {
            let number = r.number("number")?;
            let refused = r.option("code", take_refused)?;
            Frame::Receipt { number, outcome: refused.map_or(Published::Accepted, Published::Refused) }
        }
        10 => {
            let (number, max) = (r.number("number")?, r.limits().max_frame);
            Frame::Reply { number, payload: r.payload("payload", max)? }
        }
        11 => Frame::Floor(take_floor(r)?),
        12 => Frame::Ping { nonce: r.number("nonce")?, rtt: r.option("rtt_ms", |r| r.duration("rtt_ms"))? },
        13 => Frame::Pong { nonce: r.number("nonce")? },
        14 => Frame::Gap(take_gap(r)?),
        15 => Frame::GoAway(take_refused(r)?),
        16 => Frame::Close(take_refused(r)?),
        17 => Frame::Renew(Credentials(r.bytes("credentials", MAX_CREDENTIALS_BYTES)?)),
        18 => Frame::Renewed { expires_in: r.option("expires_in_ms", |r| r.duration("expires_in_ms"))? },
        19 => Frame::Withdraw(take_range(r)?),
        kind => return Err(DecodeError::UnknownFrame(kind.to_string())),
    })
}

fn put_hello(hello: &Hello, w: &mut impl Put) {
    w.number("oldest", u64::from(hello.versions.0));
    w.number("newest", u64::from(hello.versions.1));
    w.list("codecs", codec_names(hello.codecs).into_iter(), |w, index| w.choice("codec", &CODECS, index));
    w.option(hello.user.as_ref(), |w, user| w.bytes("user", user.as_bytes()));
    w.bytes("device", hello.device.as_bytes());
    w.bytes("credentials", &hello.credentials.0);
    w.id("stream", hello.stream.as_u128());
    w.option(hello.resume, |w, (token, position)| {
        w.id("token", token.as_u128());
        put_position(position, w);
    });
    w.wide("capabilities", hello.capabilities.bits());
    w.duration("horizon_ms", hello.horizon);
    put_window(hello.window, w);
    w.duration("heartbeat_ms", hello.heartbeat);
    w.number("max_frame", u64::from(hello.max_frame));
}

fn take_hello(r: &mut impl Take) -> Result<Hello, DecodeError> {
    let oldest = narrow("oldest", r.number("oldest")?)?;
    let newest = narrow("newest", r.number("newest")?)?;
    // What follows may mean something else in another version.
    if !(oldest..=newest).contains(&PROTOCOL_VERSION) {
        return Err(DecodeError::UnsupportedVersion { oldest, newest });
    }
    let codecs = r.list("codecs", 8, |r| r.choice("codec", &CODECS))?;
    Ok(Hello {
        versions: (oldest, newest),
        codecs: codecs.into_iter().fold(Codecs(0), |set, index| Codecs(set.0 | 1 << index)),
        user: r.option("user", |r| opaque(r, "user", UserId::new))?,
        device: opaque(r, "device", DeviceId::new)?,
        credentials: Credentials(r.bytes("credentials", MAX_CREDENTIALS_BYTES)?),
        stream: StreamId::from_u128(r.id("stream")?),
        resume: r.option("token", |r| Ok((Token::from_u128(r.id("token")?), take_position(r)?)))?,
        capabilities: Capabilities::from_bits(r.wide("capabilities")?),
        horizon: r.duration("horizon_ms")?,
        window: take_window(r)?,
        heartbeat: r.duration("heartbeat_ms")?,
        max_frame: narrow("max_frame", r.number("max_frame")?)?,
    })
}

fn codec_names(codecs: Codecs) -> Vec<usize> {
    (0..CODECS.len()).filter(|index| codecs.0 & (1 << index) != 0).collect()
}

fn put_welcome(welcome: &Welcome, w: &mut impl Put) {
    w.number("version", u64::from(welcome.version));
    w.choice("codec", &CODECS, welcome.codec.index());
    w.bytes("user", welcome.user.as_bytes());
    w.id("stream", welcome.stream.as_u128());
    w.id("token", welcome.token.as_u128());
    put_position(welcome.position, w);
    w.flag("resumed", welcome.resumed);
    w.wide("capabilities", welcome.capabilities.bits());
    put_window(welcome.window, w);
    w.duration("heartbeat_ms", welcome.heartbeat);
    w.duration("timeout_ms", welcome.timeout);
    w.number("max_frame", u64::from(welcome.max_frame));
    w.option(welcome.expires_in, |w, expires| w.duration("expires_in_ms", expires));
    w.number("published", welcome.published);
}

fn take_welcome(r: &mut impl Take) -> Result<Welcome, DecodeError> {
    Ok(Welcome {
        version: narrow("version", r.number("version")?)?,
        codec: Codec::from_index(r.choice("codec", &CODECS)?)?,
        user: opaque(r, "user", UserId::new)?,
        stream: StreamId::from_u128(r.id("stream")?),
        token: Token::from_u128(r.id("token")?),
        position: take_position(r)?,
        resumed: r.flag("resumed")?,
        capabilities: Capabilities::from_bits(r.wide("capabilities")?),
        window: take_window(r)?,
        heartbeat: r.duration("heartbeat_ms")?,
        timeout: r.duration("timeout_ms")?,
        max_frame: narrow("max_frame", r.number("max_frame")?)?,
        expires_in: r.option("expires_in_ms", |r| r.duration("expires_in_ms"))?,
        published: r.number("published")?,
    })
}

fn put_position(position: Position, w: &mut impl Put) {
    w.wide("epoch", position.epoch);
    w.number("seen", position.seen);
    w.number("base", position.base);
}

fn take_position(r: &mut impl Take) -> Result<Position, DecodeError> {
    Ok(Position { epoch: r.wide("epoch")?, seen: r.number("seen")?, base: r.number("base")? })
}

fn put_window(window: Window, w: &mut impl Put) {
    w.object("window", |w| {
        w.number("messages", u64::from(window.messages));
        w.number("bytes", window.bytes.min(MAX_NUMBER));
        w.number("reserve", u64::from(window.reserve));
    });
}

fn take_window(r: &mut impl Take) -> Result<Window, DecodeError> {
    r.object("window", |r| {
        Ok(Window {
            messages: narrow("messages", r.number("messages")?)?,
            bytes: r.number("bytes")?,
            reserve: narrow("reserve", r.number("reserve")?)?,
        })
    })
}

fn put_refused(refused: &Refused, w: &mut impl Put) {
    w.code(refused.code);
    w.option(refused.retry_after, |w, after| w.duration("retry_after_ms", after));
    w.text("text", clip(&refused.text));
}

fn take_refused(r: &mut impl Take) -> Result<Refused, DecodeError> {
    Ok(Refused {
        code: r.code()?,
        retry_after: r.option("retry_after_ms", |r| r.duration("retry_after_ms"))?,
        text: r.text("text", MAX_TEXT_BYTES)?,
    })
}

/// As much of a text as may be sent.
fn clip(text: &str) -> &str {
    let end = (0..=text.len().min(MAX_TEXT_BYTES)).rev().find(|end| text.is_char_boundary(*end));
    text.get(..end.unwrap_or(0)).unwrap_or_default()
}

fn put_deliver(deliver: &Deliver, w: &mut impl Put) {
    w.number("first", deliver.first);
    w.number("base", deliver.base);
    w.number("heard", deliver.heard);
    w.list("items", deliver.items.iter(), |w, item| put_item(item, w));
}

fn take_deliver(r: &mut impl Take) -> Result<Deliver, DecodeError> {
    let max = r.limits().max_items;
    let deliver = Deliver {
        first: r.number("first")?,
        base: r.number("base")?,
        heard: r.number("heard")?,
        items: r.list("items", max, take_item)?,
    };
    match deliver.items.is_empty() {
        true => Err(DecodeError::Field { field: "items" }),
        false => Ok(deliver),
    }
}

fn put_item(item: &Item, w: &mut impl Put) {
    w.wide("seq", item.place.seq.get());
    w.number("accepted_at", item.accepted_at.as_millis().min(MAX_NUMBER));
    w.number("attempts", u64::from(item.attempts));
    w.flag("redelivered", item.redelivered);
    w.option(item.reply_within, |w, within| w.duration("reply_within_ms", within));
    put_message(&item.message, w);
}

fn take_item<R: Take>(r: &mut R) -> Result<Item, DecodeError> {
    let seq = Seq::new(r.wide("seq")?);
    let accepted_at = Timestamp::from_millis(r.number("accepted_at")?);
    let attempts = narrow("attempts", r.number("attempts")?)?;
    let redelivered = r.flag("redelivered")?;
    let reply_within = r.option("reply_within_ms", |r| r.duration("reply_within_ms"))?;
    let message = take_message(r)?;
    let place = Place { lane: LaneId::from(message.priority()), seq };
    Ok(Item { place, accepted_at, attempts, redelivered, reply_within, message })
}

fn put_message(message: &Message, w: &mut impl Put) {
    w.id("id", message.id().as_u128());
    w.bytes("to", message.recipient().as_bytes());
    w.text("event", message.event().as_str());
    w.option(message.sender(), |w, sender| w.bytes("from", sender.as_bytes()));
    w.option(message.ordering_key(), |w, key| w.bytes("ordering_key", key.as_bytes()));
    w.choice("priority", &PRIORITIES, message.priority().index());
    w.choice("durability", &DURABILITIES, message.durability() as usize);
    w.option(message.ttl(), |w, ttl| w.number("ttl_ms", millis(ttl)));
    w.option(message.not_before(), |w, at| w.number("not_before", at.as_millis().min(MAX_NUMBER)));
    w.option(message.collapse_key(), |w, key| w.bytes("collapse_key", key.as_bytes()));
    w.option(message.version(), |w, version| w.wide("version", version));
    w.option(message.after(), |w, after| {
        w.id("after", after.id.as_u128());
        w.choice("otherwise", &OTHERWISE, after.otherwise as usize);
    });
    w.option(message.traceparent(), |w, text| w.text("traceparent", text));
    let headers: Vec<_> = message.headers().collect();
    w.list("headers", headers.into_iter(), |w, (name, value)| {
        w.text("name", name);
        w.bytes("value", value);
    });
    w.payload("payload", message.payload());
}

fn take_message<R: Take>(r: &mut R) -> Result<Message, DecodeError> {
    let id = MessageId::from_u128(r.id("id")?);
    let to = opaque(r, "to", UserId::new)?;
    let event = r.text("event", crate::event::MAX_EVENT_BYTES)?;
    let from = r.option("from", |r| opaque(r, "from", UserId::new))?;
    let key = r.option("ordering_key", |r| opaque(r, "ordering_key", OrderingKey::new))?;
    let priority = r.choice("priority", &PRIORITIES)?;
    let priority = Priority::ALL.get(priority).copied().unwrap_or_default();
    let durability = match r.choice("durability", &DURABILITIES)? {
        0 => Durability::Synced,
        1 => Durability::Buffered,
        _ => Durability::Volatile,
    };
    let ttl = r.option("ttl_ms", |r| r.duration("ttl_ms"))?;
    let not_before = r.option("not_before", |r| r.number("not_before").map(Timestamp::from_millis))?;
    let collapse = r.option("collapse_key", |r| opaque(r, "collapse_key", CollapseKey::new))?;
    let version = r.option("version", |r| r.wide("version"))?;
    let after = r.option("after", |r| Ok((r.id("after")?, r.choice("otherwise", &OTHERWISE)?)))?;
    let trace = r.option("traceparent", |r| r.text("traceparent", 55))?;
    let headers = r.list("headers", MAX_HEADERS, |r| {
        Ok((r.text("name", MAX_HEADER_BYTES)?, r.bytes("value", MAX_HEADER_BYTES)?))
    })?;
    let max = r.limits().max_frame;
    let payload = r.payload("payload", max)?;
    let mut builder =
        Message::to(to, event.as_str(), payload).id(id).priority(priority).durability(durability);
    builder = from.into_iter().fold(builder, MessageBuilder::sender);
    builder = key.into_iter().fold(builder, MessageBuilder::ordering_key);
    builder = ttl.into_iter().fold(builder, MessageBuilder::ttl);
    builder = not_before.into_iter().fold(builder, MessageBuilder::not_before);
    builder = collapse.into_iter().fold(builder, MessageBuilder::collapse_key);
    builder = version.into_iter().fold(builder, MessageBuilder::version);
    if let Some((parent, otherwise)) = after {
        let otherwise = if otherwise == 0 { Otherwise::Release } else { Otherwise::Cancel };
        builder = builder.after(MessageId::from_u128(parent), otherwise);
    }
    builder = trace.into_iter().fold(builder, MessageBuilder::traceparent);
    Ok(builder.headers(headers).build()?)
}

/// An opaque id. Its bytes are copied: they are few, and must not hold the whole frame in memory.
fn opaque<R: Take, T, E>(
    r: &mut R,
    field: &'static str,
    new: impl FnOnce(Vec<u8>) -> Result<T, E>,
) -> Result<T, DecodeError> {
    let bytes = r.bytes(field, MAX_ID_BYTES)?;
    new(bytes.to_vec()).map_err(|_| DecodeError::Field { field })
}

fn put_ack(ack: &Ack, w: &mut impl Put) {
    w.list("ranges", ack.ranges.iter(), |w, range| put_range(*range, w));
    w.option(ack.window, |w, window| put_window(window, w));
}

fn take_ack(r: &mut impl Take) -> Result<Ack, DecodeError> {
    let ranges = r.list("ranges", MAX_RANGES, take_range)?;
    let ascending = ranges.iter().zip(ranges.iter().skip(1)).all(|(a, b)| a.to < b.from);
    match ascending {
        true => Ok(Ack { ranges, window: r.option("window", take_window)? }),
        false => Err(DecodeError::Field { field: "ranges" }),
    }
}

fn put_range(range: Range, w: &mut impl Put) {
    w.number("from", range.from);
    w.number("to", range.to);
}

fn take_range<R: Take>(r: &mut R) -> Result<Range, DecodeError> {
    let range = Range { from: r.number("from")?, to: r.number("to")? };
    match 0 < range.from && range.from <= range.to {
        true => Ok(range),
        false => Err(DecodeError::Field { field: "to" }),
    }
}

fn put_nack(nack: &Nack, w: &mut impl Put) {
    w.number("count", nack.count);
    w.number("number", nack.number);
    w.code(nack.code);
    w.option(nack.delay, |w, delay| w.duration("delay_ms", delay));
    w.text("text", clip(&nack.text));
}

fn take_nack(r: &mut impl Take) -> Result<Nack, DecodeError> {
    Ok(Nack {
        count: r.number("count")?,
        number: r.number("number")?,
        code: r.code()?,
        delay: r.option("delay_ms", |r| r.duration("delay_ms"))?,
        text: r.text("text", MAX_TEXT_BYTES)?,
    })
}

fn take_lane(r: &mut impl Take) -> Result<LaneId, DecodeError> {
    let index = r.choice("lane", &PRIORITIES)?;
    Ok(LaneId::from(Priority::ALL.get(index).copied().unwrap_or_default()))
}

fn take_floor(r: &mut impl Take) -> Result<Place, DecodeError> {
    Ok(Place { lane: take_lane(r)?, seq: Seq::new(r.wide("seq")?) })
}

fn put_gap(gap: &Gap, w: &mut impl Put) {
    put_range(gap.range, w);
    w.number("base", gap.base);
    w.number("heard", gap.heard);
    w.number("missing", gap.missed.count);
    w.choice("reason", &GAPS, gap.missed.reason as usize);
    w.option(gap.missed.places, |w, places| {
        w.choice("lane", &PRIORITIES, places.lane.index());
        w.wide("first", places.first.get());
        w.wide("last", places.last.get());
    });
}

fn take_gap(r: &mut impl Take) -> Result<Gap, DecodeError> {
    Ok(Gap {
        range: take_range(r)?,
        base: r.number("base")?,
        heard: r.number("heard")?,
        missed: Missed {
            count: r.number("missing")?,
            reason: GapReason::ALL
                .get(r.choice("reason", &GAPS)?)
                .copied()
                .ok_or(DecodeError::Field { field: "reason" })?,
            places: r.option("lane", take_places)?,
        },
    })
}

fn take_places(r: &mut impl Take) -> Result<Places, DecodeError> {
    let lane = take_lane(r)?;
    let (first, last) = (Seq::new(r.wide("first")?), Seq::new(r.wide("last")?));
    if last < first {
        return Err(DecodeError::Field { field: "last" });
    }
    Ok(Places { lane, first, last })
}
