//! The run itself: rounds from one start of the broker to its end, and one loop that turns all
//! clients.
//!
//! | phase | until |
//! |---|---|
//! | `Starting` | a CONNECT is answered → `Running`; killed early → next round |
//! | `Running` | the time of the kill → next round (with SIGTERM by way of `Stopping`) |
//! | `Draining` | nothing is owed any more, or nothing comes any more → `Over` |

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::books::Books;
use super::drain::Drain;
use super::peer::{Client, Peer, listens, pump};
use super::plan::{Action, CrashLength, CrashPlan, KillSignal, RoundPlan};
use super::process::Process;
use super::publisher::Publisher;
use super::reader::Reader;
use super::report::{CrashCounts, CrashReport, RestartTimes, RetainedCounts};
use super::subscriber::Subscriber;
use super::violation::ViolationKind;
use super::{CrashError, CrashProgress};

/// The longest turn when nothing happens.
const TURN: Timespec = Timespec { tv_sec: 0, tv_nsec: 2_000_000 };
/// How often is counted what is owed.
const SURVEY: Duration = Duration::from_millis(50);
/// How often progress is told.
const PROGRESS: Duration = Duration::from_millis(200);
/// A subscriber that is owed more than this acknowledges at once.
const BEHIND: u64 = 200;
/// How long a broker may take to end after SIGTERM.
const TERM_WITHIN: Duration = Duration::from_secs(30);
/// A broker that dies so often by itself is not started again.
const DEATHS: u32 = 10;

#[derive(Debug)]
enum Phase {
    Starting { since: Instant },
    Running { since: Instant },
    Stopping { since: Instant },
    Draining(Drain),
    Over,
}

/// One run.
pub(super) struct World<'a> {
    plan: &'a CrashPlan,
    process: Process,
    pub(super) books: Books,
    pub(super) publishers: Vec<Publisher>,
    pub(super) subscribers: Vec<Subscriber>,
    pub(super) reader: Reader,
    /// By subscriber, at the last survey.
    owed: Vec<u64>,
    began: Instant,
    phase: Phase,
    round: RoundPlan,
    next_action: usize,
    /// No kill in this round.
    last_round: bool,
    /// Somebody listens at the broker's port.
    listening: bool,
    stopped_at: Option<Instant>,
    survey_at: Instant,
    progress_at: Instant,
    rounds: u32,
    kills: u32,
    kills_while_starting: u32,
    deaths: u32,
    restarts: Histogram<u64>,
}

impl<'a> World<'a> {
    pub(super) fn new(plan: &'a CrashPlan) -> Result<Self, CrashError> {
        let now = Instant::now();
        let process = Process::new(plan)
            .map_err(|error| CrashError::Dir(plan.dir.display().to_string(), error))?;
        // Other than in another run with the same seed, whose sessions may still be there.
        let tag = process.unique();
        let run = format!("{:x}-{:04x}", plan.seed, tag & 0xFFFF);
        let books = Books::new(plan, &run, tag, now);
        let cast = books.cast.clone();
        let publisher = |at| Publisher::new(&cast, at, plan.window, plan.seed);
        let subscriber = |at| Subscriber::new(&cast, at, plan.seed);
        Ok(Self {
            plan,
            process,
            publishers: (0..plan.publishers).map(publisher).collect(),
            subscribers: (0..plan.subscribers).map(subscriber).collect(),
            reader: Reader::new(&run, plan.seed),
            owed: vec![0; plan.subscribers],
            books,
            began: now,
            phase: Phase::Starting { since: now },
            round: RoundPlan::new(plan, 1),
            next_action: 0,
            last_round: false,
            listening: false,
            stopped_at: None,
            survey_at: now,
            progress_at: now,
            rounds: 0,
            kills: 0,
            kills_while_starting: 0,
            deaths: 0,
            restarts: Histogram::new(3).expect("3 digits are allowed"),
        })
    }

