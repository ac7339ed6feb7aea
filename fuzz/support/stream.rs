//! An export as a script says: items in frames that fit.

use lastmile::storage::frame::{self, FRAME_BYTES};
use lastmile::storage::outbox::EXPORT_VERSION;

use crate::input::{Input, put_blob};

const MAGIC: &[u8; 8] = b"lastmile";
const END: u8 = 6;

/// The stream.
pub fn of(input: &mut Input<'_>) -> Vec<u8> {
    let flags = input.u8();
    let version = if flags & 1 == 0 { EXPORT_VERSION } else { input.u16() };
    let flip = (flags & 2 != 0).then(|| (input.u16(), input.u8()));
    let cut = (flags & 4 != 0).then(|| input.u16());
    let mut stream = [&MAGIC[..], &version.to_le_bytes()].concat();
    let mut items = 0_u64;
    while !input.is_empty() {
        let kind = input.u8();
        item(kind, items, &input.blob(), &mut stream);
        items += 1;
    }
    if flags & 8 == 0 {
        item(END, items, &items.to_le_bytes(), &mut stream);
    }
    if let Some((at, by)) = flip {
        let at = usize::from(at) % stream.len();
        stream[at] ^= by;
    }
    if let Some(cut) = cut {
        stream.truncate(usize::from(cut));
    }
    stream
}

fn item(kind: u8, number: u64, body: &[u8], stream: &mut Vec<u8>) {
    let name = [&[kind][..], &number.to_le_bytes()].concat();
    stream.push(kind);
    stream.extend_from_slice(&frame::encode(&name, body));
}

/// The input that makes this export, which is whole.
pub fn script(export: &[u8]) -> Vec<u8> {
    let mut script = vec![0];
    let mut rest = &export[MAGIC.len() + 2..];
    while let Some((kind, frame)) = rest.split_first() {
        let len = u32::from_le_bytes(frame[3..7].try_into().expect("four bytes"));
        let (body, behind) = frame[FRAME_BYTES..].split_at(len as usize);
        if *kind != END {
            script.push(*kind);
            put_blob(&mut script, body);
        }
        rest = behind;
    }
    script
}
