//! A thread of the load: an epoll loop over its connections and, with a rate, the clock that says
//! which publisher's turn it is.

use std::io;
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, AtomicUsize, Ordering};

use rustix::event::{Timespec, epoll};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};

use super::clock;
use super::connection::{Broken, Connection, Interest, Shared};
use super::meter::Latencies;
use super::schedule::Schedule;
use super::tracks::Tracks;

/// Bytes that one read takes at most.
pub(super) const READ_BYTES: usize = 256 << 10;
/// The loop looks at least this often at whether it should stop.
const LONGEST_WAIT: u64 = 20_000_000;
/// With a rate, due messages are sent at most this often, in nanoseconds: above 20,000 messages
/// per second they leave in small batches rather than in a busy loop.
const SHORTEST_TURN: u64 = 50_000;
/// With so much to send that a thread would spend its time on small writes, and the broker its own
/// on small reads, a publisher's due messages leave together: a thread then writes about every
/// `WRITE` nanoseconds, but no message waits for longer than `LONGEST_TURN`. (That wait is in the
/// latencies, which count from when a message was due. 176,000 messages of QoS 1 per second from
/// 20 publishers, sent one by one, took a processor of the generator and another of the broker.)
const WRITE: u64 = 100_000;
const LONGEST_TURN: u64 = 1_000_000;

/// After so many turns the subscribers are looked at: publishers that have fallen behind must not
/// make slow subscribers of their neighbours.
const TURNS_AT_ONCE: usize = 8;
/// Batches that a publisher with a rate writes in its turn, if so much is due.
const WRITES_AT_ONCE: usize = 4;
/// Reads of one connection before the others get their turn.
const READS_AT_ONCE: usize = 8;

/// The timer's mark among the events; connections have their place.
const TIMER: u64 = u64::MAX;

/// What the threads and the one that watches them tell one another.
#[derive(Debug)]
pub(super) struct Control {
    /// No more publishing.
    pub(super) stop: AtomicBool,
    /// Leave the loop.
    pub(super) finish: AtomicBool,
    /// Messages sent, by publisher.
    pub(super) sent: Vec<AtomicU64>,
    pub(super) workers: Vec<WorkerState>,
}

/// One thread's own line of it.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct WorkerState {
    /// Thread identifier, once it runs.
    pub(super) thread: AtomicI32,
    /// Deliveries received.
    pub(super) delivered: AtomicU64,
    /// When the last of them came; 0 before any.
    pub(super) last_delivery: AtomicU64,
    /// Publishers that are not finished.
    pub(super) publishing: AtomicUsize,
}

impl Control {
    pub(super) fn new(publishers: usize, workers: usize) -> Self {
        Self {
            stop: AtomicBool::new(false),
            finish: AtomicBool::new(false),
            sent: (0..publishers).map(|_| AtomicU64::new(0)).collect(),
            workers: (0..workers).map(|_| WorkerState::default()).collect(),
        }
    }

    pub(super) fn sent_by_publisher(&self) -> Vec<u64> {
        self.sent.iter().map(|sent| sent.load(Ordering::Relaxed)).collect()
    }

    pub(super) fn sent(&self) -> u64 {
        self.sent.iter().map(|sent| sent.load(Ordering::Relaxed)).sum()
    }

    pub(super) fn delivered(&self) -> u64 {
        self.workers.iter().map(|worker| worker.delivered.load(Ordering::Relaxed)).sum()
    }

    /// When the last delivery came, if any did.
    pub(super) fn last_delivery(&self) -> Option<u64> {
        let times = self.workers.iter().map(|worker| worker.last_delivery.load(Ordering::Relaxed));
        times.max().filter(|time| *time > 0)
    }

    pub(super) fn publishing(&self) -> usize {
        self.workers.iter().map(|worker| worker.publishing.load(Ordering::Acquire)).sum()
    }
}

/// What a thread leaves behind.
#[derive(Debug)]
pub(super) struct Harvest {
    pub(super) latencies: Latencies,
    /// Subscriber, what it saw, how many deliveries it had.
    pub(super) received: Vec<(u32, Tracks, u64)>,
    /// Messages that the broker refused by a reason code.
    pub(super) refused: u64,
    /// Why connections broke.
    pub(super) broken: Vec<Broken>,
}

