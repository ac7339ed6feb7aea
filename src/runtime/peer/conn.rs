//! A connection as a session's task has it: erased, with at most one read and one write under way.
//!
//! Nothing is read while more than [`MAX_QUEUED_BYTES`] wait to be written: a peer that sends and does not read cannot make
//! this end hold answers without bound. What a session itself has in flight is bounded by windows, far below.

use core::time::Duration;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::runtime::Handle;

use crate::ports::{FrameReader, FrameWriter, Transport, TransportError};
use crate::runtime::contain::{Running, contained};
use crate::runtime::tasks;
use crate::session::frame::{Codec, Frame, encode};
use crate::session::{Code, ConnId};

/// Above so many bytes that wait to be written nothing more is read.
const MAX_QUEUED_BYTES: usize = 4 << 20;
/// How long a farewell may take.
const CLOSE_WITHIN: Duration = Duration::from_secs(5);

type Read = Result<Option<Bytes>, TransportError>;
type Reading = Running<'static, Option<(Box<dyn AnyReader>, Read)>>;

/// The erased twin of [`FrameReader`].
trait AnyReader: Send {
    fn read(self: Box<Self>) -> Reading;
}

impl<R: FrameReader> AnyReader for R {
    fn read(mut self: Box<Self>) -> Reading {
        contained(async move {
            let read = FrameReader::read(&mut *self).await;
            (self as Box<dyn AnyReader>, read)
        })
    }
}

type Written = Option<(Box<dyn AnyWriter>, Result<(), TransportError>)>;

/// The erased twin of [`FrameWriter`].
trait AnyWriter: Send {
    fn write(self: Box<Self>, frames: Vec<Bytes>) -> Running<'static, Written>;
    fn close(self: Box<Self>, code: Code) -> Running<'static, Option<()>>;
}

impl<W: FrameWriter> AnyWriter for W {
    fn write(mut self: Box<Self>, frames: Vec<Bytes>) -> Running<'static, Written> {
        contained(async move {
            let written = FrameWriter::write(&mut *self, frames).await;
            (self as Box<dyn AnyWriter>, written)
        })
    }

    fn close(mut self: Box<Self>, code: Code) -> Running<'static, Option<()>> {
        contained(async move { FrameWriter::close(&mut *self, code).await })
    }
}

/// What the writing half is at.
enum Writer {
    Idle(Box<dyn AnyWriter>),
    Writing(Running<'static, Written>),
    Gone,
}

/// What a connection does by itself.
#[derive(Debug)]
pub(super) enum Heard {
    /// A frame's bytes.
    Bytes(Bytes),
    /// All is written: said once whenever [`Conn::tell_when_written`] asked for it.
    Written,
    /// The peer closed it in good order.
    Closed,
    /// It broke.
    Broken(TransportError),
}

/// One connection.
pub(super) struct Conn {
    id: ConnId,
    reading: Option<Reading>,
    writer: Writer,
    queue: Vec<Bytes>,
    queued_bytes: usize,
    /// Somebody wants to know when nothing is queued any more.
    tells: bool,
}

impl Conn {
    pub(super) fn new<T: Transport>(id: ConnId, transport: T) -> Self {
        let (reader, writer) = transport.split();
        let reader: Box<dyn AnyReader> = Box::new(reader);
        Self {
            id,
            reading: Some(reader.read()),
            writer: Writer::Idle(Box::new(writer)),
            queue: Vec::new(),
            queued_bytes: 0,
            tells: false,
        }
    }

    pub(super) const fn id(&self) -> ConnId {
        self.id
    }

    /// Asks for [`Heard::Written`] once nothing is queued.
    pub(super) const fn tell_when_written(&mut self) {
        self.tells = true;
    }

    /// Queues a frame, to be written by [`Conn::poll_io`].
    pub(super) fn send(&mut self, frame: &Frame, codec: Codec) {
        let mut bytes = Vec::new();
        encode(frame, codec, &mut bytes);
        self.queued_bytes = self.queued_bytes.saturating_add(bytes.len());
        self.queue.push(bytes.into());
    }

    /// Writes what is queued, and reads.
    pub(super) fn poll_io(&mut self, context: &mut Context<'_>) -> Poll<Heard> {
        if let Poll::Ready(error) = self.poll_write(context) {
            return Poll::Ready(Heard::Broken(error));
        }
        if self.tells && self.queue.is_empty() && matches!(self.writer, Writer::Idle(_)) {
            self.tells = false;
            return Poll::Ready(Heard::Written);
        }
        if self.queued_bytes > MAX_QUEUED_BYTES {
            return Poll::Pending;
        }
        let Some(reading) = self.reading.as_mut() else { return Poll::Pending };
        let Poll::Ready(read) = reading.as_mut().poll(context) else { return Poll::Pending };
        self.reading = None;
        Poll::Ready(match read {
            None => Heard::Broken(TransportError::Broken("the transport panicked while it read".to_owned())),
            Some((reader, Ok(Some(bytes)))) => {
                self.reading = Some(reader.read());
                Heard::Bytes(bytes)
            }
            Some((_, Ok(None))) => Heard::Closed,
            Some((_, Err(error))) => Heard::Broken(error),
        })
    }

    /// Ready when it broke.
    fn poll_write(&mut self, context: &mut Context<'_>) -> Poll<TransportError> {
        loop {
            match core::mem::replace(&mut self.writer, Writer::Gone) {
                Writer::Idle(writer) if self.queue.is_empty() => {
                    self.writer = Writer::Idle(writer);
                    return Poll::Pending;
                }
                Writer::Idle(writer) => {
                    self.queued_bytes = 0;
                    self.writer = Writer::Writing(writer.write(core::mem::take(&mut self.queue)));
                }
                Writer::Writing(mut writing) => match writing.as_mut().poll(context) {
                    Poll::Ready(Some((writer, Ok(())))) => self.writer = Writer::Idle(writer),
                    Poll::Ready(Some((_, Err(error)))) => return Poll::Ready(error),
                    Poll::Ready(None) => {
                        let text = "the transport panicked while it wrote".to_owned();
                        return Poll::Ready(TransportError::Broken(text));
                    }
                    Poll::Pending => {
                        self.writer = Writer::Writing(writing);
                        return Poll::Pending;
                    }
                },
                Writer::Gone => return Poll::Pending,
            }
        }
    }

    /// Sends what is queued and closes, in a task of its own and within a while.
    pub(super) fn close(self, code: Code, handle: &Handle) {
        self.close_and_drop(code, handle, ());
    }

    /// As [`Conn::close`], and drops something when that is done: what bounds how many do so at once, say.
    pub(super) fn close_and_drop(self, code: Code, handle: &Handle, held: impl Send + 'static) {
        tasks::spawn(handle, async move {
            let _ = tokio::time::timeout(CLOSE_WITHIN, self.say_farewell(code)).await;
            drop(held);
        });
    }

    /// The reading half is kept until then: a transport that has unread bytes when it is dropped may drop what was written.
    async fn say_farewell(self, code: Code) {
        let reading = self.reading;
        let writer = match self.writer {
            Writer::Idle(writer) => Some(writer),
            Writer::Writing(writing) => match writing.await {
                Some((writer, Ok(()))) => Some(writer),
                _ => None,
            },
            Writer::Gone => None,
        };
        if let Some(writer) = writer
            && let Some((writer, Ok(()))) = writer.write(self.queue).await
        {
            writer.close(code).await;
        }
        drop(reading);
    }
}
