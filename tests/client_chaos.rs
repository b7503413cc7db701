//! The client over connections that break at random places, against this crate's own broker: at
//! QoS 2 every message arrives exactly once and in order, at QoS 1 at least once and in order.
//!
//! Each world has a seed, printed on failure; `CHAOS_SEED=n cargo test --test client_chaos`
//! replays one.

use std::net::SocketAddr;
use std::time::Duration;

use surgemq::client::{Client, Filter, Message, Options, Overflow, Reconnect, Subscription};
use surgemq::mqtt::{QoS, Version};
use surgemq::server::Server;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

const MESSAGES: u32 = 300;
const SOON: Duration = Duration::from_secs(60);

/// A small generator of numbers that a seed repeats.
#[derive(Clone)]
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// Listens and forwards to `target`; cuts every connection after a random number of bytes.
async fn breaking_proxy(target: SocketAddr, mut random: Random) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let budget = 60 + random.below(4000);
            tokio::spawn(async move {
                if let Ok(far) = TcpStream::connect(target).await {
                    forward(near, far, budget).await;
                }
            });
        }
    });
    address
}

/// Forwards `budget` bytes in both directions together, then drops both ends.
async fn forward(mut near: TcpStream, mut far: TcpStream, budget: u64) {
    let mut left = usize::try_from(budget).unwrap();
    let (mut up, mut down) = ([0; 700], [0; 700]);
    while left > 0 {
        let (count, bytes, to) = tokio::select! {
            count = near.read(&mut up) => (count, &up, &mut far),
            count = far.read(&mut down) => (count, &down, &mut near),
        };
        let count = count.unwrap_or(0).min(left);
        if count == 0 || to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
        left -= count;
    }
}

async fn connect(address: SocketAddr, id: &str, version: Version, window: u16) -> Client {
    let first = Duration::from_millis(1);
    let options = Options::new(address.ip().to_string(), address.port())
        .version(version)
        .client_id(id)
        .clean_start(false)
        .session_expiry_secs(600)
        .receive_maximum(window)
        .max_inflight(window)
        .overflow(Overflow::Pause)
        .reconnect(Reconnect { first, longest: 4 * first, attempts: None });
    loop {
        // The first connection may break, too.
        if let Ok(client) = options.clone().connect().await {
            return client;
        }
    }
}

async fn receive(mut inbox: Subscription, qos: QoS) -> Vec<u32> {
    let mut numbers = Vec::new();
    while numbers.last() != Some(&(MESSAGES - 1)) {
        let message = inbox.recv().await.expect("reconnecting without end");
        assert_eq!(message.qos, qos);
        numbers.push(std::str::from_utf8(&message.payload).unwrap().parse().unwrap());
    }
    numbers
}

async fn world(seed: u64) {
    let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    random.below(1);
    let version = [Version::V311, Version::V5][random.below(2) as usize];
    let qos = [QoS::AtLeastOnce, QoS::ExactlyOnce][random.below(2) as usize];
    let window = 1 + random.below(40) as u16;
    let server = Server::builder().build();
    let address = server.listen("tcp://127.0.0.1:0").await.unwrap();
    let mut through = async || {
        let random = Random(random.below(u64::MAX) | 1);
        breaking_proxy(address, random).await
    };
    let subscriber = connect(through().await, "subscriber", version, window).await;
    let inbox = subscriber.subscribe(Filter::new("t", qos)).await.unwrap();
    let publisher = connect(through().await, "publisher", version, window).await;
    let publish = async {
        let mut deliveries = Vec::new();
        for n in 0..MESSAGES {
            let message = Message::new("t", n.to_string()).qos(qos);
            deliveries.push(publisher.enqueue(message).await.unwrap());
        }
        for delivery in deliveries {
            delivery.await.unwrap();
        }
    };
    let (numbers, ()) = timeout(SOON, async { tokio::join!(receive(inbox, qos), publish) })
        .await
        .unwrap_or_else(|_| panic!("seed {seed}: {version} {qos:?} window {window} got stuck"));
    let say = format!("seed {seed}: {version} {qos:?} window {window}: {numbers:?}");
    if qos == QoS::ExactlyOnce {
        assert!(numbers.iter().copied().eq(0..MESSAGES), "{say}");
    } else {
        // Repeated, perhaps, but nothing is missing, and a first appearance keeps the order.
        let mut next = 0;
        for number in numbers {
            assert!(number <= next, "{say}");
            next = next.max(number + 1);
        }
        assert_eq!(next, MESSAGES, "{say}");
    }
    server.stop(Duration::from_millis(100)).await;
}

#[test]
fn nothing_is_lost_over_breaking_connections() {
    let chosen = std::env::var("CHAOS_SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds: Vec<u64> = chosen.map_or_else(|| (1..=12).collect(), |seed| vec![seed]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for seed in seeds {
        runtime.block_on(world(seed));
    }
}
