//! The data directory: when the broker refuses it, and what it makes of one that is damaged.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::{barrier, durable, resume, texts};
use crate::broker::{Broker, Launch, PATIENCE, Stop, binary, client_id, foreign, skipped, topic};
use crate::wire::*;

/// All files of a directory, by name.
pub(super) fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).expect("the directory can be read");
    let names = entries.map(|entry| entry.expect("the directory can be read").file_name());
    let read = |name: std::ffi::OsString| {
        // While a broker runs a file may go at any time.
        let bytes = fs::read(dir.join(&name)).ok()?;
        Some((name.to_string_lossy().into_owned(), bytes))
    };
    names.filter_map(read).collect()
}

fn temporary() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

/// The broker must not start on this directory: it says this in one line, and ends with 5.
#[track_caller]
fn refused(dir: &Path, words: &str) {
    refused_when(&Launch::on(dir, &[]), dir, words);
}

#[track_caller]
fn refused_when(launch: &Launch, dir: &Path, words: &str) {
    let output = launch.command().output().expect("the broker's binary starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(5), "{said}");
    assert_eq!(said.lines().count(), 1, "one line is enough: {said}");
    let name = dir.file_name().expect("a name").to_string_lossy();
    assert!(said.contains(words) && said.contains(&*name), "{said}");
    assert!(output.stdout.is_empty(), "it listened");
}

/// The newest file of the log.
fn newest_segment(dir: &Path) -> PathBuf {
    let names = contents(dir).into_keys().filter(|name| name.ends_with(".log"));
    dir.join(names.max().expect("there is a log"))
}

/// What the broker has logged with one of these words.
fn warnings(broker: &Broker) -> Vec<String> {
    // What was printed before it began to listen may be read later.
    broker.join(V5).leave();
    let is_warning = |line: &&str| line.contains(" WARN ") || line.contains(" ERROR ");
    broker.output().lines().filter(is_warning).map(str::to_owned).collect()
}

#[test]
fn a_directory_in_use_is_refused() {
    let Some(mut broker) = Broker::durable(&[]) else { return };
    let topic = topic();
    refused(&broker.dir(), "in use by another process");
    // The first one does not notice.
    let id = super::absent_subscriber(&broker, V5, &topic, 1);
    broker.join(V5).publish(&topic, "x", 1);
    refused(&broker.dir(), "in use by another process");
    broker.restart(Stop::Kill); // and a lock does not outlive who held it
    resume(&broker, V5, &id).expect_publish(&topic, "x");
}

#[test]
fn a_newer_format_is_refused_and_left_alone() {
    let Some(mut broker) = Broker::durable(&[]) else { return };
    let id = super::absent_subscriber(&broker, V5, "a", 1);
    broker.stop(Stop::Term);
    let format = fs::read(broker.dir().join("format")).expect("there is a format");
    fs::write(broker.dir().join("format"), "surgemq data 2\n").expect("it can be written");
    let before = contents(&broker.dir());
    refused(&broker.dir(), "surgemq data 2");
    assert!(contents(&broker.dir()) == before);
    fs::write(broker.dir().join("format"), format).expect("it can be written");
    broker.start_again();
    resume(&broker, V5, &id);
}

#[test]
fn what_is_no_data_directory_is_refused_and_left_alone() {
    if foreign() {
        return;
    }
    let dir = temporary();
    // Not a directory.
    let file = dir.path().join("file");
    fs::write(&file, "text").expect("it can be written");
    refused(&file, "");
    refused(&file.join("below"), "");
    // Something else lies there.
    refused(dir.path(), "not empty and not a data directory");
    assert_eq!(contents(dir.path()).into_keys().collect::<Vec<_>>(), ["file"]);
    // A format that is none.
    let other = temporary();
    fs::write(other.path().join("format"), "something else").expect("it can be written");
    refused(other.path(), "not empty and not a data directory");
    // One of its own, with a file of somebody else's: that is none of its business.
    let own = temporary();
    drop(Launch::on(own.path(), &[]).start());
    fs::write(own.path().join("notes.txt"), "text").expect("it can be written");
    drop(Launch::on(own.path(), &[]).start());
    assert_eq!(fs::read(own.path().join("notes.txt")).expect("it is there"), b"text");
    // One that is not there yet is made, with what is above it.
    drop(Launch::on(&own.path().join("a/b"), &[]).start());
    assert!(own.path().join("a/b/format").exists());
}

#[test]
fn a_directory_that_cannot_be_written_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    if foreign() {
        return;
    }
    let dir = temporary();
    let allow = |mode| {
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).expect("it is ours");
    };
    allow(0o555);
    let may_write = fs::write(dir.path().join("probe"), "").is_ok();
    let _ = fs::remove_file(dir.path().join("probe"));
    let another = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    let probe =
        Command::new(another[0]).args(&another[1..]).arg(binary()).arg("--version").output();
    if !may_write {
        refused(dir.path(), "ermission denied");
    } else if probe.is_ok_and(|probe| probe.status.success()) {
        let launch = Launch::on(dir.path(), &[]).by(&another);
        refused_when(&launch, dir.path(), "ermission denied");
    } else {
        skipped("this user may write everywhere, and may not be another one");
    }
    allow(0o755);
}

/// A session that is owed numbered messages, each acknowledged before the next was sent, so each
/// in a group of its own in the log.
fn owed(broker: &Broker, topic: &str, n: usize) -> String {
    let id = super::absent_subscriber(broker, V5, topic, 1);
    let mut publisher = broker.join(V5);
    for n in 0..n {
        publisher.publish(topic, format!("message {n}."), 1);
    }
    id
}

fn message(n: usize) -> String {
    format!("message {n}.")
}