/// See the module.
pub(super) struct Worker<'a> {
    epoll: OwnedFd,
    /// Ends a wait to the microsecond, where the timeout of the wait itself is in milliseconds.
    timer: OwnedFd,
    connections: Vec<Slot<'a>>,
    shared: Shared<'a>,
    scratch: Vec<u8>,
    pace: Pace,
    control: &'a Control,
    state: &'a WorkerState,
    broken: Vec<Broken>,
    kicked: bool,
    swept: bool,
}

struct Slot<'a> {
    connection: Connection<'a>,
    interest: Interest,
    /// Its publisher still has something to do.
    publishing: bool,
    open: bool,
}

impl<'a> Worker<'a> {
    pub(super) fn new(
        connections: Vec<Connection<'a>>,
        shared: Shared<'a>,
        control: &'a Control,
        number: usize,
    ) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)?;
        let timer_event = epoll::EventData::new_u64(TIMER);
        // Edge-triggered, so that nobody has to read it: setting it anew is enough.
        let edge = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&epoll, &timer, timer_event, edge)?;
        let interest = Interest { read: true, write: false };
        let mut slots = Vec::with_capacity(connections.len());
        for (at, connection) in connections.into_iter().enumerate() {
            connection.socket.set_nonblocking(true)?;
            let data = epoll::EventData::new_u64(at as u64);
            epoll::add(&epoll, &connection.socket, data, flags(interest))?;
            let publishing = connection.publishing.is_some();
            slots.push(Slot { connection, interest, publishing, open: true });
        }
        let state = &control.workers[number];
        let publishing = slots.iter().filter(|slot| slot.publishing).count();
        state.publishing.store(publishing, Ordering::Release);
        let scratch = vec![0; READ_BYTES.max(2 * shared.frames.frame_len() + 1024)];
        let pace = Pace::new(&slots, &shared.schedule);
        Ok(Self {
            epoll,
            timer,
            connections: slots,
            shared,
            scratch,
            pace,
            control,
            state,
            broken: Vec::new(),
            kicked: false,
            swept: false,
        })
    }

    /// Runs until told to finish.
    pub(super) fn run(mut self) -> io::Result<Harvest> {
        let thread = rustix::thread::gettid();
        self.state.thread.store(thread.as_raw_nonzero().get(), Ordering::Release);
        // The kernel's default lets a timer be 50 µs late, which would be seen in every latency.
        rustix::thread::set_current_timer_slack(NonZeroU64::new(1_000))?;
        let mut events = Vec::with_capacity(256);
        while !self.control.finish.load(Ordering::Acquire) {
            let now = clock::now();
            self.shared.meter.tick(now);
            self.take_turns(now);
            let timeout = self.arm(self.wait(now))?;
            events.clear();
            let room = rustix::buffer::spare_capacity(&mut events);
            match epoll::wait(&self.epoll, room, Some(&timeout)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in &events {
                if event.data.u64() != TIMER {
                    self.on_event(event.data.u64() as usize, event.flags);
                }
            }
        }
        Ok(self.harvest())
    }

    /// Prepares a wait of so many nanoseconds; returns the timeout to give it.
    fn arm(&self, wait: u64) -> io::Result<Timespec> {
        let nanos = wait % 1_000_000_000;
        let seconds = wait / 1_000_000_000;
        let time = Timespec { tv_sec: seconds as i64, tv_nsec: nanos as _ };
        if wait > 0 && wait < LONGEST_WAIT {
            let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
            let once = Itimerspec { it_interval: zero, it_value: time };
            timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once)?;
        }
        Ok(time)
    }

    /// What the clock alone brings about: the start, due messages, the end.
    fn take_turns(&mut self, now: u64) {
        self.shared.stopped = self.control.stop.load(Ordering::Acquire);
        if !self.kicked && now >= self.shared.timeline.start {
            self.kicked = true;
            self.everyone(now);
        }
        if !self.swept && (self.shared.stopped || now >= self.shared.timeline.until) {
            self.swept = true;
            self.everyone(now);
        }
        if !self.swept {
            for _ in 0..TURNS_AT_ONCE {
                let due = self.pace.next_due(&self.shared.schedule, now);
                let Some(at) = due else { return };
                self.publish(at, now);
            }
        }
    }

    fn everyone(&mut self, now: u64) {
        for at in 0..self.connections.len() {
            self.publish(at, now);
        }
    }

    fn publish(&mut self, at: usize, now: u64) {
        let slot = &mut self.connections[at];
        if !slot.open {
            return;
        }
        let mut outcome = slot.connection.write(&mut self.shared, now);
        for _ in 1..WRITES_AT_ONCE {
            if outcome.is_err() || !slot.connection.is_behind(&self.shared, now) {
                break;
            }
            outcome = slot.connection.write(&mut self.shared, now);
        }
        self.settle(at, outcome, now);
    }

    fn on_event(&mut self, at: usize, flags: epoll::EventFlags) {
        let slot = &mut self.connections[at];
        if !slot.open {
            return;
        }
        let mut outcome = Ok(());
        if flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::HUP | epoll::EventFlags::ERR)
        {
            for _ in 0..READS_AT_ONCE {
                match slot.connection.read(&mut self.scratch, &mut self.shared) {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(broken) => {
                        outcome = Err(broken);
                        break;
                    }
                }
            }
        }
        let now = clock::now();
        if outcome.is_ok() && flags.contains(epoll::EventFlags::OUT) {
            outcome = slot.connection.write(&mut self.shared, now);
        }
        self.settle(at, outcome, now);
    }

    /// After anything was done with a connection: waits for what it needs now.
    fn settle(&mut self, at: usize, outcome: Result<(), Broken>, now: u64) {
        let slot = &mut self.connections[at];
        let wanted = slot.connection.interest(&self.shared, now);
        let outcome = outcome.and_then(|()| {
            if wanted == slot.interest {
                return Ok(());
            }
            slot.interest = wanted;
            let data = epoll::EventData::new_u64(at as u64);
            epoll::modify(&self.epoll, &slot.connection.socket, data, flags(wanted))
                .map_err(|errno| Broken::Io(errno.into()))
        });
        if let Err(broken) = outcome {
            slot.open = false;
            // A socket that is gone from the set anyway needs no second answer.
            let _ = epoll::delete(&self.epoll, &slot.connection.socket);
            self.broken.push(broken);
        }
        if slot.publishing && (!slot.open || slot.connection.is_finished(&self.shared, now)) {
            slot.publishing = false;
            self.state.publishing.fetch_sub(1, Ordering::Release);
        }
    }

    /// Nanoseconds until the clock has something to do again.
    fn wait(&self, now: u64) -> u64 {
        let until_start = self.shared.timeline.start.saturating_sub(now);
        if until_start > 0 {
            return until_start.min(LONGEST_WAIT);
        }
        if self.swept {
            return LONGEST_WAIT;
        }
        let until_end = self.shared.timeline.until.saturating_sub(now);
        let next_due = self.pace.next(&self.shared.schedule).unwrap_or(u64::MAX);
        next_due.saturating_sub(now).min(until_end).min(LONGEST_WAIT)
    }

    fn harvest(self) -> Harvest {
        let mut refused = 0;
        let mut received = Vec::new();
        for Slot { mut connection, open, .. } in self.connections {
            if open {
                connection.take_leave();
            }
            refused += connection.publishing.map_or(0, |publishing| publishing.refused);
            received
                .extend(connection.receiving.map(|part| (part.index, part.tracks, part.delivered)));
        }
        Harvest { latencies: self.shared.meter.finish(), received, refused, broken: self.broken }
    }
}

