//! mosquitto's own clients, `mosquitto_pub`, `mosquitto_sub` and `mosquitto_rr`, and its bridge.

use std::fmt::Write as _;
use std::net::TcpListener;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::broker::Broker;
use crate::process::Process;
use crate::tools;

/// A case runs against a broker, in one version.
struct World {
    broker: Broker,
    version: &'static str,
    prefix: String,
}

/// A line of `mosquitto_sub` in these tests: topic, QoS, retain flag, payload.
const FORMAT: &str = "%t %q %r %p";

impl World {
    fn topic(&self, topic: &str) -> String {
        format!("{}{topic}", self.prefix)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = tools::mosquitto(program).expect("it was looked for before");
        let port = self.broker.port.to_string();
        command.args(["-h", &self.broker.host, "-p", &port, "-V", self.version]);
        command
    }

    fn publish(&self, topic: &str, arguments: &[&str], input: &[u8]) {
        let mut command = self.command("mosquitto_pub");
        Process::start(command.args(["-t", &self.topic(topic)]).args(arguments), input).succeed();
    }

    /// A subscriber that has been answered: a retained message has reached it.
    fn subscriber(&self, filters: &[&str], arguments: &[&str]) -> Process {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let ready = format!("/ready/{}", NEXT.fetch_add(1, Ordering::Relaxed));
        self.publish(&ready, &["-r", "-m", "ready"], b"");
        let mut command = self.command("mosquitto_sub");
        for filter in filters {
            command.args(["-t", filter]);
        }
        let ready = self.topic(&ready);
        command.args(["-t", &ready, "-F", FORMAT]).args(arguments);
        let mut process = Process::start(&mut command, b"");
        process.wait_for(|line| line.starts_with(&ready));
        process
    }

    fn expect(&self, subscriber: &mut Process, topic: &str, rest: &str) {
        let line = subscriber.line().expect("a subscriber stays");
        assert_eq!(line, format!("{} {rest}", self.topic(topic)));
    }
}

fn connect(world: &World) {
    let mut command = world.command("mosquitto_sub");
    let arguments = ["-t", "nothing", "-E", "-i", &world.topic("c")];
    Process::start(command.args(arguments), b"").succeed();
}

fn roundtrip(world: &World) {
    for qos in ["0", "1", "2"] {
        let topic = format!("/t{qos}");
        let mut subscriber = world.subscriber(&[&world.topic(&topic)], &["-q", qos]);
        world.publish(&topic, &["-q", qos, "-n"], b"");
        world.expect(&mut subscriber, &topic, &format!("{qos} 0 "));
        for payload in ["x", "some words", &"y".repeat(20_000)] {
            world.publish(&topic, &["-q", qos, "-s"], payload.as_bytes());
            world.expect(&mut subscriber, &topic, &format!("{qos} 0 {payload}"));
        }
        // The lower of both qualities holds.
        world.publish(&topic, &["-q", "2", "-m", "down"], b"");
        world.expect(&mut subscriber, &topic, &format!("{qos} 0 down"));
    }
}

fn retained(world: &World) {
    world.publish("/r/one", &["-r", "-q", "1", "-m", "old"], b"");
    world.publish("/r/one", &["-r", "-q", "1", "-m", "new"], b"");
    let filter = world.topic("/r/#");
    let mut command = world.command("mosquitto_sub");
    command.args(["-t", &filter, "-F", FORMAT, "-C", "1", "-q", "1"]);
    let lines = Process::start(&mut command, b"").succeed();
    assert_eq!(lines, [format!("{} 1 1 new", world.topic("/r/one"))]);
    world.publish("/r/one", &["-r", "-n"], b"");
    let mut later = world.subscriber(&[&filter], &[]);
    world.publish("/r/two", &["-m", "live"], b"");
    world.expect(&mut later, "/r/two", "0 0 live");
}

