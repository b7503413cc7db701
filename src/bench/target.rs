//! The broker that is measured: one that runs already, or a child process of our own.

use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::clock;
use super::process::CpuTime;

/// How long a child may take until it accepts connections.
const START: Duration = Duration::from_secs(10);
/// How long a child may take to stop when asked, before it is killed.
const STOP: Duration = Duration::from_secs(5);
/// Where MQTT lives when a URL names no port.
const DEFAULT_PORT: u16 = 1883;
/// Stands for a folder of its own among a child's arguments.
const DIR: &str = "{dir}";
/// How much of a failed child's last words is kept.
const LAST_WORDS: usize = 4096;

/// Which broker to measure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// One that runs already.
    Running {
        /// Where it is, and as whom to connect.
        address: BrokerUrl,
        /// Its process, for processor time and memory.
        pid: Option<u32>,
    },
    /// A child process, started anew for each round.
    Child {
        /// The program.
        program: PathBuf,
        /// Its arguments; `{address}` becomes the address on which to listen, `{dir}` a new
        /// folder among the system's temporary ones, removed when the broker has stopped.
        args: Vec<String>,
    },
}

/// Where a broker is: `mqtt://[user[:password]@]host[:port]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerUrl {
    /// Host name or address.
    pub host: String,
    /// Port, 1883 by default.
    pub port: u16,
    /// User name.
    pub username: Option<String>,
    /// Password.
    pub password: Option<String>,
}

/// The URL cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not of the form mqtt://[user[:password]@]host[:port]")]
pub struct UrlError(String);

impl std::str::FromStr for BrokerUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let error = || UrlError(text.to_owned());
        let rest = ["mqtt://", "tcp://"].iter().find_map(|scheme| text.strip_prefix(scheme));
        let rest = rest.ok_or_else(error)?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (user, place) = rest.rsplit_once('@').map_or((None, rest), |(u, p)| (Some(u), p));
        let (host, port) = match place.rsplit_once(':') {
            // The colon may be inside the brackets of an IPv6 address.
            Some((host, port)) if !port.contains(']') => (host, port.parse().map_err(|_| error())?),
            _ => (place, DEFAULT_PORT),
        };
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        if host.is_empty() || host.contains('/') {
            return Err(error());
        }
        let (username, password) = match user {
            None => (None, None),
            Some(user) => match user.split_once(':') {
                None => (Some(user), None),
                Some((name, password)) => (Some(name), Some(password)),
            },
        };
        let plain = |text: Option<&str>| match text {
            None => Ok(None),
            Some(text) => unescape(text).map(Some).ok_or_else(error),
        };
        let (username, password) = (plain(username)?, plain(password)?);
        Ok(Self { host: host.to_owned(), port, username, password })
    }
}

/// Undoes percent-encoding.
fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, behind)) = rest.split_first() {
        if byte == b'%' {
            let digits = std::str::from_utf8(behind.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &behind[2..];
        } else {
            bytes.push(byte);
            rest = behind;
        }
    }
    String::from_utf8(bytes).ok()
}

/// The broker could not be reached or started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TargetError {
    /// The name has no address.
    #[error("cannot find {0}: {1}")]
    Unknown(String, io::Error),
    /// The process that was named is not there.
    #[error("there is no process {0}")]
    NoProcess(u32),
    /// The child could not be started.
    #[error("cannot start {program}: {error}")]
    Start {
        /// The program.
        program: String,
        /// Why.
        error: io::Error,
    },
    /// The child ended or never listened.
    #[error("{program} did not come up{}", said(.last_words))]
    NotUp {
        /// The program.
        program: String,
        /// What it said.
        last_words: String,
    },
}

fn said(last_words: &str) -> String {
    if last_words.trim().is_empty() {
        String::new()
    } else {
        format!("; it said: {}", last_words.trim())
    }
}

/// A broker that accepts connections. A child of ours is stopped when this is dropped.
#[derive(Debug)]
pub(super) struct Broker {
    pub(super) address: SocketAddr,
    pub(super) pid: Option<u32>,
    pub(super) username: Option<String>,
    pub(super) password: Option<String>,
    child: Option<OwnChild>,
}

impl Broker {
    pub(super) fn open(target: &Target) -> Result<Self, TargetError> {
        match target {
            Target::Running { pid: Some(pid), .. } if CpuTime::of(*pid).is_err() => {
                Err(TargetError::NoProcess(*pid))
            }
            Target::Running { address: url, pid } => Ok(Self {
                address: resolve(&url.host, url.port)?,
                pid: *pid,
                username: url.username.clone(),
                password: url.password.clone(),
                child: None,
            }),
            Target::Child { program, args } => {
                let (child, address) = OwnChild::start(program, args)?;
                let pid = Some(child.child.id());
                Ok(Self { address, pid, username: None, password: None, child: Some(child) })
            }
        }
    }

    /// Whether its process is a child of ours.
    pub(super) fn is_child(&self) -> bool {
        self.child.is_some()
    }
}

