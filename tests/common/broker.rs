//! The broker under test: a `surgemq serve` of our own for each test, on a free port, or the one
//! that `SURGEMQ_TEST_BROKER` names.

use std::collections::VecDeque;
use std::env;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

const START_DEADLINE: Duration = Duration::from_secs(20);
const LINES_KEPT: usize = 40;

/// Lives as long as the test; at the end the broker must still be alive.
pub(crate) struct Broker {
    child: Option<Child>,
    pub(crate) host: String,
    pub(crate) port: u16,
    last_lines: Arc<Mutex<VecDeque<String>>>,
}

impl Broker {
    /// Starts one, or takes the one that the environment names.
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same, with these flags if it is ours.
    #[allow(dead_code, reason = "not all tests that share this file ask")]
    pub(crate) fn start_with(flags: &[&str]) -> Self {
        let last_lines = Arc::new(Mutex::new(VecDeque::new()));
        if let Ok(address) = env::var("SURGEMQ_TEST_BROKER") {
            let (host, port) = split(&address).expect("SURGEMQ_TEST_BROKER is HOST:PORT");
            return Self { child: None, host, port, last_lines };
        }
        let mut child = Command::new(env!("CARGO_BIN_EXE_surgemq"))
            .args(["serve", "--bind", "127.0.0.1:0"])
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the surgemq binary can be started");
        let (sender, addresses) = mpsc::channel();
        follow(child.stdout.take().expect("stdout is piped"), &last_lines, sender.clone());
        follow(child.stderr.take().expect("stderr is piped"), &last_lines, sender);
        let Ok((host, port)) = addresses.recv_timeout(START_DEADLINE) else {
            let _ = child.kill();
            let _ = child.wait();
            panic!("surgemq serve did not say where it listens:\n{}", joined(&last_lines));
        };
        Self { child: Some(child), host, port, last_lines }
    }

    /// Its process, when it is ours.
    #[allow(dead_code, reason = "not all tests that share this file ask")]
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Fails when the broker's process has ended.
    pub(crate) fn assert_alive(&mut self) {
        let Some(child) = &mut self.child else { return };
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            panic!("the broker ended with {status}:\n{}", joined(&self.last_lines));
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if !thread::panicking() {
            self.assert_alive();
        } else if self.child.is_some() {
            eprintln!("the broker's last lines:\n{}", joined(&self.last_lines));
        }
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Reads all that the broker prints, so that it never waits for us, and reports the address.
fn follow(
    from: impl Read + Send + 'static,
    last_lines: &Arc<Mutex<VecDeque<String>>>,
    address: mpsc::Sender<(String, u16)>,
) {
    let last_lines = Arc::clone(last_lines);
    thread::spawn(move || {
        for line in BufReader::new(from).lines() {
            let Ok(line) = line else { return };
            if let Some(found) = address_in(&line) {
                let _ = address.send(found);
            }
            let mut last_lines = last_lines.lock().expect("no reader panics");
            if last_lines.len() == LINES_KEPT {
                last_lines.pop_front();
            }
            last_lines.push_back(line);
        }
    });
}

fn address_in(line: &str) -> Option<(String, u16)> {
    let (_, rest) = line.split_once("listening on ")?;
    let rest = rest.rsplit_once("://").map_or(rest, |(_, rest)| rest);
    split(rest.split(|c: char| c.is_whitespace() || matches!(c, ',' | ';' | '"')).next()?)
}

fn split(address: &str) -> Option<(String, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    Some((host.to_owned(), port.trim_end_matches('.').parse().ok()?))
}

fn joined(lines: &Mutex<VecDeque<String>>) -> String {
    let lines = lines.lock().expect("no reader panics");
    lines.iter().map(|line| format!("  {line}\n")).collect()
}
