//! The JSON codec: one object a frame, `{"frame":"ping","nonce":7}`.
//!
//! Fields stand in any order; unknown ones are ignored, repeated ones refused. Numbers of 64 bits are decimal strings,
//! because JavaScript would round them; 128-bit ids are 32 hexadecimal digits. Bytes are a string when they are UTF-8,
//! and `{"base64":"…"}` otherwise; a payload that is a JSON object or array stands as `{"json":…}`, byte for byte.

use std::borrow::Cow;
use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde_json::value::RawValue;

use super::shape::{self, KINDS};
use super::wire::{MAX_NUMBER, Put, Take};
use super::{DecodeError, Frame, Limits};

/// The most fields of one object.
const MAX_FIELDS: usize = 48;

pub(super) fn encode(frame: &Frame, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"frame\":\"");
    out.extend_from_slice(frame.name().as_bytes());
    out.push(b'"');
    let mut writer = Writer { out, first: false };
    shape::put(frame, &mut writer);
    out.push(b'}');
}

pub(super) fn decode(bytes: &Bytes, limits: &Limits) -> Result<Frame, DecodeError> {
    let text = core::str::from_utf8(bytes).map_err(json_error)?;
    let fields = object(text)?;
    let mut reader = Reader { all: bytes, fields, limits };
    let name = reader.text("frame", 16)?;
    let kind = KINDS.iter().find(|(_, known)| *known == name).map(|(kind, _)| *kind);
    shape::take(kind.ok_or(DecodeError::UnknownFrame(name))?, &mut reader)
}

fn json_error(error: impl core::fmt::Display) -> DecodeError {
    DecodeError::Json(error.to_string())
}

struct Writer<'a> {
    out: &'a mut Vec<u8>,
    /// Whether the object has no field yet.
    first: bool,
}

impl Writer<'_> {
    fn name(&mut self, name: &'static str) {
        if !core::mem::replace(&mut self.first, false) {
            self.out.push(b',');
        }
        self.out.push(b'"');
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\":");
    }

    fn string(&mut self, text: &str) {
        serde_json::to_writer(&mut *self.out, text).expect("a vector takes everything, and text is JSON");
    }

    fn base64(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(b"{\"base64\":\"");
        self.out.extend_from_slice(BASE64.encode(bytes).as_bytes());
        self.out.extend_from_slice(b"\"}");
    }

    fn display(&mut self, value: impl core::fmt::Display) {
        let mut text = String::new();
        write!(text, "{value}").expect("a string takes everything");
        self.out.extend_from_slice(text.as_bytes());
    }
}

impl Put for Writer<'_> {
    fn number(&mut self, name: &'static str, value: u64) {
        self.name(name);
        self.display(value);
    }

    fn wide(&mut self, name: &'static str, value: u64) {
        self.name(name);
        self.display(format_args!("\"{value}\""));
    }

    fn id(&mut self, name: &'static str, value: u128) {
        self.name(name);
        self.display(format_args!("\"{value:032x}\""));
    }

    fn flag(&mut self, name: &'static str, value: bool) {
        self.name(name);
        self.display(value);
    }

    fn text(&mut self, name: &'static str, value: &str) {
        self.name(name);
        self.string(value);
    }

    fn bytes(&mut self, name: &'static str, value: &[u8]) {
        self.name(name);
        match core::str::from_utf8(value) {
            Ok(text) => self.string(text),
            Err(_) => self.base64(value),
        }
    }

    fn payload(&mut self, name: &'static str, value: &[u8]) {
        match core::str::from_utf8(value) {
            Ok(text) if is_json(text) => {
                self.name(name);
                self.out.extend_from_slice(b"{\"json\":");
                self.out.extend_from_slice(value);
                self.out.push(b'}');
            }
            _ => self.bytes(name, value),
        }
    }

    fn choice(&mut self, name: &'static str, names: &[&'static str], index: usize) {
        self.text(name, names.get(index).copied().unwrap_or_default());
    }

    fn option<T>(&mut self, value: Option<T>, put: impl FnOnce(&mut Self, T)) {
        if let Some(value) = value {
            put(self, value);
        }
    }

    fn object(&mut self, name: &'static str, put: impl FnOnce(&mut Self)) {
        self.name(name);
        self.out.push(b'{');
        self.first = true;
        put(self);
        self.first = false;
        self.out.push(b'}');
    }

    fn list<T>(
        &mut self,
        name: &'static str,
        values: impl ExactSizeIterator<Item = T>,
        mut put: impl FnMut(&mut Self, T),
    ) {
        self.name(name);
        self.out.push(b'[');
        for (i, value) in values.enumerate() {
            self.out.extend_from_slice(if i == 0 { b"{" } else { b",{" });
            self.first = true;
            put(self, value);
            self.out.push(b'}');
        }
        self.first = false;
        self.out.push(b']');
    }
}

