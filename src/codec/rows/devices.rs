//! The bytes of what a user's row says of devices, one after the other, in the order of their slots.
//!
//! ```text
//! slot u8 · flags u8 · exposed u32 · [registered u64 · seen u64 · len u8 · name] · 4 × lane
//! lane: cursor u64 · n u64 · n × place u64 · n u64 · n × attempt
//! ```

use super::{ATTEMPT_BYTES, PLACE_BYTES, lane_lists, unpack, unpack_attempt};
use crate::codec::{CodecError, Fields, body_error};
use crate::id::DeviceId;
use crate::record::{DeviceInfo, DeviceRow, Epoch, LaneRow, MAX_SLOTS, Seq, Slot};
use crate::time::Timestamp;

const HAS_DEVICE: u8 = 1;
const IS_LEAVING: u8 = 2;

pub(super) fn pack_devices(devices: &[DeviceRow], out: &mut Vec<u8>) {
    for row in devices {
        let leaving = row.device.as_ref().is_some_and(|device| device.is_leaving);
        let flags = if row.device.is_some() { HAS_DEVICE } else { 0 } | if leaving { IS_LEAVING } else { 0 };
        out.extend_from_slice(&[row.slot.get(), flags]);
        out.extend_from_slice(&row.exposed.0.to_le_bytes());
        if let Some(device) = &row.device {
            for at in [device.registered_at, device.last_seen] {
                out.extend_from_slice(&at.as_millis().to_le_bytes());
            }
            let name = device.device.as_bytes();
            out.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
            out.extend_from_slice(name);
        }
        for lane in &row.lanes {
            let (ended, attempts) = lane_lists(lane);
            out.extend_from_slice(&lane.cursor.get().to_le_bytes());
            for (count, list) in [(lane.ended.len(), ended), (lane.attempts.len(), attempts)] {
                out.extend_from_slice(&(count as u64).to_le_bytes());
                out.extend_from_slice(&list);
            }
        }
    }
}

pub(super) fn unpack_devices(bytes: &[u8]) -> Result<Vec<DeviceRow>, CodecError> {
    // No larger than they are: a row takes more in memory than the shortest one does here, but there are few.
    let mut fields = Fields(bytes);
    let mut count = 0;
    while !fields.0.is_empty() {
        skip_device(&mut fields)?;
        count += 1;
    }
    if count > MAX_SLOTS {
        return Err(CodecError::Body(format!("{count} devices")));
    }
    let mut fields = Fields(bytes);
    let mut rows: Vec<DeviceRow> = Vec::with_capacity(count);
    while !fields.0.is_empty() {
        let row = unpack_device(&mut fields)?;
        if rows.last().is_some_and(|last| last.slot >= row.slot) {
            return Err(CodecError::Body("devices out of order".to_owned()));
        }
        rows.push(row);
    }
    Ok(rows)
}

fn short() -> CodecError {
    CodecError::Body("a device is cut short".to_owned())
}

/// Passes over one of them.
fn skip_device(fields: &mut Fields<'_>) -> Result<(), CodecError> {
    let [_, flags] = fields.take::<2>().ok_or_else(short)?;
    fields.u32().ok_or_else(short)?;
    if flags != 0 {
        fields.bytes(16).ok_or_else(short)?;
        let [len] = fields.take::<1>().ok_or_else(short)?;
        fields.bytes(usize::from(len)).ok_or_else(short)?;
    }
    for _ in 0..4 {
        fields.u64().ok_or_else(short)?;
        list(fields, PLACE_BYTES)?;
        list(fields, ATTEMPT_BYTES)?;
    }
    Ok(())
}

fn unpack_device(fields: &mut Fields<'_>) -> Result<DeviceRow, CodecError> {
    let [slot, flags] = fields.take::<2>().ok_or_else(short)?;
    let slot = Slot::try_from(slot).map_err(body_error)?;
    let exposed = Epoch(fields.u32().ok_or_else(short)?);
    let device = match flags {
        0 => None,
        HAS_DEVICE | 3 => Some(unpack_info(fields, flags & IS_LEAVING != 0)?),
        flags => return Err(CodecError::Body(format!("a device with flags {flags}"))),
    };
    let mut lanes: [LaneRow; 4] = Default::default();
    for lane in &mut lanes {
        lane.cursor = Seq::new(fields.u64().ok_or_else(short)?);
        let places = |item: &[u8; PLACE_BYTES]| Seq::new(u64::from_le_bytes(*item));
        lane.ended = unpack(list(fields, PLACE_BYTES)?, places)?;
        lane.attempts = unpack(list(fields, ATTEMPT_BYTES)?, unpack_attempt)?;
    }
    Ok(DeviceRow { slot, device, exposed, lanes })
}

fn list<'a>(fields: &mut Fields<'a>, item: usize) -> Result<&'a [u8], CodecError> {
    let count = usize::try_from(fields.u64().ok_or_else(short)?).unwrap_or(usize::MAX);
    fields.bytes(count.saturating_mul(item)).ok_or_else(short)
}

fn unpack_info(fields: &mut Fields<'_>, is_leaving: bool) -> Result<DeviceInfo, CodecError> {
    let registered_at = Timestamp::from_millis(fields.u64().ok_or_else(short)?);
    let last_seen = Timestamp::from_millis(fields.u64().ok_or_else(short)?);
    let [len] = fields.take::<1>().ok_or_else(short)?;
    let name = fields.bytes(usize::from(len)).ok_or_else(short)?;
    let device = DeviceId::new(name).map_err(body_error)?;
    Ok(DeviceInfo { device, registered_at, last_seen, is_leaving })
}
