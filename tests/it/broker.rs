//! Brokers to test: one for all tests that need no special flags, others by their flags.
//!
//! `SURGEMQ_TEST_BROKER=host:port` names a broker that takes the place of the common one. Tests
//! that need flags are then skipped, since only our own broker understands them.
//! `SURGEMQ_TEST_BINARY=path` starts another build of ours instead of the one cargo has made.
//! With `SURGEMQ_TEST_DURABLE=1` every broker keeps its sessions in a data directory of its own.
//! Those of [`Broker::durable`] always do, and can be stopped and started again on it.

use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use crate::peer::Peer;
use crate::wire::{Connack, Connect, Packet, Version, connect};

/// How long anything that should happen may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// A running broker. Dropping it kills the process, and fails the test if it had died before.
pub(crate) struct Broker {
    address: SocketAddr,
    process: Option<Mutex<Process>>,
}

struct Process {
    child: Child,
    output: Arc<Mutex<String>>,
    stopped: bool,
    launch: Launch,
}

/// How a broker is started, and started again.
pub(crate) struct Launch {
    /// What comes before the binary: a command that runs it somewhere else.
    wrapper: Vec<String>,
    flags: Vec<String>,
    dir: Option<PathBuf>,
    _owned_dir: Option<tempfile::TempDir>,
}

/// How a broker is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// SIGKILL: it learns nothing of it.
    Kill,
    /// SIGTERM: it closes everything in order.
    Term,
}

/// The broker that tests without special flags share. It dies with this process.
pub(crate) fn broker() -> &'static Broker {
    static SHARED: OnceLock<Broker> = OnceLock::new();
    let broker = SHARED.get_or_init(|| match std::env::var("SURGEMQ_TEST_BROKER") {
        Ok(name) => {
            let address = name.to_socket_addrs().expect("host:port").next().expect("an address");
            Broker { address, process: None }
        }
        Err(_) => {
            let broker = Broker::spawn(&[]);
            // Statics are not dropped: a shell waits for the end of our pipe and kills it.
            let watchdog = Command::new("sh")
                .args(["-c", "read -r _; kill -9 \"$1\" 2>/dev/null", "sh"])
                .arg(broker.pid().to_string())
                .stdin(Stdio::piped())
                .spawn()
                .expect("sh");
            std::mem::forget(watchdog);
            broker
        }
    });
    broker.assert_alive();
    broker
}

/// Whether `broker` is somebody else's.
pub(crate) fn foreign() -> bool {
    std::env::var_os("SURGEMQ_TEST_BROKER").is_some()
}

/// Says that a test, or a part of it, cannot be made here.
pub(crate) fn skipped(why: &str) {
    use std::io::Write as _;
    let name = thread::current().name().unwrap_or("a test").to_owned();
    // Not eprintln!, which the test harness keeps to itself.
    let _ = std::io::stderr().write_all(format!("skipped: {name}: {why}\n").as_bytes());
}

/// A broker with flags of its own, or `None` while another make of broker is tested.
pub(crate) fn broker_with(flags: &[&str]) -> Option<Broker> {
    (!foreign()).then(|| Broker::spawn(flags))
}

/// The binary to test.
pub(crate) fn binary() -> std::ffi::OsString {
    let built = || env!("CARGO_BIN_EXE_surgemq").into();
    std::env::var_os("SURGEMQ_TEST_BINARY").unwrap_or_else(built)
}

impl Launch {
    fn new(flags: &[&str]) -> Self {
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        Self { wrapper: Vec::new(), flags, dir: None, _owned_dir: None }
    }

    /// On this data directory, which whoever calls this keeps.
    pub(crate) fn on(dir: &Path, flags: &[&str]) -> Self {
        Self { dir: Some(dir.to_owned()), ..Self::new(flags) }
    }

    /// On this one, which goes with the broker.
    pub(crate) fn in_own(dir: tempfile::TempDir, flags: &[&str]) -> Self {
        let launch = Self::on(dir.path(), flags);
        Self { _owned_dir: Some(dir), ..launch }
    }

