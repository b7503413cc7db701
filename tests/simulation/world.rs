//! What happens: clients act, bytes travel, the disk works, fails and forgets, the broker stops
//! and starts, and time passes.

use std::sync::Arc;

use surgemq::broker::{Broker, Config, Journal, Millis, Providers, Recovered, TICK_MS, Turn};
use surgemq::mqtt::{QoS, Version};
use surgemq::store::stepped::{AfterStep, Stepped};
use surgemq::store::testing::{Fault, SimDisk};
use surgemq::store::{Durability, Options};

use crate::client::{Client, Kind, Standing, Wishes};
use crate::ledger::{Ledger, Message, Number, WillFate, covers};
use crate::rng::Rng;
use crate::wire::Wire;

const STEPS: u64 = 1500;
/// The topics, and which client alone retains there.
pub(crate) const TOPICS: [(&str, Option<usize>); 6] =
    [("t/a", None), ("t/b", None), ("u", None), ("r/0", Some(0)), ("r/1", Some(1)), ("s/x", None)];
/// Each client has filters of one row, so that its subscriptions do not overlap: how many copies
/// come of those is the broker's choice.
const FILTERS: [&[&str]; 3] =
    [&["t/a", "t/b", "u", "r/#"], &["t/#", "u", "r/0", "r/1"], &["+/a", "+/b", "u", "+/0"]];
const SHARED: &[&str] = &["$share/g/s/#"];
/// 2026-01-01.
const BEGIN: Millis = 1_767_225_600_000;

/// What a run came to.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Totals {
    pub(crate) steps: u64,
    pub(crate) published: u64,
    pub(crate) arrived: u64,
    pub(crate) power_failures: u64,
    pub(crate) kills: u64,
    pub(crate) stops: u64,
    pub(crate) faults: u64,
}

impl Totals {
    pub(crate) fn add(&mut self, other: &Self) {
        self.steps += other.steps;
        self.published += other.published;
        self.arrived += other.arrived;
        self.power_failures += other.power_failures;
        self.kills += other.kills;
        self.stops += other.stops;
        self.faults += other.faults;
    }
}

/// How the broker comes to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// All that was not synced is gone, or, with a seed, some of it.
    PowerFailure(Option<u64>),
    /// What was written stays.
    Kill,
    /// It is told to stop.
    Stop,
}

pub(crate) struct World<'a> {
    pub(crate) rng: &'a mut Rng,
    pub(crate) step: u64,
    pub(crate) now: Millis,
    config: Config,
    options: Options,
    pub(crate) disk: Arc<SimDisk>,
    pub(crate) store: Arc<Stepped>,
    pub(crate) broker: Arc<Broker>,
    pub(crate) turn: Turn,
    pub(crate) clients: Vec<Client>,
    /// Links that their clients have given up, and whose they are.
    zombies: Vec<(usize, Wire)>,
    pub(crate) ledger: Ledger,
    next_wire: u64,
    /// No step of the disk is taken until then.
    hangs_until: u64,
    /// A step of the disk is taken once in so many times.
    slowness: usize,
    pub(crate) totals: Totals,
}

fn open(disk: &Arc<SimDisk>, options: &Options) -> (Arc<Stepped>, Recovered) {
    let mut recovered = Recovered::default();
    let disk = Arc::clone(disk);
    let (store, _) = Stepped::open_on(disk, options, &mut recovered).expect("the disk is well");
    (Arc::new(store), recovered)
}

fn start(config: &Config, store: &Arc<Stepped>, recovered: Recovered, now: Millis) -> Arc<Broker> {
    let journal: Arc<dyn Journal> = Arc::clone(store) as Arc<dyn Journal>;
    let providers = Providers { journal: Some(journal), ..Providers::default() };
    let broker = Arc::new(Broker::new(config.clone(), providers, 1));
    broker.restore(recovered, now).expect("its records are known");
    broker
}

