//! Transports in memory: two ends in one process, for tests and for engines that live together.

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::ports::{FrameReader, FrameWriter, Transport, TransportError};
use crate::session::Code;

/// Batches of frames that are under way in one direction.
const MAX_UNDER_WAY: usize = 16;
/// The longest frame, in bytes.
const MAX_FRAME: usize = 64 << 20;

/// One end of a connection in memory. Frames are handed over as they are; a writer waits while sixteen of its batches have
/// not been read.
#[derive(Debug)]
pub struct MemoryTransport {
    reader: MemoryReader,
    writer: MemoryWriter,
}

/// The reading half of a [`MemoryTransport`].
#[derive(Debug)]
pub struct MemoryReader {
    batches: mpsc::Receiver<Vec<Bytes>>,
    /// The last one, reversed, as far as it was not read.
    rest: Vec<Bytes>,
}

/// The writing half of a [`MemoryTransport`].
#[derive(Debug)]
pub struct MemoryWriter {
    batches: Option<mpsc::Sender<Vec<Bytes>>>,
}

/// Both ends of a connection in memory.
///
/// ```
/// # use bytes::Bytes;
/// # use lastmile::ports::{FrameReader, FrameWriter, Transport};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (one, other) = lastmile::memory_transport();
/// let ((_reader, mut writer), (mut reader, _writer)) = (one.split(), other.split());
/// writer.write(vec![Bytes::from_static(b"frame")]).await?;
/// assert_eq!(reader.read().await?, Some(Bytes::from_static(b"frame")));
/// # Ok(()) }
/// ```
#[must_use]
pub fn memory_transport() -> (MemoryTransport, MemoryTransport) {
    let (there, from_here) = mpsc::channel(MAX_UNDER_WAY);
    let (here, from_there) = mpsc::channel(MAX_UNDER_WAY);
    let end = |batches, sender| MemoryTransport {
        reader: MemoryReader { batches, rest: Vec::new() },
        writer: MemoryWriter { batches: Some(sender) },
    };
    (end(from_there, there), end(from_here, here))
}

impl Transport for MemoryTransport {
    type Reader = MemoryReader;
    type Writer = MemoryWriter;

    fn split(self) -> (MemoryReader, MemoryWriter) {
        (self.reader, self.writer)
    }
}

impl FrameReader for MemoryReader {
    async fn read(&mut self) -> Result<Option<Bytes>, TransportError> {
        while self.rest.is_empty() {
            match self.batches.recv().await {
                Some(batch) => self.rest.extend(batch.into_iter().rev()),
                None => return Ok(None),
            }
        }
        match self.rest.pop() {
            Some(frame) if frame.len() > MAX_FRAME => Err(TransportError::TooLarge { limit: MAX_FRAME }),
            frame => Ok(frame),
        }
    }
}

impl FrameWriter for MemoryWriter {
    async fn write(&mut self, frames: Vec<Bytes>) -> Result<(), TransportError> {
        let gone = || TransportError::Broken("the other end is gone".to_owned());
        let batches = self.batches.as_ref().ok_or_else(gone)?;
        if frames.is_empty() {
            return Ok(());
        }
        batches.send(frames).await.map_err(|_| gone())
    }

    async fn close(&mut self, _code: Code) {
        self.batches = None;
    }
}
