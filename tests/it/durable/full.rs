//! A data directory without room: whoever asks for what cannot be kept is told so or waits, nobody
//! else suffers, and nothing that was acknowledged is lost.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{absent_subscriber, durable, resume};
use crate::broker::{Broker, Launch, PATIENCE, Stop, client_id, foreign, skipped, topic};
use crate::peer::Peer;
use crate::wire::*;

const SIZE: usize = 20_000;

/// A message of some size, which begins with its number.
fn large(n: usize) -> String {
    format!("{n:<SIZE$}")
}

fn number(got: &Publish) -> usize {
    assert_eq!(got.payload.len(), SIZE);
    got.text().trim_end().parse().expect("a number")
}

/// Publishes messages, numbered from here, until the broker says that there is no room. Answers the
/// first number that it did not take.
#[track_caller]
fn fill(broker: &Broker, topic: &str, qos: u8, from: usize) -> usize {
    let mut publisher = broker.join(V5);
    for n in from..2_000 {
        let id = publisher.fresh_id();
        publisher.send(publish(topic, large(n)).qos(qos, id));
        match publisher.next() {
            Some(Packet::Ack(ack)) if ack.code == code::QUOTA => {
                assert_eq!((ack.first, ack.id), (if qos == 1 { 0x40 } else { 0x50 }, id));
                return n;
            }
            Some(Packet::Ack(ack)) => {
                assert!((ack.id, ack.code) == (id, 0), "{ack:?}");
                if qos == 2 {
                    publisher.send(pubrel(id)).expect_ack(pubcomp(id));
                }
            }
            other => panic!("{other:?}"),
        }
    }
    panic!("the disk does not fill");
}

