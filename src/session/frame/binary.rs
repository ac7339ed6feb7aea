//! The binary codec: `kind u8`, then the fields in order.
//!
//! A number is LEB128 in its shortest form. Text, bytes and payloads are a length and the bytes; 128-bit ids are 16
//! bytes, big-endian; flags, choices and the presence of an option are one byte; a list is a count and its elements.
//! bincode is not used here: a codec for other languages must be simple enough to write down, payloads must stay slices
//! of the frame, and the core builds without it.

use bytes::Bytes;

use super::shape::{self, KINDS};
use super::wire::{Put, Take};
use super::{DecodeError, Frame, Limits};

pub(super) fn encode(frame: &Frame, out: &mut Vec<u8>) {
    let name = frame.name();
    let kind = KINDS.iter().find(|(_, n)| *n == name).map_or(0, |(kind, _)| *kind);
    out.push(kind);
    shape::put(frame, &mut Writer(out));
}

pub(super) fn decode(bytes: &Bytes, limits: &Limits) -> Result<Frame, DecodeError> {
    let kind = *bytes.first().ok_or(DecodeError::Field { field: "frame" })?;
    let mut reader = Reader { all: bytes, at: 1, limits };
    let frame = shape::take(kind, &mut reader)?;
    match reader.left() {
        0 => Ok(frame),
        bytes => Err(DecodeError::Trailing { bytes }),
    }
}

struct Writer<'a>(&'a mut Vec<u8>);

impl Writer<'_> {
    fn varint(&mut self, mut n: u64) {
        while n > 0x7f {
            self.0.push((n & 0x7f) as u8 | 0x80);
            n >>= 7;
        }
        self.0.push(n as u8);
    }
}

impl Put for Writer<'_> {
    fn number(&mut self, _: &'static str, value: u64) {
        self.varint(value);
    }

    fn wide(&mut self, _: &'static str, value: u64) {
        self.varint(value);
    }

    fn id(&mut self, _: &'static str, value: u128) {
        self.0.extend_from_slice(&value.to_be_bytes());
    }

    fn flag(&mut self, _: &'static str, value: bool) {
        self.0.push(u8::from(value));
    }

    fn text(&mut self, name: &'static str, value: &str) {
        self.bytes(name, value.as_bytes());
    }

    fn bytes(&mut self, _: &'static str, value: &[u8]) {
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
    }

    fn payload(&mut self, name: &'static str, value: &[u8]) {
        self.bytes(name, value);
    }

    fn choice(&mut self, _: &'static str, _: &[&'static str], index: usize) {
        self.0.push(index as u8);
    }

    fn option<T>(&mut self, value: Option<T>, put: impl FnOnce(&mut Self, T)) {
        self.0.push(u8::from(value.is_some()));
        if let Some(value) = value {
            put(self, value);
        }
    }

    fn object(&mut self, _: &'static str, put: impl FnOnce(&mut Self)) {
        put(self);
    }

    fn list<T>(
        &mut self,
        _: &'static str,
        values: impl ExactSizeIterator<Item = T>,
        mut put: impl FnMut(&mut Self, T),
    ) {
        self.varint(values.len() as u64);
        values.for_each(|value| put(self, value));
    }
}

struct Reader<'a> {
    all: &'a Bytes,
    at: usize,
    limits: &'a Limits,
}

impl Reader<'_> {
    fn left(&self) -> usize {
        self.all.len().saturating_sub(self.at)
    }

    /// The range of the next `len` bytes.
    fn advance(&mut self, field: &'static str, len: usize) -> Result<core::ops::Range<usize>, DecodeError> {
        if len > self.left() {
            return Err(DecodeError::Field { field });
        }
        let start = self.at;
        self.at = start.saturating_add(len);
        Ok(start..self.at)
    }

    fn byte(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        let byte = self.all.get(self.at).copied().ok_or(DecodeError::Field { field })?;
        self.at = self.at.saturating_add(1);
        Ok(byte)
    }

    fn varint(&mut self, field: &'static str) -> Result<u64, DecodeError> {
        let mut n = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte(field)?;
            let bits = u64::from(byte & 0x7f);
            // One form for each number: no bit too many, no zeros on top.
            if (shift == 63 && bits > 1) || (byte == 0 && shift > 0) {
                break;
            }
            n |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(n);
            }
        }
        Err(DecodeError::Field { field })
    }

    fn slice(&mut self, field: &'static str, max: usize) -> Result<core::ops::Range<usize>, DecodeError> {
        let len = usize::try_from(self.varint(field)?).unwrap_or(usize::MAX);
        match len <= max {
            true => self.advance(field, len),
            false => Err(DecodeError::Field { field }),
        }
    }

    fn bit(&mut self, field: &'static str) -> Result<bool, DecodeError> {
        match self.byte(field)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(DecodeError::Field { field }),
        }
    }
}

impl Take for Reader<'_> {
    fn number(&mut self, name: &'static str) -> Result<u64, DecodeError> {
        let number = self.varint(name)?;
        match number <= super::wire::MAX_NUMBER {
            true => Ok(number),
            false => Err(DecodeError::Field { field: name }),
        }
    }

    fn wide(&mut self, name: &'static str) -> Result<u64, DecodeError> {
        self.varint(name)
    }

    fn id(&mut self, name: &'static str) -> Result<u128, DecodeError> {
        let range = self.advance(name, 16)?;
        let bytes = self.all.get(range).and_then(|bytes| bytes.first_chunk::<16>());
        bytes.map(|bytes| u128::from_be_bytes(*bytes)).ok_or(DecodeError::Field { field: name })
    }

    fn flag(&mut self, name: &'static str) -> Result<bool, DecodeError> {
        self.bit(name)
    }

    fn text(&mut self, name: &'static str, max: usize) -> Result<String, DecodeError> {
        let range = self.slice(name, max)?;
        let text = self.all.get(range).and_then(|bytes| core::str::from_utf8(bytes).ok());
        text.map(str::to_owned).ok_or(DecodeError::Field { field: name })
    }

    fn bytes(&mut self, name: &'static str, max: usize) -> Result<Bytes, DecodeError> {
        let range = self.slice(name, max)?;
        Ok(self.all.slice(range))
    }

    fn payload(&mut self, name: &'static str, max: usize) -> Result<Bytes, DecodeError> {
        self.bytes(name, max)
    }

    fn choice(&mut self, name: &'static str, names: &[&'static str]) -> Result<usize, DecodeError> {
        let index = usize::from(self.byte(name)?);
        match index < names.len() {
            true => Ok(index),
            false => Err(DecodeError::Field { field: name }),
        }
    }

    fn option<T>(
        &mut self,
        name: &'static str,
        take: impl FnOnce(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<Option<T>, DecodeError> {
        match self.bit(name)? {
            true => take(self).map(Some),
            false => Ok(None),
        }
    }

    fn object<T>(
        &mut self,
        _: &'static str,
        take: impl FnOnce(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<T, DecodeError> {
        take(self)
    }

    fn list<T>(
        &mut self,
        name: &'static str,
        max: usize,
        mut take: impl FnMut(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<Vec<T>, DecodeError> {
        let found = self.varint(name)?;
        if found > max as u64 {
            return Err(DecodeError::TooMany { field: name, found, max });
        }
        // No element takes less than two bytes: what a count says is not believed beyond that.
        let most = usize::try_from(found).unwrap_or(max).min(self.left() / 2);
        let mut values = Vec::with_capacity(most);
        for _ in 0..found {
            values.push(take(self)?);
        }
        Ok(values)
    }

    fn limits(&self) -> &Limits {
        self.limits
    }
}
