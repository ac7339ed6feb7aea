//! What reaches a driver.

use tokio::sync::{mpsc, oneshot};

use super::batch::Across;
use super::receipt::Stage;
use super::watch::{Waiting, Watched};
use crate::id::{OrderingKey, UserId};
use crate::machine::{
    Accepted, Delivery, EntryRef, Input, MachineStats, Operation, OperationError, Outcome, Refusal,
};
use crate::message::Message;
use crate::record::Seq;

/// How a `send` is answered.
pub(super) type Reply = oneshot::Sender<Result<Accepted, Refusal>>;

/// How a part of a fan-out is answered: one verdict for each recipient, in their order.
pub(super) type Answers = oneshot::Sender<Vec<Result<Accepted, Refusal>>>;
/// How an operation is answered.
pub(super) type Operated = Result<Outcome, OperationError>;

/// From hosts and sinks: bounded, so that they wait.
#[derive(Debug)]
pub(super) enum Mail {
    Send { message: Message, reply: Reply },
    SendBatch(Vec<(Message, Reply)>),
    SendJoint(Box<Across>),
    FanOut { message: Message, recipients: Vec<UserId>, reply: Answers },
    Receive(Vec<(Delivery, Reply)>),
    Operate { operation: Operation, reply: oneshot::Sender<Operated> },
    LetterHolders { behind: Option<UserId>, max: usize, reply: oneshot::Sender<Vec<UserId>> },
    Watch { user: UserId, entry: EntryRef, stage: Stage, reply: Waiting },
    WatchRead { user: UserId, key: Option<OrderingKey>, place: Seq, reply: oneshot::Sender<()> },
    Input(Input),
}

/// From the engine's own threads: not bounded by itself, but by what the driver has open with them.
#[derive(Debug)]
pub(super) enum Note {
    Input(Input),
    /// What the store holds of a message that is watched for: how many attempts have failed, if it waits.
    Found(Watched, Option<u32>),
    /// Answered also while the disk stands still and mail waits.
    Stats(oneshot::Sender<MachineStats>),
    Stop,
}

/// Both ways to reach one driver.
#[derive(Clone, Debug)]
pub(super) struct Post {
    pub(super) mail: mpsc::Sender<Mail>,
    pub(super) notes: mpsc::UnboundedSender<Note>,
}

impl Post {
    /// A driver's letter box of so much mail, and what falls into it.
    pub(super) fn new(mail: usize) -> (Self, (mpsc::Receiver<Mail>, mpsc::UnboundedReceiver<Note>)) {
        let (mail, mail_in) = mpsc::channel(mail);
        let (notes, notes_in) = mpsc::unbounded_channel();
        (Self { mail, notes }, (mail_in, notes_in))
    }

    /// Tells the driver; a driver that is gone needs to know nothing.
    pub(super) fn note(&self, input: Input) {
        let _ = self.notes.send(Note::Input(input));
    }
}
