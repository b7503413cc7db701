//! `surgemq bench crash`, the binary: it finds what brokers lose, and finds nothing where nothing
//! is lost.
//!
//! A broker that loses nothing is had by killing not the broker but a proxy in front of it: for
//! the clients that is a broker which dies at any moment and remembers everything.

#[path = "common/broker.rs"]
mod broker;
#[path = "common/keys.rs"]
mod keys;

use std::collections::BTreeSet;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use broker::Broker;
use keys::keys;
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_surgemq");
/// Tells [`proxy`] where to listen and where to connect.
const PROXY: &str = "SURGEMQ_TEST_PROXY";
/// A broker that forgets everything when it is killed.
const FORGETFUL: &str = "exec $SURGEMQ serve --bind 127.0.0.1:{port}";

fn crash(flags: &[&str]) -> Output {
    Command::new(PROGRAM)
        .args(["bench", "crash", "--seed", "3"])
        .args(flags)
        .env("SURGEMQ", PROGRAM)
        .output()
        .unwrap()
}

/// Exit code and report.
fn report(flags: &[&str]) -> (Option<i32>, Value) {
    let output = crash(&[flags, &["--output", "json"]].concat());
    let stderr = String::from_utf8_lossy(&output.stderr);
    let report = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}, stderr: {stderr}"));
    (output.status.code(), report)
}

fn kinds(report: &Value) -> BTreeSet<&str> {
    report["violation_counts"].as_object().unwrap().keys().map(String::as_str).collect()
}

/// Not a test but the proxy of the tests below, as a process that can be killed.
#[test]
fn proxy() {
    let Ok(ports) = std::env::var(PROXY) else { return };
    let (here, there) = ports.split_once(' ').unwrap();
    let listener = TcpListener::bind(here).unwrap();
    for client in listener.incoming() {
        let client = client.unwrap();
        let broker = TcpStream::connect(there).unwrap();
        for (mut from, mut to) in [
            (client.try_clone().unwrap(), broker.try_clone().unwrap()),
            (broker.try_clone().unwrap(), client.try_clone().unwrap()),
        ] {
            to.set_nodelay(true).unwrap();
            std::thread::spawn(move || {
                // Either end may be gone at any time.
                let _ = io::copy(&mut from, &mut to);
                let _ = to.shutdown(Shutdown::Both);
            });
        }
    }
}

/// The command that starts a proxy in front of a broker.
fn proxy_of(broker: &Broker) -> String {
    let test = std::env::current_exe().unwrap();
    let ports = format!("127.0.0.1:{{port}} {}:{}", broker.host, broker.port);
    format!("{PROXY}='{ports}' exec '{}' --exact proxy --nocapture", test.display())
}

#[test]
fn a_broker_that_remembers_everything_passes() {
    let broker = Broker::start();
    let (code, report) = report(&["--rounds", "8", "--broker", &proxy_of(&broker)]);
    assert_eq!((code, &report["passed"]), (Some(0), &Value::from(true)), "{report:#}");
    assert_eq!((&report["kills"], &report["seed"]), (&Value::from(8), &Value::from(3)));
    for qos in ["qos1", "qos2"] {
        let counts = &report[qos];
        assert_eq!(counts["published"], counts["acknowledged"], "{report:#}");
        assert!(counts["delivered"].as_u64().unwrap() > 100, "{report:#}");
    }
    assert!(report["sessions_resumed"].as_u64().unwrap() > 20, "{report:#}");
    assert!(report["restart"]["count"].as_u64().unwrap() > 0, "{report:#}");
    assert!(report["retained"]["readings"].as_u64().unwrap() > 0, "{report:#}");
    assert!(report["dir"].is_null());
}

#[test]
fn without_kills_nothing_is_found() {
    let (code, report) = report(&["--rounds", "3", "--signal", "none", "--broker", FORGETFUL]);
    assert_eq!((code, kinds(&report)), (Some(0), BTreeSet::new()), "{report:#}");
    assert_eq!((&report["rounds"], &report["kills"]), (&3.into(), &0.into()));
}

#[test]
fn a_broker_that_forgets_is_found_out() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let flags = ["--rounds", "4", "--dir", path, "--broker", FORGETFUL];
    let (code, report) = report(&flags);
    assert_eq!((code, &report["passed"]), (Some(1), &Value::from(false)), "{report:#}");
    let found = kinds(&report);
    for kind in ["lost", "session_lost", "retained_lost"] {
        assert!(found.contains(kind), "{kind}: {report:#}");
    }
    for kind in ["doubled", "reordered", "corrupt", "unsubscribed", "protocol"] {
        assert!(!found.contains(kind), "{kind}: {report:#}");
    }
    let violations = report["violations"].as_array().unwrap();
    let lost = violations.iter().find(|violation| violation["kind"] == "lost").unwrap();
    assert!(lost["client"].as_str().unwrap().starts_with("crash-3-"), "{lost}");
    assert!(lost["topic"].as_str().unwrap().starts_with("crash/3-"), "{lost}");
    assert!(lost["messages"].as_u64().unwrap() > 0, "{lost}");
    assert!(lost["detail"].as_str().unwrap().contains("acknowledged in round "), "{lost}");
    // Data and log are kept.
    assert_eq!(Path::new(report["dir"].as_str().unwrap()), dir.path().canonicalize().unwrap());
    let log = std::fs::read_to_string(dir.path().join("broker.log")).unwrap();
    assert!(log.contains("listening on"), "{log}");
    assert!(dir.path().join("data").is_dir());
}

