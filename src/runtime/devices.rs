//! Registered devices: what is sent to every device waits for each of them.

use super::engine::Engine;
use super::error::OperateError;
use crate::id::{DeviceId, MessageId, UserId};
use crate::machine::{CopyStanding, DeviceStanding, Operation, OperationError, Outcome, Target};

impl Engine {
    /// Registers a device: from now on, messages for every device of its user ([`DevicePolicy`](crate::DevicePolicy)) are
    /// for it too, whether or not it is attached. Registering it once more changes nothing. One that is not seen for
    /// [`Config::device_age`](crate::Config::device_age) is removed.
    ///
    /// ```
    /// # use lastmile::{DevicePolicy, Engine, Message, storage::MemoryStore};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let engine = Engine::builder(MemoryStore::new()).build()?;
    /// engine.register_device("alice", "phone").await?;
    /// engine.register_device("alice", "laptop").await?;
    /// let message = Message::to("alice", "chat.message", "hi").devices(DevicePolicy::EveryDevice).build()?;
    /// assert_eq!(engine.send(message).await?.entries().len(), 2);
    /// let outcome = engine.unregister_device("alice", "laptop").await?;
    /// assert_eq!(outcome.messages, 1);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`OperateError`]; with [`OperationError::TooManyDevices`](crate::machine::OperationError::TooManyDevices) at
    /// [`Config::max_registered`](crate::Config::max_registered). Nothing was changed, unless the outcome is unknown.
    ///
    /// # Cancel safety
    /// Dropped before it returns, the device may or may not be registered. Repeating it is safe.
    pub async fn register_device<U, D>(&self, user: U, device: D) -> Result<(), OperateError>
    where
        U: TryInto<UserId>,
        U::Error: Into<OperateError>,
        D: TryInto<DeviceId>,
        D::Error: Into<OperateError>,
    {
        let user = user.try_into().map_err(Into::into)?;
        let device = device.try_into().map_err(Into::into)?;
        self.operate(Operation::Register(user, device)).await.map(drop)
    }

    /// Removes a device: nothing more is for it, and what waits for it ends as
    /// [`DeviceGone`](crate::EndReason::DeviceGone), with rows in the ledger. Its dead letters are dropped.
    /// [`Outcome::messages`] says how many, dead letters among them. A sink of its that is attached stays, and is offered
    /// what is for any device.
    ///
    /// # Errors
    /// [`OperateError`]; with [`OperationError::NoSuchDevice`](crate::machine::OperationError::NoSuchDevice) when it is not
    /// registered. After [`OperationError::StoreUnreadable`](crate::machine::OperationError::StoreUnreadable) it is being
    /// removed, and that goes on.
    ///
    /// # Cancel safety
    /// Dropped before it returns, it goes on. Repeating it is safe.
    pub async fn unregister_device<U, D>(&self, user: U, device: D) -> Result<Outcome, OperateError>
    where
        U: TryInto<UserId>,
        U::Error: Into<OperateError>,
        D: TryInto<DeviceId>,
        D::Error: Into<OperateError>,
    {
        let user = user.try_into().map_err(Into::into)?;
        let device = device.try_into().map_err(Into::into)?;
        self.operate(Operation::Unregister(user, device)).await
    }

    /// Where the copies of a message for several devices stand, in the order of the devices' slots; empty when it is for any
    /// device, or nothing is known of it. [`Engine::status`] says where it stands as a whole.
    ///
    /// # Errors
    /// [`OperateError`]. Nothing was changed.
    ///
    /// # Cancel safety
    /// May be dropped at any time.
    pub async fn status_by_device<U>(&self, user: U, id: MessageId) -> Result<Vec<CopyStanding>, OperateError>
    where
        U: TryInto<UserId>,
        U::Error: Into<OperateError>,
    {
        let user = user.try_into().map_err(Into::into)?;
        self.status_by_device_of(Target { user, id, sender: None }).await
    }

    /// As [`Engine::status_by_device`], of a message whose sender is named, as for [`Engine::status_of`]: then it is also known of
    /// what was delivered.
    ///
    /// # Errors
    /// [`OperateError`]. Nothing was changed.
    ///
    /// # Cancel safety
    /// May be dropped at any time.
    pub async fn status_by_device_of(&self, target: Target) -> Result<Vec<CopyStanding>, OperateError> {
        match self.operate(Operation::Locate(target)).await {
            Ok(outcome) => Ok(outcome.copies),
            Err(OperateError::NotDone(OperationError::NotWaiting)) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// The registered devices of a user, those that are being removed among them.
    ///
    /// # Errors
    /// [`OperateError`]. Nothing was changed.
    ///
    /// # Cancel safety
    /// May be dropped at any time.
    pub async fn devices<U>(&self, user: U) -> Result<Vec<DeviceStanding>, OperateError>
    where
        U: TryInto<UserId>,
        U::Error: Into<OperateError>,
    {
        let user = user.try_into().map_err(Into::into)?;
        Ok(self.operate(Operation::Devices(user)).await?.devices)
    }
}