    /// By a command that ends by running what is appended to it.
    pub(crate) fn by(mut self, wrapper: &[&str]) -> Self {
        self.wrapper = wrapper.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// The command, ready to be run.
    pub(crate) fn command(&self) -> Command {
        let mut words = self.wrapper.iter().map(Into::into).chain([binary()]);
        let mut command = Command::new(words.next().expect("the binary at least"));
        command.args(words).args(["serve", "--bind", "127.0.0.1:0"]).args(&self.flags);
        if let Some(dir) = &self.dir {
            command.arg("--data-dir").arg(dir);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Starts it; the address is what it says.
    pub(crate) fn start(self) -> Broker {
        let mut child = self.command().spawn().expect("the broker's binary starts");
        let output = Arc::new(Mutex::new(String::new()));
        let (found, address) = channel();
        follow(child.stdout.take().expect("piped"), output.clone(), found.clone());
        follow(child.stderr.take().expect("piped"), output.clone(), found);
        let address = address.recv_timeout(PATIENCE).unwrap_or_else(|_| {
            let _ = child.kill();
            let _ = child.wait();
            panic!(
                "no address from {:?}; it said: {}",
                self.flags,
                output.lock().expect("no panic")
            )
        });
        let process = Process { child, output, stopped: false, launch: self };
        Broker { address, process: Some(Mutex::new(process)) }
    }
}

impl Broker {
    fn spawn(flags: &[&str]) -> Self {
        match std::env::var_os("SURGEMQ_TEST_DURABLE") {
            Some(_) => Launch::in_own(temporary(), flags).start(),
            None => Launch::new(flags).start(),
        }
    }

    /// A broker on a data directory of its own, or `None` while another make of broker is tested.
    pub(crate) fn durable(flags: &[&str]) -> Option<Self> {
        (!foreign()).then(|| Launch::in_own(temporary(), flags).start())
    }

    /// Stops it. Its data directory stays as it is.
    pub(crate) fn stop(&mut self, how: Stop) {
        let process = self.process.as_mut().expect("our own").get_mut().expect("no panic");
        match how {
            Stop::Kill => process.child.kill().expect("it runs"),
            Stop::Term => {
                let pid = rustix::process::Pid::from_child(&process.child);
                rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it runs");
            }
        }
        process.stopped = true;
        let status = self.exit_status();
        assert!(how == Stop::Kill || status.success(), "{status}: {}", self.output());
    }

    /// Starts it again after [`stop`](Self::stop).
    pub(crate) fn start_again(&mut self) {
        let process = self.process.take().expect("our own").into_inner().expect("no panic");
        assert!(process.stopped, "it still runs");
        *self = process.launch.start();
    }

    /// Stops it and starts it again, on the same data directory.
    pub(crate) fn restart(&mut self, how: Stop) {
        self.stop(how);
        self.start_again();
    }

    /// Its data directory.
    pub(crate) fn dir(&self) -> PathBuf {
        let process = self.process.as_ref().expect("our own").lock().expect("no panic");
        process.launch.dir.clone().expect("it has one")
    }

    /// Everything it has printed and logged since it was started.
    pub(crate) fn output(&self) -> String {
        let process = self.process.as_ref().expect("our own").lock().expect("no panic");
        let output = process.output.lock().expect("no panic");
        output.clone()
    }

    /// A bare connection.
    pub(crate) fn tcp(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("the broker accepts connections");
        stream.set_nodelay(true).expect("nodelay");
        stream
    }

    /// A connection that has sent nothing yet.
    pub(crate) fn open(&self, version: Version) -> Peer {
        Peer::new(self.tcp(), version)
    }

    /// A client of a clean session with a client identifier of its own.
    #[track_caller]
    pub(crate) fn join(&self, version: Version) -> Peer {
        self.connect(version, connect(client_id()))
    }

    /// A client that sent this and was accepted.
    #[track_caller]
    pub(crate) fn connect(&self, version: Version, packet: Connect) -> Peer {
        let mut peer = self.open(version);
        peer.id.clone_from(&packet.id);
        peer.send(&packet);
        peer.connack = peer.expect_connack(0);
        peer
    }

    /// What CONNACK says to this packet; the connection must then be closed.
    #[track_caller]
    pub(crate) fn connect_refused(&self, version: Version, packet: &Connect) -> Connack {
        let mut peer = self.open(version);
        peer.send(packet);
        let Some(Packet::Connack(connack)) = peer.next() else { panic!("expected a CONNACK") };
        assert_ne!(connack.code, 0, "it was accepted");
        peer.expect_closed(); // [MQTT-3.2.2-7]
        connack
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.as_ref().expect("our own").lock().expect("no panic").child.id()
    }

    /// The most memory that it has ever had, in bytes.
    pub(crate) fn peak_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()));
        let status = status.expect("the broker runs");
        let line = status.lines().find(|line| line.starts_with("VmHWM")).expect("a peak");
        let kib: u64 = line.split_whitespace().nth(1).expect("kB").parse().expect("a number");
        kib * 1024
    }

