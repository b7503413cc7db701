//! `surgemq bench`, the binary: against the byte relay, so that it needs no broker.

#[path = "common/broker.rs"]
mod broker;
#[path = "common/keys.rs"]
mod keys;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use broker::Broker;
use keys::keys;
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

/// Measures a broker of the bench's own.
fn own(flags: &[&[&str]]) -> Value {
    let output = bench(&[&flags.concat()[..], &["-o", "json"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Whether a broker has a session of this identifier; it is gone or busy with us afterwards.
fn has_session(url: &str, id: &str) -> bool {
    let mut socket = TcpStream::connect(url.strip_prefix("mqtt://").unwrap()).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut connect = b"\x10\0\0\x04MQTT\x04\0\0\0\0".to_vec();
    connect.push(id.len() as u8);
    connect.extend_from_slice(id.as_bytes());
    connect[1] = connect.len() as u8 - 2;
    socket.write_all(&connect).unwrap();
    let mut answer = [0; 4];
    socket.read_exact(&mut answer).unwrap();
    assert_eq!((answer[0], answer[3]), (0x20, 0), "{id}: {answer:?}");
    answer[2] == 1
}

#[test]
fn json_keys_are_a_promise() {
    let report = Relay::start().json(&["1:1", "-m", "20000", "-r", "100000", "--seed", "7"]);
    let mut found = keys(&report);
    let percentiles = "count min_us mean_us p50_us p90_us p99_us p99.9_us p99.99_us max_us \
                       histogram histogram.from_us histogram.to_us histogram.count";
    let round = "seconds sent delivered sent_per_s delivered_per_s messages_per_s expected lost \
                 under_way duplicates out_of_order refused broken_connections unsent latency \
                 latency.delivery latency.delivery_uncorrected latency.acknowledgement \
                 latency.acknowledgement_uncorrected broker broker.cpu_us_per_delivery \
                 broker.cpu_cores broker.rss_before_bytes broker.rss_peak_bytes generator \
                 generator.cpu_us_per_delivery generator.cpu_cores generator.busiest_thread \
                 generator.waited_for_processor idle \
                 churn_per_s resume";
    let plan = "shape clients topics wildcards payload_bytes publish_qos subscribe_qos inflight \
                receive_maximum protocol rate duration_s messages warm_up_s threads seed churn \
                idle stalled persistent offline offline_only";
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

/// Whoever is away gets everything when he comes back, in every version and shape.
/// Messages of many quiet clients are waited for together; without that this median is a fraction of
/// a millisecond.
#[test]
fn many_quiet_clients_are_looked_for_now_and_then() {
    let broker = Broker::start_with(&["--max-rest", "10000"]);
    let Some(_) = broker.pid() else { return };
    let url = format!("mqtt://{}:{}", broker.host, broker.port);
    let flags = ["1:1", "-n", "300", "-r", "3000", "-q", "1", "-d", "2", "-w", "1", "-o", "json"];
    let output = bench(&[&["--url", &url], &flags[..]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let summary = &report["shapes"][0]["summary"];
    let median = summary["latency"]["delivery"]["p50_us"].as_f64().unwrap();
    assert!(median > 3_000.0, "{median} us where workers rest for 10,000");
    for fault in ["lost", "duplicates", "out_of_order"] {
        assert_eq!(summary[fault], 0, "{fault}");
    }
}

#[test]
fn offline_sessions_are_queued_for_and_resumed() {
    for (shape, qos, version, offline) in
        [("fanin", "1", "311", "2"), ("fanin", "2", "5", "1"), ("fanout", "1", "31", "6")]
    {
        let topics = if shape == "fanout" { "6" } else { "1" };
        let report = own(&[
            &[shape, "-n", "3", "-m", "3000", "-q", qos, "-V", version, "-t", topics][..],
            &["--persistent", "--offline", offline, "--resume", "--rounds", "2"],
        ]);
        let shape_report = &report["shapes"][0];
        assert_eq!(shape_report["plan"]["persistent"], true);
        for round in shape_report["rounds"].as_array().unwrap() {
            assert_eq!(round["delivered"], 3000, "{shape}: {round}");
            let resume = &round["resume"];
            // A fan-out shares its topics out among its subscribers, so it is one each there.
            let all = if shape == "fanin" { offline.parse().unwrap() } else { 1 };
            assert_eq!(resume["sessions"].to_string(), offline);
            assert_eq!(resume["expected"], 3000 * all, "{shape} {version}: {resume}");
            assert_eq!(resume["delivered"], 3000 * all, "{shape} {version}: {resume}");
            for fault in ["lost", "duplicates", "out_of_order"] {
                assert_eq!(resume[fault], 0, "{shape} {version} {fault}");
            }
            assert!(resume["delivered_per_s"].as_f64().unwrap() > 0.0);
            let memory = |key: &str| resume[key].as_u64().unwrap();
            assert!(memory("rss_before_bytes") <= memory("rss_peak_bytes"));
            assert!(memory("rss_after_bytes") > 0);
        }
    }
}

/// On a broker of somebody else's the sessions are removed at the end, unless they shall stay.
#[test]
fn sessions_are_removed_or_kept() {
    let broker = Broker::start();
    let url = format!("mqtt://{}:{}", broker.host, broker.port);
    let run = |flags: &[&str]| {
        let base = ["fanin", "-n", "2", "-m", "100", "-q", "1", "-o", "json", "--persistent"];
        let base = [&base[..], &["--offline", "3", "--url", &url], flags].concat();
        let output = bench(&base);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let has = |id: &str| has_session(&url, id);
    run(&["--seed", "1"]);
    for gone in ["bench-00000001-s0", "bench-00000001-o0", "bench-00000001-o2"] {
        assert!(!has(gone), "{gone}");
    }
    run(&["--seed", "2", "--keep-sessions", "--rounds", "2"]);
    // Rounds have sessions of their own.
    for kept in ["bench-00000002-s0", "bench-00000002-o2", "bench-00000003-o0"] {
        assert!(has(kept), "{kept}");
    }
}

#[test]
fn there_may_be_only_absent_subscribers() {
    for shape in ["fanin", "mesh"] {
        let report = own(&[
            &[shape, "-n", "3", "-m", "900", "-q", "1"][..],
            &["--offline", "1", "--offline-only", "--resume"],
        ]);
        let round = &report["shapes"][0]["summary"];
        assert_eq!((&round["sent"], &round["expected"]), (&Value::from(900), &Value::from(0)));
        assert_eq!(round["latency"]["acknowledgement"]["count"], 900, "{shape}");
        assert_eq!(round["resume"]["delivered"], 900, "{shape}");
        assert_eq!(round["resume"]["lost"], 0, "{shape}");
    }
}

#[test]
fn acknowledgement_latency_is_plausible() {
    let report = own(&[&["fanin", "-n", "5", "-q", "1", "-r", "4000", "-m", "2000"]]);
    let round = &report["shapes"][0]["summary"];
    let of = |role: &str, key: &str| round["latency"][role][key].as_f64().unwrap();
    assert_eq!(of("acknowledgement", "count"), 2000.0);
    assert_eq!(of("acknowledgement", "count"), of("acknowledgement_uncorrected", "count"));
    for role in ["acknowledgement", "acknowledgement_uncorrected"] {
        let (low, middle, high) = (of(role, "min_us"), of(role, "p50_us"), of(role, "max_us"));
        // Nothing takes no time, or longer than the round and its drain.
        assert!(0.0 < low && low <= middle && middle <= high && high < 60e6, "{role}");
    }
    // What should have been sent earlier has waited at least as long.
    assert!(of("acknowledgement", "mean_us") >= of("acknowledgement_uncorrected", "mean_us"));
}

#[test]
fn raw_commits_are_counted() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path().to_str().unwrap();
    let base = ["raw-commit", "--dir", dir, "-d", "0.1", "--file-bytes", "4000000", "-o", "json"];
    for flags in [
        &["--group", "8", "-s", "100"][..],
        &["--writers", "4", "--window", "16", "-s", "100"],
        &["--rate", "20000", "-s", "100"],
    ] {
        let output = bench(&[&base[..], flags].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let of = |key: &str| report[key].as_f64().unwrap();
        assert!(of("commits") > 0.0, "{report}");
        assert_eq!(of("bytes"), of("messages") * 100.0);
        assert_eq!(report["latency"]["count"], report["messages"]);
        assert_eq!(report["commit"]["count"], report["commits"]);
        assert!((of("mean_group") * of("commits") - of("messages")).abs() < 0.5);
        match flags[0] {
            "--group" => assert_eq!(of("mean_group"), 8.0),
            "--writers" => assert!(of("mean_group") <= 64.0),
            _ => assert!(of("messages") + of("unsent") >= 1999.0, "{report}"),
        }
    }
    assert_eq!(std::fs::read_dir(dir).unwrap().count(), 0, "its file is removed");
    let text = bench(&["raw-commit", "--dir", dir, "-d", "0.05", "--file-bytes", "1000000"]);
    assert!(String::from_utf8(text.stdout).unwrap().contains("commits/s"));
    let nowhere = bench(&["raw-commit", "--dir", "/nowhere/at/all"]);
    assert_eq!(nowhere.status.code(), Some(1));
}

/// The folder of a child broker is made anew for each round, and is gone afterwards.
#[test]
fn a_broker_of_our_own_gets_a_folder_of_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let output = Command::new(PROGRAM)
        // The broker refuses the flag and so says what stood there.
        .args(["bench", "1:1", "-m", "1", "--broker-args", "--max-qos {dir}"])
        .env("TMPDIR", directory.path())
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    let folder = directory.path().join("surgemq-bench-");
    assert!(stderr.contains(folder.to_str().unwrap()), "{stderr}");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "it is removed");
}

#[test]
fn exit_codes() {
    let code = |flags: &[&str]| bench(flags).status.code();
    assert_eq!(code(&["no-such-shape"]), Some(2));
    assert_eq!(code(&["1:1", "--pid", "1"]), Some(2), "--pid needs --url");
    assert_eq!(code(&["1:1", "--resume"]), Some(2), "--resume needs --offline");
    assert_eq!(code(&["1:1", "--offline", "1"]), Some(1), "nothing is queued at QoS 0");
    assert_eq!(code(&["--help"]), Some(0));
    assert_eq!(code(&["1:1", "-n", "0", "--url", "mqtt://127.0.0.1:1"]), Some(1));
    let nobody_there = bench(&["1:1", "--url", "mqtt://127.0.0.1:1", "-m", "1"]);
    assert_eq!(nobody_there.status.code(), Some(1));
    assert!(nobody_there.stdout.is_empty());
    let stderr = String::from_utf8(nobody_there.stderr).unwrap();
    assert!(stderr.starts_with("surgemq: ") && stderr.lines().count() == 1, "{stderr}");
}