fn will(world: &World) {
    let topic = world.topic("/will");
    let mut watcher = world.subscriber(&[&topic], &["-q", "2"]);
    for qos in ["0", "1", "2"] {
        let arguments = ["--will-topic", &topic, "--will-payload", "gone", "--will-qos", qos];
        world.subscriber(&[], &arguments).kill();
        world.expect(&mut watcher, "/will", &format!("{qos} 0 gone"));
    }
    // A subscriber that leaves by itself has no will.
    let mut polite = world.command("mosquitto_sub");
    world.publish("/bye", &["-r", "-m", "bye"], b"");
    polite.args(["-t", &world.topic("/bye"), "-C", "1"]);
    polite.args(["--will-topic", &topic, "--will-payload", "never"]);
    Process::start(&mut polite, b"").succeed();
    world.publish("/will", &["-m", "barrier"], b"");
    world.expect(&mut watcher, "/will", "0 0 barrier");
}

fn session(world: &World) {
    let (id, topic) = (world.topic("s"), world.topic("/q"));
    let mut keep = vec!["-c", "-i", &id, "-q", "2", "-t", &topic];
    if world.version == "5" {
        keep.extend(["-x", "600"]);
    }
    Process::start(world.command("mosquitto_sub").args(&keep).arg("-E"), b"").succeed();
    for n in 0..25 {
        for qos in ["1", "2"] {
            world.publish("/q", &["-q", qos, "-m", &n.to_string()], b"");
        }
    }
    let mut back = world.command("mosquitto_sub");
    back.args(&keep).args(["-C", "50", "-F", "%q %p"]);
    let lines = Process::start(&mut back, b"").succeed();
    // A message of QoS 2 is through later than its neighbours of QoS 1.
    for qos in ["1 ", "2 "] {
        let heard: Vec<_> = lines.iter().filter_map(|line| line.strip_prefix(qos)).collect();
        let wanted: Vec<String> = (0..25).map(|n| n.to_string()).collect();
        assert_eq!(heard, wanted, "QoS {qos}");
    }
}

fn wildcard(world: &World) {
    let (plus, hash) = (world.topic("/a/+/c"), world.topic("/h/#"));
    let mut subscriber = world.subscriber(&[&plus, &hash], &[]);
    for topic in ["/a/b", "/a/b/c/d", "/hh", "/a/b/c", "/a//c", "/h", "/h/i/j"] {
        world.publish(topic, &["-m", "x"], b"");
    }
    for topic in ["/a/b/c", "/a//c", "/h", "/h/i/j"] {
        world.expect(&mut subscriber, topic, "0 0 x");
    }
}

fn shared(world: &World) {
    let filter = format!("$share/group/{}", world.topic("/job"));
    let mut first = world.subscriber(&[&filter], &["-q", "1"]);
    let mut second = world.subscriber(&[&filter, &world.topic("/end")], &["-q", "1"]);
    let end = world.topic("/end");
    let numbers: String = (0..100).fold(String::new(), |mut all, n| {
        let _ = writeln!(all, "{n}");
        all
    });
    world.publish("/job", &["-q", "1", "-l"], numbers.as_bytes());
    world.publish("/end", &["-q", "1", "-m", "end"], b"");
    // The second hears the end after its last; the first has the rest.
    let mut heard = Vec::new();
    let number = |line: &str| line.rsplit(' ').next().and_then(|n| n.parse::<u32>().ok());
    loop {
        let line = second.line().expect("a subscriber stays");
        if line.starts_with(&end) {
            break;
        }
        heard.extend(number(&line));
    }
    assert!((1..100).contains(&heard.len()), "the second member heard {}", heard.len());
    while heard.len() < 100 {
        heard.extend(number(&first.line().expect("a subscriber stays")));
    }
    heard.sort_unstable();
    assert_eq!(heard, (0..100).collect::<Vec<u32>>());
}

