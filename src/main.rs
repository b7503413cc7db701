//! The `surgemq` binary: see [`surgemq::cli`].

use std::process::ExitCode;

/// Its feature `no_thp` keeps it from asking for huge pages. One is cleared, and on a virtual machine
/// found anew by its host, while the thread that touched it first stands still: 7.8 ms for 2 MiB
/// measured, and a queue that grows touches new memory all the time. (Where the system gives huge
/// pages to everybody, `MIMALLOC_ALLOW_THP=0` in the environment does the same.)
#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    surgemq::cli::main()
}