/// The default: `surgemq serve` on a data directory.
#[test]
fn the_own_broker_keeps_what_it_acknowledged() {
    let (code, report) = report(&["--rounds", "8"]);
    assert_eq!((code, kinds(&report)), (Some(0), BTreeSet::new()), "{report:#}");
    assert_eq!(report["kills"], 8);
    assert!(report["qos2"]["delivered"].as_u64().unwrap() > 100, "{report:#}");
}

/// `None` with a word if it is not installed.
fn mosquitto() -> Option<PathBuf> {
    let places = ["/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto", "/usr/bin/mosquitto"];
    let found = places.map(PathBuf::from).into_iter().find(|path| path.is_file());
    if found.is_none() {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "mosquitto is not installed");
        eprintln!("skipped: mosquitto is not installed");
    }
    found
}

#[test]
fn mosquitto_without_persistence_is_found_out() {
    let Some(mosquitto) = mosquitto() else { return };
    let settings = "listener {port} 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\n";
    let command = format!(
        "echo '{settings}' > {{dir}}/conf && exec '{}' -c {{dir}}/conf",
        mosquitto.display()
    );
    let (code, report) = report(&["--rounds", "3", "--broker", &command]);
    assert_eq!(code, Some(1), "{report:#}");
    let found = kinds(&report);
    assert!(found.contains("session_lost") && found.contains("lost"), "{report:#}");
    std::fs::remove_dir_all(report["dir"].as_str().unwrap()).unwrap();
}

#[test]
fn a_broker_that_does_not_start_again_is_a_finding() {
    let dir = tempfile::tempdir().unwrap();
    let broken = format!(
        "if [ -e {{dir}}/mark ]; then echo 'my disk is gone' >&2; exit 9; fi; \
         touch {{dir}}/mark; {FORGETFUL}"
    );
    let path = dir.path().to_str().unwrap();
    let (code, report) = report(&["--rounds", "5", "--dir", path, "--broker", &broken]);
    assert_eq!((code, kinds(&report)), (Some(1), BTreeSet::from(["not_started"])), "{report:#}");
    let detail = report["violations"][0]["detail"].as_str().unwrap();
    assert!(detail.contains("my disk is gone") && detail.contains("exit status: 9"), "{detail}");
}

#[test]
fn the_text_has_seed_and_verdict() {
    let output = crash(&["--rounds", "1", "--signal", "none", "--broker", FORGETFUL]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("seed 3"), "{text}");
    let verdict = text.lines().last().unwrap();
    assert!(verdict.starts_with("passed: "), "{text}");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("--seed 3") && stderr.lines().count() == 1, "{stderr}");
}

#[test]
fn json_keys_are_a_promise() {
    let (_, report) = report(&["--rounds", "1", "--broker", FORGETFUL]);
    let mut found = keys(&report);
    found.retain(|key| !key.starts_with("violation_counts."));
    let expected = "version seed passed interrupted seconds rounds kills kills_while_starting qos1 \
        qos1.published qos1.acknowledged qos1.delivered qos1.duplicates qos2 qos2.published \
        qos2.acknowledged qos2.delivered qos2.duplicates retained retained.published \
        retained.acknowledged retained.readings sessions_resumed refused restart restart.count \
        restart.median_ms restart.max_ms violation_counts violations violations.kind \
        violations.round violations.at_s violations.client violations.topic \
        violations.messages violations.detail dir";
    assert_eq!(found, expected.split_ascii_whitespace().map(str::to_owned).collect());
    std::fs::remove_dir_all(report["dir"].as_str().unwrap()).unwrap();
}

#[test]
fn ctrl_c_prints_what_was_done() {
    let mut child = Command::new(PROGRAM)
        .args(["bench", "crash", "-d", "600", "--signal", "none", "-o", "json"])
        .args(["--broker", FORGETFUL])
        .env("SURGEMQ", PROGRAM)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The first line comes when signals are listened for.
    let mut line = String::new();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    stderr.read_line(&mut line).unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&report["interrupted"], &report["passed"]), (&true.into(), &true.into()));
}

#[test]
fn exit_codes() {
    let code = |flags: &[&str]| crash(flags).status.code();
    assert_eq!(code(&["--no-such-flag"]), Some(2));
    assert_eq!(code(&["--publishers", "0"]), Some(2));
    assert_eq!(code(&["--broker", "exit 1"]), Some(3));
    assert_eq!(code(&["--help"]), Some(0));
    // What is there already is not touched.
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("data")).unwrap();
    let mut file = std::fs::File::create(dir.path().join("data/precious")).unwrap();
    file.write_all(b"x").unwrap();
    let path = dir.path().to_str().unwrap();
    assert_eq!(code(&["--dir", path, "--broker", FORGETFUL]), Some(3));
    assert!(dir.path().join("data/precious").exists());
}