    /// Sends SIGTERM; the test then waits with `exit_status`.
    pub(crate) fn terminate(&self) {
        let mut process = self.process.as_ref().expect("our own").lock().expect("no panic");
        process.stopped = true;
        let pid = rustix::process::Pid::from_child(&process.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it runs");
    }

    /// How the process ended, after `terminate`.
    pub(crate) fn exit_status(&self) -> ExitStatus {
        let mut process = self.process.as_ref().expect("our own").lock().expect("no panic");
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = process.child.try_wait().expect("a child") {
                return status;
            }
            assert!(Instant::now() < deadline, "the broker does not end");
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn assert_alive(&self) {
        let Some(process) = &self.process else { return };
        let mut process = process.lock().expect("no panic");
        if let Some(status) = process.child.try_wait().expect("a child") {
            let output = process.output.lock().expect("no panic").clone();
            panic!("the broker died ({status}); it said: {output}");
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let Some(process) = &self.process else { return };
        let Ok(mut process) = process.lock() else { return };
        let died = !process.stopped && matches!(process.child.try_wait(), Ok(Some(_)));
        let _ = process.child.kill();
        let _ = process.child.wait();
        if thread::panicking() {
            eprintln!("the broker said: {}", process.output.lock().expect("no panic"));
        } else {
            assert!(!died, "the broker died: {}", process.output.lock().expect("no panic"));
        }
    }
}

fn temporary() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

/// Reads lines for as long as there are any, and finds the address among them.
fn follow(pipe: impl Read + Send + 'static, output: Arc<Mutex<String>>, found: Sender<SocketAddr>) {
    thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            if let Some((_, rest)) = line.split_once("listening on ")
                && let Some(Ok(address)) = rest.split_whitespace().next().map(str::parse)
            {
                let _ = found.send(address);
            }
            let mut output = output.lock().expect("no panic");
            output.push_str(&line);
            output.push('\n');
        }
    });
}

/// A number that no other test has, also not of an earlier run against the same broker.
fn unique() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{}x{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A client identifier of its own, good in every version.
pub(crate) fn client_id() -> String {
    format!("c{}", unique())
}

/// A topic of its own.
pub(crate) fn topic() -> String {
    format!("t/{}", unique())
}

/// Runs a test for each version, all at once, and says which failed.
pub(crate) fn each<T: Copy + Send + Sync + std::fmt::Debug>(rows: &[T], test: impl Fn(T) + Sync) {
    struct Row<T: std::fmt::Debug>(T);
    impl<T: std::fmt::Debug> Drop for Row<T> {
        fn drop(&mut self) {
            if thread::panicking() {
                eprintln!("failed for {:?}", self.0);
            }
        }
    }
    let failed: Vec<T> = thread::scope(|scope| {
        let test = &test;
        let run = |row| {
            move || {
                let _row = Row(row);
                test(row);
            }
        };
        let threads: Vec<_> = rows.iter().map(|row| (*row, scope.spawn(run(*row)))).collect();
        threads.into_iter().filter_map(|(row, t)| t.join().err().map(|_| row)).collect()
    });
    assert!(failed.is_empty(), "failed for {failed:?}");
}