impl<'a> World<'a> {
    pub(crate) fn new(rng: &'a mut Rng) -> Self {
        let config = Config {
            max_inflight: rng.pick(&[1, 3, 1000]),
            receive_maximum: rng.pick(&[1, 5, 1000]),
            outbox_bytes: rng.pick(&[300, 5_000, 1_000_000]),
            sys_interval_secs: 0,
            ..Config::default()
        };
        let segment_bytes = rng.pick(&[4096, 16 * 1024, 1024 * 1024]);
        let options = Options {
            durability: Durability::Commit,
            segment_bytes,
            max_disk: if rng.one_in(3) { segment_bytes * 8 } else { u64::MAX },
        };
        let disk = SimDisk::new();
        let (store, recovered) = open(&disk, &options);
        let broker = start(&config, &store, recovered, BEGIN);
        let slowness = rng.pick(&[1, 1, 8, 40]);
        let mut clients = Vec::new();
        for name in 0..8 {
            let v5 = rng.one_in(2);
            let version = if v5 { Version::V5 } else { Version::V311 };
            let filters = rng.pick(&FILTERS);
            let expiry = if v5 { rng.pick(&[u32::MAX, 60, 7]) } else { u32::MAX };
            clients.push(match name {
                0..4 => Client::new(name, Kind::Lasting, version, filters, expiry),
                4 | 5 => Client::new(name, Kind::Clean, version, filters, 0),
                _ => Client::new(name, Kind::Worker, Version::V5, SHARED, u32::MAX),
            });
        }
        let ledger =
            Ledger { trace: std::env::var_os("SURGEMQ_SIM_TRACE").is_some(), ..Ledger::default() };
        Self {
            rng,
            step: 0,
            now: BEGIN,
            config,
            options,
            disk,
            store,
            broker,
            turn: Turn::default(),
            clients,
            zombies: Vec::new(),
            ledger,
            next_wire: 1,
            hangs_until: 0,
            slowness,
            totals: Totals::default(),
        }
    }

    pub(crate) fn run(&mut self) {
        while self.step < STEPS {
            self.step += 1;
            self.operate();
        }
        self.finish();
        self.totals.steps = self.step;
        self.totals.published = self.ledger.messages.len() as u64;
        self.totals.arrived = self.ledger.arrivals;
    }

    fn operate(&mut self) {
        let at = self.rng.below(self.clients.len());
        match self.rng.below(1000) {
            0..220 => self.act(at),
            220..400 => self.read(at),
            400..520 => self.give(at),
            520..600 => self.answer(at),
            600..700 => self.wake(at),
            700..860 => self.work_on_disk(),
            860..890 => self.tidy(),
            890..920 => self.pass_time(),
            920..950 => self.lose_a_zombie(),
            950..970 => self.break_link(at),
            970..975 => self.disconnect(at),
            975..983 => self.change_disk(),
            983..985 => self.hang(),
            985 => self.probe_unhindered(),
            986..989 => self.restart(),
            _ => {
                for at in 0..self.clients.len() {
                    self.read(at);
                }
            }
        }
    }

    pub(crate) fn trace(&self, what: std::fmt::Arguments<'_>) {
        if self.ledger.trace {
            eprintln!("{:5} {} {what}", self.step, self.now - BEGIN);
        }
    }

    // ---- clients ---------------------------------------------------------------------------

    fn act(&mut self, at: usize) {
        if self.clients[at].connection.is_none() {
            if self.rng.one_in(4) {
                self.connect(at);
            }
            return;
        }
        if !self.clients[at].is_connected() {
            return;
        }
        match self.rng.below(10) {
            0 | 1 => {
                let filter = self.rng.pick(self.clients[at].filters);
                if self.clients[at].is_free(filter) {
                    let mut qos = some_qos(self.rng);
                    if self.clients[at].kind == Kind::Worker {
                        qos = qos.max(QoS::AtLeastOnce); // what it is owed must not be lost
                    }
                    self.trace(format_args!("client{at} subscribes to {filter} at {qos:?}"));
                    self.clients[at].subscribe(filter, qos);
                }
            }
            2 if self.clients[at].kind != Kind::Worker && self.rng.one_in(2) => {
                let filter = self.rng.pick(self.clients[at].filters);
                if self.clients[at].is_free(filter) {
                    self.trace(format_args!("client{at} unsubscribes from {filter}"));
                    self.clients[at].unsubscribe(filter);
                }
            }
            _ => {
                for _ in 0..=self.rng.below(3) {
                    self.publish(at);
                }
            }
        }
    }