    pub(super) fn run(
        mut self,
        stop: &AtomicU32,
        observer: &mut dyn FnMut(&CrashProgress<'_>),
    ) -> Result<CrashReport, CrashError> {
        if let Err(error) = self.go_on(stop, observer) {
            self.process.kill();
            self.process.remove_files();
            return Err(error);
        }
        self.process.kill();
        let passed = self.books.findings.violations.total() == 0;
        let dir = if passed && !self.plan.keep {
            self.process.remove_files();
            None
        } else {
            self.process.data.parent().map(|dir| dir.display().to_string())
        };
        Ok(self.report(passed, stop.load(Ordering::Relaxed) > 0, dir))
    }

    /// Turns until it is over.
    fn go_on(
        &mut self,
        stop: &AtomicU32,
        observer: &mut dyn FnMut(&CrashProgress<'_>),
    ) -> Result<(), CrashError> {
        self.start(1)?;
        while !matches!(self.phase, Phase::Over) {
            self.books.now = Instant::now();
            self.books.findings.at_s = (self.books.now - self.began).as_secs_f64();
            self.advance(stop.load(Ordering::Relaxed))?;
            self.drive();
            let ready = self.wait()?;
            self.books.now = Instant::now();
            // At every survey also those whose CONNACK may be late.
            let all = self.books.now >= self.survey_at;
            self.read(|peer| all || ready[peer]);
            self.tell(observer);
        }
        self.tell(observer);
        Ok(())
    }

    /// Begins a round.
    fn begin(&mut self, round: u32) {
        self.books.findings.round = round;
        self.round = RoundPlan::new(self.plan, round);
        self.next_action = 0;
    }

    /// Starts the broker, and begins a round with it.
    fn start(&mut self, round: u32) -> Result<(), CrashError> {
        self.process.start().map_err(CrashError::Start)?;
        self.begin(round);
        self.books.connected = false;
        self.listening = false;
        self.phase = Phase::Starting { since: Instant::now() };
        Ok(())
    }

    fn next_round(&mut self) -> Result<(), CrashError> {
        self.start(self.books.findings.round + 1)
    }

    /// Lets the phase follow the time and the broker's state.
    fn advance(&mut self, stop: u32) -> Result<(), CrashError> {
        let now = self.books.now;
        if stop > 1 {
            self.phase = Phase::Over;
            return Ok(());
        }
        self.last_round |= stop > 0
            || match self.plan.length {
                CrashLength::Rounds(rounds) => self.rounds >= rounds,
                CrashLength::Time(time) => now - self.began >= time,
            };
        if let Some(status) = self.process.ended() {
            return self.on_ended(&status.to_string());
        }
        match self.phase {
            Phase::Starting { since } => self.starting(since),
            Phase::Running { since } => self.running(since),
            Phase::Stopping { since } if now - since > TERM_WITHIN => {
                let detail = format!("it did not end within {TERM_WITHIN:?} after SIGTERM");
                self.books.findings.add(ViolationKind::NotAnswered, "broker", detail);
                self.process.kill();
                self.next_round()
            }
            Phase::Stopping { .. } | Phase::Over => Ok(()),
            Phase::Draining(ref mut drain) => {
                let mut drain = std::mem::take(drain);
                let over = drain.turn(self);
                self.phase = if over { Phase::Over } else { Phase::Draining(drain) };
                Ok(())
            }
        }
    }

    /// The broker's process is not there any more.
    fn on_ended(&mut self, status: &str) -> Result<(), CrashError> {
        let words = self.process.last_words();
        let starting = matches!(self.phase, Phase::Starting { .. });
        if starting && self.books.findings.round == 1 {
            return Err(CrashError::NotUp(format!("{status}; {words}")));
        }
        let findings = &mut self.books.findings;
        if starting {
            findings.add(ViolationKind::NotStarted, "broker", format!("{status}; {words}"));
            self.phase = Phase::Over;
            return Ok(());
        }
        if !matches!(self.phase, Phase::Stopping { .. }) {
            findings.add(ViolationKind::Died, "broker", format!("{status}; {words}"));
            self.deaths += 1;
            self.stopped_at = Some(self.books.now);
            if self.deaths == DEATHS {
                self.phase = Phase::Over;
                return Ok(());
            }
        }
        self.next_round()
    }

    fn starting(&mut self, since: Instant) -> Result<(), CrashError> {
        let now = self.books.now;
        if self.books.connected {
            if let Some(stopped_at) = self.stopped_at.take() {
                // It grows as it has to.
                let _ = self.restarts.record((now - stopped_at).as_micros() as u64);
            }
            self.phase = Phase::Running { since: now };
        } else if self.round.early.is_some_and(|early| now - since >= early) && !self.last_round {
            self.kills_while_starting += 1;
            return self.end_round();
        } else if now - since > self.plan.start_within {
            let words = self.process.last_words();
            let detail = format!("not ready after {:?}; {words}", self.plan.start_within);
            if self.books.findings.round == 1 {
                return Err(CrashError::NotUp(detail));
            }
            self.books.findings.add(ViolationKind::NotStarted, "broker", detail);
            self.phase = Phase::Over;
        } else if !self.listening {
            self.listening = listens(self.process.address);
        }
        Ok(())
    }

    fn running(&mut self, since: Instant) -> Result<(), CrashError> {
        let elapsed = self.books.now - since;
        if self.last_round {
            self.phase = Phase::Draining(Drain::new(self.books.now, self.plan.quiet));
            return Ok(());
        }
        while let Some((at, action)) = self.round.actions.get(self.next_action).copied()
            && at <= elapsed
        {
            self.next_action += 1;
            self.act(action);
        }
        let kill_after = self.round.early.unwrap_or(self.round.kill_after);
        if elapsed >= kill_after { self.end_round() } else { Ok(()) }
    }

    fn act(&mut self, action: Action) {
        let now = self.books.now;
        match action {
            Action::Toggle { subscriber, filter } => {
                self.subscribers[subscriber].toggle(filter, &mut self.books);
            }
            Action::Leave { subscriber, rounds, polite } => {
                let until = self.books.findings.round + rounds;
                self.subscribers[subscriber].leave(until, polite, now);
            }
            Action::DropSubscriber(subscriber) => self.subscribers[subscriber].peer().hang_up(now),
            Action::DropPublisher(publisher) => self.publishers[publisher].peer().hang_up(now),
        }
    }

    fn end_round(&mut self) -> Result<(), CrashError> {
        self.rounds += 1;
        let now = Instant::now();
        if self.plan.signal != KillSignal::None {
            self.kills += 1;
            self.stopped_at = Some(now);
        }
        match self.plan.signal {
            KillSignal::None => {
                // It is not stopped at all.
                self.begin(self.books.findings.round + 1);
                self.phase = Phase::Running { since: now };
                Ok(())
            }
            KillSignal::Kill => {
                self.process.kill();
                // What it still said belongs to this round.
                self.read(|_| true);
                self.next_round()
            }
            KillSignal::Term => {
                self.process.terminate();
                self.listening = false;
                self.phase = Phase::Stopping { since: now };
                Ok(())
            }
        }
    }

    /// Lets all clients do what is due.
    fn drive(&mut self) {
        let now = self.books.now;
        if now >= self.survey_at {
            self.survey();
        }
        let (address, round) = (self.process.address, self.books.findings.round);
        let publishing = matches!(self.phase, Phase::Running { .. })
            && self.owed.iter().all(|owed| *owed <= self.plan.backlog);
        let interval = (self.plan.rate > 0.0)
            .then(|| Duration::from_secs_f64(self.plan.publishers as f64 / self.plan.rate));
        for publisher in &mut self.publishers {
            if self.listening {
                publisher.peer().connect(address, now);
            }
            if publishing {
                publisher.publish(interval, &mut self.books);
            }
            publisher.peer().flush();
        }
        for subscriber in &mut self.subscribers {
            if self.listening && !subscriber.is_away(round) {
                subscriber.peer().connect(address, now);
            }
            subscriber.acknowledge(now);
        }
        if self.listening && self.reader.is_due(now) {
            self.reader.peer().connect(address, now);
        }
        self.reader.turn(&mut self.books);
        self.reader.peer().flush();
    }

    /// Counts what is owed to whom.
    pub(super) fn survey(&mut self) {
        self.survey_at = self.books.now + SURVEY;
        let draining = matches!(self.phase, Phase::Draining(_));
        for (at, subscriber) in self.subscribers.iter_mut().enumerate() {
            self.owed[at] = self.books.checker.owed(at);
            subscriber.hurry(draining || self.owed[at] > BEHIND);
        }
    }

    /// What all subscribers together are owed.
    pub(super) fn owed(&self) -> u64 {
        self.owed.iter().sum()
    }

    fn peers(&self) -> impl Iterator<Item = &Peer> {
        let publishers = self.publishers.iter().map(Publisher::peer_ref);
        let subscribers = self.subscribers.iter().map(Subscriber::peer_ref);
        publishers.chain(subscribers).chain([self.reader.peer_ref()])
    }

    /// Waits for a socket, but not long; says which are ready, in the order of `peers`.
    fn wait(&self) -> std::io::Result<Vec<bool>> {
        let mut ready = Vec::with_capacity(self.publishers.len() + self.subscribers.len() + 1);
        let mut places = Vec::new();
        let mut sockets = Vec::new();
        for (at, peer) in self.peers().enumerate() {
            ready.push(false);
            let Some((socket, read, write)) = peer.interest() else { continue };
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, read);
            flags.set(PollFlags::OUT, write);
            places.push(at);
            sockets.push(PollFd::from_borrowed_fd(socket, flags));
        }
        match poll(&mut sockets, Some(&TURN)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for (at, socket) in places.into_iter().zip(&sockets) {
            ready[at] = !socket.revents().is_empty();
        }
        Ok(ready)
    }

    /// Reads for all clients that are ready, by their number in `peers`.
    fn read(&mut self, ready: impl Fn(usize) -> bool) {
        let mut number = 0..;
        let mut next = || number.next().is_some_and(&ready);
        for publisher in &mut self.publishers {
            if next() {
                pump(publisher, &mut self.books);
            }
        }
        for subscriber in &mut self.subscribers {
            if next() {
                pump(subscriber, &mut self.books);
            }
        }
        if next() {
            pump(&mut self.reader, &mut self.books);
        }
    }

    fn tell(&mut self, observer: &mut dyn FnMut(&CrashProgress<'_>)) {
        for violation in self.books.findings.violations.news() {
            observer(&CrashProgress::Violation(violation));
        }
        if self.books.now < self.progress_at {
            return;
        }
        self.progress_at = self.books.now + PROGRESS;
        if matches!(self.phase, Phase::Draining(_)) {
            return observer(&CrashProgress::Draining { owed: self.owed() });
        }
        let [qos1, qos2] = self.books.checker.counts();
        observer(&CrashProgress::Running {
            round: self.books.findings.round,
            fraction: match self.plan.length {
                CrashLength::Rounds(rounds) => f64::from(self.rounds) / f64::from(rounds.max(1)),
                CrashLength::Time(time) => {
                    (self.books.now - self.began).as_secs_f64() / time.as_secs_f64().max(0.001)
                }
            },
            acknowledged: qos1.acknowledged + qos2.acknowledged,
            delivered: qos1.delivered + qos2.delivered,
            violations: self.books.findings.violations.total(),
        });
    }

    fn report(&self, passed: bool, interrupted: bool, dir: Option<String>) -> CrashReport {
        let books = &self.books;
        let [qos1, qos2] = books.checker.counts().map(|counts| CrashCounts {
            published: counts.published,
            acknowledged: counts.acknowledged,
            delivered: counts.delivered,
            duplicates: counts.duplicates,
        });
        let violations = &books.findings.violations;
        CrashReport {
            version: env!("CARGO_PKG_VERSION"),
            seed: self.plan.seed,
            passed,
            interrupted,
            seconds: self.began.elapsed().as_secs_f64(),
            rounds: self.rounds,
            kills: self.kills,
            kills_while_starting: self.kills_while_starting,
            qos1,
            qos2,
            retained: RetainedCounts {
                published: books.retained.published,
                acknowledged: books.retained.acknowledged,
                readings: books.retained.readings,
            },
            sessions_resumed: books.resumed,
            refused: books.refused,
            restart: RestartTimes {
                count: self.restarts.len(),
                median_ms: self.restarts.value_at_quantile(0.5) as f64 / 1e3,
                max_ms: self.restarts.max() as f64 / 1e3,
            },
            violation_counts: violations.counts.iter().map(|(kind, n)| (*kind, *n)).collect(),
            violations: violations.kept.clone(),
            dir,
        }
    }
}
