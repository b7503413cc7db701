//! The whole broker on a disk that fails, forgets and hangs, with clients over links that break at
//! any byte, and a clock that is turned by hand. One number determines all that happens.
//!
//! `ledger.rs` knows what was published and what became of it, `client.rs` is a client that keeps
//! to the specification and notices when the broker does not, `wire.rs` is a link, `world.rs`
//! lets things happen, `finish.rs` heals everything and asks whether all has arrived. Nothing of
//! the broker's own session machines is used on the clients' side.
//!
//! `SURGEMQ_SIM_SEED=N cargo test --test simulation` replays a case; `SURGEMQ_FUZZ_SECONDS`
//! (default 15) bounds the time of a run without it.

mod client;
mod finish;
mod ledger;
#[path = "../common/pipe.rs"]
mod pipe;
#[path = "../common/rng.rs"]
#[allow(dead_code)]
mod rng;
mod wire;
mod world;

use std::env;
use std::panic::{self, AssertUnwindSafe};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rng::Rng;
use world::World;

#[test]
fn sessions_outlive_everything() {
    let number = |name: &str| {
        env::var(name).ok().map(|text| {
            text.parse::<u64>().unwrap_or_else(|_| panic!("{name} is not a number: {text}"))
        })
    };
    if let Some(seed) = number("SURGEMQ_SIM_SEED") {
        case(seed);
        return;
    }
    let time = Duration::from_secs(number("SURGEMQ_FUZZ_SECONDS").unwrap_or(15));
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is past 1970");
    let first = since.as_secs() * 1_000_000;
    let start = Instant::now();
    let mut count = 0;
    let mut totals = world::Totals::default();
    while count == 0 || start.elapsed() < time {
        totals.add(&case(first + count));
        count += 1;
    }
    println!("{count} cases from seed {first} in {:.1?}: {totals:?}", start.elapsed());
}

fn case(seed: u64) -> world::Totals {
    let mut rng = Rng::new(seed);
    let mut world = World::new(&mut rng);
    let result = panic::catch_unwind(AssertUnwindSafe(|| world.run()));
    match result {
        Ok(()) => world.totals,
        Err(cause) => {
            eprintln!(
                "step {} of the case of seed {seed} failed; again: \
                 SURGEMQ_SIM_SEED={seed} cargo test --test simulation",
                world.step
            );
            panic::resume_unwind(cause);
        }
    }
}
