//! That of several waiting messages with one collapse key only the newest stays.

use super::Oracle;
use crate::id::CollapseKey;
use crate::machine::Refusal;
use crate::message::{Durability, Message};
use crate::record::{Accept, Admission, Seq};

impl Oracle {
    /// A message that was sent by itself is the newest of its key. What another engine delivered is not collapsed.
    pub(super) fn fold_newest(&mut self, seq: Seq, accept: &Accept) {
        let message = &accept.message;
        let Some(key) = message.collapse_key().filter(|_| accept.origin.is_none()).cloned() else { return };
        let is_again = matches!(accept.admission, Admission::Requeued { .. });
        if accept.admission != Admission::New && !is_again {
            return;
        }
        let version = message.version();
        self.fold_version(message);
        if is_again {
            return self.fold_again(seq, accept, key);
        }
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

    /// A dead letter that is sent again is the newest of its key: nothing of it waited, and no later version was accepted.
    /// Those of one message for several devices go together.
    fn fold_again(&mut self, seq: Seq, accept: &Accept, key: CollapseKey) {
        let version = accept.message.version();
        let of = (accept.message.recipient().clone(), key);
        let (places, newest) = self.newest.get(&of).cloned().unwrap_or_default();
        let slot = |accept: &Accept| accept.device.map(|device| device.slot);
        let clashes = |kept: &super::Kept| {
            let is_another_ones = matches!(kept.accept.admission, Admission::Requeued { .. })
                && slot(&kept.accept).is_some()
                && slot(accept).is_some()
                && slot(&kept.accept) != slot(accept);
            kept.end.is_none() && !is_another_ones
        };
        let clash = places.iter().map(|place| self.place_of(*place));
        let clash = clash.into_iter().find(|place| self.messages.get(place).is_some_and(clashes));
        if let Some(clash) = clash {
            self.fail(format!("{seq:?} is a dead letter that is sent again, though {clash:?} waits"));
        }
        if version < newest {
            self.fail(format!("{seq:?} is sent again as version {version:?}, and {newest:?} was accepted"));
        }
        match accept.device {
            Some(_) => {
                let (places, _) = self.newest.entry(of).or_insert((Vec::new(), newest));
                places.push(seq);
            }
            None => drop(self.newest.insert(of, (vec![seq], version))),
        }
    }

    /// After every group: what is not the newest of its key has ended.
    pub(super) fn check_newest(&mut self) {
        let newest = self.newest.values().flat_map(|(places, _)| places);
        let newest: Vec<Seq> = newest.map(|seq| self.place_of(*seq)).collect();
        let is_old = |(seq, accept): (Seq, &Accept)| {
            // What was about to move when a newer one came could not give way to it.
            let is_new = accept.admission == Admission::New && !self.came_by_moving(seq, accept);
            (is_new || matches!(accept.admission, Admission::Requeued { .. }))
                && accept.origin.is_none()
                && accept.message.collapse_key().is_some()
                && !newest.contains(&seq)
        };
        let old = self.live().find(|(seq, kept)| is_old((**seq, &kept.accept))).map(|(seq, _)| *seq);
        if let Some(old) = old {
            self.fail(format!("{old:?} waits, though a newer one of its collapse key does"));
        }
    }

    /// A message was accepted, volatile or not.
    pub(super) fn fold_version(&mut self, message: &Message) {
        let (Some(key), Some(version)) = (message.collapse_key().cloned(), message.version()) else { return };
        self.versions.entry((message.recipient().clone(), key)).or_default().insert(version);
    }

    /// Only a version that is older than the newest is outdated. A volatile message is judged at once, by volatile ones too, and
    /// perhaps before what is durable has been taken in: there it must be older than one that was accepted.
    pub(super) fn check_outdated(&mut self, message: &Message, refusal: &Refusal) {
        let Refusal::Outdated { newest } = refusal else { return };
        let key = message.collapse_key().cloned();
        let of = key.map(|key| (message.recipient().clone(), key));
        let known = of.as_ref().and_then(|of| self.newest.get(of));
        let is_volatile = message.durability() == Durability::Volatile;
        let volatile = of.as_ref().and_then(|of| self.versions.get(of)).filter(|_| is_volatile);
        let is_true = known.is_some_and(|(_, version)| *version == Some(*newest))
            || volatile.is_some_and(|versions| versions.contains(newest));
        if !is_true || message.version().is_none_or(|version| version >= *newest) {
            self.fail(format!("{} refused as older than version {newest}: {known:?}", message.id()));
        }
    }
}
