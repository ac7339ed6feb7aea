//! The bytes of remembered ids: a chunk is a version and rows that lean on the row before.
//!
//! ```text
//! version u8 | row …
//! row:       tag u8 | [sender u128] | key u128 or recipient | [content u64] | [place step] | [time step]
//!            | [devices varint]
//! recipient: [id u128 · len u8 · sender] | kept u8 · [len u8] · rest
//! ```
//!
//! Rows of a chunk come by sender and place, so most have the sender of the row before, are at the next place or a few
//! behind it, and were accepted at its time or a little later; of what one message to many leaves, all say the same. Such
//! a row takes 17 bytes, 16 of them a digest that cannot be shortened, and 25 or a few more when it says something else.
//! The tag says what is there; steps are varints, either way.
//!
//! The key of a message to many need not be there: it is the digest of the sender, the recipient and the message's id, of
//! which only the recipient is new. From the third row of such a message on, the chunk names sender and id once and then
//! recipients, each by what its id does not have in common with the one named before. With ids that have something in
//! common, a row takes 3 to 6 bytes; where that would be no less than a digest, the digest is there as ever.
//!
//! Version 1 has keys only.

use super::{CodecError, Fields, put_step, put_varint};
use crate::digest::Digester;
use crate::id::{MAX_ID_BYTES, MessageId, UserId};
use crate::message::Message;
use crate::record::{DedupRow, Seq, Slots};
use crate::time::Timestamp;

/// The version of chunks that this build writes, and the newest it reads.
pub(crate) const VERSION: u8 = 2;
const NEW_SENDER: u8 = 1;
const NEW_CONTENT: u8 = 2;
/// Without it, the place is the next one.
const NEW_PLACE: u8 = 4;
const NEW_TIME: u8 = 8;
/// It is for other devices than the one before it.
const NEW_DEVICES: u8 = 16;
/// There is a recipient, and no key.
const NAMED: u8 = 32;
/// Another message than that of the last recipient.
const NEW_MESSAGE: u8 = 64;
/// The recipient's id is not as long as the last one.
const NEW_LENGTH: u8 = 128;
/// What a row may say, by version.
const TAGS: [u8; 3] = [0, NAMED - 1, u8::MAX];
const KEY_BYTES: usize = size_of::<u128>();
/// So many rows of a message come with their keys before the message is named: two might be all there are, and then it
/// would not pay.
const BEFORE_NAMING: usize = 2;
/// The longest recipient that is named though a key is shorter, for what those behind have in common with them.
const MAX_FIRST_BYTES: usize = 64;

/// What the first row of a chunk leans on.
const NOTHING: DedupRow = DedupRow {
    sender: 0,
    key: 0,
    content: 0,
    seq: Seq::ZERO,
    at: Timestamp::from_millis(0),
    among: Slots::NONE,
};

/// What the key of a remembered id is the digest of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Who sent it, if somebody did.
    pub sender: Option<UserId>,
    /// For whom it is.
    pub recipient: UserId,
    /// The message's id.
    pub id: MessageId,
}

impl Named {
    /// That of a message.
    #[must_use]
    pub fn of(message: &Message) -> Self {
        Self { sender: message.sender().cloned(), recipient: message.recipient().clone(), id: message.id() }
    }

    /// The key.
    #[must_use]
    pub fn key(&self, digester: &Digester) -> u128 {
        digester.identity(self.sender.as_ref(), &self.recipient, self.id)
    }
}

/// A message that a chunk can name.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Sent {
    sender: Option<UserId>,
    id: MessageId,
}

/// Rows of one message, one behind the other.
#[derive(Clone, Debug)]
struct Streak {
    sent: Sent,
    rows: usize,
    /// To whom the last one was.
    recipient: UserId,
}

/// A chunk of remembered ids that is being filled, by sender and place.
#[derive(Debug)]
pub struct DedupChunk {
    value: Vec<u8>,
    first: Option<(u128, Seq)>,
    last: DedupRow,
    /// The message that the chunk named last, and to whom.
    sent: Option<Sent>,
    recipient: Vec<u8>,
    /// The message of the rows that were added last, of those whose message is known, and how many of them there are; also
    /// of the chunk before.
    streak: Option<Streak>,
    /// The row that is being added.
    next: Vec<u8>,
}

impl Default for DedupChunk {
    fn default() -> Self {
        let (value, recipient, next) = (Vec::new(), Vec::new(), Vec::new());
        Self { value, first: None, last: NOTHING, sent: None, recipient, streak: None, next }
    }
}

