//! A client without an engine: it applies what it gets, remembers what it applied, and publishes.

use core::time::Duration;
use std::collections::BTreeSet;

use super::client::HUB;
use super::{Due, Who, World};
use crate::id::MessageId;
use crate::machine::EntryRef;
use crate::message::{Durability, Message, Priority};
use crate::session::frame::{Place, Published};
use crate::session::{Inbound, Input};
use crate::testing::pair::inbox::Inbox;
use crate::testing::pair::publishing::{Heard, Publishing};
use crate::testing::sim::compose::person;

/// What it keeps, through crashes too.
#[derive(Debug, Default)]
pub(super) struct Light {
    pub(super) inbox: Inbox,
    pub(super) publishing: Publishing,
    /// What it published that may be lost when the disk fails or the power does.
    pub(super) buffered: BTreeSet<MessageId>,
    /// In memory: taken from the session, undecided.
    in_hand: Vec<Inbound>,
}

impl Light {
    pub(super) fn crash(&mut self) {
        self.in_hand.clear();
        self.publishing.restart();
    }
}

impl World {
    /// Takes what waits, to decide about it in a while.
    pub(super) fn take_light(&mut self, client: usize) -> Result<(), String> {
        let max = 1 + self.random.index(6);
        let found = &mut self.clients[client];
        let (Some(light), Some(end)) = (&mut found.light, &mut found.end) else { return Ok(()) };
        if !light.in_hand.is_empty() {
            return Ok(());
        }
        light.in_hand = end.session.take(max);
        if !light.in_hand.is_empty() {
            let delay = self.millis(if self.calm { 20 } else { 400 });
            self.at(delay, Due::Decide(client));
        }
        self.drain(Who::Client(client))
    }

    pub(super) fn decide(&mut self, client: usize) -> Result<(), String> {
        let calm = self.calm;
        let Some(light) = &mut self.clients[client].light else { return Ok(()) };
        let in_hand = core::mem::take(&mut light.in_hand);
        if in_hand.is_empty() {
            return Ok(());
        }
        let decided = light.inbox.decide(in_hand, &mut self.random, calm);
        for place in decided.applied {
            self.applied(Who::Client(client), EntryRef { lane: place.lane, seq: place.seq });
        }
        self.tell(Who::Client(client), Input::Verdicts(decided.verdicts))?;
        self.take_light(client)
    }

    /// The peer's floor has risen.
    pub(super) fn forget(&mut self, who: Who, place: Place) {
        if let Who::Client(client) = who
            && let Some(light) = &mut self.clients[client].light
        {
            light.inbox.forget(place);
        }
    }

    /// A new message to be published.
    pub(super) fn publish_new(&mut self, client: usize) -> Result<(), String> {
        self.ids += 1;
        let to = match self.random.chance(60) {
            true => HUB,
            false => self.random.below(self.plan.users),
        };
        let message = Message::to(person(to), "peers.published", vec![b'p'; self.random.index(200)])
            .id(MessageId::from_u128(1 + self.ids as u128))
            .sender(person(client as u64))
            .priority(Priority::ALL[self.random.index(4)])
            .durability(if self.random.chance(20) { Durability::Buffered } else { Durability::Synced })
            .build()
            .expect("a small message is within the limits");
        if let Some(light) = &mut self.clients[client].light {
            if message.durability() == Durability::Buffered {
                light.buffered.insert(message.id());
            }
            light.publishing.add(message);
        }
        self.publish(client)
    }

    /// Gives a number to whatever has none.
    pub(super) fn publish(&mut self, client: usize) -> Result<(), String> {
        let max = self.config.max_publishes;
        loop {
            let found = &mut self.clients[client];
            let light = found.light.as_mut().filter(|_| found.end.is_some());
            let Some((number, message)) = light.and_then(|light| light.publishing.next(max)) else {
                return Ok(());
            };
            self.tell(Who::Client(client), Input::Publish(number, message))?;
        }
    }

    /// What became of a publish.
    pub(super) fn receipt(
        &mut self,
        who: Who,
        number: u64,
        outcome: Option<&Published>,
    ) -> Result<(), String> {
        let Some(light) = &mut self.clients[who.client()].light else { return Ok(()) };
        match light.publishing.receipt(number, outcome)? {
            Heard::Accepted => self.lived.published += 1,
            Heard::Again => {}
            Heard::Nothing => return Ok(()),
        }
        let delay = Duration::from_millis(50 + self.random.below(500));
        self.at(delay, Due::Publish(who.client()));
        Ok(())
    }
}
