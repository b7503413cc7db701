//! What waits for a session, first in first out.
//!
//! In blocks: a queue in one piece doubles by moving all that it holds, and at a million messages
//! that keeps the session's lock, and with it every publisher to it, for a tenth of a second. A
//! block knows the earliest end of a lifetime in it, so that looking for messages that are over
//! does not mean looking at all of them.

use std::collections::VecDeque;

use super::Millis;
use super::kept::Kept;
use super::memory;

/// Messages in one block at most.
const BLOCK: usize = 256;
/// What a place in a queue costs.
const PLACE: usize = size_of::<Kept>();
/// An empty queue keeps room for so many messages at most.
const SPARE: usize = 64;

/// See the module.
#[derive(Default)]
pub(crate) struct Queue {
    /// None of them is empty, but for the last one standing.
    blocks: VecDeque<Block>,
    sums: Sums,
}

/// What the messages in a queue come to.
#[derive(Default)]
struct Sums {
    len: usize,
    bytes: usize,
    /// Messages that came through a share group.
    shared: usize,
}

struct Block {
    kept: VecDeque<Kept>,
    /// No lifetime in here ends before this.
    earliest_end: Millis,
}

impl Sums {
    fn add(&mut self, kept: &Kept) {
        memory::take(PLACE);
        self.len += 1;
        self.bytes += kept.size();
        self.shared += usize::from(kept.share().is_some());
    }

    fn remove(&mut self, kept: &Kept) {
        memory::give_back(PLACE);
        self.len -= 1;
        self.bytes -= kept.size();
        self.shared -= usize::from(kept.share().is_some());
    }
}

impl Block {
    fn new(room: usize) -> Self {
        Self { kept: VecDeque::with_capacity(room), earliest_end: Millis::MAX }
    }

    fn is_full(&self) -> bool {
        self.kept.len() >= BLOCK
    }

    /// Removes messages whose lifetime is over and shows them to `over`.
    fn drop_expired(&mut self, now: Millis, over: &mut impl FnMut(&Kept)) {
        if now <= self.earliest_end {
            return;
        }
        let mut earliest_end = Millis::MAX;
        self.kept.retain(|kept| {
            let stays = !kept.is_expired(now);
            if stays {
                earliest_end = earliest_end.min(kept.expires_at());
            } else {
                over(kept);
            }
            stays
        });
        self.earliest_end = earliest_end;
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        memory::give_back(PLACE * self.sums.len);
    }
}

impl Queue {
    pub(crate) fn is_empty(&self) -> bool {
        self.sums.len == 0
    }

    /// Messages.
    pub(crate) fn len(&self) -> usize {
        self.sums.len
    }

