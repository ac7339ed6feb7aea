//! The baseline: the same clients and the same grouping over nothing but an appended file and an fdatasync.
//!
//! A thread takes everything that waits as one group, appends it with one write, syncs, and answers all of it. There is
//! no dedup, no order, no recipient, no checksum, no reading back and no room to be given free again: it is what the
//! disk and the hand-over cost, and no queue can be had for it.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use tokio::sync::oneshot;

type Request = (Vec<u8>, oneshot::Sender<()>);

/// The thread and the way to it.
#[derive(Debug)]
pub(crate) struct Raw {
    requests: SyncSender<Request>,
    thread: JoinHandle<std::io::Result<()>>,
}

impl Raw {
    /// `room` is how many requests may wait: at least as many as there are clients, so that none blocks.
    pub(crate) fn start(file: &Path, room: usize) -> std::io::Result<Self> {
        let file = File::create(file)?;
        let (requests, waiting) = sync_channel(room.max(1));
        let thread = std::thread::Builder::new().name("raw".into()).spawn(move || write(file, &waiting))?;
        Ok(Self { requests, thread })
    }

    /// The way to the thread.
    pub(crate) fn client(&self) -> Client {
        Client(self.requests.clone())
    }

    pub(crate) fn stop(self) -> std::io::Result<()> {
        drop(self.requests);
        self.thread.join().expect("the thread does not panic")
    }
}

/// A client's way to the thread.
#[derive(Clone, Debug)]
pub(crate) struct Client(SyncSender<Request>);

impl Client {
    /// Appends one message; returns when it is durable.
    pub(crate) async fn append(&self, message: Vec<u8>) {
        let (answer, answered) = oneshot::channel();
        self.0.send((message, answer)).expect("the thread runs as long as there are clients");
        answered.await.expect("the thread answers what it takes");
    }
}

fn write(mut file: File, waiting: &Receiver<Request>) -> std::io::Result<()> {
    let (mut group, mut answers) = (Vec::new(), Vec::new());
    while let Ok(first) = waiting.recv() {
        group.clear();
        for (message, answer) in std::iter::once(first).chain(waiting.try_iter()) {
            group.extend_from_slice(&message);
            answers.push(answer);
        }
        file.write_all(&group)?;
        file.sync_data()?;
        for answer in answers.drain(..) {
            // A client that went away needs no answer.
            let _ = answer.send(());
        }
    }
    Ok(())
}
