//! That of several waiting messages with one collapse key only the newest stays.

use super::Oracle;
use crate::machine::Refusal;
use crate::message::Message;
use crate::record::{Accept, Admission, Seq};

impl Oracle {
    /// A message that was sent by itself is the newest of its key. What another engine delivered is not collapsed.
    pub(super) fn fold_newest(&mut self, seq: Seq, accept: &Accept) {
        let message = &accept.message;
        let Some(key) = message.collapse_key().filter(|_| accept.origin.is_none()).cloned() else { return };
        if accept.admission != Admission::New {
            return;
        }
        let version = message.version();
        if accept.device.is_some_and(|device| device.is_copy) {
            // Of a message that was spread when its time came, the one that moved is followed.
            if let Some((places, _)) = self.newest.get_mut(&(message.recipient().clone(), key)) {
                places.push(seq);
            }
            return;
        }
        let before = self.newest.insert((message.recipient().clone(), key), (vec![seq], version));
        if let Some((other, Some(newest))) =
            before.filter(|(_, newest)| version < *newest && version.is_some())
        {
            self.fail(format!("{seq:?} has version {version:?}, and {other:?} before it had {newest}"));
        }
    }

    /// After every group: what is not the newest of its key has ended.
    pub(super) fn check_newest(&mut self) {
        let newest = self.newest.values().flat_map(|(places, _)| places);
        let newest: Vec<Seq> = newest.map(|seq| self.place_of(*seq)).collect();
        let is_old = |(seq, accept): (Seq, &Accept)| {
            // What was about to move when a newer one came could not give way to it.
            let is_new = accept.admission == Admission::New && !self.came_by_moving(seq, accept);
            is_new
                && accept.origin.is_none()
                && accept.message.collapse_key().is_some()
                && !newest.contains(&seq)
        };
        let old = self.live().find(|(seq, kept)| is_old((**seq, &kept.accept))).map(|(seq, _)| *seq);
        if let Some(old) = old {
            self.fail(format!("{old:?} waits, though a newer one of its collapse key does"));
        }
    }

    /// Only a version that is older than one that was accepted is outdated.
    pub(super) fn check_outdated(&mut self, message: &Message, refusal: &Refusal) {
        let Refusal::Outdated { newest } = refusal else { return };
        let key = message.collapse_key().cloned();
        let known = key.and_then(|key| self.newest.get(&(message.recipient().clone(), key)));
        let is_true = known.is_some_and(|(_, version)| *version == Some(*newest));
        if !is_true || message.version().is_none_or(|version| version >= *newest) {
            self.fail(format!("{} refused as older than version {newest}: {known:?}", message.id()));
        }
    }
}
