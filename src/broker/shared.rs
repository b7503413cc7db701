//! Shared subscriptions: each message to one member of the group.
//!
//! Members take turns. One that is offline or full is passed over as long as another could take
//! the message at once; when none can, the member whose turn it is queues it, if its session
//! outlives its connection. When a member's connection ends, its unacknowledged QoS 1 messages and
//! those it had not been sent go to the others; QoS 2 messages already sent wait for its session
//! `[MQTT-4.8.2-5]`. A message that a member refuses with an error code is discarded
//! `[MQTT-4.8.2-6]`.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::config::Config;
use super::message::LazyMessage;
use super::session::{Delivered, Flow, Kept, Session, State, Terms};
use super::stats::DropReason;
use super::subscription::Subscription;
use super::turn::Turn;
use crate::mqtt::QoS;

/// The members of one `$share/NAME/FILTER`.
#[derive(Debug, Default)]
pub(crate) struct ShareGroup {
    members: Mutex<Vec<Arc<Subscription>>>,
    turn: AtomicUsize,
}

/// What a member must be able to do to be given a message in one pass over the group.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    /// Write it at once.
    Ready,
    /// Be connected.
    Online,
    /// Keep it for later.
    Offline,
}

impl ShareGroup {
    pub(crate) fn add(&self, subscription: &Arc<Subscription>) {
        self.lock().push(Arc::clone(subscription));
    }

    pub(crate) fn remove(&self, subscription: &Arc<Subscription>) {
        self.lock().retain(|member| !Arc::ptr_eq(member, subscription));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Subscription>>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the message to one member, but not to `except`. False when no one took it.
    pub(crate) fn deliver(
        self: &Arc<Self>,
        config: &Config,
        message: &mut LazyMessage<'_>,
        except: Option<&Arc<Session>>,
        turn: &mut Turn,
    ) -> bool {
        let start = self.turn.fetch_add(1, Ordering::Relaxed);
        // What a member left behind waits for it rather than for another that is not there.
        let waits = except.is_some_and(|session| !session.lock().ended);
        let passes = [Pass::Ready, Pass::Online, Pass::Offline];
        for &pass in &passes[..if waits { 2 } else { 3 }] {
            let mut at = 0;
            while let Some(member) = self.member(start, at) {
                at += 1;
                if except.is_some_and(|session| Arc::ptr_eq(session, member.session())) {
                    continue;
                }
                match self.try_member(pass, &member, config, message, turn) {
                    Some(Delivered::Sent | Delivered::Queued) => return true,
                    Some(Delivered::Dropped(_)) | None => {}
                }
            }
        }
        turn.tally.dropped(DropReason::Offline, u64::from(except.is_none()));
        false
    }

    fn member(&self, start: usize, at: usize) -> Option<Arc<Subscription>> {
        // The lock is not held while a mailbox is locked.
        let members = self.lock();
        (at < members.len()).then(|| Arc::clone(&members[(start + at) % members.len()]))
    }

    fn try_member(
        self: &Arc<Self>,
        pass: Pass,
        member: &Arc<Subscription>,
        config: &Config,
        message: &mut LazyMessage<'_>,
        turn: &mut Turn,
    ) -> Option<Delivered> {
        let session = member.session();
        let mut state = session.lock();
        let fits = match (&state.link, pass) {
            (Some(link), Pass::Ready) => {
                !link.is_slow()
                    && link.waiting() < config.outbox_bytes
                    && state.queue.is_empty()
                    && (message.publish.qos == QoS::AtMostOnce || state.outbound.can_send())
            }
            (Some(_), Pass::Online) => true,
            (None, Pass::Offline) => state.expiry_secs > 0,
            _ => false,
        };
        if !fits || !member.stands(&state) {
            return None;
        }
        let identifiers = [member.identifier];
        let terms = Terms {
            qos: message.publish.qos.min(member.qos),
            retain: message.publish.retain && member.retain_as_published,
            subscription_ids: if member.identifier == 0 { &[] } else { &identifiers },
            share: Some(self),
        };
        if pass == Pass::Offline && terms.qos == QoS::AtMostOnce {
            return None;
        }
        Some(session.deliver_locked(&mut state, config, message, &terms, turn))
    }
}

/// Takes what `session`, whose connection has just gone, got through groups and did not
/// acknowledge, as far as another member is there to get it. `state` is its own. What nobody else
/// could take stays where it is, to be sent again with its identifier.
pub(crate) fn take_orphans(session: &Arc<Session>, state: &mut State) -> Vec<Kept> {
    // A session that has ended will not send them again: then any other member may keep them.
    let ended = state.ended;
    let wanted = |kept: &Kept| {
        kept.share.as_ref().is_some_and(|group| ended || another_is_online(group, session))
    };
    let unacknowledged =
        state.outbound.take_unacknowledged(|kept| kept.as_ref().is_some_and(wanted));
    let mut orphans: Vec<Kept> = unacknowledged.into_iter().flatten().collect();
    if state.queue.iter().any(wanted) {
        let (given, kept): (Vec<Kept>, Vec<Kept>) =
            state.take_queue().into_iter().partition(wanted);
        state.restore_queue(kept);
        orphans.extend(given);
    }
    orphans
}

fn another_is_online(group: &ShareGroup, session: &Arc<Session>) -> bool {
    group.lock().iter().any(|member| {
        !Arc::ptr_eq(member.session(), session) && member.session().flow() != Flow::Offline
    })
}

/// Offers orphans of `session` to the other members; what nobody took goes back to it.
pub(crate) fn give_away(
    session: &Arc<Session>,
    orphans: Vec<Kept>,
    config: &Config,
    turn: &mut Turn,
) {
    let mut left = Vec::new();
    for orphan in orphans {
        let Some(group) = orphan.share.clone() else { continue };
        let mut message = LazyMessage::of(&orphan.message);
        if !group.deliver(config, &mut message, Some(session), turn) {
            left.push(orphan);
        }
    }
    if left.is_empty() {
        return;
    }
    let mut state = session.lock();
    if state.ended {
        turn.tally.dropped(DropReason::Offline, left.len() as u64);
        return;
    }
    state.restore_queue(left);
    // The client may be back by now.
    let idle = state.is_idle();
    state.pump(config, turn.now, &mut turn.tally);
    if idle && !state.is_idle() {
        turn.touch(session);
    }
}
