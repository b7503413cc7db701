//! Shared subscriptions: each message to one member of the group.
//!
//! Members take turns. One that is offline or full is passed over as long as another could take
//! the message at once; when none can, the member whose turn it is queues it, if its session
//! outlives its connection. When a member's connection ends, its unacknowledged QoS 1 messages and
//! those it had not been sent go to the others; QoS 2 messages already sent wait for its session
//! `[MQTT-4.8.2-4]` and end with it `[MQTT-4.8.2-5]`. A message that a member refuses with an error
//! code is discarded `[MQTT-4.8.2-6]`.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::Broker;
use super::config::Config;
use super::crowd::Members;
use super::journal::RecordId;
use super::kept::Kept;
use super::mailbox::has_room;
use super::message::LazyMessage;
use super::session::{Delivered, Flow, Session, Terms};
use super::state::State;
use super::stats::DropReason;
use super::subscription::Subscription;
use super::turn::Turn;
use crate::mqtt::QoS;

/// The members of one `$share/NAME/FILTER`.
#[derive(Debug)]
pub(crate) struct ShareGroup {
    /// `$share/NAME/FILTER`.
    text: Box<str>,
    members: Mutex<Members>,
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

/// Members that can be passed over, because they are not connected, in one step of a turn.
const MEMBERS_PER_STEP: usize = 4;
/// Connected members that are asked whether they can take a message at once. When so many in a row
/// cannot, looking at thousands more costs more than it brings.
const ASKED: usize = 128;

/// All passes, in their order.
const PASSES: [Pass; 3] = [Pass::Ready, Pass::Online, Pass::Offline];

impl Pass {
    /// Whether the member with this state can be given a message at this quality of service.
    fn fits(self, state: &State, config: &Config, qos: QoS) -> bool {
        match (&state.link, self) {
            (Some(link), Self::Ready) => {
                !link.is_slow()
                    && has_room(link.backlog(), config)
                    && state.queue.is_empty()
                    && (qos == QoS::AtMostOnce || state.outbound.can_send())
            }
            (Some(_), Self::Online) => true,
            (None, Self::Offline) => state.expiry_secs > 0,
            _ => false,
        }
    }
}

/// What a message that goes to a group was before.
#[derive(Default)]
pub(crate) struct Orphan<'a> {
    /// It is on disk as this delivery to another session.
    pub(crate) record: Option<RecordId>,
    /// The member that did not take it.
    pub(crate) left_by: Option<&'a Arc<Session>>,
}

impl ShareGroup {
    pub(crate) fn new(text: &str) -> Self {
        Self { text: text.into(), members: Mutex::default(), turn: AtomicUsize::new(0) }
    }

