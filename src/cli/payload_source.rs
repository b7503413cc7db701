//! Where `pub` and `rr` get their messages from: one message or many lines.

use std::ffi::OsString;
use std::io::{BufRead, IsTerminal, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use anyhow::{Context, bail};
use bytes::Bytes;
use tokio::sync::mpsc;

/// The flags; one of them at most.
#[derive(Debug, clap::Args)]
#[group(id = "source", multiple = false)]
#[command(next_help_heading = "Message")]
pub(super) struct SourceArgs {
    /// The message
    #[arg(short, long, value_name = "MESSAGE")]
    message: Option<OsString>,
    /// Send the content of FILE as the message
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Send every line of standard input as a message; the default
    #[arg(short = 'l', long = "stdin-line")]
    lines: bool,
    /// Send all of standard input as one message
    #[arg(short = 's', long = "stdin-file")]
    all: bool,
    /// Send an empty message
    #[arg(short = 'n', long = "null-message")]
    null: bool,
}

/// What is to be sent.
#[derive(Debug)]
pub(super) enum Source {
    One(Bytes),
    Lines,
}

/// The largest payload that a PUBLISH can carry, less some room for topic and properties.
const MAX_PAYLOAD: u64 = 268_435_455;

/// How much of standard input is read at once.
const CHUNK: usize = 256 << 10;

impl SourceArgs {
    /// Reads what is one message; lines are read later. Says so when they come from a terminal.
    pub(super) fn open(&self, quiet: bool) -> anyhow::Result<Source> {
        if let Some(message) = &self.message {
            return Ok(Source::One(Bytes::from(message.clone().into_vec())));
        }
        if self.null {
            return Ok(Source::One(Bytes::new()));
        }
        if let Some(path) = &self.file {
            let file = std::fs::File::open(path)
                .with_context(|| format!("cannot open the file {}", path.display()))?;
            return read_all(file, &path.display().to_string()).map(Source::One);
        }
        let terminal = std::io::stdin().is_terminal() && !quiet;
        if self.all {
            if terminal {
                eprintln!("surgemq: reading the message from the terminal; Ctrl-D ends it");
            }
            let message = read_all(std::io::stdin().lock(), "standard input")?;
            if message.is_empty() {
                bail!("standard input is empty; -n sends an empty message");
            }
            return Ok(Source::One(message));
        }
        if terminal {
            eprintln!("surgemq: reading messages from the terminal, one a line; Ctrl-D ends");
        }
        Ok(Source::Lines)
    }

    /// Whether lines of standard input are asked for explicitly.
    pub(super) const fn is_given(&self) -> bool {
        self.message.is_some() || self.file.is_some() || self.lines || self.all || self.null
    }
}

fn read_all(reader: impl Read, name: &str) -> anyhow::Result<Bytes> {
    let mut bytes = Vec::new();
    reader
        .take(MAX_PAYLOAD + 1)
        .read_to_end(&mut bytes)
        .with_context(|| format!("cannot read {name}"))?;
    if bytes.len() as u64 > MAX_PAYLOAD {
        bail!("{name} is too large for a message");
    }
    Ok(bytes.into())
}

/// The lines of standard input, without their line breaks, some at a time. A thread of its own
/// reads them: a terminal or a slow pipe must not stop anything else. The channel is short, so it
/// reads no further ahead than a few chunks.
pub(super) fn stdin_lines() -> mpsc::Receiver<anyhow::Result<Vec<Bytes>>> {
    let (sender, receiver) = mpsc::channel(2);
    std::thread::spawn(move || {
        let mut input = std::io::BufReader::with_capacity(CHUNK, std::io::stdin().lock());
        let mut partial = Vec::new();
        loop {
            let (batch, end) = match next_batch(&mut input, &mut partial) {
                Ok((lines, end)) => (Ok(lines), end),
                Err(error) => (Err(error), true),
            };
            if sender.blocking_send(batch).is_err() || end {
                return;
            }
        }
    });
    receiver
}

/// The whole lines of one read, and whether it was the last; `partial` keeps the start of the
/// next line.
fn next_batch(
    input: &mut impl BufRead,
    partial: &mut Vec<u8>,
) -> anyhow::Result<(Vec<Bytes>, bool)> {
    let read = input.fill_buf().context("cannot read standard input")?;
    if read.is_empty() {
        // The last line may lack its line break.
        let last = Bytes::from(std::mem::take(partial));
        return Ok(((!last.is_empty()).then_some(last).into_iter().collect(), true));
    }
    let length = read.len();
    let Some(last_break) = read.iter().rposition(|byte| *byte == b'\n') else {
        if (partial.len() + length) as u64 > MAX_PAYLOAD {
            bail!("a line is too long for a message");
        }
        partial.extend_from_slice(read);
        input.consume(length);
        return Ok((Vec::new(), false));
    };
    // One allocation for all lines of this read: each is a slice of it.
    let mut whole = std::mem::take(partial);
    whole.extend_from_slice(&read[..last_break]);
    partial.extend_from_slice(&read[last_break + 1..]);
    input.consume(length);
    let whole = Bytes::from(whole);
    let lines = whole.split(|byte| *byte == b'\n').map(|line| whole.slice_ref(line)).collect();
    Ok((lines, false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_out_whole_whatever_the_reads() {
        for size in [1, 2, 3, 100] {
            for (text, expected) in [
                ("", &[][..]),
                ("a\n", &["a"][..]),
                ("a\n\nbc\r\n", &["a", "", "bc\r"][..]),
                ("first\nsecond", &["first", "second"][..]),
                ("\n", &[""][..]),
            ] {
                let mut input = std::io::BufReader::with_capacity(size, text.as_bytes());
                let mut partial = Vec::new();
                let mut lines = Vec::new();
                loop {
                    let (batch, end) = next_batch(&mut input, &mut partial).unwrap();
                    lines.extend(batch);
                    if end {
                        break;
                    }
                }
                assert_eq!(lines, expected, "{text:?} in pieces of {size}");
            }
        }
    }
}
