//! What an acceptance says of devices, which stands before it: `FOR_DEVICE · version u8 · slot u8 · flags u8 · among u32 LE`,
//! and then the acceptance as it would be without, of whichever kind, plain, sealed or leaning on another.
//!
//! Of a message that is for devices that are not chosen yet the slot is 255, and the flags say how they will be.

use super::{CodecError, FOR_DEVICE, Fields, RECORD_VERSION, check_version};
use crate::message::DevicePolicy;
use crate::record::{Accept, ForDevice, LaneId, Slot, Slots};

const UNCHOSEN: u8 = u8::MAX;
const RINGS: u8 = 1;
const IS_COPY: u8 = 2;
const APART: u8 = 4;

/// What stands before an acceptance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Before {
    Chosen(ForDevice),
    Unchosen(DevicePolicy),
}

/// Appends it, if there is anything to say.
pub(super) fn append(accept: &Accept, out: &mut Vec<u8>) {
    let (slot, flags, among) = match (accept.device, accept.message.devices()) {
        (Some(device), _) => {
            let flag = |is, flag| if is { flag } else { 0 };
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
    if fields.0.first() == Some(&FOR_DEVICE) {
        return Err(wrong());
    }
    if slot == UNCHOSEN {
        let all = [DevicePolicy::AnyDevice, DevicePolicy::RingAll, DevicePolicy::EveryDevice];
        let policy = all.get(usize::from(flags)).filter(|_| among == 0).ok_or_else(wrong)?;
        return Ok((Some(Before::Unchosen(*policy)), fields.0));
    }
    let (slot, among) = (Slot::new(slot).ok_or_else(wrong)?, Slots::from_bits(among));
    if !among.has(slot) || flags > (RINGS | IS_COPY | APART) {
        return Err(wrong());
    }
    let is = |flag| flags & flag != 0;
    let (rings, is_copy, stride) = (is(RINGS), is(IS_COPY), if is(APART) { 2 } else { 1 });
    Ok((Some(Before::Chosen(ForDevice { slot, among, rings, is_copy, stride })), fields.0))
}

/// An acceptance with what stood before it.
pub(super) fn put(accept: Accept, before: Option<Before>) -> Result<Accept, CodecError> {
    let accept = match before {
        None => Accept { message: accept.message.without_devices(), device: None, ..accept },
        Some(Before::Unchosen(policy)) => {
            Accept { message: accept.message.with_devices(policy), device: None, ..accept }
        }
        Some(Before::Chosen(device)) => {
            Accept { message: accept.message.without_devices(), device: Some(device), ..accept }
        }
    };
    let is_chosen = accept.device.is_some() && accept.lane() == LaneId::Scheduled;
    match is_chosen {
        true => Err(CodecError::Body("scheduled, and for a device already".to_owned())),
        false => Ok(accept),
    }
}
