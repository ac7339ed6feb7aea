//! Senders: one message after the other, each until it is answered, sometimes again.

use std::sync::Arc;
use std::time::Duration;

use lastmile::Message;

use super::Failure;
use super::child::World;
use super::logs::Entry;
use super::plan::{Dice, Planned};

/// So many of a thousand answers get lost on their way to the sender, who sends the same id again.
const LOST_ANSWERS: u64 = 20;
/// So many of a thousand messages that were answered in an earlier life are sent again all the same.
const LATE_REPEATS: u64 = 20;
/// How long a sender waits when it is told to try again later.
const PAUSE: Duration = Duration::from_millis(20);

/// Sends all of one sender's messages, in order.
pub(crate) async fn run(world: Arc<World>, sender: u32) -> Result<(), Failure> {
    let mut dice = Dice::new(u64::from(world.life) << 32 | u64::from(sender));
    for planned in world.plan.of_sender(sender) {
        let again = world.has_answer(planned.number);
        if !again || dice.per_mille(LATE_REPEATS) {
            let answer_lost = !again && dice.per_mille(LOST_ANSWERS);
            send(&world, &planned, answer_lost).await?;
        }
    }
    Ok(())
}

async fn send(world: &World, planned: &Planned, mut answer_lost: bool) -> Result<(), Failure> {
    let message: Message = planned.build(world.plan.seed)?;
    loop {
        world.senders_log.line(&Entry::try_line(planned.number))?;
        match world.outbox.send(message.clone()).await {
            Ok(_) if answer_lost => answer_lost = false,
            Ok(receipt) => {
                let place = receipt.entry().seq.get();
                world.senders_log.line(&Entry::ok_line(planned.number, receipt.is_duplicate(), place))?;
                world.note_accepted(planned.number);
                return Ok(());
            }
            Err(error) if error.is_retryable() => tokio::time::sleep(PAUSE).await,
            Err(error) => return Err(error.into()),
        }
    }
}
