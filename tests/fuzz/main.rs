//! Seeded random attacks on the decoder, the session machines and the running broker.
//!
//! `scripts/fuzz [TARGET] [SECONDS] [--seed N]` runs them for longer. Each case grows from one
//! number; when a case fails, that number is printed with the command that replays it. Time comes
//! from `SURGEMQ_FUZZ_SECONDS` (default 3), the first number from `SURGEMQ_FUZZ_SEED` (default:
//! the clock's; with it, exactly that case is run unless a time is given too).
//!
//! No cargo-fuzz here: this runs with the stable toolchain and without a network.

#[path = "../common/broker.rs"]
mod broker;
mod corpus;
mod decoder;
mod hostile;
mod operations;
mod peer;
#[path = "../common/pipe.rs"]
mod pipe;
#[path = "../common/rng.rs"]
mod rng;
mod sessions;

use std::env;
use std::panic::{self, AssertUnwindSafe};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rng::Rng;

#[test]
fn decoder() {
    let corpus = corpus::Corpus::new();
    run("decoder", |rng| decoder::case(&corpus, rng));
}

#[test]
fn sessions() {
    run("sessions", sessions::case);
}

#[test]
fn operations() {
    run("operations", operations::case);
}

#[test]
fn broker() {
    let corpus = corpus::Corpus::new();
    run("broker", |rng| hostile::case(&corpus, rng));
}

/// Runs cases until the time is over.
fn run(target: &str, mut case: impl FnMut(&mut Rng)) {
    let (first, time) = settings();
    let start = Instant::now();
    let mut count = 0_u64;
    loop {
        let seed = first.wrapping_add(count);
        let result = panic::catch_unwind(AssertUnwindSafe(|| case(&mut Rng::new(seed))));
        if let Err(cause) = result {
            eprintln!(
                "case {count} of {target} failed; again: scripts/fuzz {target} --seed {seed}"
            );
            panic::resume_unwind(cause);
        }
        count += 1;
        if start.elapsed() >= time {
            break;
        }
    }
    println!("{target}: {count} cases from seed {first} in {:.1?}", start.elapsed());
}

fn settings() -> (u64, Duration) {
    let number = |name: &str| {
        env::var(name).ok().map(|text| {
            text.parse::<u64>().unwrap_or_else(|_| panic!("{name} is not a number: {text}"))
        })
    };
    let (seed, seconds) = (number("SURGEMQ_FUZZ_SEED"), number("SURGEMQ_FUZZ_SECONDS"));
    let default_seconds = if seed.is_some() { 0 } else { 3 };
    let seed = seed.unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is past 1970");
        // Rounded, so that cases of neighbouring runs do not overlap.
        now.as_secs() * 1_000_000
    });
    (seed, Duration::from_secs(seconds.unwrap_or(default_seconds)))
}
