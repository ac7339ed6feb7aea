//! The conformance suite of the transport port: what [`Transport`] asks for *to ensure correctness*, as tests.
//!
//! A transport's own test file runs it with one line, which makes one test of each case (it needs tokio):
//!
//! ```
//! lastmile::transport_suite!(lastmile::memory_transport());
//! # fn main() {}
//! ```
//!
//! The expression makes both ends of a new connection each time; it may use `.await`. Frames of up to 1 MiB must fit.

use core::time::Duration;
use std::future::Future;

use bytes::Bytes;

use super::sim::Random;
use crate::ports::{FrameReader, FrameWriter, Transport};
use crate::session::Code;

/// How long anything may take.
const LONG: Duration = Duration::from_secs(30);

/// Makes a test of each case of the suite for the connections that the expression makes.
#[macro_export]
macro_rules! transport_suite {
    ($pair:expr) => {
        $crate::transport_suite!(@cases $pair;
            frames_arrive_whole_and_in_order_in_both_directions_at_once
            a_frame_of_a_mebibyte_arrives_whole
            text_and_binary_frames_keep_their_first_byte
            a_read_that_is_dropped_loses_nothing
            what_was_written_before_closing_arrives_and_then_the_end
            dropping_both_halves_ends_the_connection
            one_direction_goes_on_while_nobody_reads_the_other
            a_slow_reader_holds_its_writer_back
            writing_to_an_end_that_is_gone_fails_and_never_hangs
        );
    };
    (@cases $pair:expr; $($case:ident)*) => {
        $(#[tokio::test]
        async fn $case() {
            $crate::testing::transport_suite::$case($pair).await;
        })*
    };
}

async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, future).await.unwrap_or_else(|_| panic!("{what} takes too long"))
}

/// A frame that knows its number: binary, of some length.
fn frame(number: u32, length: usize) -> Bytes {
    let mut bytes = vec![4];
    bytes.extend_from_slice(&number.to_be_bytes());
    bytes.resize(length.max(5), number as u8);
    bytes.into()
}

/// Writes frames in batches of every size.
async fn write_all(writer: &mut impl FrameWriter, frames: &[Bytes]) {
    let (mut rest, mut size) = (frames, 0);
    while !rest.is_empty() {
        size = (size % 7) + 1;
        let (batch, others) = rest.split_at(size.min(rest.len()));
        writer.write(batch.to_vec()).await.expect("a connection that stands takes frames");
        rest = others;
    }
}

async fn read_all(reader: &mut impl FrameReader, frames: &[Bytes]) {
    for (i, expected) in frames.iter().enumerate() {
        let read = reader.read().await.expect("a connection that stands gives frames");
        assert_eq!(read.as_ref(), Some(expected), "frame {i}");
    }
}

/// Neither merged, nor parted, nor out of order, nor doubled.
pub async fn frames_arrive_whole_and_in_order_in_both_directions_at_once<A: Transport, B: Transport>(
    (a, b): (A, B),
) {
    let mut random = Random::new(1);
    let frames: Vec<_> = (0..1000).map(|i| frame(i, random.index(5000))).collect();
    let (mut a, mut b) = (a.split(), b.split());
    in_time("a thousand frames each way", async {
        tokio::join!(
            write_all(&mut a.1, &frames),
            write_all(&mut b.1, &frames),
            read_all(&mut a.0, &frames),
            read_all(&mut b.0, &frames),
        );
    })
    .await;
}

/// The default limit of a session.
pub async fn a_frame_of_a_mebibyte_arrives_whole<A: Transport, B: Transport>((a, b): (A, B)) {
    let frames = [frame(1, 1 << 20), frame(2, 5), frame(3, 1 << 20)];
    let (mut a, mut b) = (a.split(), b.split());
    in_time("large frames", async {
        tokio::join!(write_all(&mut a.1, &frames), read_all(&mut b.0, &frames));
    })
    .await;
}