    fn publish(&mut self, at: usize) {
        if !self.clients[at].can_publish() {
            return;
        }
        let (topic, owner) = self.rng.pick(&TOPICS);
        let retain = owner == Some(at);
        let v5 = self.clients[at].version.is_v5();
        let number = self.ledger.add(Message {
            publisher: at,
            topic,
            qos: some_qos(self.rng),
            retain,
            clears: retain && self.rng.one_in(5),
            expiry_secs: (v5 && !retain && self.rng.one_in(10))
                .then(|| self.rng.pick(&[1, 10, 1000])),
            padding: self.rng.pick(&[0, 10, 100, 700]),
            sent: 0,
            sent_at: 0,
            acknowledged: false,
            unordered: false,
            will: None,
        });
        if retain && self.ledger.messages[number].qos > QoS::AtMostOnce {
            // One quality for each: a QoS 1 message that is sent again comes behind a QoS 2
            // message that was handed on before.
            let always = if at == 0 { QoS::AtLeastOnce } else { QoS::ExactlyOnce };
            self.ledger.messages[number].qos = always;
        }
        let message = &self.ledger.messages[number];
        self.trace(format_args!(
            "client{at} publishes {number} on {topic} at {:?}{}",
            message.qos,
            if message.clears { ", clearing" } else { "" }
        ));
        self.clients[at].publish(number, &mut self.ledger, self.now);
    }

    pub(crate) fn new_wire(&mut self, capacity: usize) -> Wire {
        self.next_wire += 1;
        Wire::new(&self.broker, capacity, self.next_wire, self.now)
    }

    pub(crate) fn connect(&mut self, at: usize) {
        let capacity = self.rng.pick(&[64, 2_000, 10_000_000]);
        let wire = self.new_wire(capacity);
        let will = self.rng.one_in(2).then(|| self.new_will(at));
        let wishes = Wishes {
            will,
            receive_maximum: self.rng.pick(&[1, 3, 65_535]),
            aliases: self.rng.pick(&[0, 1, 10]),
        };
        if self.clients[at].kind == Kind::Lasting && self.rng.one_in(12) {
            self.clients[at].wants_clean = true;
        }
        let clean = self.clients[at].wants_clean;
        self.trace(format_args!("client{at} connects, clean {clean}, will {will:?}"));
        self.clients[at].connect(wire, &wishes, &mut self.ledger, self.now);
    }

    fn new_will(&mut self, at: usize) -> (Number, u32) {
        let delay_secs =
            if self.clients[at].version.is_v5() { self.rng.pick(&[0, 1, 5]) } else { 0 };
        let number = self.ledger.add(Message {
            publisher: at,
            topic: self.rng.pick(&["t/a", "u"]),
            qos: some_qos(self.rng),
            retain: false,
            clears: false,
            expiry_secs: None,
            padding: 5,
            sent: 0,
            sent_at: self.now,
            acknowledged: false,
            unordered: false,
            will: Some(WillFate::Never),
        });
        (number, delay_secs)
    }

    /// Bytes reach the broker.
    fn give(&mut self, at: usize) {
        let Some(connection) = &self.clients[at].connection else { return };
        let count = some_of(self.rng, connection.wire.outgoing.len());
        self.give_bytes(at, count);
    }

    pub(crate) fn give_bytes(&mut self, at: usize, count: usize) {
        self.note_room(at);
        let Some(connection) = &mut self.clients[at].connection else { return };
        connection.wire.give(count, &self.broker, &mut self.turn, self.now);
        self.note_room(at);
        self.after_showing(at);
    }