/// Whether a payload can stand in a frame as it is: an object or an array, without white space around it.
fn is_json(text: &str) -> bool {
    let framed =
        (text.starts_with('{') && text.ends_with('}')) || (text.starts_with('[') && text.ends_with(']'));
    framed && serde_json::from_str::<&RawValue>(text).is_ok()
}

/// The fields of one object, unread.
type Fields<'a> = Vec<(Cow<'a, str>, &'a RawValue)>;

struct Reader<'a> {
    /// The whole frame, which payloads are slices of.
    all: &'a Bytes,
    fields: Fields<'a>,
    limits: &'a Limits,
}

impl<'a> Reader<'a> {
    fn raw(&self, name: &'static str) -> Result<&'a str, DecodeError> {
        let found = self.fields.iter().find(|(field, _)| field == name);
        found.map(|(_, raw)| raw.get()).ok_or(DecodeError::Field { field: name })
    }

    fn parse<T: Deserialize<'a>>(&self, name: &'static str) -> Result<T, DecodeError> {
        serde_json::from_str(self.raw(name)?).map_err(|_| DecodeError::Field { field: name })
    }

    /// A string; borrowed when it has no escapes.
    fn string(&self, name: &'static str, raw: &'a str) -> Result<Cow<'a, str>, DecodeError> {
        unescape(raw).ok_or(DecodeError::Field { field: name })
    }

    fn digits(&self, name: &'static str, max: usize) -> Result<&'a str, DecodeError> {
        let text: &str = self.parse(name)?;
        match text.len() <= max && text.bytes().all(|b| b.is_ascii_hexdigit()) {
            true => Ok(text),
            false => Err(DecodeError::Field { field: name }),
        }
    }

    fn blob(&self, name: &'static str, json: bool) -> Result<Bytes, DecodeError> {
        let raw = self.raw(name)?;
        if raw.starts_with('"') {
            return Ok(match self.string(name, raw)? {
                Cow::Borrowed(text) => self.all.slice_ref(text.as_bytes()),
                Cow::Owned(text) => Bytes::from(text),
            });
        }
        let fields = object(raw).map_err(|_| DecodeError::Field { field: name })?;
        match fields.as_slice() {
            [(kind, raw)] if kind == "base64" => {
                let text = self.string(name, raw.get())?;
                let bytes = BASE64.decode(text.as_bytes()).map_err(|_| DecodeError::Field { field: name })?;
                Ok(Bytes::from(bytes))
            }
            [(kind, raw)] if kind == "json" && json => Ok(self.all.slice_ref(raw.get().as_bytes())),
            _ => Err(DecodeError::Field { field: name }),
        }
    }
}