fn big(world: &World) {
    let payload = "0123456789abcdef".repeat(1 << 16);
    for qos in ["0", "1", "2"] {
        let topic = format!("/big{qos}");
        let mut subscriber = world.subscriber(&[&world.topic(&topic)], &["-q", qos]);
        world.publish(&topic, &["-q", qos, "-s"], payload.as_bytes());
        let line = subscriber.line().expect("a subscriber stays");
        assert!(line.ends_with(&payload), "1 MiB at QoS {qos} came changed");
    }
}

fn order(world: &World) {
    let numbers: Vec<String> = (0..1000).map(|n| n.to_string()).collect();
    for qos in ["0", "1", "2"] {
        let topic = format!("/o{qos}");
        let mut subscriber = world.subscriber(&[&world.topic(&topic)], &["-q", qos]);
        world.publish(&topic, &["-q", qos, "-l"], numbers.join("\n").as_bytes());
        for number in &numbers {
            world.expect(&mut subscriber, &topic, &format!("{qos} 0 {number}"));
        }
    }
}

fn request_response(world: &World) {
    let (request, response) = (world.topic("/request"), world.topic("/response"));
    let mut server = world.subscriber(&[&request], &["-F", "%t %R %D %p"]);
    let mut client = world.command("mosquitto_rr");
    client.args(["-t", &request, "-e", &response, "-m", "six", "-D", "publish"]);
    client.args(["correlation-data", "42", "-W", "60"]);
    let client = Process::start(&mut client, b"");
    let asked = server.line().expect("a subscriber stays");
    assert_eq!(asked, format!("{request} {response} 42 six"));
    world.publish("/response", &["-m", "forty-two"], b"");
    assert_eq!(client.succeed(), ["forty-two"]);
}

/// Before 5.0 `mosquitto_rr` waits for any message on the response topic.
fn request_response_by_topic(world: &World) {
    let request = world.topic("/request");
    let mut server = world.subscriber(&[&request], &[]);
    let mut client = world.command("mosquitto_rr");
    client.args(["-t", &request, "-e", &world.topic("/response"), "-m", "six", "-W", "60"]);
    let client = Process::start(&mut client, b"");
    world.expect(&mut server, "/request", "0 0 six");
    world.publish("/response", &["-m", "forty-two"], b"");
    assert_eq!(client.succeed(), ["forty-two"]);
}

fn properties(world: &World) {
    let format = "%t %E %C %R %D %P %p";
    let mut subscriber = world.subscriber(&[&world.topic("/p")], &["-F", format]);
    let mut arguments = vec!["-m", "text"];
    for property in [
        &["message-expiry-interval", "1000"][..],
        &["content-type", "text/plain"],
        &["response-topic", "answer/here"],
        &["correlation-data", "42"],
        &["user-property", "a", "1"],
        &["user-property", "a", "2"],
        &["payload-format-indicator", "1"],
    ] {
        arguments.extend(["-D", "publish"]);
        arguments.extend(property);
    }
    world.publish("/p", &arguments, b"");
    let line = subscriber.line().expect("a subscriber stays");
    let wanted = format!("{} 1000 text/plain answer/here 42 a:1 a:2 text", world.topic("/p"));
    assert_eq!(line.replace(" 999 ", " 1000 "), wanted);
}

fn subscription_ids(world: &World) {
    let topic = world.topic("/s");
    let arguments = ["-D", "subscribe", "subscription-identifier", "77", "-F", "%t %S %p"];
    let mut subscriber = world.subscriber(&[&topic], &arguments);
    world.publish("/s", &["-m", "x"], b"");
    world.expect(&mut subscriber, "/s", "77 x");
}

/// mosquitto_pub sends an alias from the second line on, when it is told the property.
fn topic_alias(world: &World) {
    let topic = world.topic("/alias");
    let mut subscriber = world.subscriber(&[&topic], &["-q", "1"]);
    let alias = ["-q", "1", "-l", "-D", "publish", "topic-alias", "3"];
    world.publish("/alias", &alias, b"one\ntwo\nthree\n");
    for word in ["one", "two", "three"] {
        world.expect(&mut subscriber, "/alias", &format!("1 0 {word}"));
    }
}

