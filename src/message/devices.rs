//! Which of a person's devices a message is for.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Message, MessageBuilder, Parts};

/// Which of the recipient's devices a message is for. Devices are registered with the engine
/// (`Engine::register_device`); for somebody who has none, every policy is [`DevicePolicy::AnyDevice`]. The devices are
/// those that are registered when the message is accepted, or when its time comes, if it is scheduled.
///
/// A volatile message is for any device, whatever it says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DevicePolicy {
    /// Any one of them: it is offered to one at a time, and to the next one when that has failed. The first confirmation
    /// settles it.
    #[default]
    AnyDevice,
    /// All of them at once; the first one to confirm it settles it, and is all that gets it if the others have not been
    /// offered it by then. It ends for them as [`Elsewhere`](crate::EndReason::Elsewhere).
    RingAll,
    /// Each of them, by itself: each has its own place, attempts and end.
    EveryDevice,
}

impl Message {
    /// Which devices it is for; [`Config::devices`](crate::Config::devices) decides when it does not say.
    #[must_use]
    pub fn devices(&self) -> Option<DevicePolicy> {
        self.0.devices
    }

    /// The same message for these devices.
    #[must_use]
    #[cfg(feature = "storage")]
    pub(crate) fn with_devices(&self, policy: DevicePolicy) -> Self {
        Self(Arc::new(Parts { devices: Some(policy), ..(*self.0).clone() }))
    }

    /// The same message, without saying which devices it is for.
    #[must_use]
    pub(crate) fn without_devices(self) -> Self {
        match self.0.devices {
            Some(_) => Self(Arc::new(Parts { devices: None, ..(*self.0).clone() })),
            None => self,
        }
    }
}

impl MessageBuilder {
    /// Says which of the recipient's devices it is for; [`Config::devices`](crate::Config::devices) unless set.
    ///
    /// ```
    /// # use lastmile::{DevicePolicy, Message};
    /// let ring = Message::to("alice", "call.ring", "bob").devices(DevicePolicy::RingAll).build()?;
    /// # Ok::<(), lastmile::InvalidMessage>(())
    /// ```
    #[must_use]
    pub fn devices(self, policy: DevicePolicy) -> Self {
        self.with(|parts| {
            parts.devices = Some(policy);
            Ok(())
        })
    }
}