    /// `$share/NAME/FILTER`.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn any(&self, wanted: impl Fn(&Subscription) -> bool) -> bool {
        self.lock().iter().any(|member| wanted(member))
    }

    pub(crate) fn add(&self, subscription: &Arc<Subscription>) {
        self.lock().push(subscription);
    }

    pub(crate) fn remove(&self, subscription: &Arc<Subscription>) {
        self.lock().remove(subscription);
    }

    /// The most steps that finding a member may take.
    pub(crate) fn cost(&self) -> usize {
        self.lock().len() / MEMBERS_PER_STEP
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Lets go of all members: the broker is gone.
    pub(crate) fn dissolve(&self) {
        let members = std::mem::take(&mut *self.lock());
        drop(members); // without the lock: they know the group
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The member that a message at this quality of service should go to.
    pub(crate) fn pick(
        &self,
        config: &Config,
        qos: QoS,
        turn: &mut Turn,
    ) -> Option<Arc<Subscription>> {
        let start = self.turn.fetch_add(1, Ordering::Relaxed);
        for pass in PASSES {
            let (mut at, mut asked) = (0, 0);
            while let Some(member) = self.next_member(pass, start, (&mut at, &mut asked), turn) {
                let state = member.session().lock();
                let is_kept = pass != Pass::Offline || qos.min(member.qos) > QoS::AtMostOnce;
                if is_kept && pass.fits(&state, config, qos) && member.stands(&state) {
                    drop(state);
                    return Some(member);
                }
            }
        }
        None
    }

    /// Gives the message to the member that was picked for it, whose delivery is on disk as
    /// `record`; to another one if that cannot take it any more.
    pub(crate) fn deliver_to(
        self: &Arc<Self>,
        (member, record): (&Arc<Subscription>, Option<RecordId>),
        broker: &Broker,
        message: &mut LazyMessage<'_>,
        turn: &mut Turn,
    ) {
        let session = member.session();
        let mut state = session.lock();
        if (state.link.is_some() || state.expiry_secs > 0) && member.stands(&state) {
            let terms = Terms { record, ..member.terms(&message.publish, self) };
            session.deliver_locked(&mut state, broker, message, &terms, turn);
            return;
        }
        drop(state);
        let orphan = Orphan { record, left_by: None };
        if !self.deliver(broker, message, &orphan, turn) {
            broker.unrecord(record);
        }
    }

    /// Gives the message to one member, but not to who left it. False when no one took it.
    pub(crate) fn deliver(
        self: &Arc<Self>,
        broker: &Broker,
        message: &mut LazyMessage<'_>,
        orphan: &Orphan<'_>,
        turn: &mut Turn,
    ) -> bool {
        let start = self.turn.fetch_add(1, Ordering::Relaxed);
        let except = orphan.left_by;
        // What a member left behind waits for it rather than for another that is not there.
        let waits = except.is_some_and(|session| !session.lock().ended);
        let waits = waits || message.publish.qos == QoS::AtMostOnce; // nobody keeps those
        for &pass in &PASSES[..if waits { 2 } else { 3 }] {
            let (mut at, mut asked) = (0, 0);
            while let Some(member) = self.next_member(pass, start, (&mut at, &mut asked), turn) {
                if except.is_some_and(|session| Arc::ptr_eq(session, member.session())) {
                    continue;
                }
                match self.try_member(pass, &member, broker, message, orphan.record, turn) {
                    Some(Delivered::Sent | Delivered::Queued) => return true,
                    Some(Delivered::Dropped(_)) | None => {}
                }
            }
        }
        turn.tally.dropped(DropReason::Offline, u64::from(except.is_none()));
        false
    }

    /// The next member, from the one at `start` on, that may fit the pass. `at` counts those that
    /// were looked at, `asked` those that were given back; a group may have thousands that are not
    /// there.
    fn next_member(
        &self,
        pass: Pass,
        start: usize,
        (at, asked): (&mut usize, &mut usize),
        turn: &mut Turn,
    ) -> Option<Arc<Subscription>> {
        // The lock is not held while a mailbox is locked.
        let members = self.lock();
        let from = *at;
        let mut found = None;
        while *at < members.len() && found.is_none() {
            if pass == Pass::Ready && *asked >= ASKED {
                break;
            }
            let member = &members[(start + *at) % members.len()];
            *at += 1;
            if pass == Pass::Offline || member.session().flow() != Flow::Offline {
                *asked += 1;
                found = Some(Arc::clone(member));
            }
        }
        turn.add_steps((*at - from).div_ceil(MEMBERS_PER_STEP));
        found
    }

    fn try_member(
        self: &Arc<Self>,
        pass: Pass,
        member: &Arc<Subscription>,
        broker: &Broker,
        message: &mut LazyMessage<'_>,
        instead: Option<RecordId>,
        turn: &mut Turn,
    ) -> Option<Delivered> {
        let session = member.session();
        let mut state = session.lock();
        let fits = pass.fits(&state, broker.config(), message.publish.qos);
        if !fits || !member.stands(&state) {
            return None;
        }
        let mut terms = member.terms(&message.publish, self);
        if pass == Pass::Offline && terms.qos == QoS::AtMostOnce {
            return None;
        }
        terms.record = broker.record_late(session, message, &terms, instead, turn);
        if terms.record.is_none() {
            broker.unrecord(instead);
        }
        Some(session.deliver_locked(&mut state, broker, message, &terms, turn))
    }
}

/// Takes what `session`, whose connection has just gone, got through groups and did not
/// acknowledge, as far as another member is there to get it. `state` is its own. What nobody else
/// could take stays where it is, to be sent again with its identifier.
pub(crate) fn take_orphans(session: &Arc<Session>, state: &mut State) -> Vec<Kept> {
    // A session that has ended will not send them again: then any other member may keep them.
    let ended = state.ended;
    let mut known: Vec<(Arc<ShareGroup>, bool)> = Vec::new(); // asked once, however many messages
    let mut wanted = |kept: &Kept| {
        let Some(group) = kept.share() else { return false };
        if let Some((_, wanted)) = known.iter().find(|(known, _)| Arc::ptr_eq(known, group)) {
            return *wanted;
        }
        let wanted = ended || another_is_online(group, session);
        known.push((Arc::clone(group), wanted));
        wanted
    };
    let unacknowledged =
        state.outbound.take_unacknowledged(|kept| kept.as_ref().is_some_and(&mut wanted));
    let mut orphans: Vec<Kept> = unacknowledged.into_iter().flatten().collect();
    if state.queue.has_shared() {
        orphans.extend(state.queue.extract(&mut wanted));
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
    broker: &Broker,
    turn: &mut Turn,
) {
    let mut left = Vec::new();
    for orphan in orphans {
        let Some(group) = orphan.share().cloned() else { continue };
        let Some(message) = broker.fetch(&orphan) else {
            turn.tally.dropped(DropReason::Unreadable, 1);
            continue;
        };
        let mut message = LazyMessage::of(&message);
        let was = Orphan { record: orphan.record, left_by: Some(session) };
        if !group.deliver(broker, &mut message, &was, turn) {
            left.push(orphan);
        }
    }
    if left.is_empty() {
        return;
    }
    let mut state = session.lock();
    if state.ended {
        left.iter().for_each(|kept| broker.unrecord(kept.record));
        turn.tally.dropped(DropReason::Offline, left.len() as u64);
        return;
    }
    if let Some(durable) = &state.durable {
        // Where another member took one and could not keep it, its record is gone.
        durable.put_queued(&left);
    }
    state.queue.give_back(left);
    // The client may be back by now.
    let idle = state.is_idle();
    session.pump(&mut state, broker, idle, turn);
}