impl Take for Reader<'_> {
    fn number(&mut self, name: &'static str) -> Result<u64, DecodeError> {
        let number = self.parse(name)?;
        match number <= MAX_NUMBER {
            true => Ok(number),
            false => Err(DecodeError::Field { field: name }),
        }
    }

    fn wide(&mut self, name: &'static str) -> Result<u64, DecodeError> {
        let digits = self.digits(name, 20)?;
        digits.parse().map_err(|_| DecodeError::Field { field: name })
    }

    fn id(&mut self, name: &'static str) -> Result<u128, DecodeError> {
        let digits = self.digits(name, 32)?;
        u128::from_str_radix(digits, 16).map_err(|_| DecodeError::Field { field: name })
    }

    fn flag(&mut self, name: &'static str) -> Result<bool, DecodeError> {
        self.parse(name)
    }

    fn text(&mut self, name: &'static str, max: usize) -> Result<String, DecodeError> {
        let text = self.string(name, self.raw(name)?)?;
        match text.len() <= max {
            true => Ok(text.into_owned()),
            false => Err(DecodeError::Field { field: name }),
        }
    }

    fn bytes(&mut self, name: &'static str, max: usize) -> Result<Bytes, DecodeError> {
        let bytes = self.blob(name, false)?;
        match bytes.len() <= max {
            true => Ok(bytes),
            false => Err(DecodeError::Field { field: name }),
        }
    }

    fn payload(&mut self, name: &'static str, max: usize) -> Result<Bytes, DecodeError> {
        let bytes = self.blob(name, true)?;
        match bytes.len() <= max {
            true => Ok(bytes),
            false => Err(DecodeError::Field { field: name }),
        }
    }

    fn choice(&mut self, name: &'static str, names: &[&'static str]) -> Result<usize, DecodeError> {
        let text: &str = self.parse(name)?;
        names.iter().position(|known| *known == text).ok_or(DecodeError::Field { field: name })
    }

    fn option<T>(
        &mut self,
        name: &'static str,
        take: impl FnOnce(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<Option<T>, DecodeError> {
        match self.fields.iter().any(|(field, _)| field == name) {
            true => take(self).map(Some),
            false => Ok(None),
        }
    }

    fn object<T>(
        &mut self,
        name: &'static str,
        take: impl FnOnce(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<T, DecodeError> {
        let inner = object(self.raw(name)?).map_err(|_| DecodeError::Field { field: name })?;
        let outer = core::mem::replace(&mut self.fields, inner);
        let value = take(self);
        self.fields = outer;
        value
    }

    fn list<T>(
        &mut self,
        name: &'static str,
        max: usize,
        mut take: impl FnMut(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<Vec<T>, DecodeError> {
        let mut list = serde_json::Deserializer::from_str(self.raw(name)?);
        let elements = Elements(max).deserialize(&mut list);
        let elements = elements.map_err(|_| DecodeError::Field { field: name })?;
        // One more than allowed was kept, if there were more.
        if elements.len() > max {
            return Err(DecodeError::TooMany { field: name, found: elements.len() as u64, max });
        }
        let mut values = Vec::with_capacity(elements.len());
        for raw in elements {
            let inner = object(raw.get()).map_err(|_| DecodeError::Field { field: name })?;
            let outer = core::mem::replace(&mut self.fields, inner);
            let value = take(self);
            self.fields = outer;
            values.push(value?);
        }
        Ok(values)
    }

    fn limits(&self) -> &Limits {
        self.limits
    }
}

fn object(text: &str) -> Result<Fields<'_>, DecodeError> {
    serde_json::from_str::<Object<'_>>(text).map(|object| object.0).map_err(json_error)
}

/// What a JSON string says, which is known to be one: borrowed if it has no escapes, otherwise in one allocation that is no
/// longer than what it is read from. (`serde_json` would take up to three times as much.) `None` when an escape is not of a
/// character.
fn unescape(raw: &str) -> Option<Cow<'_, str>> {
    let mut rest = raw.strip_prefix('"')?.strip_suffix('"')?;
    if !rest.contains('\\') {
        return Some(Cow::Borrowed(rest));
    }
    let mut text = String::with_capacity(rest.len());
    while let Some((plain, escape)) = rest.split_once('\\') {
        text.push_str(plain);
        let mut after = escape.chars();
        text.push(match after.next()? {
            same @ ('"' | '\\' | '/') => same,
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'u' => unicode(&mut after)?,
            _ => return None,
        });
        rest = after.as_str();
    }
    text.push_str(rest);
    Some(Cow::Owned(text))
}

/// Behind a `\u`: four digits, and for half of a pair the other half.
fn unicode(after: &mut core::str::Chars<'_>) -> Option<char> {
    let unit = unit(after)?;
    if !(0xd800..0xdc00).contains(&unit) {
        return char::from_u32(u32::from(unit));
    }
    let is_pair = after.next() == Some('\\') && after.next() == Some('u');
    let low = is_pair.then(|| self::unit(after))??;
    char::decode_utf16([unit, low]).next()?.ok()
}

fn unit(after: &mut core::str::Chars<'_>) -> Option<u16> {
    let digits = after.as_str().get(..4)?;
    *after = after.as_str().get(4..)?.chars();
    digits.bytes().all(|digit| digit.is_ascii_hexdigit()).then(|| u16::from_str_radix(digits, 16).ok())?
}

/// An object's fields, each at most once.
struct Object<'a>(Fields<'a>);

impl<'de: 'a, 'a> Deserialize<'de> for Object<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectVisitor;
        impl<'de> Visitor<'de> for ObjectVisitor {
            type Value = Object<'de>;
            fn expecting(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object<'de>, A::Error> {
                let mut fields: Fields<'de> = Vec::new();
                while let Some(raw) = map.next_key::<&RawValue>()? {
                    let name = unescape(raw.get()).ok_or_else(|| A::Error::custom("no text"))?;
                    if fields.iter().any(|(known, _)| *known == name) {
                        return Err(A::Error::custom("a field comes twice"));
                    }
                    if fields.len() >= MAX_FIELDS {
                        return Err(A::Error::custom("too many fields"));
                    }
                    fields.push((name, map.next_value()?));
                }
                Ok(Object(fields))
            }
        }
        deserializer.deserialize_map(ObjectVisitor)
    }
}

/// Reads a list's elements, and parses none of them: at most one more than so many are kept.
struct Elements(usize);

impl<'de> DeserializeSeed<'de> for Elements {
    type Value = Vec<&'de RawValue>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Elements {
    type Value = Vec<&'de RawValue>;

    fn expecting(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut elements = Vec::new();
        while elements.len() <= self.0 {
            match seq.next_element()? {
                Some(element) => elements.push(element),
                None => return Ok(elements),
            }
        }
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(elements)
    }
}