/// Where in a file of the log a message lies.
fn position_of(file: &Path, message: &str) -> u64 {
    let bytes = fs::read(file).expect("it is there");
    let at = bytes.windows(message.len()).position(|window| window == message.as_bytes());
    at.expect("the message is in the log") as u64
}

#[test]
fn a_torn_tail_is_cut_and_all_before_it_is_there() {
    // The machine lost power while the last group was written.
    let Some(mut broker) = Broker::durable(&[]) else { return };
    let topic = topic();
    let id = owed(&broker, &topic, 10);
    broker.stop(Stop::Kill);
    let newest = newest_segment(&broker.dir());
    let at = position_of(&newest, &message(9));
    let file = fs::File::options().write(true).open(&newest).expect("it is there");
    file.set_len(at + 3).expect("it can be cut");
    broker.start_again();
    let said = warnings(&broker);
    assert_eq!(said.len(), 1, "one line is enough: {said:?}");
    assert!(said[0].contains("not completed") && said[0].contains(".log"), "{said:?}");
    // Each start takes less than the one before: a start that failed would show.
    for _ in 0..2 {
        let mut peer = resume(&broker, V5, &id);
        for n in 0..9 {
            peer.expect_publish(&topic, message(n));
        }
        peer.expect_nothing_owed();
        broker.restart(Stop::Kill);
        assert_eq!(warnings(&broker), [""; 0], "it was cut once");
    }
    // And it goes on from there.
    broker.join(V5).publish(&topic, "new", 1);
    broker.restart(Stop::Kill);
    let all = resume(&broker, V5, &id).drain();
    assert_eq!(texts(&all)[8..], ["message 8.", "new"]);
}

#[test]
fn a_flipped_bit_is_found_and_all_before_it_is_there() {
    let Some(mut broker) = Broker::durable(&[]) else { return };
    let topic = topic();
    let id = owed(&broker, &topic, 10);
    barrier(&broker);
    broker.stop(Stop::Kill);
    let newest = newest_segment(&broker.dir());
    let at = position_of(&newest, &message(6));
    let mut file = fs::File::options().read(true).write(true).open(&newest).expect("it is there");
    let mut byte = [0];
    file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(&mut byte)).expect("it is there");
    byte[0] ^= 0x10;
    file.seek(SeekFrom::Start(at)).and_then(|_| file.write_all(&byte)).expect("it can be written");
    broker.start_again();
    let said = warnings(&broker);
    assert_eq!(said.len(), 1, "one line is enough: {said:?}");
    assert!(said[0].contains("damaged") && said[0].contains(".log"), "{said:?}");
    let kept = contents(&broker.dir()).into_keys().filter(|name| name.ends_with(".cut"));
    assert_eq!(kept.count(), 1, "what was cut off is kept for whoever wants to look");
    broker.restart(Stop::Kill);
    assert_eq!(warnings(&broker), [""; 0], "it was cut once");
    let mut peer = resume(&broker, V5, &id);
    for n in 0..6 {
        peer.expect_publish(&topic, message(n));
    }
    peer.expect_nothing_owed();
    peer.leave();
    broker.join(V5).publish(&topic, "new", 1);
    broker.restart(Stop::Term);
    let all = resume(&broker, V5, &id).drain();
    assert_eq!(texts(&all)[5..], ["message 5.", "new"]);
}

#[test]
fn restarts_do_not_pile_up_files() {
    let Some(mut broker) = Broker::durable(&[]) else { return };
    let topic = topic();
    let id = owed(&broker, &topic, 10);
    let mut publisher = broker.join(V5);
    publisher.publish_as(publish(&topic, "retained").qos(1, 0).retain());
    let mut largest = (0, 0);
    for n in 0..50 {
        let mut peer = resume(&broker, V5, &id);
        peer.expect_publish(&topic, message(0)); // not acknowledged
        broker.join(V5).publish_as(publish(&topic, "retained").qos(0, 0).retain());
        broker.restart(if n % 2 == 0 { Stop::Kill } else { Stop::Term });
        let files = contents(&broker.dir());
        let bytes: usize = files.values().map(Vec::len).sum();
        largest = (largest.0.max(files.len()), largest.1.max(bytes));
    }
    assert!(largest.0 <= 30, "{} files", largest.0);
    assert!(largest.1 <= 1 << 20, "{} bytes", largest.1);
    let all = resume(&broker, V5, &id).drain();
    assert_eq!(all.len(), 11);
}

#[test]
fn a_queue_that_was_drained_gives_its_disk_back() {
    let Some(mut broker) = Broker::durable(&["--max-disk", "8M"]) else { return };
    let topic = topic();
    let mut subscriber = durable(&broker, V311);
    subscriber.subscribe(&topic, 1);
    let id = subscriber.id.clone();
    subscriber.leave();
    let used = |broker: &Broker| {
        let files = contents(&broker.dir());
        files.iter().filter(|(name, _)| name.ends_with(".log")).map(|(_, b)| b.len()).sum::<usize>()
    };
    // Many times what the disk holds.
    for _ in 0..4 {
        let mut publisher = broker.connect(V311, connect(client_id()));
        for _ in 0..100 {
            publisher.publish(&topic, vec![b'x'; 40_000], 1);
        }
        assert!(used(&broker) > 4_000_000);
        let mut peer = resume(&broker, V311, &id);
        assert_eq!(peer.drain().len(), 100);
        peer.leave();
    }
    broker.restart(Stop::Kill);
    let began = Instant::now();
    while used(&broker) > 4_000_000 {
        barrier(&broker);
        std::thread::sleep(Duration::from_millis(100));
        assert!(began.elapsed() < PATIENCE, "{} bytes", used(&broker));
    }
}