impl DedupChunk {
    /// Adds a row, unless the chunk would be longer than `max` bytes with it. An empty chunk takes every row. `named` is
    /// what its key may be the digest of, where that is known; it is left out if it is not, or if the key is shorter.
    pub fn push(&mut self, row: &DedupRow, named: Option<&Named>, digester: &Digester, max: usize) -> bool {
        let sent = named.map(|named| Sent { sender: named.sender.clone(), id: named.id });
        let streak = self.streak.as_ref().filter(|streak| Some(&streak.sent) == sent.as_ref());
        let rows = streak.map_or(0, |streak| streak.rows);
        let may_name = (sent.is_some() && self.sent == sent) || rows >= BEFORE_NAMING;
        let pays = named.filter(|named| may_name && self.pays(named, streak));
        let written = self.write(row, pays.filter(|named| named.key(digester) == row.key));
        if self.first.is_some() && self.value.len() + self.next.len() > max {
            return false;
        }
        if self.first.is_none() {
            self.value.push(VERSION);
            self.first = Some((row.sender, row.seq));
        }
        self.value.extend_from_slice(&self.next);
        self.last = *row;
        if let Some(named) = written {
            self.recipient.clear();
            self.recipient.extend_from_slice(named.recipient.as_bytes());
            self.sent.clone_from(&sent);
        }
        if let Some((sent, named)) = sent.zip(named) {
            let recipient = named.recipient.clone();
            self.streak = Some(Streak { sent, rows: rows.saturating_add(1), recipient });
        }
        true
    }

    /// Whether to name the recipient: it is shorter than the key, or what is like the one before it, so that those behind it
    /// will be.
    fn pays(&self, named: &Named, streak: Option<&Streak>) -> bool {
        let id = named.recipient.as_bytes();
        let is_short = |before: &[u8]| id.len() - common(before, id) + 2 < KEY_BYTES;
        let before = streak.map(|streak| streak.recipient.as_bytes());
        is_short(&self.recipient) || (id.len() <= MAX_FIRST_BYTES && before.is_some_and(is_short))
    }

    /// Writes the row as it follows the last one; says whether it names the recipient.
    fn write<'a>(&mut self, row: &DedupRow, named: Option<&'a Named>) -> Option<&'a Named> {
        let last = &self.last;
        let out = &mut self.next;
        let named = named.map(|named| {
            let id = named.recipient.as_bytes();
            let kept = common(&self.recipient, id);
            (named, kept, id.get(kept..).unwrap_or_default())
        });
        let is_new = |named: &Named| {
            self.sent.as_ref().is_none_or(|sent| sent.sender != named.sender || sent.id != named.id)
        };
        let changed = |changed, tag| if changed { tag } else { 0 };
        let tag = changed(row.sender != last.sender, NEW_SENDER)
            | changed(row.content != last.content, NEW_CONTENT)
            | changed(row.seq != last.seq.plus(1), NEW_PLACE)
            | changed(row.at != last.at, NEW_TIME)
            | changed(row.among != last.among, NEW_DEVICES)
            | named.map_or(0, |(named, kept, rest)| {
                NAMED
                    | changed(is_new(named), NEW_MESSAGE)
                    | changed(kept + rest.len() != self.recipient.len(), NEW_LENGTH)
            });
        out.clear();
        out.push(tag);
        if tag & NEW_SENDER != 0 {
            out.extend_from_slice(&row.sender.to_le_bytes());
        }
        match named {
            None => out.extend_from_slice(&row.key.to_le_bytes()),
            Some((named, kept, rest)) => put_recipient(named, tag, (kept, rest), out),
        }
        if tag & NEW_CONTENT != 0 {
            out.extend_from_slice(&row.content.to_le_bytes());
        }
        if tag & NEW_PLACE != 0 {
            put_step(last.seq.get(), row.seq.get(), out);
        }
        if tag & NEW_TIME != 0 {
            put_step(last.at.as_millis(), row.at.as_millis(), out);
        }
        if tag & NEW_DEVICES != 0 {
            put_varint(row.among.bits().into(), out);
        }
        named.map(|(named, ..)| named)
    }

    /// The first row's sender and place, and the bytes; `None` when it is empty. The chunk is empty again, and knows which
    /// message goes on.
    pub fn take(&mut self) -> Option<(u128, Seq, Vec<u8>)> {
        let (sender, seq) = self.first?;
        let value = core::mem::take(&mut self.value);
        let (next, streak) = (core::mem::take(&mut self.next), self.streak.take());
        *self = Self { next, streak, ..Self::default() };
        Some((sender, seq, value))
    }
}

/// How many bytes two ids begin with that are the same.
fn common(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Appends a recipient, of whose id so much is kept and the rest is new.
fn put_recipient(named: &Named, tag: u8, (kept, rest): (usize, &[u8]), out: &mut Vec<u8>) {
    let number = |n| u8::try_from(n).unwrap_or(u8::MAX);
    if tag & NEW_MESSAGE != 0 {
        let sender = named.sender.as_ref().map_or(&[][..], UserId::as_bytes);
        out.extend_from_slice(&named.id.as_u128().to_le_bytes());
        out.push(number(sender.len()));
        out.extend_from_slice(sender);
    }
    out.push(number(kept));
    if tag & NEW_LENGTH != 0 {
        out.push(number(rest.len()));
    }
    out.extend_from_slice(rest);
}

/// The remembered ids of a chunk, of an engine with this digester. Ends after the first error.
#[must_use]
pub fn decode_dedup(bytes: &[u8], digester: Digester) -> DedupRows<'_> {
    let fields = Fields(bytes);
    DedupRows {
        fields,
        digester,
        version: None,
        last: NOTHING,
        sent: None,
        recipient: Vec::new(),
        named: false,
    }
}

