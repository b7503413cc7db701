//! The broker under test: a child process in a process group of its own, so that a shell or a
//! script that starts it dies with it. What it writes goes to a file, of which the one before is
//! kept too.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process_group};

use super::plan::{BrokerCommand, CrashPlan};
use crate::bench::plan::Noise;

/// How much of what it said last is quoted.
const LAST_WORDS: u64 = 2048;
/// Ports below those that the system gives to outgoing connections: one of these would sooner or
/// later be given to a client that tries to reach the broker while it is down.
const PORTS: std::ops::Range<u16> = 10_000..32_000;
const PORT_TRIES: usize = 100;

/// The broker, running or not.
#[derive(Debug)]
pub(super) struct Process {
    command: BrokerCommand,
    pub(super) address: SocketAddr,
    pub(super) data: PathBuf,
    log: PathBuf,
    child: Option<Child>,
}

impl Process {
    /// Makes the folders and finds a port; starts nothing yet.
    pub(super) fn new(plan: &CrashPlan) -> io::Result<Self> {
        fs::create_dir_all(&plan.dir)?;
        let dir = plan.dir.canonicalize()?;
        let data = dir.join("data");
        // Old sessions would be taken for findings.
        fs::create_dir(&data)?;
        let (command, log) = (plan.broker.clone(), dir.join("broker.log"));
        Ok(Self { command, address: free_address()?, data, log, child: None })
    }

    pub(super) fn start(&mut self) -> io::Result<()> {
        if self.log.exists() {
            fs::rename(&self.log, self.log.with_extension("log.before"))?;
        }
        let log = File::create(&self.log)?;
        let child = self
            .command(&self.data)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()?;
        self.child = Some(child);
        Ok(())
    }

    fn command(&self, data: &Path) -> Command {
        let fill = |text: &str| {
            let text = text.replace("{port}", &self.address.port().to_string());
            text.replace("{dir}", &data.to_string_lossy())
        };
        match &self.command {
            BrokerCommand::Program(program, args) => {
                let mut command = Command::new(program);
                command.args(args.iter().map(|arg| fill(arg)));
                command
            }
            BrokerCommand::Shell(text) => {
                let mut command = Command::new("/bin/sh");
                command.arg("-c").arg(fill(text));
                command
            }
        }
    }

    /// A number that another run does not have.
    pub(super) fn unique(&self) -> u64 {
        unique()
    }

    /// Removes what a run leaves behind, and the folder if there is nothing else in it.
    pub(super) fn remove_files(&self) {
        let log_before = self.log.with_extension("log.before");
        let dir = self.data.parent().unwrap_or(&self.data);
        // What cannot be removed stays, and does no harm.
        let _ = fs::remove_dir_all(&self.data);
        let _ = fs::remove_file(&self.log);
        let _ = fs::remove_file(log_before);
        let _ = fs::remove_dir(dir);
    }

    /// Asks it to end; does not wait.
    pub(super) fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    fn signal(&self, signal: Signal) {
        let Some(pid) = self.child.as_ref().map(Pid::from_child) else { return };
        // It may have ended by itself, which is seen elsewhere.
        let _ = kill_process_group(pid, signal);
    }

    /// How it ended, if it has.
    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        let status = self.child.as_mut()?.try_wait().ok().flatten()?;
        self.child = None;
        Some(status)
    }

    /// Kills it, if it runs, and waits for its end.
    pub(super) fn kill(&mut self) {
        self.signal(Signal::KILL);
        if let Some(mut child) = self.child.take() {
            // Fails only if it was waited for already.
            let _ = child.wait();
        }
    }

    /// The end of what it wrote.
    pub(super) fn last_words(&self) -> String {
        let read = || {
            let mut file = File::open(&self.log)?;
            let from = file.metadata()?.len().saturating_sub(LAST_WORDS);
            file.seek(SeekFrom::Start(from))?;
            let mut bytes = Vec::new();
            file.take(LAST_WORDS).read_to_end(&mut bytes)?;
            io::Result::Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
        };
        match read() {
            Ok(words) if words.is_empty() => "it said nothing".to_owned(),
            Ok(words) => format!("it said: {words}"),
            Err(error) => format!("its log cannot be read: {error}"),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn free_address() -> io::Result<SocketAddr> {
    let mut noise = Noise::new(unique());
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..PORT_TRIES {
        let port = PORTS.start + (noise.next() % PORTS.len() as u64) as u16;
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            Ok(listener) => return listener.local_addr(),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Not from the run's seed: two runs with one seed may go on at the same time.
fn unique() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| now.as_nanos() as u64) ^ u64::from(std::process::id()).rotate_left(32)
}
