//! Processes with a deadline, whose lines can be waited for.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

/// Far more than any case needs on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(90);

/// A program whose output is read by lines; killed when dropped.
pub(crate) struct Process {
    child: Child,
    what: String,
    lines: mpsc::Receiver<String>,
    /// All that it said so far, both streams.
    seen: Vec<String>,
    deadline: Instant,
}

impl Process {
    /// Starts it, with `input` as its standard input.
    pub(crate) fn start(command: &mut Command, input: &[u8]) -> Self {
        let what = format!("{command:?}");
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        let mut stdin = child.stdin.take().expect("stdin is piped");
        let input = input.to_vec();
        // A program that ends without reading its input is judged by its exit code.
        thread::spawn(move || stdin.write_all(&input));
        let (sender, lines) = mpsc::channel();
        follow(child.stdout.take().expect("stdout is piped"), sender.clone());
        follow(child.stderr.take().expect("stderr is piped"), sender);
        Self { child, what, lines, seen: Vec::new(), deadline: Instant::now() + DEADLINE }
    }

    /// The next line; `None` when it has closed its output.
    pub(crate) fn line(&mut self) -> Option<String> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        match self.lines.recv_timeout(left) {
            Ok(line) => {
                self.seen.push(line.clone());
                Some(line)
            }
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => {
                let _ = self.child.kill();
                panic!("{} hangs; it said:\n{}", self.what, self.said());
            }
        }
    }

    /// Reads on until a line satisfies `wanted`.
    pub(crate) fn wait_for(&mut self, wanted: impl Fn(&str) -> bool) -> String {
        while let Some(line) = self.line() {
            if wanted(&line) {
                return line;
            }
        }
        panic!("{} ended too early; it said:\n{}", self.what, self.said());
    }

    /// Reads to the end. The exit code and every line since the start.
    pub(crate) fn finish(mut self) -> (Option<i32>, Vec<String>) {
        while self.line().is_some() {}
        let status = self.child.wait().expect("a child can be waited for");
        (status.code(), std::mem::take(&mut self.seen))
    }

    /// Like [`Self::finish`]; fails when the exit code is not 0.
    pub(crate) fn succeed(self) -> Vec<String> {
        let what = self.what.clone();
        let (code, lines) = self.finish();
        assert_eq!(code, Some(0), "{what} failed; it said:\n{}", lines.join("\n"));
        lines
    }

    /// Ends it without a chance to say good-bye to the broker.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("a child can be killed");
    }

    fn said(&self) -> String {
        self.seen.join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn follow(from: impl Read + Send + 'static, lines: mpsc::Sender<String>) {
    thread::spawn(move || {
        let mut from = BufReader::new(from);
        let mut line = Vec::new();
        while matches!(from.read_until(b'\n', &mut line), Ok(1..)) {
            let text = String::from_utf8_lossy(&line);
            if lines.send(text.trim_end_matches('\n').to_owned()).is_err() {
                return;
            }
            line.clear();
        }
    });
}
