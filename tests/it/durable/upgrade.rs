//! Data directories of earlier formats: what they hold is still found.
//!
//! `tests/fixtures/data-format-1` was written by the first version with a data directory, 0.1.0:
//! `SURGEMQ_TEST_FIXTURE=tests/fixtures/data-format-1 cargo test --test it durable::upgrade`
//! puts what [`prepare`] leaves behind there. A format that has been released is not written anew;
//! a later one gets a fixture of its own beside it, and the test of all of them a row.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::{barrier, resume, texts};
use crate::broker::{Broker, Launch, Stop, foreign};
use crate::peer::Peer;
use crate::wire::*;

const FIXTURES: [&str; 1] = ["tests/fixtures/data-format-1"];
/// As long as can be said; the fixtures grow old.
const FOR_EVER: u32 = u32::MAX;

fn kept(id: &str) -> Connect {
    connect(id).clean(false).prop(session_expiry(FOR_EVER))
}

/// Leaves one of everything in a new data directory.
fn prepare(broker: &mut Broker) {
    let mut publisher = broker.join(V5);
    subscribers(broker);
    wills(broker);

    // Retained: set, replaced, cleared, expired.
    let retained = |topic: &str, text: &str| publish(topic, text).qos(1, 0).retain();
    publisher.publish_as(
        retained("retained/set", "set").prop(user("k", "v")).prop(message_expiry(FOR_EVER - 1)),
    );
    publisher.publish_as(retained("retained/replaced", "old"));
    publisher.publish_as(retained("retained/replaced", "new").qos(2, 0));
    publisher.publish_as(retained("retained/cleared", "old"));
    publisher.publish_as(retained("retained/cleared", ""));
    publisher.publish_as(retained("retained/expired", "old").prop(message_expiry(1)));

    // Queued, for several sessions at once.
    publisher.publish_as(
        publish("queue", "1").qos(1, 0).prop(content_type("t")).prop(message_expiry(FOR_EVER - 1)),
    );
    publisher.publish("queue", "2", 2);
    publisher.publish_as(publish("queue", "expired").qos(1, 0).prop(message_expiry(1)));
    publisher.publish("shared", "for one of them", 1);

    // In flight to a client, at each step, and behind them what does not fit.
    let mut receiver = broker.connect(V5, kept("receiver").prop(receive_maximum(4)));
    receiver.subscribe("flight", 2);
    for n in 1..=6 {
        publisher.publish("flight", n.to_string(), 1 + n % 2);
    }
    let sent: Vec<_> = (1..=4).map(|n| receiver.expect_publish("flight", n.to_string())).collect();
    assert_eq!(sent.iter().map(|got| got.id).collect::<Vec<_>>(), [1, 2, 3, 4]);
    receiver.send(pubrec(3)).expect_ack(pubrel(3));
    receiver.send(puback(2));
    receiver.expect_publish("flight", "5");

    // In flight from a client.
    let mut sender = broker.connect(V311, kept("sender"));
    for id in [7, 8] {
        sender.send(publish("queue", format!("inbound {id}")).qos(2, id)).expect_ack(pubrec(id));
    }
    sender.send(pubrel(7)).expect_ack(pubcomp(7));
    barrier(broker);
    broker.stop(Stop::Kill);
}

fn subscribers(broker: &Broker) {
    let mut old = broker.connect(V311, kept("old"));
    old.subscribe("queue", 1);
    old.subscribe("cancelled", 1);
    old.unsubscribe("cancelled");
    old.leave();
    let mut new = broker.connect(V5, kept("new"));
    new.subscribe_as(
        subscribe(1).to("queue", 2 | RETAIN_AS_PUBLISHED | NO_LOCAL).prop(subscription_id(77)),
        &[2],
    );
    new.leave();
    let mut member = broker.connect(V5, kept("member"));
    member.subscribe("$share/group/shared", 1);
    member.leave();
    // This one does not outlive its connection.
    broker.connect(V311, connect("clean")).subscribe("clean", 1);
    // And this one is begun anew.
    let mut ended = broker.connect(V5, kept("ended"));
    ended.subscribe("ended", 1);
    ended.send(disconnect().prop(session_expiry(0)));
    ended.expect_closed();
}

fn wills(broker: &Broker) {
    let mut watcher = broker.connect(V31, kept("watcher"));
    watcher.subscribe("will/+", 2);
    watcher.leave();
    let away = kept("away").will("will/away", "late", 2).will_prop(will_delay(1));
    broker.connect(V5, away).vanish();
    let silent = kept("silent").will("will/silent", "never", 1);
    broker.connect(V311, silent).leave();
    // Its connection lasts as long as the broker.
    let connected = kept("connected").will("will/connected", "gone", 1).will_prop(user("k", "v"));
    std::mem::forget(broker.connect(V5, connected));
}