fn resolve(host: &str, port: u16) -> Result<SocketAddr, TargetError> {
    let unknown = |error| TargetError::Unknown(host.to_owned(), error);
    let mut addresses: Vec<SocketAddr> = (host, port).to_socket_addrs().map_err(unknown)?.collect();
    // "localhost" may name ::1 first where the broker listens on 127.0.0.1 only.
    addresses.sort_by_key(SocketAddr::is_ipv6);
    let reachable = addresses.iter().find(|address| {
        addresses.len() == 1 || TcpStream::connect_timeout(address, Duration::from_secs(2)).is_ok()
    });
    let first = reachable.or(addresses.first()).copied();
    first.ok_or_else(|| unknown(io::ErrorKind::NotFound.into()))
}

#[derive(Debug)]
struct OwnChild {
    child: Child,
    /// Removed behind it.
    _scratch: Option<Scratch>,
    /// Reads what it writes to its standard error, so that it never blocks on that.
    listener: Option<JoinHandle<String>>,
}

impl OwnChild {
    fn start(program: &PathBuf, args: &[String]) -> Result<(Self, SocketAddr), TargetError> {
        let name = || program.display().to_string();
        let failed = |error| TargetError::Start { program: name(), error };
        let address = free_address().map_err(failed)?;
        let scratch = args.iter().any(|arg| arg.contains(DIR)).then(Scratch::new).transpose();
        let scratch = scratch.map_err(failed)?;
        let dir = scratch.as_ref().map_or("", |scratch| &scratch.path);
        let fill = |arg: &String| arg.replace("{address}", &address.to_string()).replace(DIR, dir);
        let args = args.iter().map(fill);
        let mut child = Command::new(program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // Ctrl-C in the terminal is for us; the broker stops when the figures are in.
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        let listener = child
            .stderr
            .take()
            .map(|mut stderr| std::thread::spawn(move || last_words(&mut stderr)));
        let mut own = Self { child, _scratch: scratch, listener };
        if own.comes_up(address) {
            return Ok((own, address));
        }
        let last_words = own.stop();
        Err(TargetError::NotUp { program: name(), last_words })
    }

    /// Waits until it accepts connections; `false` when it ended or took too long.
    fn comes_up(&mut self, address: SocketAddr) -> bool {
        let deadline = Instant::now() + START;
        while Instant::now() < deadline {
            if TcpStream::connect(address).is_ok() {
                return true;
            }
            if !matches!(self.child.try_wait(), Ok(None)) {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        false
    }

    /// Asks it to stop, then makes it stop; returns the end of what it wrote to standard error.
    fn stop(&mut self) -> String {
        if let (Ok(None), Some(pid)) =
            (self.child.try_wait(), rustix::process::Pid::from_raw(self.child.id().cast_signed()))
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let deadline = Instant::now() + STOP;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.listener.take().and_then(|thread| thread.join().ok()).unwrap_or_default()
    }
}

impl Drop for OwnChild {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A folder of our own.
#[derive(Debug)]
struct Scratch {
    path: String,
}

impl Scratch {
    fn new() -> io::Result<Self> {
        let name = format!("surgemq-bench-{}-{:x}", std::process::id(), clock::now());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path)?;
        let path = path.into_os_string().into_string();
        Ok(Self { path: path.map_err(|_| io::ErrorKind::InvalidFilename)? })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // It is in the temporary folder: what cannot be removed now is removed with that.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// A port that nobody listens on right now.
fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}

fn last_words(stderr: &mut impl Read) -> String {
    let mut kept = Vec::new();
    let mut chunk = [0; 1024];
    while let Ok(count @ 1..) = stderr.read(&mut chunk) {
        kept.extend_from_slice(&chunk[..count]);
        let surplus = kept.len().saturating_sub(LAST_WORDS);
        kept.drain(..surplus);
    }
    String::from_utf8_lossy(&kept).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let url = |host: &str, port, username: Option<&str>, password: Option<&str>| BrokerUrl {
            host: host.to_owned(),
            port,
            username: username.map(str::to_owned),
            password: password.map(str::to_owned),
        };
        let good = [
            ("mqtt://localhost", url("localhost", 1883, None, None)),
            ("mqtt://h:1884/", url("h", 1884, None, None)),
            ("mqtt://[::1]", url("::1", 1883, None, None)),
            ("mqtt://[::1]:99", url("::1", 99, None, None)),
            ("mqtt://me@h", url("h", 1883, Some("me"), None)),
            ("mqtt://me:p%40ss:w@h:1", url("h", 1, Some("me"), Some("p@ss:w"))),
            ("tcp://me:@h", url("h", 1883, Some("me"), Some(""))),
        ];
        for (text, expected) in good {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        for bad in ["h", "http://h", "mqtt://", "mqtt://h:x", "mqtt://h:99999", "mqtt://a%4@h"] {
            assert!(bad.parse::<BrokerUrl>().is_err(), "{bad}");
        }
    }
}
