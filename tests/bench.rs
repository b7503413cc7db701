//! `surgemq bench`, the binary: against the byte relay, so that it needs no broker.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_surgemq");

/// A relay on a free port, stopped when dropped.
struct Relay {
    child: Child,
    url: String,
}

impl Relay {
    fn start() -> Self {
        let mut child = Command::new(PROGRAM)
            .args(["bench", "relay", "--bind", "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().rsplit(' ').next().unwrap().to_owned();
        Self { child, url: format!("mqtt://{address}") }
    }

    fn bench(&self, flags: &[&str]) -> Output {
        let pid = self.child.id().to_string();
        bench(&[&["--url", &self.url, "--pid", &pid], flags].concat())
    }

    fn json(&self, flags: &[&str]) -> Value {
        let output = self.bench(&[&["--output", "json"], flags].concat());
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stderr}");
        assert_eq!(stderr, "", "progress without a terminal");
        serde_json::from_slice(&output.stdout).expect("stdout has nothing but JSON")
    }

    /// Subscribes, and returns when it has got some kilobytes: without topics that is whatever
    /// anybody publishes.
    fn wait_for_traffic(&self) {
        let address = self.url.strip_prefix("mqtt://").unwrap();
        let mut socket = TcpStream::connect(address).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        socket.write_all(b"\x10\x0d\0\x04MQTT\x04\x02\0\0\0\x01x\x82\x06\0\x01\0\x01#\0").unwrap();
        socket.read_exact(&mut [0; 4096]).expect("somebody publishes");
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn bench(flags: &[&str]) -> Output {
    Command::new(PROGRAM).arg("bench").args(flags).output().unwrap()
}

/// Every key of the document, as paths; arrays count as their first element.
fn keys(value: &Value, path: &str, all: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                all.insert(path.clone());
                keys(value, &path, all);
            }
        }
        Value::Array(items) => {
            if let Some(first) = items.first() {
                keys(first, path, all);
            }
        }
        _ => {}
    }
}

#[test]
fn json_keys_are_a_promise() {
    let report = Relay::start().json(&["1:1", "-m", "20000", "-r", "100000", "--seed", "7"]);
    let mut found = BTreeSet::new();
    keys(&report, "", &mut found);
    let percentiles = "count min_us mean_us p50_us p90_us p99_us p99.9_us p99.99_us max_us \
                       histogram histogram.from_us histogram.to_us histogram.count";
    let round = "seconds sent delivered sent_per_s delivered_per_s messages_per_s expected lost \
                 under_way duplicates out_of_order refused broken_connections unsent latency \
                 latency.delivery latency.delivery_uncorrected latency.acknowledgement \
                 latency.acknowledgement_uncorrected broker broker.cpu_us_per_delivery \
                 broker.cpu_cores broker.rss_before_bytes broker.rss_peak_bytes generator \
                 generator.cpu_us_per_delivery generator.cpu_cores generator.busiest_thread \
                 generator.waited_for_processor idle \
                 churn_per_s";
    let plan = "shape clients topics wildcards payload_bytes publish_qos subscribe_qos inflight \
                protocol rate duration_s messages warm_up_s threads seed churn idle stalled";
    let mut expected: BTreeSet<String> =
        ["version", "broker", "interrupted", "shapes", "shapes.plan", "shapes.summary"]
            .iter()
            .chain(&["shapes.rounds", "shapes.warnings"])
            .map(ToString::to_string)
            .collect();
    let mut expect = |prefix: &str, keys: &str| {
        expected.extend(keys.split_ascii_whitespace().map(|key| format!("{prefix}.{key}")));
    };
    expect("shapes.plan", plan);
    for of in ["shapes.summary", "shapes.rounds"] {
        expect(of, round);
        expect(&format!("{of}.latency.delivery"), percentiles);
        expect(&format!("{of}.latency.delivery_uncorrected"), percentiles);
    }
    found.retain(|key| !key.starts_with("shapes.warnings."));
    assert_eq!(found, expected);
    assert_eq!(report["shapes"][0]["plan"]["seed"], 7);
    assert_eq!(report["shapes"][0]["plan"]["shape"], "1:1");
}

#[test]
fn all_four_shapes_deliver_what_they_owe() {
    let relay = Relay::start();
    // Shape, receivers of each message.
    for (shape, receivers) in [("1:1", 1), ("fanin", 1), ("fanout", 5), ("mesh", 5)] {
        for version in ["31", "311", "5"] {
            let clients = if shape == "1:1" { "1" } else { "5" };
            let report = relay.json(&[shape, "-n", clients, "-m", "5000", "-V", version]);
            let round = &report["shapes"][0]["summary"];
            assert_eq!(round["sent"], 5000, "{shape} {version}");
            assert_eq!(round["delivered"], 5000 * receivers, "{shape} {version}");
            assert_eq!(round["expected"], 5000 * receivers, "{shape} {version}");
            for fault in ["lost", "duplicates", "out_of_order", "broken_connections"] {
                assert_eq!(round[fault], 0, "{shape} {version} {fault}");
            }
            assert_eq!(round["latency"]["delivery"]["count"], 5000 * receivers);
        }
    }
}