/// A mosquitto that shares all topics of the case with us. What goes through the bridge comes out
/// once on each side, and what is retained stays so.
fn bridge(world: &World) {
    let Some(mut mosquitto) = tools::present(tools::mosquitto_broker()) else { return };
    let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = free.local_addr().expect("it is bound").port().to_string();
    drop(free);
    let protocol = if world.version == "5" { "50" } else { world.version };
    let Broker { host, port: ours, .. } = &world.broker;
    let configuration = format!(
        "listener {port} 127.0.0.1\nallow_anonymous true\nconnection bridge\n\
         address {host}:{ours}\nbridge_protocol_version mqttv{protocol}\n\
         remote_clientid {0}\ntopic {0}/# both 1\n",
        world.prefix
    );
    world.publish("/first", &["-q", "1", "-r", "-m", "retained before"], b"");
    let mut here = world.subscriber(&[&world.topic("/there")], &["-q", "1"]);
    let state = format!("$SYS/broker/connection/{}/state", world.prefix);
    let mut connected = world.subscriber(&[&state], &["-q", "1"]);
    let arguments = ["-c", "/dev/stdin"];
    let mut mosquitto = Process::start(mosquitto.args(arguments), configuration.as_bytes());
    mosquitto.wait_for(|line| line.ends_with(" running"));

    let behind = |program: &str, arguments: &[&str]| {
        let mut command = tools::mosquitto(program).expect("it was looked for before");
        command.args(["-p", &port, "-V", world.version, "-q", "1"]).args(arguments);
        Process::start(&mut command, b"")
    };
    let all = world.topic("/#");
    let mut there = behind("mosquitto_sub", &["-t", &all, "-F", "%t %q %p"]);
    let first = format!("{} 1 retained before", world.topic("/first"));
    there.wait_for(|line| line == first);
    behind("mosquitto_pub", &["-t", &world.topic("/there"), "-m", "from there"]).succeed();
    world.expect(&mut here, "/there", "1 0 from there");
    // An echo of that would come before this.
    world.publish("/here", &["-q", "1", "-r", "-m", "from here"], b"");
    let line = there.wait_for(|line| !line.contains("/ready/"));
    assert_eq!(line, format!("{} 1 from there", world.topic("/there")));
    world.expect(&mut there, "/here", "1 from here");
    let here = world.topic("/here");
    let kept = behind("mosquitto_sub", &["-t", &here, "-C", "1", "-F", "%r %p"]).succeed();
    assert_eq!(kept, ["1 from here"]);
    connected.wait_for(|line| line == format!("{state} 1 0 1"));
    mosquitto.kill();
    connected.wait_for(|line| line == format!("{state} 1 0 0"));
}

macro_rules! cases {
    ($($name:ident $version:literal: $($case:ident)*;)*) => {
        $(mod $name {
            $(#[test]
            fn $case() {
                let names = ["mosquitto_pub", "mosquitto_sub", "mosquitto_rr"];
                let found = names.into_iter().try_for_each(|name| {
                    crate::tools::mosquitto(name).map(|_| ())
                });
                if crate::tools::present(found).is_none() {
                    return;
                }
                super::$case(&super::World {
                    broker: crate::broker::Broker::start(),
                    version: $version,
                    prefix: crate::tools::prefix(),
                });
            })*
        })*
    };
}

cases! {
    v31 "31": connect roundtrip retained will session wildcard big order
              request_response_by_topic bridge;
    v311 "311": connect roundtrip retained will session wildcard shared big order
                request_response_by_topic bridge;
    v5 "5": connect roundtrip retained will session wildcard shared big order
            request_response properties subscription_ids topic_alias bridge;
}