/// It tells JSON from binary.
pub async fn text_and_binary_frames_keep_their_first_byte<A: Transport, B: Transport>((a, b): (A, B)) {
    let frames = [
        Bytes::from_static(b"{\"frame\":\"pong\",\"nonce\":1}"),
        Bytes::from_static(&[13, 1]),
        Bytes::from("{\"frame\":\"close\",\"code\":4000,\"text\":\"über\"}"),
        Bytes::from_static(&[0xFF, 0x00, 0xC3]),
    ];
    let (mut a, mut b) = (a.split(), b.split());
    in_time("four frames", async {
        tokio::join!(write_all(&mut a.1, &frames), read_all(&mut b.0, &frames));
    })
    .await;
}

/// Cancel safety.
pub async fn a_read_that_is_dropped_loses_nothing<A: Transport, B: Transport>((a, b): (A, B)) {
    let frames: Vec<_> = (0..300).map(|i| frame(i, 2000)).collect();
    let (mut a, mut b) = (a.split(), b.split());
    let reading = async {
        let (mut got, mut polls) = (Vec::new(), 0_usize);
        while got.len() < frames.len() {
            polls += 1;
            // Given up after as many turns of the scheduler as come, and asked again.
            let given_up = async {
                for _ in 0..polls % 4 {
                    tokio::task::yield_now().await;
                }
            };
            tokio::select! {
                biased;
                read = b.0.read() => got.extend(read.expect("it stands")),
                () = given_up => tokio::task::yield_now().await,
            }
        }
        assert_eq!(got, frames);
    };
    in_time("reads that are given up", async { tokio::join!(write_all(&mut a.1, &frames), reading) }).await;
}

/// `close` does not cut off.
pub async fn what_was_written_before_closing_arrives_and_then_the_end<A: Transport, B: Transport>(
    (a, b): (A, B),
) {
    let frames: Vec<_> = (0..50).map(|i| frame(i, 3000)).collect();
    let (mut a, mut b) = (a.split(), b.split());
    in_time("closing", async {
        let writing = async {
            write_all(&mut a.1, &frames).await;
            a.1.close(Code::Done).await;
        };
        tokio::join!(writing, async {
            read_all(&mut b.0, &frames).await;
            let end = b.0.read().await;
            assert!(matches!(end, Ok(None)), "the end in good order was expected, not {end:?}");
        });
    })
    .await;
}

/// Nobody has to say goodbye.
pub async fn dropping_both_halves_ends_the_connection<A: Transport, B: Transport>((a, b): (A, B)) {
    let mut b = b.split();
    drop(a.split());
    let end = in_time("the end of a dropped connection", b.0.read()).await;
    assert!(matches!(end, Ok(None) | Err(_)), "an end was expected, not {end:?}");
}

/// The halves do not wait for each other.
pub async fn one_direction_goes_on_while_nobody_reads_the_other<A: Transport, B: Transport>((a, b): (A, B)) {
    let frames: Vec<_> = (0..100).map(|i| frame(i, 2000)).collect();
    let (mut a, mut b) = (a.split(), b.split());
    let full = async {
        loop {
            if b.1.write(vec![frame(0, 100_000)]).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    in_time("a direction beside a full one", async {
        tokio::select! {
            biased;
            _ = async { tokio::join!(write_all(&mut a.1, &frames), read_all(&mut b.0, &frames)) } => {}
            () = full => {}
        }
    })
    .await;
}

/// What is under way is bounded.
pub async fn a_slow_reader_holds_its_writer_back<A: Transport, B: Transport>((a, b): (A, B)) {
    const FRAMES: usize = 512;
    let (mut a, _b) = (a.split(), b.split());
    let mut taken = 0;
    let big = frame(0, 256 << 10);
    for _ in 0..FRAMES {
        match tokio::time::timeout(Duration::from_millis(500), a.1.write(vec![big.clone()])).await {
            Ok(written) => written.expect("a connection that stands takes frames"),
            Err(_) => return,
        }
        taken += 1;
    }
    panic!("{taken} frames of 256 KiB were taken, and nobody read one: the buffer has no bound");
}

/// A peer that has gone is noticed.
pub async fn writing_to_an_end_that_is_gone_fails_and_never_hangs<A: Transport, B: Transport>(
    (a, b): (A, B),
) {
    let mut a = a.split();
    drop(b.split());
    in_time("writing to nobody", async {
        while a.1.write(vec![frame(0, 100_000)]).await.is_ok() {
            tokio::task::yield_now().await;
        }
        a.1.close(Code::TransportLost).await;
    })
    .await;
}