#[test]
fn small_payloads_are_counted_and_said() {
    let relay = Relay::start();
    for (payload, sequence) in [("0", false), ("13", false), ("14", true), ("29", true)] {
        let report = relay.json(&["fanout", "-n", "3", "-m", "1000", "-s", payload]);
        let shape = &report["shapes"][0];
        assert_eq!(shape["summary"]["delivered"], 3000, "{payload}");
        assert_eq!(shape["summary"]["lost"], 0, "{payload}");
        assert!(shape["summary"]["latency"]["delivery"].is_null(), "{payload}");
        let warnings = shape["warnings"].as_array().unwrap();
        let small = warnings.iter().find(|warning| warning["kind"] == "payload_too_small");
        assert_eq!(small.unwrap()["sequence"], sequence, "{payload}");
    }
}

#[test]
fn large_payloads_pass() {
    let report = Relay::start().json(&["1:1", "-m", "20", "-s", "1000000"]);
    let round = &report["shapes"][0]["summary"];
    assert_eq!((&round["delivered"], &round["lost"]), (&Value::from(20), &Value::from(0)));
}

/// Without topics a relay gives every message to every subscriber: to two pairs that looks like
/// messages of somebody else's, which must be seen, not swallowed.
#[test]
fn what_is_not_owed_is_not_a_loss() {
    let report = Relay::start().json(&["1:1", "-n", "2", "-m", "1000"]);
    let round = &report["shapes"][0]["summary"];
    assert_eq!((&round["expected"], &round["lost"]), (&Value::from(1000), &Value::from(0)));
}

#[test]
fn all_shapes_make_one_table() {
    let output = Relay::start().bench(&["-n", "1", "-m", "1000", "--rounds", "2"]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    for word in ["medians of 2 rounds", "delivered/s", "1:1", "fan-in", "fan-out", "mesh", "note:"]
    {
        assert!(text.contains(word), "{word} is missing in\n{text}");
    }
    assert!(!text.contains('\x1b'), "colours without a terminal");
}

#[test]
fn ctrl_c_prints_what_was_measured() {
    let relay = Relay::start();
    let mut child = Command::new(PROGRAM)
        .args(["bench", "1:1", "--url", &relay.url, "-d", "600", "-w", "0", "-r", "1000"])
        .args(["-o", "json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    relay.wait_for_traffic();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(report["interrupted"], true);
    let round = &report["shapes"][0]["summary"];
    assert!(round["delivered"].as_u64().unwrap() > 0, "{round}");
    assert_eq!(round["lost"], 0);
    assert!(round["seconds"].as_f64().unwrap() < 60.0);
}

#[test]
fn a_histogram_log_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("latency.hdr");
    let path = file.to_str().unwrap();
    Relay::start().json(&["fanout", "-n", "2", "-d", "0.2", "-w", "0", "--hdr", path]);
    let log = std::fs::read(&file).unwrap();
    let entries: Vec<_> =
        hdrhistogram::serialization::interval_log::IntervalLogIterator::new(&log).collect();
    assert!(entries.iter().all(Result::is_ok) && !entries.is_empty());
    assert!(String::from_utf8(log).unwrap().contains("Tag=fan-out.1.delivery,"));
}

/// Without `--url` the bench measures a broker of its own, and leaves none behind.
#[test]
fn own_broker_delivers_at_every_qos() {
    for (qos, version) in [("0", "311"), ("1", "31"), ("2", "5")] {
        let output = bench(&[
            "mesh",
            "-n",
            "3",
            "-m",
            "3000",
            "-q",
            qos,
            "-V",
            version,
            "-o",
            "json",
            "--churn",
            "200",
            "--idle",
            "5",
            "--wildcards",
            "0.5",
            "-t",
            "4",
        ]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stderr}");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let round = &report["shapes"][0]["summary"];
        assert_eq!(round["delivered"], 9000, "QoS {qos}: {round}");
        for fault in ["lost", "duplicates", "out_of_order", "refused", "broken_connections"] {
            assert_eq!(round[fault], 0, "QoS {qos}: {fault}");
        }
        let acknowledged = &round["latency"]["acknowledgement"];
        assert_eq!(acknowledged.is_null(), qos == "0", "QoS {qos}: {acknowledged}");
        assert!(round["broker"]["rss_peak_bytes"].as_u64().unwrap() > 0);
        assert_eq!(round["idle"]["connections"], 5);
    }
}

#[test]
fn exit_codes() {
    let code = |flags: &[&str]| bench(flags).status.code();
    assert_eq!(code(&["no-such-shape"]), Some(2));
    assert_eq!(code(&["1:1", "--pid", "1"]), Some(2), "--pid needs --url");
    assert_eq!(code(&["--help"]), Some(0));
    assert_eq!(code(&["1:1", "-n", "0", "--url", "mqtt://127.0.0.1:1"]), Some(1));
    let nobody_there = bench(&["1:1", "--url", "mqtt://127.0.0.1:1", "-m", "1"]);
    assert_eq!(nobody_there.status.code(), Some(1));
    assert!(nobody_there.stdout.is_empty());
    let stderr = String::from_utf8(nobody_there.stderr).unwrap();
    assert!(stderr.starts_with("surgemq: ") && stderr.lines().count() == 1, "{stderr}");
}