fn flags(interest: Interest) -> epoll::EventFlags {
    let mut flags = epoll::EventFlags::empty();
    flags.set(epoll::EventFlags::IN, interest.read);
    flags.set(epoll::EventFlags::OUT, interest.write);
    flags
}

/// Whose turn it is among a worker's own publishers.
///
/// Only says whom to look at: how many messages he may send is his own reckoning, so somebody
/// whose socket or window is full loses nothing by being passed over.
#[derive(Debug)]
struct Pace {
    /// Publisher's index and place among the connections, in the order of turns.
    order: Vec<(u32, usize)>,
    at: usize,
    round: u64,
    /// When this round began, or the last one if this has not.
    began: u64,
    /// Nanoseconds from the beginning of a round to the next at least. (Only a whole round may wait
    /// for it: while some of the publishers are written to, messages become due for the others.)
    turn: u64,
}

impl Pace {
    fn new(slots: &[Slot<'_>], schedule: &Schedule) -> Self {
        let publisher = |(at, slot): (usize, &Slot<'_>)| {
            slot.connection.publishing.as_ref().map(|part| (part.index, at))
        };
        let mut order: Vec<_> = slots.iter().enumerate().filter_map(publisher).collect();
        order.sort_unstable();
        let turn = Self::turn(order.len() as u64, schedule);
        Self { order, at: 0, round: 0, began: 0, turn }
    }

    /// A long one only where it saves writes: where a publisher has several messages in it.
    fn turn(publishers: u64, schedule: &Schedule) -> u64 {
        let long = (publishers * WRITE).clamp(SHORTEST_TURN, LONGEST_TURN);
        if schedule.due(0, schedule.start() + long) > 2 { long } else { SHORTEST_TURN }
    }

    /// When the next turn is; `None` without a rate or without publishers.
    fn next(&self, schedule: &Schedule) -> Option<u64> {
        let (publisher, _) = self.order.get(self.at)?;
        let earliest = if self.at == 0 { self.began + self.turn } else { 0 };
        match schedule {
            Schedule::Unthrottled => None,
            Schedule::Paced { .. } => {
                Some(schedule.intended(*publisher, self.round, 0).max(earliest))
            }
        }
    }

    /// The connection whose publisher is due, each once; `None` when nobody else is.
    fn next_due(&mut self, schedule: &Schedule, now: u64) -> Option<usize> {
        let due = self.next(schedule)?;
        if due > now {
            return None;
        }
        let (publisher, place) = self.order[self.at];
        if self.at == 0 {
            self.began = now;
        }
        if self.at + 1 < self.order.len() {
            self.at += 1;
        } else {
            self.at = 0;
            // A publisher's due messages leave together. Everybody was looked at since then, and
            // the last one had the fewest.
            self.round = schedule.due(publisher, self.began).max(self.round + 1);
        }
        Some(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn pace(publishers: u32, rate: f64) -> (Pace, Schedule) {
        let schedule = Schedule::new(Some(rate), 5 * MS, publishers as usize);
        let order: Vec<_> = (0..publishers).map(|index| (index, index as usize)).collect();
        let turn = Pace::turn(order.len() as u64, &schedule);
        (Pace { order, at: 0, round: 0, began: 0, turn }, schedule)
    }

    #[test]
    fn messages_are_sent_one_by_one_unless_that_is_too_much_for_a_thread() {
        assert_eq!(pace(1000, 10_000.0).0.turn, SHORTEST_TURN, "nothing could be put together");
        assert_eq!(pace(20, 20_000.0).0.turn, SHORTEST_TURN);
        assert_eq!(pace(20, 176_000.0).0.turn, LONGEST_TURN);
        assert_eq!(pace(1, 1e6).0.turn, WRITE);
    }

    #[test]
    fn nobody_who_is_due_is_passed_over_for_longer_than_a_turn() {
        for (publishers, rate) in [(1, 1e6), (7, 300_000.0), (20, 176_000.0), (3, 900.0)] {
            let (mut pace, schedule) = pace(publishers, rate);
            let mut sent = vec![0; publishers as usize];
            let mut now = 0;
            for step in 0..400 {
                // Late now and then, as on a busy machine.
                now += pace.turn * if step % 50 == 49 { 40 } else { 1 };
                while let Some(at) = pace.next_due(&schedule, now) {
                    sent[at] = schedule.due(at as u32, now);
                }
                for (at, sent) in sent.iter().enumerate() {
                    let missed = schedule.due(at as u32, now) - sent;
                    assert_eq!(missed, 0, "{publishers} at {rate}: {at}");
                }
            }
        }
    }
}
