//! The frame around every stored value: it turns damage into an error instead of a wrong value.
//!
//! ```text
//! format_version u8 | codec u8 | flags u8 | len u32 | crc32c u32 | body
//! ```
//!
//! Numbers are little-endian. The CRC32C covers the key's length (`u32`), the key, the first seven bytes of the frame,
//! and the body. Being bound to the key, a value that the store returns under another key is damage too. A frame is
//! consumed exactly: one byte more or less is an error.
//!
//! The frame does not know what the body means.

/// Bytes a frame adds to its body.
pub const FRAME_BYTES: usize = 11;
/// The version this build writes, and the newest it reads.
pub const FRAME_VERSION: u8 = 1;

/// The only codec so far: the body is opaque and names its own encoding.
const CODEC_OPAQUE: u8 = 0;
/// No flag has a meaning yet.
const NO_FLAGS: u8 = 0;
/// The bytes of the header that the CRC covers: all before the CRC itself.
const COVERED_BYTES: usize = 7;

/// Why a frame was refused. Nothing of its body may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// Shorter than a header.
    #[error("frame of {bytes} bytes is shorter than its header")]
    Truncated {
        /// The bytes there are.
        bytes: usize,
    },
    /// Written by a newer version, or damaged.
    #[error("frame version {found} is not known")]
    Version {
        /// The version found.
        found: u8,
    },
    /// A codec this build does not know, or damage.
    #[error("frame codec {found} is not known")]
    Codec {
        /// The codec found.
        found: u8,
    },
    /// Flags this build does not know, or damage.
    #[error("frame flags {found:#04x} are not known")]
    Flags {
        /// The flags found.
        found: u8,
    },
    /// The body is shorter or longer than the header says.
    #[error("frame declares {declared} bytes of body, {present} are there")]
    Length {
        /// What the header says.
        declared: u32,
        /// What is there.
        present: usize,
    },
    /// The checksum does not belong to this key, header and body.
    #[error("checksum does not match")]
    Checksum,
}

/// Wraps `body` into the frame that is stored under `key`.
///
/// # Panics
/// When the key or the body is longer than 4 GiB, which the store port's limits rule out.
#[must_use]
pub fn encode(key: &[u8], body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(body.len()).expect("the port bounds a value to a few KiB");
    let mut frame = Vec::with_capacity(FRAME_BYTES + body.len());
    frame.extend_from_slice(&[FRAME_VERSION, CODEC_OPAQUE, NO_FLAGS]);
    frame.extend_from_slice(&len.to_le_bytes());
    let crc = checksum(key, &frame, body);
    frame.extend_from_slice(&crc.to_le_bytes());
    frame.extend_from_slice(body);
    frame
}

/// The body of the frame that was read under `key`.
///
/// # Errors
/// [`FrameError`] for anything that [`encode`] did not write under this very key.
pub fn decode<'a>(key: &[u8], frame: &'a [u8]) -> Result<&'a [u8], FrameError> {
    let truncated = FrameError::Truncated { bytes: frame.len() };
    let (covered, rest) = frame.split_first_chunk::<COVERED_BYTES>().ok_or(truncated)?;
    let (crc, body) = rest.split_first_chunk::<4>().ok_or(truncated)?;
    let [version, codec, flags, len @ ..] = *covered;
    if version != FRAME_VERSION {
        return Err(FrameError::Version { found: version });
    }
    if codec != CODEC_OPAQUE {
        return Err(FrameError::Codec { found: codec });
    }
    if flags != NO_FLAGS {
        return Err(FrameError::Flags { found: flags });
    }
    let declared = u32::from_le_bytes(len);
    if usize::try_from(declared) != Ok(body.len()) {
        return Err(FrameError::Length { declared, present: body.len() });
    }
    if u32::from_le_bytes(*crc) != checksum(key, covered, body) {
        return Err(FrameError::Checksum);
    }
    Ok(body)
}

fn checksum(key: &[u8], covered: &[u8], body: &[u8]) -> u32 {
    let key_len = u32::try_from(key.len()).expect("the port bounds a key to a few hundred bytes");
    let mut crc = crc32c::crc32c(&key_len.to_le_bytes());
    crc = crc32c::crc32c_append(crc, key);
    crc = crc32c::crc32c_append(crc, covered);
    crc32c::crc32c_append(crc, body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn body_comes_back_under_its_key() {
        for body in [&b""[..], b"x", &[0xFF; 4000]] {
            let frame = encode(b"key", body);
            assert_eq!(frame.len(), FRAME_BYTES + body.len());
            assert_eq!(decode(b"key", &frame), Ok(body));
        }
    }

    #[test]
    fn layout_of_version_one_is_fixed() {
        let frame = encode(b"k", b"v");
        assert_eq!(frame[..7], [1, 0, 0, 1, 0, 0, 0]);
        assert_eq!(frame[7..11], crc32c::crc32c(b"\x01\0\0\0k\x01\0\0\x01\0\0\0v").to_le_bytes());
        assert_eq!(frame[11..], *b"v");
    }

    #[test]
    fn frame_of_another_key_is_refused() {
        let frame = encode(b"alice", b"hello");
        assert_eq!(decode(b"alicf", &frame), Err(FrameError::Checksum));
        assert_eq!(decode(b"", &frame), Err(FrameError::Checksum));
    }

    #[test]
    fn every_single_bit_flip_is_refused() {
        let frame = encode(b"key", b"some body");
        for bit in 0..frame.len() * 8 {
            let mut flipped = frame.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(b"key", &flipped).is_err(), "bit {bit} was not noticed");
        }
    }

    #[test]
    fn every_truncation_and_a_longer_frame_are_refused() {
        let mut frame = encode(b"key", b"some body");
        for len in 0..frame.len() {
            assert!(decode(b"key", &frame[..len]).is_err(), "{len} bytes were taken");
        }
        frame.push(0);
        assert_eq!(decode(b"key", &frame), Err(FrameError::Length { declared: 9, present: 10 }));
    }

    #[test]
    fn newer_version_codec_and_flags_are_named() {
        let frame = encode(b"key", b"body");
        let with = |at: usize, byte: u8| {
            let mut frame = frame.clone();
            frame[at] = byte;
            decode(b"key", &frame).map(<[u8]>::to_vec)
        };
        assert_eq!(with(0, 2), Err(FrameError::Version { found: 2 }));
        assert_eq!(with(1, 9), Err(FrameError::Codec { found: 9 }));
        assert_eq!(with(2, 4), Err(FrameError::Flags { found: 4 }));
    }
}
