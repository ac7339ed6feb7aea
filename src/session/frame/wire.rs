//! What a codec must be able to write and read, field by field. Names matter to JSON only, order to binary only.

use core::time::Duration;

use bytes::Bytes;

use super::{Codec, DecodeError, Limits};
use crate::session::code::Code;

/// Writes fields.
pub(super) trait Put {
    /// A number that JavaScript can hold.
    fn number(&mut self, name: &'static str, value: u64);
    /// A number of all 64 bits.
    fn wide(&mut self, name: &'static str, value: u64);
    /// 128 bits.
    fn id(&mut self, name: &'static str, value: u128);
    fn flag(&mut self, name: &'static str, value: bool);
    fn text(&mut self, name: &'static str, value: &str);
    /// Bytes that are mostly text.
    fn bytes(&mut self, name: &'static str, value: &[u8]);
    /// Bytes that are mostly text or JSON.
    fn payload(&mut self, name: &'static str, value: &[u8]);
    /// One of these names, by its place among them.
    fn choice(&mut self, name: &'static str, names: &[&'static str], index: usize);
    /// Some fields, or none of them. The first one tells.
    fn option<T>(&mut self, value: Option<T>, put: impl FnOnce(&mut Self, T));
    /// An object in a field of its own.
    fn object(&mut self, name: &'static str, put: impl FnOnce(&mut Self));
    /// A list of objects.
    fn list<T>(
        &mut self,
        name: &'static str,
        values: impl ExactSizeIterator<Item = T>,
        put: impl FnMut(&mut Self, T),
    );

    fn duration(&mut self, name: &'static str, value: Duration) {
        self.number(name, millis(value));
    }

    fn code(&mut self, code: Code) {
        self.number("code", u64::from(code.number()));
    }
}

/// Reads what [`Put`] wrote.
pub(super) trait Take: Sized {
    fn number(&mut self, name: &'static str) -> Result<u64, DecodeError>;
    fn wide(&mut self, name: &'static str) -> Result<u64, DecodeError>;
    fn id(&mut self, name: &'static str) -> Result<u128, DecodeError>;
    fn flag(&mut self, name: &'static str) -> Result<bool, DecodeError>;
    fn text(&mut self, name: &'static str, max: usize) -> Result<String, DecodeError>;
    fn bytes(&mut self, name: &'static str, max: usize) -> Result<Bytes, DecodeError>;
    fn payload(&mut self, name: &'static str, max: usize) -> Result<Bytes, DecodeError>;
    fn choice(&mut self, name: &'static str, names: &[&'static str]) -> Result<usize, DecodeError>;
    /// `name` is the first field of the option.
    fn option<T>(
        &mut self,
        name: &'static str,
        take: impl FnOnce(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<Option<T>, DecodeError>;
    fn object<T>(
        &mut self,
        name: &'static str,
        take: impl FnOnce(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<T, DecodeError>;
    fn list<T>(
        &mut self,
        name: &'static str,
        max: usize,
        take: impl FnMut(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<Vec<T>, DecodeError>;
    fn limits(&self) -> &Limits;

    fn duration(&mut self, name: &'static str) -> Result<Duration, DecodeError> {
        self.number(name).map(Duration::from_millis)
    }

    fn code(&mut self) -> Result<Code, DecodeError> {
        let number = narrow("code", self.number("code")?)?;
        Code::from_number(number).ok_or(DecodeError::Field { field: "code" })
    }
}

/// Whole milliseconds, capped at what JavaScript can hold.
pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).min(MAX_NUMBER)
}

/// The largest number that JavaScript can hold.
pub(super) const MAX_NUMBER: u64 = (1 << 53) - 1;

/// A number in its own type.
pub(super) fn narrow<T: TryFrom<u64>>(field: &'static str, value: u64) -> Result<T, DecodeError> {
    T::try_from(value).map_err(|_| DecodeError::Field { field })
}

/// The codecs' names, by their bits.
pub(super) const CODECS: [&str; 2] = ["binary", "json"];

impl Codec {
    pub(super) const fn index(self) -> usize {
        match self {
            Self::Binary => 0,
            #[cfg(feature = "json")]
            Self::Json => 1,
        }
    }

    pub(super) fn from_index(index: usize) -> Result<Self, DecodeError> {
        match index {
            0 => Ok(Self::Binary),
            #[cfg(feature = "json")]
            1 => Ok(Self::Json),
            _ => Err(DecodeError::NoSuchCodec),
        }
    }
}
