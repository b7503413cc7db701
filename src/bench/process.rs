//! What a process costs, read from `/proc`: processor time and memory.

use std::fs;
use std::io;
use std::path::Path;

use hashbrown::HashMap;

/// Nanoseconds in a tick of `/proc/PID/stat`: 100 a second in Linux's interface, whatever the
/// kernel itself counts in.
const TICK: u64 = 10_000_000;

/// Processor time of a process at one moment.
#[derive(Debug, Clone, Default)]
pub(super) struct CpuTime {
    /// Nanoseconds by thread: exact, but gone with the thread.
    by_thread: HashMap<i32, u64>,
    /// Nanoseconds of the whole process: in steps of 10 ms, but complete.
    whole: u64,
}

impl CpuTime {
    /// Of the process with this identifier.
    pub(super) fn of(pid: u32) -> io::Result<Self> {
        let mut by_thread = HashMap::new();
        for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
            let entry = entry?;
            let thread = entry.file_name().to_str().and_then(|name| name.parse().ok());
            // A thread may end between listing and reading.
            if let (Some(thread), Ok(time)) = (thread, schedstat(&entry.path())) {
                by_thread.insert(thread, time.running);
            }
        }
        Ok(Self { by_thread, whole: whole(pid)? })
    }

    /// Nanoseconds spent since an earlier moment.
    pub(super) fn since(&self, earlier: &Self) -> u64 {
        let spent = |(thread, now): (&i32, &u64)| {
            now.saturating_sub(earlier.by_thread.get(thread).copied().unwrap_or(0))
        };
        let by_thread = self.by_thread.iter().map(spent).sum();
        let gone = earlier.by_thread.keys().any(|thread| !self.by_thread.contains_key(thread));
        let whole = self.whole.saturating_sub(earlier.whole);
        if gone { whole.max(by_thread) } else { by_thread }
    }
}

/// `utime` and `stime` of the process, in nanoseconds.
fn whole(pid: u32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in parentheses may hold anything, also parentheses.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks: u64 = fields
        .split_ascii_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<u64>().ok())
        .sum();
    Ok(ticks * TICK)
}

/// How long a thread ran and how long it could have run but had to wait for a processor.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ThreadTime {
    pub(super) running: u64,
    pub(super) waiting: u64,
}

impl ThreadTime {
    /// Of a thread of this process.
    pub(super) fn of_own(thread: i32) -> io::Result<Self> {
        schedstat(Path::new(&format!("/proc/self/task/{thread}")))
    }
}

fn schedstat(task: &Path) -> io::Result<ThreadTime> {
    let text = fs::read_to_string(task.join("schedstat"))?;
    let mut numbers = text.split_ascii_whitespace().map_while(|number| number.parse().ok());
    match (numbers.next(), numbers.next()) {
        (Some(running), Some(waiting)) => Ok(ThreadTime { running, waiting }),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Resident memory in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Memory {
    pub(super) resident: u64,
    /// The most there ever was.
    pub(super) peak: u64,
}

impl Memory {
    /// Of the process with this identifier.
    pub(super) fn of(pid: u32) -> io::Result<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        Ok(Self { resident: kibibytes(&status, "VmRSS:"), peak: kibibytes(&status, "VmHWM:") })
    }
}

fn kibibytes(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_ascii_whitespace().next()?.parse().ok());
    number.unwrap_or(0u64) * 1024
}

/// Raises the limit of open files as far as it goes, and says how far that is.
pub(super) fn raise_open_files() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    // Refused: the limit stays what it was, and running into it will say so.
    let _ = setrlimit(Resource::Nofile, raised);
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_process_is_seen() {
        let pid = std::process::id();
        let before = CpuTime::of(pid).unwrap();
        let mut sum = 0u64;
        while CpuTime::of(pid).unwrap().since(&before) < 2_000_000 {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        let memory = Memory::of(pid).unwrap();
        assert!(memory.resident > 100 << 10 && memory.peak >= memory.resident);
        assert!(CpuTime::of(u32::MAX).is_err());
    }
}
