//! What is sent: every message is a function of the seed and its number, so the logs need only hold numbers.

use std::time::Duration;

use lastmile::{DevicePolicy, Durability, InvalidMessage, Message, MessageId, Priority};

/// Messages of one person to another, in one conversation, are delivered in order.
const CONVERSATIONS: u64 = 4;

/// What everybody has, registered before anything is sent.
pub(crate) const DEVICES: [&str; 2] = ["phone", "laptop"];

/// Which copy of a message: the only one, which any device may take, or that for one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Copy {
    Any,
    For(usize),
}

impl Copy {
    /// All there are, by their codes.
    pub(crate) const ALL: &'static [Self; 1 + DEVICES.len()] = &[Self::Any, Self::For(0), Self::For(1)];

    pub(crate) fn code(self) -> usize {
        match self {
            Self::Any => 0,
            Self::For(device) => 1 + device,
        }
    }

    /// What it is called in tables, and where the engine is that takes it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Any => "any device",
            Self::For(device) => DEVICES.get(device).copied().unwrap_or("?"),
        }
    }
}

/// The workload. Parent and child make the same one from the same arguments.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) users: u32,
    pub(crate) messages: u32,
    pub(crate) seed: u64,
}

/// What is planned for one message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Planned {
    pub(crate) number: u32,
    pub(crate) sender: u32,
    pub(crate) recipient: u32,
    pub(crate) priority: Priority,
    /// The conversation; none for messages that are ordered within their whole lane.
    pub(crate) key: Option<u64>,
    pub(crate) ttl: Option<Duration>,
    pub(crate) durability: Durability,
    pub(crate) bytes: usize,
    /// It is for each device.
    pub(crate) everywhere: bool,
}

/// What two messages must share for one to have to come before the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Line {
    pub(crate) recipient: u32,
    pub(crate) priority: Priority,
    pub(crate) key: Option<(u32, u64)>,
    pub(crate) copy: Copy,
}

impl Plan {
    /// How many senders there are. Each sends one message after the other, so this many are in flight at most.
    pub(crate) fn senders(&self) -> u32 {
        (self.users / 4).clamp(1, 256).min(self.messages.max(1))
    }

    /// How many copies all messages make.
    pub(crate) fn copies(&self) -> u64 {
        (0..self.messages).map(|number| self.message(number).copies().len() as u64).sum()
    }

    /// The messages of one sender, in the order they are sent.
    pub(crate) fn of_sender(&self, sender: u32) -> impl Iterator<Item = Planned> + use<> {
        let plan = *self;
        (sender..plan.messages).step_by(plan.senders() as usize).map(move |number| plan.message(number))
    }

    pub(crate) fn message(&self, number: u32) -> Planned {
        let mut dice = Dice::new(self.seed ^ (u64::from(number) << 20));
        let recipient = match dice.below(10) {
            // A few people get more than the others.
            0 => dice.below(u64::from(self.users / 20 + 1)),
            _ => dice.below(u64::from(self.users)),
        };
        let priority = match dice.below(100) {
            0..=4 => Priority::Critical,
            5..=24 => Priority::High,
            25..=84 => Priority::Normal,
            _ => Priority::Low,
        };
        Planned {
            number,
            sender: number % self.senders(),
            recipient: recipient as u32,
            priority,
            key: (dice.below(4) > 0).then(|| dice.below(CONVERSATIONS)),
            ttl: match dice.below(100) {
                0..=3 => Some(Duration::from_millis(50 + dice.below(2_000))),
                4..=9 => Some(Duration::from_secs(3_600)),
                _ => None,
            },
            durability: if dice.below(20) == 0 { Durability::Buffered } else { Durability::Synced },
            bytes: match dice.below(100) {
                0..=59 => 16 + dice.below(240) as usize,
                60..=97 => 256 + dice.below(1_792) as usize,
                _ => 4_096 + dice.below(12_288) as usize,
            },
            everywhere: dice.below(5) == 0,
        }
    }
}

impl Planned {
    pub(crate) fn build(&self, seed: u64) -> Result<Message, InvalidMessage> {
        let mut payload = format!("{} ", self.number).into_bytes();
        payload.resize(self.bytes.max(payload.len()), b'.');
        let mut builder = Message::to(user_name(self.recipient), "chat.message", payload)
            .id(MessageId::from_u128(u128::from(seed) << 64 | u128::from(self.number)))
            .sender(format!("sender-{}", self.sender))
            .priority(self.priority)
            .durability(self.durability)
            .devices(if self.everywhere { DevicePolicy::EveryDevice } else { DevicePolicy::AnyDevice });
        if let Some(key) = self.key {
            builder = builder.ordering_key(format!("{}-{key}", self.sender));
        }
        if let Some(ttl) = self.ttl {
            builder = builder.ttl(ttl);
        }
        builder.build()
    }

    /// The copies that are delivered, each by itself.
    pub(crate) fn copies(&self) -> &'static [Copy] {
        let (any, each) = Copy::ALL.split_at(1);
        if self.everywhere { each } else { any }
    }

    /// What one of its copies must not overtake.
    pub(crate) fn line(&self, copy: Copy) -> Line {
        Line {
            recipient: self.recipient,
            priority: self.priority,
            key: self.key.map(|key| (self.sender, key)),
            copy,
        }
    }
}

/// The number of the message with this id.
pub(crate) fn number_of(id: MessageId) -> u32 {
    (id.as_u128() & u128::from(u32::MAX)) as u32
}

pub(crate) fn user_name(user: u32) -> String {
    format!("user-{user}")
}

/// SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014): small and seeded.
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound` (which is above zero).
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// Whether something happens that happens in so many of a thousand cases.
    pub(crate) fn per_mille(&mut self, cases: u64) -> bool {
        self.below(1000) < cases
    }
}