/// Publishes until it is accepted again.
#[track_caller]
fn publish_at_last(broker: &Broker, topic: &str, payload: &str) {
    let mut publisher = broker.join(V5);
    let began = Instant::now();
    loop {
        let id = publisher.fresh_id();
        publisher.send(publish(topic, payload).qos(1, id));
        match publisher.next() {
            Some(Packet::Ack(ack)) if (ack.id, ack.code) == (id, 0) => return,
            Some(Packet::Ack(ack)) if ack.code == code::QUOTA => {}
            other => panic!("{other:?}"),
        }
        assert!(began.elapsed() < PATIENCE, "there is no room again");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Those who need no disk do not notice.
#[track_caller]
fn others_go_on(broker: &Broker, full: &str) {
    for v in [V311, V5] {
        let topic = topic();
        let mut clean = broker.join(v);
        clean.subscribe(&topic, 2);
        clean.subscribe(full, 0);
        let mut publisher = broker.join(v);
        for qos in 0..=2 {
            publisher.publish(&topic, "goes on", qos);
            let got = clean.expect_publish(&topic, "goes on");
            assert_eq!(got.qos, qos);
            clean.ack(&got);
        }
        publisher.publish(full, "QoS 0", 0);
        clean.expect_publish(full, "QoS 0");
    }
}

/// Takes all that a session is owed: the numbers, without the last messages of the test itself.
#[track_caller]
fn take(peer: &mut Peer) -> Vec<usize> {
    let mut all = Vec::new();
    loop {
        let Some(Packet::Publish(got)) = peer.next() else { panic!("closed") };
        peer.ack(&got);
        if got.text() == "the end" {
            return all;
        }
        all.push(number(&got));
    }
}

#[test]
fn publishers_are_told_that_the_disk_is_full_and_go_on_when_it_is_not() {
    for qos in [1, 2] {
        let Some(mut broker) = Broker::durable(&["--max-disk", "1M"]) else { return };
        let topic = topic();
        let id = absent_subscriber(&broker, V5, &topic, 2);
        let known = absent_subscriber(&broker, V311, "something/else", 2);
        let acknowledged = fill(&broker, &topic, qos, 0);
        assert!(acknowledged > 10, "{acknowledged}");
        others_go_on(&broker, &topic);

        // 3.1.1 has no way to say no: the message is not acknowledged. CONNACK of a session that
        // is on disk waits for the disk, so whatever was to be said was said before.
        let mut old = broker.join(V311);
        old.send(publish(&topic, large(0)).qos(qos, 1));
        old.settle();
        resume(&broker, V311, &known);
        old.expect_silence();

        // New sessions would need room, known ones do not.
        let new = connect(client_id()).durable();
        assert_eq!(broker.connect_refused(V5, &new).code, code::QUOTA);
        assert_eq!(broker.connect_refused(V311, &new).code, 3);
        resume(&broker, V311, &known);

        // Not lost, whatever happens.
        broker.restart(Stop::Kill);
        let acknowledged = fill(&broker, &topic, qos, acknowledged);
        others_go_on(&broker, &topic);
        let mut peer = resume(&broker, V5, &id);
        let mut taken = Vec::new();
        while taken.len() < acknowledged {
            let got = peer.expect_any_publish();
            peer.ack(&got);
            if got.qos > 0 {
                taken.push(number(&got));
            }
        }
        assert_eq!(taken, (0..acknowledged).collect::<Vec<_>>());

        // There is room again.
        publish_at_last(&broker, &topic, "the end");
        assert_eq!(take(&mut peer), [0; 0], "what was refused was not delivered");
        durable(&broker, V5);
        broker.restart(Stop::Kill);
        resume(&broker, V5, &id);
    }
}

#[test]
fn retained_messages_need_room_too() {
    let Some(mut broker) = Broker::durable(&["--max-disk", "1M"]) else { return };
    let topic = topic();
    absent_subscriber(&broker, V5, &format!("{topic}/full"), 1);
    let mut publisher = broker.join(V5);
    publisher.publish_as(publish(&topic, "old").qos(1, 0).retain());
    fill(&broker, &format!("{topic}/full"), 1, 0);
    publisher.send(publish(&topic, "new").qos(1, 99).retain());
    publisher.expect_ack(puback(99).code(code::QUOTA));
    for _ in 0..2 {
        let mut late = broker.join(V5);
        late.subscribe(&topic, 0);
        late.expect_publish(&topic, "old");
        broker.restart(Stop::Kill);
    }
}

/// A small file system of its own, which lives as long as this.
struct SmallDisk {
    holder: Child,
    _mount_point: tempfile::TempDir,
    path: PathBuf,
}

impl SmallDisk {
    /// `None`, with a word, where one may not have one.
    fn new(size: &str) -> Option<Self> {
        let mount_point = tempfile::tempdir().expect("a temporary directory");
        let path = mount_point.path().to_owned();
        let script = format!(
            "mount -t tmpfs -o size={size} tmpfs '{}' && echo mounted && read -r _",
            path.display()
        );
        let holder = Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let mut word = String::new();
        let holder = holder.ok().and_then(|mut holder| {
            let said = BufReader::new(holder.stdout.take()?).read_line(&mut word);
            if said.is_ok() && word.trim() == "mounted" {
                return Some(holder);
            }
            let _ = holder.kill();
            let _ = holder.wait();
            None
        });
        if holder.is_none() {
            skipped("one may not mount a small file system here");
        }
        Some(Self { holder: holder?, _mount_point: mount_point, path })
    }

    /// The command that brings another one there.
    fn enter(&self) -> Vec<String> {
        let holder = self.holder.id().to_string();
        ["nsenter", "--target", &holder, "--user", "--mount", "--preserve-credentials", "--"]
            .map(str::to_owned)
            .to_vec()
    }

    fn launch(&self, flags: &[&str]) -> Broker {
        let enter = self.enter();
        let enter: Vec<&str> = enter.iter().map(String::as_str).collect();
        Launch::on(&self.path.join("data"), flags).by(&enter).start()
    }

    fn run(&self, script: &str) {
        let enter = self.enter();
        let status = Command::new(&enter[0])
            .args(&enter[1..])
            .args(["sh", "-c", script])
            .current_dir(Path::new("/"))
            .stderr(Stdio::null())
            .status();
        status.expect("nsenter runs");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

#[test]
fn a_full_file_system_loses_nothing_and_nobody_else_notices() {
    // The limit is not the broker's own: somebody else's file takes the room. So a write fails, and
    // what it was to keep is not acknowledged before there is room.
    if foreign() {
        return;
    }
    let Some(disk) = SmallDisk::new("8M") else { return };
    let file = disk.path.join("somebody-elses");
    disk.run(&format!("head -c 6M /dev/zero > '{}'", file.display()));
    let mut broker = disk.launch(&["--max-disk", "16M"]);
    let topic = topic();
    let id = absent_subscriber(&broker, V5, &topic, 1);

    let mut publisher = broker.join(V5);
    let mut next = 0;
    // The first one that is not written gets no answer, later ones are refused.
    let unanswered = loop {
        let packet_id = publisher.fresh_id();
        publisher.send(publish(&topic, large(next)).qos(1, packet_id));
        match publisher.next_within(Duration::from_secs(2)) {
            Some(Some(Packet::Ack(ack))) if ack.code == 0 => assert_eq!(ack.id, packet_id),
            None => break packet_id,
            other => panic!("{other:?}"),
        }
        next += 1;
        assert!(next < 500, "the disk does not fill");
    };
    let acknowledged = next;
    assert!(acknowledged > 10, "{acknowledged}");
    let mut another = broker.join(V5);
    another.send(publish(&topic, large(0)).qos(1, 1));
    another.expect_ack(puback(1).code(code::QUOTA));
    others_go_on(&broker, &topic);

    // There is room again: now it is written, and then acknowledged.
    disk.run(&format!("rm '{}'", file.display()));
    publisher.expect_ack(puback(unanswered));
    publish_at_last(&broker, &topic, "the end");
    broker.restart(Stop::Kill);
    let mut peer = resume(&broker, V5, &id);
    assert_eq!(take(&mut peer), (0..=acknowledged).collect::<Vec<_>>());
}

#[test]
fn killed_on_a_full_file_system_it_starts_again_with_everything() {
    if foreign() {
        return;
    }
    let Some(disk) = SmallDisk::new("8M") else { return };
    let file = disk.path.join("somebody-elses");
    disk.run(&format!("head -c 6M /dev/zero > '{}'", file.display()));
    let mut broker = disk.launch(&["--max-disk", "16M"]);
    let topic = topic();
    let id = absent_subscriber(&broker, V5, &topic, 1);
    let mut publisher = broker.join(V5);
    let mut acknowledged = 0;
    loop {
        let packet_id = publisher.fresh_id();
        publisher.send(publish(&topic, large(acknowledged)).qos(1, packet_id));
        if publisher.next_within(Duration::from_secs(2)).is_none() {
            break;
        }
        acknowledged += 1;
        assert!(acknowledged < 500, "the disk does not fill");
    }
    for _ in 0..2 {
        broker.restart(Stop::Kill);
        others_go_on(&broker, &topic);
    }
    broker.stop(Stop::Kill);
    disk.run(&format!("rm '{}'", file.display()));
    broker.start_again();
    publish_at_last(&broker, &topic, "the end");
    let taken = take(&mut resume(&broker, V5, &id));
    // The last one may be there or not: nobody was told.
    assert_eq!(taken[..acknowledged], (0..acknowledged).collect::<Vec<_>>());
    assert!(taken.len() <= acknowledged + 1, "{taken:?}");
}
