//! Frames as lines, for transports that carry text: event streams, polls, and the bodies of requests.
//!
//! A line that begins with `{` is a JSON frame as it is. Any other is the base64 of a frame: a binary one, or JSON with
//! line breaks in it. An empty line is nothing.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use lastmile::ports::TransportError;

/// Appends the frame without a line break.
pub(crate) fn push(frame: &[u8], out: &mut Vec<u8>) {
    if is_plain(frame) {
        out.extend_from_slice(frame);
    } else {
        out.reserve(frame.len().div_ceil(3) * 4);
        out.extend_from_slice(STANDARD.encode(frame).as_bytes());
    }
}

/// How long the longest line of such a frame is, in bytes.
pub(crate) const fn max_line(max_frame: usize) -> usize {
    max_frame.div_ceil(3).saturating_mul(4)
}

/// Whether it can stand in a text as it is.
fn is_plain(frame: &[u8]) -> bool {
    frame.first() == Some(&b'{')
        && !frame.iter().any(|byte| matches!(byte, b'\n' | b'\r'))
        && core::str::from_utf8(frame).is_ok()
}

/// The frame of a line, without its line break; `None` for an empty line.
///
/// # Errors
/// [`TransportError`], for a frame over `max_frame`, and for what is neither JSON nor base64.
pub(crate) fn parse(line: &Bytes, max_frame: usize) -> Result<Option<Bytes>, TransportError> {
    let line = match line.strip_suffix(b"\r") {
        Some(rest) => line.slice(..rest.len()),
        None => line.clone(),
    };
    if line.is_empty() {
        return Ok(None);
    }
    if line[0] == b'{' {
        return if line.len() > max_frame { Err(too_large(max_frame)) } else { Ok(Some(line)) };
    }
    if line.len() > max_line(max_frame) {
        return Err(too_large(max_frame));
    }
    match STANDARD.decode(&line) {
        Ok(frame) if frame.len() > max_frame => Err(too_large(max_frame)),
        Ok(frame) => Ok(Some(Bytes::from(frame))),
        Err(_) => Err(TransportError::Broken("a line is neither JSON nor base64".into())),
    }
}

/// The frames of a text of lines.
///
/// # Errors
/// As [`parse`]; none of the frames is given.
pub(crate) fn parse_all(text: &Bytes, max_frame: usize) -> Result<Vec<Bytes>, TransportError> {
    let mut frames = Vec::new();
    let mut rest = text.clone();
    while !rest.is_empty() {
        let end = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
        let line = rest.split_to(end);
        let _break = rest.split_to(usize::from(!rest.is_empty()));
        frames.extend(parse(&line, max_frame)?);
    }
    Ok(frames)
}

const fn too_large(limit: usize) -> TransportError {
    TransportError::TooLarge { limit }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(frame: &[u8]) -> Bytes {
        let mut out = Vec::new();
        push(frame, &mut out);
        Bytes::from(out)
    }

    #[test]
    fn json_stands_as_it_is_and_everything_else_comes_back_unchanged() {
        assert_eq!(line(b"{\"frame\":\"pong\"}"), b"{\"frame\":\"pong\"}".as_slice());
        for frame in [b"\x0d\x01".as_slice(), b"{\n}", b"{\r", b"{\xff", b"\x00", b"abc\n"] {
            let line = line(frame);
            assert!(!line.contains(&b'\n') && !line.contains(&b'\r') && line[0] != b'{');
            assert_eq!(parse(&line, 100).unwrap().unwrap(), frame);
        }
    }

    #[test]
    fn lines_may_end_in_either_way_and_empty_ones_are_nothing() {
        let text = Bytes::from_static(b"\n{\"a\":1}\r\n\r\nAQ==\n{}");
        let frames = parse_all(&text, 100).unwrap();
        assert_eq!(frames, [b"{\"a\":1}".as_slice(), b"\x01", b"{}"]);
        assert!(parse_all(&Bytes::new(), 1).unwrap().is_empty());
    }

    #[test]
    fn limits_hold_for_the_frame_at_their_edge() {
        let exact = [7; 10];
        assert_eq!(parse(&line(&exact), 10).unwrap().unwrap(), exact.as_slice());
        assert_eq!(parse(&line(&exact), 9), Err(TransportError::TooLarge { limit: 9 }));
        assert_eq!(parse(&line(&[7; 1000]), 9), Err(TransportError::TooLarge { limit: 9 }));
        assert_eq!(parse(&line(b"{\"a\":1}"), 6), Err(TransportError::TooLarge { limit: 6 }));
        assert!(parse(&line(b"{\"a\":1}"), 7).is_ok());
    }

    #[test]
    fn what_is_no_frame_is_an_error() {
        for text in ["!", "AQ=", "hello there", "=", "\u{e4}"] {
            assert!(matches!(parse(&Bytes::from(text), 100), Err(TransportError::Broken(_))), "{text}");
        }
    }
}
