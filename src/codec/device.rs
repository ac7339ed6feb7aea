//! What an acceptance says of devices, which stands before it: `FOR_DEVICE · version u8 · slot u8 · flags u8 · among u32 LE`,
//! and then the acceptance as it would be without, of whichever kind, plain, sealed or leaning on another.
//!
//! Of a message that is for devices that are not chosen yet the slot is 255, and the flags say how they will be. Of one that
//! waits for another one, of which several devices have copies, the slot is 254, the two lowest flags say how its own devices
//! will be chosen (3: it does not say), and `left u32 LE` follows: which of those copies had not ended.

use super::{CodecError, FOR_DEVICE, Fields, RECORD_VERSION, check_version};
use crate::message::DevicePolicy;
use crate::record::{Accept, Copies, ForDevice, LaneId, Parent, Slot, Slots};

const UNCHOSEN: u8 = u8::MAX;
const WAITS: u8 = UNCHOSEN - 1;
/// In the flags of what waits: it does not say which devices it is for.
const UNSAID: u8 = 3;
const POLICIES: [DevicePolicy; 3] =
    [DevicePolicy::AnyDevice, DevicePolicy::RingAll, DevicePolicy::EveryDevice];
const RINGS: u8 = 1;
const IS_COPY: u8 = 2;
const APART: u8 = 4;

/// What stands before an acceptance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Before {
    Chosen(ForDevice),
    Unchosen(DevicePolicy),
    Waits(Option<DevicePolicy>, Copies),
}

/// Appends it, if there is anything to say.
pub(super) fn append(accept: &Accept, out: &mut Vec<u8>) {
    let flag = |is, flag| if is { flag } else { 0 };
    if let Some(Copies { among, left, stride }) = accept.parent.and_then(|parent| parent.copies) {
        let policy = accept.message.devices().map_or(UNSAID, |policy| policy as u8);
        out.extend_from_slice(&[FOR_DEVICE, RECORD_VERSION, WAITS, policy | flag(stride > 1, APART)]);
        [among, left].iter().for_each(|slots| out.extend_from_slice(&slots.bits().to_le_bytes()));
        return;
    }
    let (slot, flags, among) = match (accept.device, accept.message.devices()) {
        (Some(device), _) => {
            let flags =
                flag(device.rings, RINGS) | flag(device.is_copy, IS_COPY) | flag(device.stride > 1, APART);
            (device.slot.get(), flags, device.among.bits())
        }
        (None, Some(policy)) => (UNCHOSEN, policy as u8, 0),
        (None, None) => return,
    };
    out.extend_from_slice(&[FOR_DEVICE, RECORD_VERSION, slot, flags]);
    out.extend_from_slice(&among.to_le_bytes());
}

/// What stands before an acceptance, if something does, and the acceptance.
pub(super) fn split(bytes: &[u8]) -> Result<(Option<Before>, &[u8]), CodecError> {
    let [FOR_DEVICE, version, rest @ ..] = bytes else { return Ok((None, bytes)) };
    check_version(FOR_DEVICE, *version)?;
    let mut fields = Fields(rest);
    let short = CodecError::Truncated { bytes: bytes.len(), needed: 8 };
    let ([slot, flags], among) = fields.take::<2>().zip(fields.u32()).ok_or(short)?;
    let wrong = || CodecError::Body(format!("for device {slot} of {among:b}, as {flags}"));
    let before = match slot {
        UNCHOSEN => {
            let policy = POLICIES.get(usize::from(flags)).filter(|_| among == 0).ok_or_else(wrong)?;
            Before::Unchosen(*policy)
        }
        WAITS => {
            let left = Slots::from_bits(fields.u32().ok_or_else(wrong)?);
            let among = Slots::from_bits(among);
            if flags > (UNSAID | APART) || left.is_empty() || !among.has_all(left) {
                return Err(wrong());
            }
            let stride = if flags & APART != 0 { 2 } else { 1 };
            let policy = POLICIES.get(usize::from(flags & UNSAID)).copied();
            Before::Waits(policy, Copies { among, left, stride })
        }
        _ => Before::Chosen(chosen(slot, flags, among).ok_or_else(wrong)?),
    };
    match fields.0.first() {
        Some(&FOR_DEVICE) => Err(wrong()),
        _ => Ok((Some(before), fields.0)),
    }
}

fn chosen(slot: u8, flags: u8, among: u32) -> Option<ForDevice> {
    let (slot, among) = (Slot::new(slot)?, Slots::from_bits(among));
    if !among.has(slot) || flags > (RINGS | IS_COPY | APART) {
        return None;
    }
    let is = |flag| flags & flag != 0;
    let (rings, is_copy, stride) = (is(RINGS), is(IS_COPY), if is(APART) { 2 } else { 1 });
    Some(ForDevice { slot, among, rings, is_copy, stride })
}

/// An acceptance with what stood before it.
pub(super) fn put(accept: Accept, before: Option<Before>) -> Result<Accept, CodecError> {
    let (policy, device, copies) = match before {
        None => (None, None, None),
        Some(Before::Unchosen(policy)) => (Some(policy), None, None),
        Some(Before::Chosen(device)) => (None, Some(device), None),
        Some(Before::Waits(policy, copies)) => (policy, None, Some(copies)),
    };
    let parent = accept.parent.map(|parent| Parent { copies, ..parent });
    if !parent.map_or(copies.is_none(), fits) {
        return Err(CodecError::Body("it does not wait for a message for several devices".to_owned()));
    }
    let message = match policy {
        Some(policy) => accept.message.with_devices(policy),
        None => accept.message.without_devices(),
    };
    let accept = Accept { message, device, parent, ..accept };
    let is_chosen = accept.device.is_some() && accept.lane() == LaneId::Scheduled;
    match is_chosen {
        true => Err(CodecError::Body("scheduled, and for a device already".to_owned())),
        false => Ok(accept),
    }
}

/// Whether what is said of a parent's copies is about where it is.
pub(super) fn fits(parent: Parent) -> bool {
    match parent.copies {
        None => true,
        Some(copies) => parent.lane.slot().is_some_and(|slot| copies.among.has(slot)),
    }
}