    /// The wake that the broker sent reaches the link.
    pub(crate) fn wake(&mut self, at: usize) {
        if self.zombies.iter().any(|(owner, _)| *owner == at) {
            for (owner, wire) in &mut self.zombies {
                if *owner == at {
                    wire.on_wake(&self.broker, &mut self.turn, self.now);
                }
            }
            self.sweep_zombies();
        }
        self.note_room(at);
        let Some(connection) = &mut self.clients[at].connection else { return };
        connection.wire.on_wake(&self.broker, &mut self.turn, self.now);
        self.note_room(at);
        self.after_showing(at);
    }

    /// What is refused now may be sent again behind what is accepted later.
    fn note_room(&mut self, at: usize) {
        if !self.store.has_room() {
            self.ledger.no_room_at = self.now;
            for number in self.clients[at].in_flight() {
                self.ledger.messages[number].unordered = true;
            }
        }
    }

    fn after_showing(&mut self, at: usize) {
        let client = &mut self.clients[at];
        client.note_attached(&self.ledger, self.now);
        client.note_closed(&mut self.ledger, self.now);
    }

    /// Bytes reach the client.
    pub(crate) fn read(&mut self, at: usize) {
        let Some(connection) = &self.clients[at].connection else { return };
        let count = some_of(self.rng, connection.wire.arriving());
        self.read_bytes(at, count);
        self.note_acknowledged();
        let promised = std::mem::take(&mut self.ledger.promised);
        if promised && self.step < STEPS && self.rng.one_in(60) {
            // What was said was safe at that very moment.
            self.end(End::PowerFailure(None));
        }
    }

    pub(crate) fn read_bytes(&mut self, at: usize, count: usize) {
        let client = &mut self.clients[at];
        let Some(connection) = &mut client.connection else { return };
        let bytes = connection.wire.take(count, &self.broker, self.now);
        if client.on_bytes(&bytes, &mut self.ledger, self.now) {
            self.trace(format_args!("client{at} hangs up"));
            self.leave(at);
        }
    }

    /// Whoever was surely subscribed all the time gets what was acknowledged, and wills.
    pub(crate) fn note_acknowledged(&mut self) {
        for number in std::mem::take(&mut self.ledger.news) {
            let message = &self.ledger.messages[number];
            if message.clears || message.expiry_secs.is_some() {
                continue;
            }
            let since = message.sent;
            if message.qos > QoS::AtMostOnce && covers(SHARED[0], message.topic) {
                let mut workers = self.clients.iter().filter(|client| client.kind == Kind::Worker);
                if workers.all(|worker| {
                    let standing = worker.session.subscriptions[SHARED[0]];
                    matches!(standing, Standing::Certain(began, _) if began <= since)
                }) {
                    self.ledger.shared_owed.push(number);
                }
                continue;
            }
            self.owe(number, since);
        }
        for (number, since) in std::mem::take(&mut self.ledger.inherited) {
            self.owe(number, since);
        }
    }

    fn owe(&mut self, number: Number, moment: u64) {
        let message = &self.ledger.messages[number];
        for client in self.clients.iter_mut().filter(|client| client.kind != Kind::Worker) {
            let is_owed = client.session.subscriptions.iter().any(|(filter, standing)| {
                let surely = matches!(standing, Standing::Certain(since, qos)
                    if *since <= moment && *qos > QoS::AtMostOnce);
                surely && covers(filter, message.topic)
            });
            // It may have come before its publisher heard of it.
            if is_owed && message.qos > QoS::AtMostOnce && !client.session.has_had(number) {
                client.session.owed.insert(number);
            }
        }
    }

    pub(crate) fn answer(&mut self, at: usize) {
        let count = 1 + self.rng.below(5);
        self.clients[at].answer(count);
    }

    pub(crate) fn break_link(&mut self, at: usize) {
        if self.clients[at].connection.is_some() {
            self.trace(format_args!("client{at} loses its link"));
            if self.rng.one_in(2) {
                self.read(at);
            }
            self.leave(at);
        }
    }