/// Iterator of [`decode_dedup`].
#[derive(Clone, Debug)]
pub struct DedupRows<'a> {
    fields: Fields<'a>,
    digester: Digester,
    version: Option<u8>,
    last: DedupRow,
    sent: Option<Sent>,
    recipient: Vec<u8>,
    named: bool,
}

impl DedupRows<'_> {
    /// What the key of the row that was handed over last is the digest of, if the chunk says so.
    #[must_use]
    pub fn named(&self) -> Option<Named> {
        let sent = self.sent.as_ref().filter(|_| self.named)?;
        let recipient = UserId::new(&self.recipient).ok()?;
        Some(Named { sender: sent.sender.clone(), recipient, id: sent.id })
    }

    fn row(&mut self) -> Result<DedupRow, CodecError> {
        let short = || CodecError::Body("a chunk of ids is cut short".to_owned());
        let version = match self.version {
            Some(version) => version,
            None => self.fields.take::<1>().map(|[version]| version).ok_or_else(short)?,
        };
        self.version = Some(version);
        let allowed = match version {
            0 => return Err(CodecError::Body("version 0".to_owned())),
            known => TAGS.get(usize::from(known)).copied(),
        };
        let allowed = allowed.ok_or(CodecError::NewerVersion { kind: 0, found: version })?;
        let [tag] = self.fields.take::<1>().ok_or_else(short)?;
        if tag & !allowed != 0 || (tag & (NEW_MESSAGE | NEW_LENGTH) != 0 && tag & NAMED == 0) {
            return Err(CodecError::Body(format!("tag {tag} of a remembered id")));
        }
        let mut row = self.last;
        if tag & NEW_SENDER != 0 {
            row.sender = self.fields.u128().ok_or_else(short)?;
        }
        self.named = tag & NAMED != 0;
        row.key = if self.named { self.key(tag)? } else { self.fields.u128().ok_or_else(short)? };
        if tag & NEW_CONTENT != 0 {
            row.content = self.fields.u64().ok_or_else(short)?;
        }
        row.seq = self.last.seq.plus(1);
        if tag & NEW_PLACE != 0 {
            row.seq = Seq::new(self.fields.step_from(self.last.seq.get()).ok_or_else(short)?);
        }
        if tag & NEW_TIME != 0 {
            let at = self.fields.step_from(self.last.at.as_millis()).ok_or_else(short)?;
            row.at = Timestamp::from_millis(at);
        }
        if tag & NEW_DEVICES != 0 {
            let bits = self.fields.varint().and_then(|bits| u32::try_from(bits).ok()).ok_or_else(short)?;
            row.among = Slots::from_bits(bits);
        }
        Ok(row)
    }

    /// Reads a recipient; the key of the message to them.
    fn key(&mut self, tag: u8) -> Result<u128, CodecError> {
        let short = || CodecError::Body("a recipient is cut short".to_owned());
        if tag & NEW_MESSAGE != 0 {
            let id = MessageId::from_u128(self.fields.u128().ok_or_else(short)?);
            let [len] = self.fields.take::<1>().ok_or_else(short)?;
            let sender = self.fields.bytes(usize::from(len)).ok_or_else(short)?;
            self.sent = Some(Sent { sender: UserId::new(sender).ok(), id });
        }
        let Some(sent) = &self.sent else {
            return Err(CodecError::Body("a recipient of no message".to_owned()));
        };
        let odd = || CodecError::Body("a recipient that cannot be".to_owned());
        let [kept] = self.fields.take::<1>().ok_or_else(short)?.map(usize::from);
        let len = match tag & NEW_LENGTH {
            0 => self.recipient.len().checked_sub(kept).ok_or_else(odd)?,
            _ => usize::from(self.fields.take::<1>().ok_or_else(short)?[0]),
        };
        let rest = self.fields.bytes(len).ok_or_else(short)?;
        if kept > self.recipient.len() || !(1..=MAX_ID_BYTES).contains(&(kept + len)) {
            return Err(odd());
        }
        self.recipient.truncate(kept);
        self.recipient.extend_from_slice(rest);
        let recipient = UserId::new(&self.recipient).map_err(|_| odd())?;
        Ok(self.digester.identity(sent.sender.as_ref(), &recipient, sent.id))
    }
}

impl Iterator for DedupRows<'_> {
    type Item = Result<DedupRow, CodecError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.fields.0.is_empty() {
            return None;
        }
        let row = self.row();
        match &row {
            Ok(row) => self.last = *row,
            Err(_) => (self.fields, self.named) = (Fields(&[]), false),
        }
        Some(row)
    }
}

#[cfg(test)]
mod tests;
