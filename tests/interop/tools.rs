//! Where the foreign clients are, and what happens when one is not.
//!
//! Programs in C and Go are built once per run, into `target/interop/`.

use std::env;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::broker::Broker;
use crate::process::Process;

/// How to call a client's program, or why it cannot be called.
pub(crate) type Tool = Result<Command, String>;

/// Runs one case of a foreign program.
pub(crate) fn check(tool: Tool, version: &str, case: &str) {
    let Some(mut command) = present(tool) else { return };
    let broker = Broker::start();
    command.arg(&broker.host).arg(broker.port.to_string()).args([version, case, &prefix()]);
    Process::start(&mut command, b"").succeed();
}

/// The tool, or `None` after a word about skipping it. With CI=true it has to be there.
pub(crate) fn present<T>(tool: Result<T, String>) -> Option<T> {
    match tool {
        Ok(tool) => Some(tool),
        Err(why) if env::var("CI").is_ok_and(|ci| ci == "true") => {
            panic!("CI=true, but {why}: see scripts/interop-setup");
        }
        Err(why) => {
            let name = std::thread::current().name().unwrap_or("a test").to_owned();
            // Not eprintln!, which the test harness keeps to itself; in one piece, so that others
            // do not write between.
            let line = format!("skipped: {name}: {why}\n");
            let _ = std::io::stderr().write_all(line.as_bytes());
            None
        }
    }
}

/// A string that no other test and no other run uses: for topics and client identifiers. At most
/// 15 characters, since 3.1 allows 23 for a client identifier.
pub(crate) fn prefix() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is past 1970");
    let run = (now.as_millis() as u64 ^ u64::from(process::id()) << 24) & 0xFFFF_FFFF;
    format!("i{run:x}x{:x}", NEXT.fetch_add(1, Ordering::Relaxed))
}

pub(crate) fn paho_python() -> Tool {
    let python = home().join("venv/bin/python3");
    if !python.exists() {
        return Err("paho-mqtt is not installed".to_owned());
    }
    let mut command = Command::new(python);
    command.arg("-u").arg(sources().join("paho_python.py"));
    Ok(command)
}

pub(crate) fn mqtt_js() -> Tool {
    let module = home().join("node/node_modules/mqtt");
    if !module.is_dir() || !on_path("node") {
        return Err("MQTT.js is not installed".to_owned());
    }
    let mut command = Command::new("node");
    command.arg(sources().join("mqtt_js.js")).env("MQTT_JS", module);
    Ok(command)
}

pub(crate) fn paho_c() -> Tool {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let program = BUILT.get_or_init(|| {
        if !Path::new("/usr/include/MQTTClient.h").exists() {
            return Err("Paho C (libpaho-mqtt-dev) is not installed".to_owned());
        }
        let program = home().join("paho_c");
        build(
            Command::new("cc")
                .args(["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-o"])
                .arg(&program)
                .arg(sources().join("paho_c.c"))
                .args(["-lpaho-mqtt3c", "-lpthread"]),
        );
        Ok(program)
    });
    program.clone().map(Command::new)
}

pub(crate) fn paho_go() -> Tool {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let program = BUILT.get_or_init(|| {
        let packages = Path::new("/usr/share/gocode");
        if !packages.join("src/github.com/eclipse/paho.mqtt.golang").is_dir() || !on_path("go") {
            return Err(
                "Paho Go (golang-github-eclipse-paho.mqtt.golang-dev) is not installed".to_owned()
            );
        }
        let program = home().join("paho_go");
        build(
            Command::new("go")
                .args(["build", "-o"])
                .arg(&program)
                .arg(sources().join("paho_go.go"))
                // Debian's packages are a GOPATH; nothing comes from the network.
                .envs([("GO111MODULE", "off"), ("GOFLAGS", ""), ("GOPROXY", "off")])
                .env("GOPATH", packages)
                .env("GOCACHE", home().join("go-cache")),
        );
        Ok(program)
    });
    program.clone().map(Command::new)
}

/// One of mosquitto's clients: `mosquitto_pub`, `mosquitto_sub` or `mosquitto_rr`.
pub(crate) fn mosquitto(name: &str) -> Tool {
    if on_path(name) { Ok(Command::new(name)) } else { Err(format!("{name} is not installed")) }
}

/// mosquitto itself, for who bridges to us. Not everybody has the folder of servers on the path.
pub(crate) fn mosquitto_broker() -> Tool {
    const ELSEWHERE: &str = "/usr/sbin/mosquitto";
    match mosquitto("mosquitto") {
        Err(_) if Path::new(ELSEWHERE).exists() => Ok(Command::new(ELSEWHERE)),
        tool => tool,
    }
}

fn build(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} failed:\n{words}");
}

fn on_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop")
}

/// `target/interop`, which `scripts/interop-setup` fills.
fn home() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("it lies in target");
    let home = target.join("interop");
    std::fs::create_dir_all(&home).expect("target can be written");
    home
}
