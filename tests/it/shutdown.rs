//! SIGTERM: clients are told, what was written is flushed, and the process ends with 0.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::broker::{Launch, PATIENCE, broker_with, client_id, each, foreign, topic};
use crate::wire::*;

#[test]
fn clients_are_told_that_the_server_shuts_down() {
    // 3.14.2.1: 0x8B; [MQTT-3.14.4-1], [MQTT-3.14.4-2]; in 3.1 and 3.1.1 just the end
    each(ALL, |v| {
        let Some(broker) = broker_with(&[]) else { return };
        let mut peer = broker.join(v);
        let mut silent = broker.open(v);
        broker.terminate();
        peer.expect_dropped(&[code::SHUTTING_DOWN]);
        silent.expect_closed(); // [MQTT-3.14.0-1]
        assert!(broker.exit_status().success());
    });
}

#[test]
fn a_client_that_does_not_read_cannot_hold_up_the_end() {
    let Some(broker) = broker_with(&[]) else { return };
    let topic = topic();
    let mut deaf = broker.join(V5);
    deaf.subscribe(&topic, 0);
    let mut publisher = broker.join(V5);
    let flood = publish(&topic, [b'x'; 10_000]).bytes(V5).repeat(2_000);
    publisher.send_for(&flood, Duration::from_secs(1));
    broker.terminate();
    assert!(broker.exit_status().success());
}

#[test]
fn messages_acknowledged_before_the_end_reach_their_subscribers() {
    let Some(broker) = broker_with(&[]) else { return };
    let topic = topic();
    let mut subscriber = broker.connect(V5, connect(client_id()));
    subscriber.subscribe(&topic, 0);
    let mut publisher = broker.join(V5);
    for n in 0..100 {
        publisher.publish(&topic, format!("{n}"), 1);
    }
    broker.terminate();
    for n in 0..100 {
        subscriber.expect_publish(&topic, format!("{n}"));
    }
    subscriber.expect_dropped(&[code::SHUTTING_DOWN]);
}

/// The will of a client that was away was forgotten with its delay; that of one that was still there
/// was published.
#[test]
fn delayed_wills_do_not_outlive_sessions_in_memory() {
    // [MQTT-3.1.2-8]: the session ends with the broker, and the delay with the session
    let Some(broker) = broker_with(&[]) else { return };
    if std::env::var_os("SURGEMQ_TEST_DURABLE").is_some() {
        return; // sessions outlive it
    }
    let topic = topic();
    let mut watcher = broker.join(V5);
    watcher.subscribe(&topic, 0);
    let mortal = |text| {
        let will = connect(client_id()).durable().will(&topic, text, 1);
        broker.connect(V5, will.will_prop(will_delay(600)))
    };
    let mut away = mortal("away");
    let _there = mortal("there");
    away.send(disconnect().code(code::WITH_WILL)).expect_closed();
    broker.terminate();
    let wills = watcher.expect_publishes(2).into_iter().map(|(_, text)| text).collect::<Vec<_>>();
    assert_eq!(wills, ["away", "there"]);
    watcher.expect_dropped(&[code::SHUTTING_DOWN]);
    assert!(broker.exit_status().success());
}

fn end_of(mut process: Child) -> ExitStatus {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let Some(status) = process.try_wait().expect("a child") {
            return status;
        }
        thread::sleep(Duration::from_millis(10));
    }
    process.kill().expect("it runs");
    process.wait().expect("a child");
    panic!("it does not end");
}

/// While it read its data directory a signal killed it, or did nothing at all when it was the first
/// process of a container.
#[test]
fn a_broker_that_still_reads_its_data_can_be_stopped() {
    if foreign() {
        return;
    }
    each(&[Signal::TERM, Signal::INT], |signal| {
        let dir = tempfile::tempdir().expect("a temporary directory");
        // A file that has no end, as long as we have it open too.
        let endless = dir.path().join("format");
        let made = Command::new("mkfifo").arg(&endless).status().expect("mkfifo");
        assert!(made.success());
        let process = Launch::on(dir.path(), &[]).command().spawn().expect("it starts");
        let deadline = Instant::now() + PATIENCE;
        let nonblock = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        let mut options = OpenOptions::new();
        // Nobody can write to it before somebody reads it.
        let end = loop {
            match options.write(true).custom_flags(nonblock).open(&endless) {
                Ok(end) => break end,
                Err(error) => assert!(Instant::now() < deadline, "it is not read: {error}"),
            }
            thread::sleep(Duration::from_millis(10));
        };
        kill_process(Pid::from_child(&process), signal).expect("it runs");
        let status = end_of(process);
        assert!(status.success(), "{status}");
        drop(end);
    });
}
