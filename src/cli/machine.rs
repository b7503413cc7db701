//! What the machine, or the container, has.

use std::fs::read_to_string;

/// Bytes of memory that this process can have at most, if the system says so.
pub(super) fn memory() -> Option<u64> {
    let installed = read_to_string("/proc/meminfo").ok().and_then(|text| installed(&text));
    let groups = read_to_string("/proc/self/cgroup").unwrap_or_default();
    let allowed = places(&groups).filter_map(|path| read_to_string(path).ok()?.trim().parse().ok());
    installed.into_iter().chain(allowed).min()
}

/// What `/proc/meminfo` says, in bytes.
fn installed(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

/// The files that may hold a limit of the groups in `/proc/self/cgroup`: their own (in both
/// versions of control groups), and those of the whole container. No limit is a word or a number
/// larger than any machine.
fn places(groups: &str) -> impl Iterator<Item = String> {
    let own = groups.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
    own.filter_map(|(controllers, path)| match controllers {
        "" => Some(format!("/sys/fs/cgroup{path}/memory.max")),
        "memory" => Some(format!("/sys/fs/cgroup/memory{path}/memory.limit_in_bytes")),
        _ => None,
    })
    .chain([
        "/sys/fs/cgroup/memory.max".to_owned(),
        "/sys/fs/cgroup/memory/memory.limit_in_bytes".to_owned(),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_found() {
        assert_eq!(installed("MemTotal:       16384 kB\nMemFree: 1 kB\n"), Some(16 << 20));
        assert_eq!(installed("MemFree: 1 kB\n"), None);
        let found: Vec<_> = places("12:memory:/a\n3:cpu:/b\n0::/c\n").collect();
        assert_eq!(found[0], "/sys/fs/cgroup/memory/a/memory.limit_in_bytes");
        assert_eq!(found[1], "/sys/fs/cgroup/c/memory.max");
        assert_eq!(found.len(), 4);
        assert!(memory().is_none_or(|bytes| bytes > 1 << 20));
    }
}