    /// What they cost in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.sums.bytes
    }

    /// Whether one of them came through a share group. Whoever looks for those when a connection ends
    /// must not look at a hundred thousand others for nothing.
    pub(crate) fn has_shared(&self) -> bool {
        self.sums.shared > 0
    }

    pub(crate) fn front(&self) -> Option<&Kept> {
        self.blocks.front()?.kept.front()
    }

    pub(crate) fn push_back(&mut self, kept: Kept) {
        if self.blocks.back().is_none_or(Block::is_full) {
            // The first one grows as it is needed: most queues are short.
            self.blocks.push_back(Block::new(if self.is_empty() { 0 } else { BLOCK }));
        }
        if let Some(block) = self.blocks.back_mut() {
            self.sums.add(&kept);
            block.earliest_end = block.earliest_end.min(kept.expires_at());
            block.kept.push_back(kept);
        }
    }

    fn push_front(&mut self, kept: Kept) {
        if self.blocks.front().is_none_or(Block::is_full) {
            self.blocks.push_front(Block::new(0));
        }
        if let Some(block) = self.blocks.front_mut() {
            self.sums.add(&kept);
            block.earliest_end = block.earliest_end.min(kept.expires_at());
            block.kept.push_front(kept);
        }
    }

    pub(crate) fn pop_front(&mut self) -> Option<Kept> {
        let block = self.blocks.front_mut()?;
        let kept = block.kept.pop_front()?;
        if block.kept.is_empty() {
            block.earliest_end = Millis::MAX;
            if self.blocks.len() > 1 {
                self.blocks.pop_front();
            }
        }
        self.sums.remove(&kept);
        Some(kept)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Kept> {
        self.blocks.iter().flat_map(|block| &block.kept)
    }

    /// For changes that leave what a message costs and how long it lives as it is.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Kept> {
        self.blocks.iter_mut().flat_map(|block| &mut block.kept)
    }

    /// Takes out what is wanted; the rest keeps its order.
    pub(crate) fn extract(&mut self, mut wanted: impl FnMut(&Kept) -> bool) -> Vec<Kept> {
        let mut extracted = Vec::new();
        if self.iter().any(&mut wanted) {
            for kept in std::mem::take(self).into_messages() {
                if wanted(&kept) {
                    extracted.push(kept);
                } else {
                    self.push_back(kept);
                }
            }
        }
        extracted
    }

    /// Puts messages back in front, in their order.
    pub(crate) fn give_back(&mut self, kept: Vec<Kept>) {
        kept.into_iter().rev().for_each(|kept| self.push_front(kept));
    }

    /// Removes messages whose lifetime is over and shows them to `over`.
    pub(crate) fn drop_expired(&mut self, now: Millis, mut over: impl FnMut(&Kept)) {
        let sums = &mut self.sums;
        let mut over = |kept: &Kept| {
            sums.remove(kept);
            over(kept);
        };
        self.blocks.iter_mut().for_each(|block| block.drop_expired(now, &mut over));
        self.blocks.retain(|block| !block.kept.is_empty());
    }

    pub(crate) fn into_messages(mut self) -> impl Iterator<Item = Kept> {
        std::mem::take(&mut self.blocks).into_iter().flat_map(|block| block.kept)
    }

    /// Gives memory back if nothing waits.
    pub(crate) fn shrink_if_empty(&mut self) {
        if self.is_empty() && self.blocks.front().is_some_and(|block| block.kept.capacity() > SPARE)
        {
            *self = Self::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::broker::message::{LazyMessage, PublishRef};
    use crate::broker::session::Terms;
    use crate::broker::shared::ShareGroup;
    use crate::mqtt::QoS;

    /// A message that can be told from others by the length of its payload.
    fn message(number: usize, expires_at: Option<Millis>) -> Kept {
        let payload = vec![0; number];
        let publish = PublishRef {
            topic: "t",
            properties: &[],
            payload: &payload,
            qos: QoS::AtLeastOnce,
            retain: false,
            expires_at,
            publisher: 0,
        };
        let group = Arc::new(ShareGroup::new("$share/g/t"));
        let terms = Terms {
            qos: QoS::AtLeastOnce,
            retain: false,
            subscription_ids: &[],
            share: number.is_multiple_of(7).then_some(&group),
            record: None,
        };
        Kept::new(&mut LazyMessage::new(publish), &terms)
    }

    fn number(kept: &Kept) -> usize {
        kept.message().expect("it is in memory").payload_len() as usize
    }

    proptest! {
        #[test]
        fn is_a_queue(steps in prop::collection::vec((0u8..12, 0usize..700), 1..60)) {
            let mut queue = Queue::default();
            let mut model: VecDeque<(usize, Millis)> = VecDeque::new();
            let mut next = 0;
            for (kind, n) in steps {
                match kind {
                    0..5 => for _ in 0..n {
                        next += 1;
                        let end = (next % 3 == 0).then_some(next as Millis * 7 % 1_000);
                        queue.push_back(message(next, end));
                        model.push_back((next, end.unwrap_or(Millis::MAX)));
                    },
                    5..9 => for _ in 0..n {
                        let expected = model.pop_front().map(|(number, _)| number);
                        prop_assert_eq!(queue.pop_front().as_ref().map(number), expected);
                    },
                    9 => {
                        let wanted = |number: usize| number % 5 == n % 5;
                        let given = queue.extract(|kept| wanted(number(kept)));
                        let (expected, rest): (Vec<_>, Vec<_>) =
                            model.iter().copied().partition(|(number, _)| wanted(*number));
                        let expected: Vec<_> = expected.iter().map(|(number, _)| *number).collect();
                        prop_assert_eq!(given.iter().map(number).collect::<Vec<_>>(), expected);
                        model = rest.into();
                    }
                    10 => {
                        let front: Vec<_> = std::iter::from_fn(|| queue.pop_front()).take(n).collect();
                        queue.give_back(front);
                    }
                    _ => {
                        let now = n as Millis;
                        let mut over = Vec::new();
                        queue.drop_expired(now, |kept| over.push(number(kept)));
                        let expected = model.iter().filter(|(_, end)| now > *end);
                        let expected: Vec<_> = expected.map(|(number, _)| *number).collect();
                        prop_assert_eq!(over, expected);
                        model.retain(|(_, end)| now <= *end);
                    }
                }
                queue.shrink_if_empty();
                prop_assert_eq!(queue.len(), model.len());
                prop_assert_eq!(queue.front().map(number), model.front().map(|(number, _)| *number));
                prop_assert_eq!(queue.has_shared(), queue.iter().any(|kept| kept.share().is_some()));
                prop_assert_eq!(queue.bytes(), queue.iter().map(Kept::size).sum::<usize>());
            }
            let expected: Vec<_> = model.iter().map(|(number, _)| *number).collect();
            prop_assert_eq!(queue.iter_mut().map(|kept| number(kept)).collect::<Vec<_>>(), &expected[..]);
            prop_assert_eq!(queue.into_messages().map(|kept| number(&kept)).collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn blocks_whose_messages_live_are_not_looked_through() {
        let mut queue = Queue::default();
        (0..BLOCK).for_each(|n| queue.push_back(message(n, Some(5_000))));
        (0..BLOCK).for_each(|n| queue.push_back(message(n, Some(1_000))));
        queue.drop_expired(2_000, |_| {});
        assert_eq!((queue.len(), queue.blocks.len()), (BLOCK, 1));
        assert_eq!(queue.blocks[0].earliest_end, 5_000);
    }

    #[test]
    fn an_empty_queue_keeps_little() {
        let mut queue = Queue::default();
        (0..3 * BLOCK).for_each(|n| queue.push_back(message(n, None)));
        assert_eq!(queue.blocks.len(), 3);
        while queue.pop_front().is_some() {}
        queue.shrink_if_empty();
        assert_eq!(queue.blocks.len(), 0);
        queue.push_back(message(1, None));
        queue.pop_front();
        queue.shrink_if_empty();
        assert_eq!(queue.blocks.len(), 1, "a short one may be needed again at once");
    }
}
