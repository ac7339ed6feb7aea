//! A light client, as a page is one: no outbox and no memory, frames by hand.

use std::time::Duration;

use bytes::Bytes;
use lastmile::ports::{Connector, FrameReader as _, FrameWriter as _, Transport};
use lastmile::session::frame::{
    Ack, Capabilities, Codec, Codecs, Credentials, Frame, Hello, Item, Limits, Published, Range, Refused,
    Window, decode, encode,
};
use lastmile::{DeviceId, Message, StreamId};

/// One open session.
pub(crate) struct Light<T: Transport> {
    reader: T::Reader,
    writer: T::Writer,
    codec: Codec,
    published: u64,
}

/// What a light client hears of.
pub(crate) enum Said {
    Message(Box<Item>),
    /// What became of a publish.
    Receipt(u64, Published),
}

impl<T: Transport> Light<T> {
    /// Says hello, and is welcome.
    pub(crate) async fn connect(
        connector: &impl Connector<Transport = T>,
        token: &str,
        device: &str,
        json: bool,
    ) -> Self {
        Self::try_connect(connector, token, device, json).await.expect("it is let in")
    }

    /// Says hello, and waits for the welcome, or why there is none.
    pub(crate) async fn try_connect(
        connector: &impl Connector<Transport = T>,
        token: &str,
        device: &str,
        json: bool,
    ) -> Result<Self, Refused> {
        let transport = connector.connect().await.expect("the server is there");
        let (reader, writer) = transport.split();
        let codec = if json { Codec::Json } else { Codec::Binary };
        let mut light = Self { reader, writer, codec, published: 0 };
        let hello = Hello {
            versions: (1, 1),
            codecs: if json { Codecs::JSON } else { Codecs::BINARY },
            user: None,
            device: DeviceId::new(device).expect("an id"),
            credentials: Credentials(Bytes::copy_from_slice(token.as_bytes())),
            stream: StreamId::from_u128(1),
            resume: None,
            capabilities: Capabilities::ACKS.or(Capabilities::PUBLISH),
            horizon: Duration::ZERO,
            window: Window { messages: 64, bytes: 1 << 20, reserve: 8 },
            heartbeat: Duration::from_secs(25),
            max_frame: 1 << 20,
        };
        light.say(&[Frame::Hello(Box::new(hello))]).await;
        loop {
            match light.frame().await {
                Frame::Welcome(welcome) => {
                    light.published = welcome.published;
                    return Ok(light);
                }
                Frame::Reject(refused) => return Err(refused),
                _ => {}
            }
        }
    }

    /// Publishes a message, and says under which number.
    pub(crate) async fn publish(&mut self, message: Message) -> u64 {
        self.published += 1;
        let number = self.published;
        self.say(&[Frame::Publish { number, message }]).await;
        number
    }

    /// What comes next; messages are acknowledged, and pings answered.
    pub(crate) async fn next(&mut self) -> Vec<Said> {
        loop {
            match self.frame().await {
                Frame::Deliver(deliver) => {
                    let to = deliver.first + deliver.items.len() as u64 - 1;
                    let ranges = vec![Range { from: deliver.first, to }];
                    self.say(&[Frame::Ack(Ack { ranges, window: None })]).await;
                    return deliver.items.into_iter().map(|item| Said::Message(Box::new(item))).collect();
                }
                Frame::Gap(gap) => {
                    self.say(&[Frame::Ack(Ack { ranges: vec![gap.range], window: None })]).await;
                }
                Frame::Receipt { number, outcome } => return vec![Said::Receipt(number, outcome)],
                Frame::Ping { nonce, .. } => self.say(&[Frame::Pong { nonce }]).await,
                Frame::Close(refused) | Frame::GoAway(refused) => panic!("sent away: {refused:?}"),
                _ => {}
            }
        }
    }

    pub(crate) async fn say(&mut self, frames: &[Frame]) {
        let frames = frames.iter().map(|frame| {
            let mut bytes = Vec::new();
            encode(frame, self.codec, &mut bytes);
            Bytes::from(bytes)
        });
        self.writer.write(frames.collect()).await.expect("the connection stands");
    }

    pub(crate) async fn frame(&mut self) -> Frame {
        let bytes = self.reader.read().await.expect("the connection stands").expect("it is open");
        decode(&bytes, &Limits::default()).expect("a frame")
    }
}
