//! Every frame example and every code in docs/PROTOCOL.md is what the implementation says it is.

use std::collections::BTreeSet;

use bytes::Bytes;
use lastmile::session::Code;
use lastmile::session::frame::{Codec, Frame, Limits, decode, encode};

const DOC: &str = include_str!("../docs/PROTOCOL.md");

/// The contents of the fenced blocks that open with this line.
fn blocks(opening: &str) -> Vec<String> {
    let opening = format!("```{opening} frame\n");
    DOC.split(&opening).skip(1).map(|part| part.split("```").next().unwrap_or_default().to_owned()).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn read(bytes: impl Into<Bytes>) -> Frame {
    decode(&bytes.into(), &Limits::default()).unwrap()
}

fn write(frame: &Frame, codec: Codec) -> Vec<u8> {
    let mut out = Vec::new();
    encode(frame, codec, &mut out);
    out
}

#[test]
fn every_example_means_the_same_in_both_codecs_and_is_what_is_written() {
    let (json, binary) = (blocks("json"), blocks("hex"));
    assert_eq!(json.len(), binary.len(), "each example stands in both codecs");
    assert!(json.len() >= 20);
    for (text, digits) in json.iter().zip(&binary) {
        let frame = read(text.trim_end().as_bytes().to_vec());
        assert_eq!(hex(&write(&frame, Codec::Binary)), hex(&unhex(digits)), "{text}");
        assert_eq!(read(unhex(digits)), frame, "{text}");
        let written = String::from_utf8(write(&frame, Codec::Json)).unwrap();
        let shown: String =
            text.lines().map(|line| line.strip_prefix(' ').unwrap_or(line).trim_start()).collect();
        assert_eq!(written, shown, "fields stand in the order in which they are written");
    }
}

#[test]
fn every_kind_of_frame_has_an_example_and_a_row() {
    let shown: BTreeSet<_> = blocks("hex").iter().map(|digits| unhex(digits)[0]).collect();
    assert_eq!(shown, (1..=19).collect(), "kinds with an example");
    for digits in blocks("hex") {
        let bytes = unhex(&digits);
        let row = format!("| {} | `{}` |", bytes[0], read(bytes.clone()).name());
        assert!(DOC.contains(&row), "{row}");
    }
}

#[test]
fn every_code_has_its_row() {
    for code in Code::ALL {
        let row = format!("| {} | `{code:?}` | {} |", code.number(), code.text());
        assert!(DOC.contains(&row), "{row}");
    }
    let is_code = |line: &&str| line.starts_with("| 4") && line.get(6..10) == Some(" | `");
    let rows = DOC.lines().filter(is_code).count();
    assert_eq!(rows, Code::ALL.len());
}