    fn disconnect(&mut self, at: usize) {
        if self.clients[at].is_connected() {
            self.trace(format_args!("client{at} disconnects"));
            self.clients[at].disconnect();
            self.leave(at);
        }
    }

    /// The client gives its connection up; the broker may get more of what is under way.
    pub(crate) fn leave(&mut self, at: usize) {
        let was_attached = |wire: &Wire| wire.is_attached && !wire.is_closed;
        let Some(mut wire) = self.clients[at].leave(&mut self.ledger, self.now) else { return };
        if was_attached(&wire) {
            self.zombies.push((at, wire));
        } else {
            self.lose(at, &mut wire);
        }
    }

    fn lose(&mut self, at: usize, wire: &mut Wire) {
        wire.lose(&self.broker, &mut self.turn, self.now);
        let client = &mut self.clients[at];
        if client.attached == wire.number {
            client.noticed_by = client.noticed_by.min(self.now);
        }
    }

    /// The broker notices that a link is broken, after some more bytes perhaps.
    fn lose_a_zombie(&mut self) {
        if self.zombies.is_empty() {
            return;
        }
        let chosen = self.rng.below(self.zombies.len());
        let at = self.zombies[chosen].0;
        self.note_room(at);
        let count = some_of(self.rng, self.zombies[chosen].1.outgoing.len());
        let (_, wire) = &mut self.zombies[chosen];
        wire.give(count, &self.broker, &mut self.turn, self.now);
        self.note_room(at);
        if self.rng.one_in(2) {
            self.trace(format_args!("the broker notices that client{at} has gone"));
            let (_, mut wire) = self.zombies.swap_remove(chosen);
            self.lose(at, &mut wire);
        }
        self.sweep_zombies();
    }

    fn sweep_zombies(&mut self) {
        for (at, wire) in &self.zombies {
            let client = &mut self.clients[*at];
            if wire.is_closed && client.attached == wire.number {
                client.noticed_by = client.noticed_by.min(self.now);
            }
        }
        self.zombies.retain(|(_, wire)| !wire.is_closed);
    }

    pub(crate) fn lose_all_zombies(&mut self) {
        for (at, mut wire) in std::mem::take(&mut self.zombies) {
            self.lose(at, &mut wire);
        }
    }

    pub(crate) fn segment_bytes(&self) -> u64 {
        self.options.segment_bytes
    }

    // ---- disk and time ---------------------------------------------------------------------

    fn work_on_disk(&mut self) {
        if self.step < self.hangs_until || !self.rng.one_in(self.slowness) {
            return;
        }
        for _ in 0..=self.rng.below(3) {
            self.store.write_step(self.now - BEGIN);
        }
    }

    fn tidy(&self) {
        if self.step >= self.hangs_until {
            self.store.tidy_step(self.now - BEGIN);
        }
    }

    /// The disk does all that it has to do.
    pub(crate) fn settle_disk(&self) {
        for _ in 0..10_000 {
            let wrote = self.store.write_step(self.now - BEGIN) == AfterStep::Again;
            if !wrote && !self.store.tidy_step(self.now - BEGIN) {
                return;
            }
        }
        panic!("the disk does not come to rest");
    }

    fn change_disk(&mut self) {
        self.totals.faults += 1;
        match self.rng.below(6) {
            0..3 => {
                self.disk.repair();
                self.disk.limit(None);
            }
            3 | 4 => {
                let fault = self.rng.pick(&[Fault::Error, Fault::Short, Fault::NoSpace]);
                let (nth, for_good) = (self.rng.below(6) as u64, self.rng.one_in(3));
                self.trace(format_args!("the disk: {fault:?} from {nth} on, {for_good}"));
                self.disk.fail(nth, fault, for_good);
            }
            _ => {
                let more = self.rng.below(3000) as u64;
                self.disk.limit(Some(self.disk.used() + more));
            }
        }
    }