/// Finds it all.
fn check(broker: &mut Broker) {
    let mut watcher = resume(broker, V31, "watcher");
    let mut wills: Vec<_> = (0..2).map(|_| watcher.expect_any_publish()).collect();
    wills.sort_by(|a, b| a.topic.cmp(&b.topic));
    assert_eq!((&*wills[0].topic, wills[0].text(), wills[0].qos), ("will/away", "late", 2));
    assert_eq!((&*wills[1].topic, wills[1].text(), wills[1].qos), ("will/connected", "gone", 1));
    wills.iter().for_each(|got| watcher.ack(got));
    watcher.expect_nothing_owed();

    let mut late = broker.join(V5);
    late.subscribe("retained/#", 2);
    let mut all = late.drain();
    all.sort_by(|a, b| a.topic.cmp(&b.topic));
    assert_eq!(texts(&all), ["new", "set"]);
    assert_eq!((all[0].qos, all[1].qos), (2, 1));
    assert_eq!(all[1].props.all(0x26), [&Value::Pair("k".into(), "v".into())]);

    let queued = ["1", "2", "inbound 7", "inbound 8"];
    let all = session(broker, V311, "old").drain();
    assert_eq!(texts(&all), queued);
    assert!(all.iter().all(|got| got.qos == 1 && !got.dup), "{all:?}");
    let all = session(broker, V5, "new").drain();
    assert_eq!(texts(&all), queued);
    assert!(all.iter().all(|got| got.props.number(0x0B) == Some(77)), "{all:?}");
    assert_eq!(all.iter().map(|got| got.qos).collect::<Vec<_>>(), [1, 2, 2, 2]);
    assert_eq!(all[0].props.text(0x03), Some("t"));
    assert!(all[0].props.number(0x02).is_some_and(|left| left > FOR_EVER / 2), "{all:?}");
    assert_eq!(texts(&session(broker, V5, "member").drain()), ["for one of them"]);

    flights(broker);
    subscriptions(broker);
}

fn flights(broker: &Broker) {
    let mut receiver = session(broker, V5, "receiver");
    // Exchange 2 is over, 3 was released.
    receiver.pick("PUBREL", |got| match got {
        Packet::Ack(ack) => Some(assert_eq!((ack.first & 0xF7, ack.id), (0x62, 3))),
        _ => None,
    });
    for (id, text, dup) in [(1, "1", true), (4, "4", true), (5, "5", true), (6, "6", false)] {
        let got = receiver.expect_publish("flight", text);
        assert_eq!((got.id, got.dup), (id, dup), "{got:?}");
    }
    let mut sender = session(broker, V311, "sender");
    sender.send(publish("queue", "inbound 8").qos(2, 8).dup()).expect_ack(pubrec(8));
    sender.send(pubrel(8)).expect_ack(pubcomp(8));
    session(broker, V311, "old").expect_nothing_owed();
}

fn subscriptions(broker: &Broker) {
    for topic in ["cancelled", "clean", "ended"] {
        assert!(!super::is_wanted(broker, topic), "{topic}");
    }
    for id in ["clean", "ended"] {
        assert!(!broker.connect(V311, kept(id)).connack.session_present, "{id}");
    }
    let mut new = session(broker, V5, "new");
    new.publish("queue", "from itself", 1);
    new.expect_nothing_owed();
    broker.join(V5).publish_as(publish("queue", "live").qos(1, 0).retain());
    let got = new.expect_publish("queue", "live");
    assert!(got.retain, "{got:?}");
}

#[track_caller]
fn session(broker: &Broker, v: Version, id: &str) -> Peer {
    super::resume_with(broker, v, kept(id))
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("it can be made");
    for (name, bytes) in super::data_dir::contents(from) {
        fs::write(to.join(name), bytes).expect("it can be written");
    }
}

#[test]
fn everything_is_found_by_the_version_that_wrote_it() {
    let Some(mut broker) = Broker::durable(&[]) else { return };
    prepare(&mut broker);
    if let Some(fixture) = std::env::var_os("SURGEMQ_TEST_FIXTURE") {
        copy(&broker.dir(), Path::new(&fixture));
    }
    std::thread::sleep(Duration::from_millis(1_100)); // some of it expires
    broker.start_again();
    check(&mut broker);
}

#[test]
fn everything_is_found_in_directories_of_earlier_versions() {
    if foreign() {
        return;
    }
    for fixture in FIXTURES {
        let dir = tempfile::tempdir().expect("a temporary directory");
        copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join(fixture), dir.path());
        check(&mut Launch::in_own(dir, &[]).start());
    }
}