    fn hang(&mut self) {
        self.hangs_until = self.step + 100;
    }

    pub(crate) fn pass_time(&mut self) {
        let ticks = match self.rng.below(10) {
            0 => self.rng.below(100),
            _ => self.rng.below(10),
        };
        if self.rng.one_in(60) {
            self.now += self.rng.below(30_000) as u64;
        }
        for _ in 0..=ticks {
            self.tick();
        }
    }

    pub(crate) fn tick(&mut self) {
        if !self.store.has_room() {
            self.ledger.no_room_at = self.now;
        }
        self.now += TICK_MS;
        self.turn.begin(self.now);
        self.broker.tick(&mut self.turn);
        self.turn.finish(&self.broker);
    }

    // ---- restarts --------------------------------------------------------------------------

    fn restart(&mut self) {
        let end = match self.rng.below(6) {
            0 | 1 => End::PowerFailure(Some(self.rng.next())),
            2 => End::PowerFailure(None),
            3 | 4 => End::Kill,
            _ => End::Stop,
        };
        if self.rng.one_in(3) {
            // In the middle of something.
            let nth = self.rng.below(4) as u64;
            self.disk.fail(nth, Fault::Short, true);
            self.store.write_step(self.now - BEGIN);
            self.store.tidy_step(self.now - BEGIN);
        }
        self.end(end);
    }

    pub(crate) fn stop_and_start(&mut self) {
        self.end(End::Stop);
    }

    pub(crate) fn fail_power(&mut self) {
        self.end(End::PowerFailure(None));
    }

    fn end(&mut self, end: End) {
        self.trace(format_args!("the broker ends: {end:?}"));
        match end {
            End::PowerFailure(seed) => {
                self.totals.power_failures += 1;
                self.disk.crash(seed);
            }
            End::Kill => {
                self.totals.kills += 1;
                self.disk.kill();
            }
            End::Stop => {
                self.totals.stops += 1;
                self.stop();
            }
        }
        self.disk.limit(None);
        self.zombies.clear();
        for at in 0..self.clients.len() {
            // What had left the broker may still arrive.
            if self.rng.one_in(2)
                && let Some(connection) = &self.clients[at].connection
            {
                let count = some_of(self.rng, connection.wire.arriving());
                self.read_bytes(at, count);
            }
            self.clients[at].leave(&mut self.ledger, self.now);
        }
        self.note_acknowledged();
        self.zombies.clear();
        self.ledger.restarts += 1;
        self.hangs_until = 0;
        if self.rng.one_in(3) {
            self.now += self.rng.below(8_000) as u64;
        }
        let (store, recovered) = open(&self.disk, &self.options);
        self.broker = start(&self.config, &store, recovered, self.now);
        self.store = store;
        for client in &mut self.clients {
            client.noticed_by = self.now;
        }
        if !self.store.has_room() {
            self.ledger.no_room_at = self.now;
        }
    }

    /// An orderly end.
    fn stop(&mut self) {
        for client in &self.clients {
            if let Some(connection) = &client.connection
                && let Some((number, _)) = connection.will
            {
                self.ledger.messages[number].will = Some(WillFate::Any);
            }
        }
        let mut wills = self.broker.last_wills();
        let mut more = true;
        while more {
            self.turn.begin(self.now);
            more = self.broker.publish_last_wills(&mut wills, &mut self.turn);
            self.turn.finish(&self.broker);
        }
        self.broker.shut_down();
        for at in 0..self.clients.len() {
            self.wake(at);
        }
        self.store.begin_closing();
        while self.store.write_step(self.now - BEGIN) != AfterStep::Stop {}
        self.disk.kill();
    }
}

fn some_qos(rng: &mut Rng) -> QoS {
    rng.pick(&[QoS::AtMostOnce, QoS::AtLeastOnce, QoS::AtLeastOnce, QoS::ExactlyOnce])
}

fn some_of(rng: &mut Rng, count: usize) -> usize {
    if rng.one_in(2) { count } else { rng.below(count + 1) }
}
