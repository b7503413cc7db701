//! `surgemq pub`, `sub` and `rr` beside the real `mosquitto_pub`, `mosquitto_sub` and
//! `mosquitto_rr`: the same flags, the same broker, the same messages, and then the same output
//! and the same exit codes.
//!
//! Where mosquitto is not installed these tests say so and pass; with CI=true they fail.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use surgemq::client::{Client, Message, MessageProperties, Options};
use surgemq::mqtt::QoS;

/// Nothing here takes longer, on a busy machine either.
const SOON: Duration = Duration::from_secs(60);

const SURGEMQ: &str = env!("CARGO_BIN_EXE_surgemq");

/// Mosquitto's programs, or `None` with a word if there are none.
fn mosquitto() -> Option<PathBuf> {
    let found = ["/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto", "/usr/bin/mosquitto"]
        .map(PathBuf::from)
        .into_iter()
        .find(|path| path.is_file())
        .filter(|_| Command::new("mosquitto_sub").arg("--help").output().is_ok());
    if found.is_none() {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "mosquitto is not installed");
        eprintln!("skipped: mosquitto and mosquitto-clients are not installed");
    }
    found
}

type Log = Arc<(Mutex<String>, Condvar)>;

/// A mosquitto of our own on a free port of the loopback.
struct Broker {
    process: Child,
    port: u16,
    log: Log,
    folder: tempfile::TempDir,
}

impl Broker {
    fn start(settings: &str) -> Option<Self> {
        let program = mosquitto()?;
        let folder = tempfile::tempdir().unwrap();
        // The port may be taken by somebody else before mosquitto binds it: try again then.
        for _ in 0..10 {
            let port = free_port();
            if let Some((process, log)) = Self::start_at(&program, port, settings, folder.path()) {
                return Some(Self { process, port, log, folder });
            }
        }
        panic!("mosquitto does not start");
    }

    #[expect(clippy::zombie_processes, reason = "`Drop` waits for it, or it has ended")]
    fn start_at(program: &Path, port: u16, settings: &str, folder: &Path) -> Option<(Child, Log)> {
        let config = folder.join("mosquitto.conf");
        let text =
            format!("listener {port} 127.0.0.1\nlog_type all\nlog_dest stderr\n{settings}\n");
        std::fs::write(&config, text).unwrap();
        let mut process =
            Command::new(program).arg("-c").arg(&config).stderr(Stdio::piped()).spawn().unwrap();
        let log = Log::default();
        let (stderr, shared) = (process.stderr.take().unwrap(), log.clone());
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let mut text = shared.0.lock().unwrap();
                text.push_str(&line);
                text.push('\n');
                shared.1.notify_all();
            }
        });
        let start = Instant::now();
        while start.elapsed() < SOON {
            if process.try_wait().unwrap().is_some() {
                return None;
            }
            if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return Some((process, log));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("mosquitto does not listen");
    }

    /// Waits until the broker's log holds `text` `count` times.
    fn wait_for(&self, text: &str, count: usize) {
        let log = self.log.0.lock().unwrap();
        let missing = |log: &mut String| log.matches(text).count() < count;
        let (log, timeout) = self.log.1.wait_timeout_while(log, SOON, missing).unwrap();
        assert!(!timeout.timed_out(), "not {count} times in the log: {text}\n{log}");
    }

    fn forget_log(&self) {
        self.log.0.lock().unwrap().clear();
    }

    fn file(&self, name: &str, content: &[u8]) -> String {
        let path = self.folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// Publishes with a client of ours, on one connection and in order.
    fn publish(&self, messages: Vec<Message>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let client = Options::new("127.0.0.1", self.port).connect().await.unwrap();
            for message in messages {
                client.publish(message).await.unwrap();
            }
            client.disconnect().await;
        });
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

const OPEN: &str = "allow_anonymous true";

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Which of the two programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    Theirs,
    Ours,
}

const BOTH: [Whose; 2] = [Whose::Theirs, Whose::Ours];

/// `sub` (or `pub`, `rr`) of either program, without any user's default files.
fn command(whose: Whose, name: &str, arguments: &[&str]) -> Command {
    let mut command = match whose {
        Whose::Ours => {
            let mut command = Command::new(SURGEMQ);
            command.arg(name);
            command
        }
        Whose::Theirs => Command::new(format!("mosquitto_{name}")),
    };
    command
        .args(arguments)
        .env("XDG_CONFIG_HOME", "/nonexistent")
        .env("TZ", "XYZ-3:30")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Waits for the end of `child`, and kills it when that takes too long.
fn finish(child: Child) -> Output {
    let pid = child.id();
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || sender.send(child.wait_with_output()));
    match receiver.recv_timeout(SOON) {
        Ok(output) => output.unwrap(),
        Err(_) => {
            let _ = Command::new("kill").arg("-9").arg(pid.to_string()).status();
            panic!("process {pid} does not end");
        }
    }
}

fn finish_with_input(mut command: Command, input: &[u8]) -> Output {
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // The program may not want to read all of it.
    let _ = stdin.write_all(input);
    drop(stdin);
    finish(child)
}

fn show(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

/// Digits are not compared: times differ between two programs.
fn without_digits(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().map(|b| if b.is_ascii_digit() { b'#' } else { *b }).collect()
}

/// The time stamps of JSON output are not compared, the rest is.
fn without_time_stamps(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = bytes;
    while let Some(at) = rest.windows(5).position(|window| window == b"\"tst\"") {
        let (before, stamp) = rest.split_at(at + 5);
        let (stamp, after) = stamp.split_at(stamp.len().min(38));
        out.extend_from_slice(before);
        out.extend(without_digits(stamp));
        rest = after;
    }
    out.extend_from_slice(rest);
    out
}

/// Starts both programs with each list of arguments, waits until all have subscribed, lets
/// `publish` happen, and compares what both print and how they exit.
fn compare_subs(
    broker: &Broker,
    cases: &[Vec<&str>],
    normalise: fn(&[u8]) -> Vec<u8>,
    publish: impl FnOnce(),
) {
    let port = broker.port.to_string();
    broker.forget_log();
    let mut running = Vec::new();
    for case in cases {
        for whose in BOTH {
            let mut arguments = vec!["-h", "127.0.0.1", "-p", &port, "-W", "30"];
            arguments.extend(case);
            running.push(command(whose, "sub", &arguments).spawn().unwrap());
        }
    }
    broker.wait_for("Sending SUBACK", running.len());
    publish();
    let outputs: Vec<Output> = running.into_iter().map(finish).collect();
    let mut differences = String::new();
    for (case, pair) in cases.iter().zip(outputs.chunks(2)) {
        let seen = |output: &Output| (output.status.code(), show(&normalise(&output.stdout)));
        let (theirs, ours) = (seen(&pair[0]), seen(&pair[1]));
        if theirs != ours {
            let same = theirs.1.bytes().zip(ours.1.bytes()).take_while(|(a, b)| a == b).count();
            let cut = |text: &str| text.chars().skip(same).take(300).collect::<String>();
            differences += &format!(
                "{case:?} after {same} bytes\n theirs {:?} {}\n ours   {:?} {}\n {}\n",
                theirs.0,
                cut(&theirs.1),
                ours.0,
                cut(&ours.1),
                show(&pair[1].stderr)
            );
        }
    }
    assert!(differences.is_empty(), "{differences}");
}

/// Messages of every kind, eleven of them.
fn messages() -> Vec<Message> {
    let properties = MessageProperties {
        payload_format_indicator: Some(true),
        message_expiry_secs: Some(1_000_000),
        content_type: Some("text/plain; charset=utf-8".into()),
        response_topic: Some("re/sponse".into()),
        correlation_data: Some("corr\"elation".into()),
        user_properties: vec![("name".into(), "value".into()), ("name".into(), "välue 2".into())],
        ..MessageProperties::default()
    };
    let long: String = ('a'..='z').cycle().take(300).collect();
    let json = r#"{"temperature":27.0,"list":[1, 2.5,"x",{}],"e":1e30,"t":0.1,"n":null}"#;
    vec![
        Message::new("g/a", "hello"),
        Message::new("g/a", ""),
        Message::new("g/b", &b"\x01\x02\xff\xfe binary"[..]),
        Message::new("g/ü", "grüße 😀"),
        Message::new("g/j", json),
        Message::new("g/j", r#" [true, "a\u00e9\n", -17, 123456789012]"#),
        Message::new("g/q", "quote \" backslash \\ tab \t line\nend"),
        Message::new("g/p", "with properties").properties(properties.clone()),
        Message::new("g/p", "again").qos(QoS::AtLeastOnce).properties(properties),
        Message::new("g/1", "42").qos(QoS::AtLeastOnce),
        // Last, because mosquitto_sub prints it when it is released, and we when it comes.
        Message::new("g/long/topic/name", long).qos(QoS::ExactlyOnce),
    ]
}

const FORMATS: &[&str] = &[
    "%t",
    "%p",
    "%q",
    "%r",
    "%l",
    "%m",
    "%x",
    "%X",
    "%%",
    "%P",
    "%t|%p|%q|%r|%l|%m|%C|%D|%E|%F|%P|%R|%S|%A|",
    "[%10t][%-10t][%010t][%.3t][%10.3t][%-10.3t][%3t]",
    "[%10p][%-10p][%010p][%3p][%-03p][%.3p]",
    "[%10x][%-10x][%010x][%3x][%40X][%-40X][%040X][%.3x]",
    "[%5l][%-5l][%05l][%-05l][%1l][%.1l]",
    "[%5m][%-5m][%05m]",
    "[%12C][%-12C][%012C][%.4C][%40.4C]",
    "[%12R][%-12R][%.4R]",
    "[%12E][%-12E][%012E]",
    "[%3F][%-3F][%03F][%3A][%-3A][%03A][%3S][%-3S][%03S]",
    r"\\ \0 \a \e[92m \n \r \t \v @@ %%",
    "plain text, no codes; ünïcode",
    "%5q%-5r%05q",
    "%10D%-10P%5%",
    "@z @Z @n@t@@",
];

#[test]
fn formats_print_the_same() {
    let Some(broker) = Broker::start(OPEN) else { return };
    for version in ["311", "5"] {
        let case = |format| vec!["-V", version, "-t", "g/#", "-q", "2", "-C", "11", "-F", format];
        let mut cases: Vec<Vec<&str>> = FORMATS.iter().map(|format| case(*format)).collect();
        cases.push(vec!["-V", version, "-t", "g/#", "-C", "11", "-N", "-F", "%t:%p,"]);
        compare_subs(&broker, &cases, <[u8]>::to_vec, || broker.publish(messages()));
    }
}

#[test]
fn json_and_times_print_the_same() {
    let Some(broker) = Broker::start(OPEN) else { return };
    let formats = [
        "%I",
        "%U",
        "%30I|%-30I|%.10I",
        "@Y-@m-@d @H:@M:@S.@N @z",
        "@a @A @b @B @C @d @D @e @F @g @G @h @H @I @j @k @l @m @M @p @P @r @R @S @T",
        "@u @U @V @w @W @x @X @y @Y @z @Z @c @s @n@t",
    ];
    for version in ["311", "5"] {
        let case = |format| vec!["-V", version, "-t", "g/#", "-q", "2", "-C", "11", "-F", format];
        let mut cases: Vec<Vec<&str>> = formats.iter().map(|format| case(*format)).collect();
        compare_subs(&broker, &cases, without_digits, || broker.publish(messages()));
        cases.clear();
        for format in ["%j", "%J"] {
            cases.push(case(format));
            cases.push([&case(format)[..], &["--pretty"]].concat());
            let identifier = ["-D", "subscribe", "subscription-identifier", "9", "-V", "5"];
            cases.push([&case(format)[..], &identifier].concat());
        }
        compare_subs(&broker, &cases, without_time_stamps, || broker.publish(messages()));
    }
}

#[test]
fn choices_print_the_same() {
    let Some(broker) = Broker::start(OPEN) else { return };
    broker.publish(vec![
        Message::new("r/1", "kept one").retain(true),
        Message::new("r/2", "kept two").retain(true).qos(QoS::AtLeastOnce),
    ]);
    let cases = [
        "-t g/# -C 11",
        "-t g/# -C 11 -v",
        "-t g/# -C 11 -N",
        "-t g/# -C 11 -v -N",
        "-t g/# -C 3 -v",
        "-t g/a -t g/p -C 4 -v",
        "-t g/# -T g/a -T g/+/# -t r/# -C 2 -v",
        "-t g/# -T g/p -C 9 -v",
        "-t r/# -t g/1 -C 3 -v",
        "-t r/# -t g/1 -C 1 -R -v",
        "-t r/# -t g/1 --retained-only -v",
        "-t r/# -C 1 -q 1 -F %t-%q-%r",
        "-t g/1 -C 1 -q 1 -V 31 -F %t-%q-%r-%m",
        "-t r/# -t g/1 -C 3 -V 5 --retain-as-published -F %t-%r",
        "-t g/1 -C 1 -V mqttv5 -D subscribe user-property a b",
        "-t g/1 -C 1 -V mqttv5 -D subscribe subscription-identifier 7 -F %S-%t",
        "-t none -E",
        "-t none -E -V 5 -D connect user-property a b",
    ];
    let cases = cases.map(|case| case.split(' ').collect());
    compare_subs(&broker, &cases, <[u8]>::to_vec, || broker.publish(messages()));
}

#[test]
fn removing_retained_messages() {
    let Some(broker) = Broker::start(OPEN) else { return };
    let port = broker.port.to_string();
    let mut printed = Vec::new();
    for whose in BOTH {
        let kept = |topic, payload| Message::new(topic, payload).retain(true);
        broker.publish(vec![kept("r/1", "one"), kept("r/2", "two"), kept("r/keep", "three")]);
        // With -C, mosquitto_sub would never end.
        let clear = "-t r/# -T r/keep --remove-retained -v -W 1 -p";
        let clear: Vec<&str> = clear.split(' ').chain([port.as_str()]).collect();
        let output = finish(command(whose, "sub", &clear).spawn().unwrap());
        printed.push(show(&output.stdout));
        let look = ["-p", &port, "-t", "r/#", "-W", "1", "-v"];
        let output = finish(command(Whose::Theirs, "sub", &look).spawn().unwrap());
        assert_eq!(show(&output.stdout), "r/keep three\\n", "{whose:?}");
    }
    // The two messages, and the empty ones that clear them.
    assert_eq!(printed[0], "r/1 one\\nr/2 two\\nr/1 (null)\\nr/2 (null)\\n");
    assert_eq!(printed[0], printed[1]);
}

#[test]
fn a_kept_session_is_printed_and_can_be_unsubscribed() {
    let Some(broker) = Broker::start(OPEN) else { return };
    let port = broker.port.to_string();
    let important = |topic, payload| Message::new(topic, payload).qos(QoS::AtLeastOnce);
    for (version, whose) in ["311", "5"].into_iter().flat_map(|v| BOTH.map(|whose| (v, whose))) {
        let id = format!("{whose:?}{version}");
        let base = ["-p", &port, "-V", version, "-c", "-i", &id, "-q", "1", "-W", "20", "-v"];
        let sub = |more: &[&str]| {
            finish(command(whose, "sub", &[&base[..], more].concat()).spawn().unwrap())
        };
        assert_eq!(sub(&["-t", "s/1", "-t", "s/2", "-E"]).status.code(), Some(0));
        broker.publish(vec![important("s/1", "first"), important("s/2", "second")]);
        // Another topic is subscribed to now, yet the messages of the session come.
        let output = sub(&["-t", "s/3", "-C", "2"]);
        assert_eq!(show(&output.stdout), "s/1 first\\ns/2 second\\n", "{id}");
        assert_eq!(sub(&["-t", "s/3", "-U", "s/1", "-W", "1"]).status.code(), Some(27), "{id}");
        broker.publish(vec![important("s/1", "not this"), important("s/2", "but this")]);
        let output = sub(&["-t", "s/3", "-C", "1"]);
        assert_eq!(show(&output.stdout), "s/2 but this\\n", "{id}");
    }
}

#[test]
fn exit_codes_are_the_same() {
    let Some(open) = Broker::start(OPEN) else { return };
    let Some(closed) = Broker::start("allow_anonymous false") else { return };
    let open = format!("-p {}", open.port);
    let closed = format!("-p {}", closed.port);
    let nobody = format!("-p {}", free_port());
    let cases = [
        (1, "pub", String::new()),
        (1, "pub", "-t a/# -m x".to_owned()),
        (1, "pub", "-t a -m x -q 3".to_owned()),
        (1, "pub", "-t a -m x -n".to_owned()),
        (1, "pub", "-t a -m x --unknown".to_owned()),
        (1, "pub", "-t a -f /nonexistent/file".to_owned()),
        (1, "pub", format!("-t a -m x {nobody}")),
        (0, "pub", format!("-t a -m x {open}")),
        (0, "pub", format!("-t a -n {open}")),
        (0, "pub", format!("-t a -l {open}")),
        (1, "pub", format!("-t a -s {open}")),
        (1, "pub", format!("-t a -m x -c {open}")),
        (1, "pub", format!("-t a -m x -D nonsense a b {open}")),
        (1, "pub", format!("-t a -m x -D publish nonsense b {open}")),
        (1, "pub", "--help".to_owned()),
        (1, "sub", open.clone()),
        (1, "sub", format!("-t a# {open}")),
        (1, "sub", format!("-t a {nobody}")),
        (27, "sub", format!("-t a -W 1 {open}")),
        (27, "sub", format!("-t a -W 1 -C 1 {open}")),
        (0, "sub", format!("-t a -E {open}")),
        (1, "sub", format!("-t a -c -E {open}")),
        (1, "sub", format!("-t a -R --retained-only {open}")),
        (1, "sub", format!("-t a -F % {open}")),
        (1, "sub", format!("-t a -F %k {open}")),
        (1, "sub", format!("-t a -F \\q {open}")),
        (1, "sub", format!("-t a -F @ {open}")),
        (27, "rr", format!("-t a -m x -e b -W 1 {open}")),
        (1, "rr", format!("-t a -m x {open}")),
        (1, "rr", format!("-t a -e b {open}")),
        (1, "rr", format!("-t a -m x -e b {nobody}")),
        (5, "pub", format!("-t a -m x -V 31 {closed}")),
        (5, "pub", format!("-t a -m x -V 311 {closed}")),
        (135, "pub", format!("-t a -m x -V 5 {closed}")),
        (5, "sub", format!("-t a -C 1 -V 31 {closed}")),
        (5, "sub", format!("-t a -C 1 -V 311 {closed}")),
        (135, "sub", format!("-t a -C 1 -V 5 {closed}")),
        (135, "rr", format!("-t a -m x -e b {closed}")),
    ];
    for (expected, name, arguments) in cases {
        for whose in BOTH {
            let words: Vec<&str> = arguments.split_whitespace().collect();
            let output = finish(command(whose, name, &words).spawn().unwrap());
            // Mosquitto's clients count the wish for help as a failure; we do not.
            let ours = whose == Whose::Ours;
            let expected = if ours && arguments == "--help" { 0 } else { expected };
            let stderr = show(&output.stderr);
            let say = format!("{whose:?} {name} {arguments}: {stderr}");
            assert_eq!(output.status.code(), Some(expected), "{say}");
            assert!(!ours || expected == 0 || !stderr.is_empty(), "no word: {say}");
        }
    }
}

#[test]
fn pub_sends_the_same() {
    let Some(broker) = Broker::start(OPEN) else { return };
    let port = broker.port.to_string();
    let file = broker.file("payload", b"from a file\n\x01\xff");
    let lines = format!("first\n\nthird \"line\"\n{}\nno break at the end", "x".repeat(5000));
    let properties = "-D publish content-type text -D PUBLISH user-property a b \
                      -D publish user-property a -c -D publish response-topic r/s \
                      -D publish correlation-data cd -D publish payload-format-indicator 1";
    let cases = [
        (1, "-t p/1 -m hello".to_owned(), ""),
        (1, "-t p/1 -m -5".to_owned(), ""),
        (1, "-t p/1 -m --help".to_owned(), ""),
        (1, "-t p/1 -m hello -q 1".to_owned(), ""),
        (1, "-t p/1 -m hello -q 2 -V 5".to_owned(), ""),
        (1, "-t p/1 -n -q 1".to_owned(), ""),
        (1, format!("-t p/1 -f {file}"), ""),
        (1, "-t p/1 -s".to_owned(), &lines),
        (5, "-t p/1 -l -q 1".to_owned(), &lines),
        (5, "-t p/1 -l -q 2 -M 1".to_owned(), &lines),
        (5, "-t p/1 -l".to_owned(), &lines),
        (3, "-t p/1 -m again --repeat 3 -q 1".to_owned(), ""),
        (2, "-t p/1 -m again --repeat 2 --repeat-delay 0.1".to_owned(), ""),
        (1, format!("-L mqtt://127.0.0.1:{port}/p/url -m url"), ""),
        (1, format!("-L mqtt://localhost:1/p/url -m url -h 127.0.0.1 -p {port} -t p/last"), ""),
        (1, format!("-h nowhere.invalid -L mqtt://127.0.0.1:{port}/p/url -m url"), ""),
        (1, "-t p/31 -m old -V mqttv31 -q 1".to_owned(), ""),
        (1, format!("-t p/props -m x {properties}"), ""),
        (2, "-t p/alias -m x --repeat 2 -q 1 -D publish topic-alias 1".to_owned(), ""),
        (1, "-t p/retained -m kept -r -q 1".to_owned(), ""),
    ];
    let format = "%t|%q|%r|%l|%x|%C|%D|%E|%F|%P|%R";
    for (count, arguments, input) in cases {
        let seen = BOTH.map(|whose| {
            broker.forget_log();
            let count = count.to_string();
            let watch = ["-p", &port, "-V", "5", "-t", "p/#", "-q", "2", "-C", &count];
            let watch = [&watch[..], &["-W", "30", "-R", "-F", format]].concat();
            let watcher = command(Whose::Theirs, "sub", &watch).spawn().unwrap();
            broker.wait_for("Sending SUBACK", 1);
            let mut words: Vec<&str> = arguments.split_whitespace().collect();
            if !words.contains(&"-L") {
                words.extend(["-h", "127.0.0.1", "-p", &port]);
            }
            let output = finish_with_input(command(whose, "pub", &words), input.as_bytes());
            let stderr = show(&output.stderr);
            assert_eq!(output.status.code(), Some(0), "{whose:?} {arguments}: {stderr}");
            show(&finish(watcher).stdout)
        });
        assert_eq!(seen[0], seen[1], "{arguments}");
    }
    // A shell's argument is bytes, and so is a payload.
    let binary = std::os::unix::ffi::OsStrExt::from_bytes(b"kept \xff\xfe");
    for whose in BOTH {
        let mut publish = command(whose, "pub", &["-p", &port, "-t", "p/binary", "-r", "-m"]);
        assert_eq!(
            publish.arg::<&std::ffi::OsStr>(binary).output().unwrap().status.code(),
            Some(0)
        );
        let look = ["-p", &port, "-t", "p/binary", "-C", "1", "-W", "30", "-F", "%x"];
        let output = finish(command(whose, "sub", &look).spawn().unwrap());
        assert_eq!(show(&output.stdout), "6b65707420fffe\\n", "{whose:?}");
    }
    let look = ["-p", &port, "-t", "p/retained", "-C", "1", "-W", "30"];
    let output = finish(command(Whose::Ours, "sub", &look).spawn().unwrap());
    assert_eq!(show(&output.stdout), "kept\\n");
}

#[test]
fn pub_reads_lines_without_being_told() {
    let Some(broker) = Broker::start(OPEN) else { return };
    let port = broker.port.to_string();
    let watch = ["-p", &port, "-t", "abc", "-q", "1", "-C", "3", "-W", "30"];
    let watcher = command(Whose::Theirs, "sub", &watch).spawn().unwrap();
    broker.wait_for("Sending SUBACK", 1);
    let publish = command(Whose::Ours, "pub", &["-p", &port, "-t", "abc", "-q", "1"]);
    let output = finish_with_input(publish, b"a\nb\nc\n");
    assert_eq!((output.status.code(), show(&output.stderr)), (Some(0), String::new()));
    assert_eq!(show(&finish(watcher).stdout), "a\\nb\\nc\\n");
}

/// Answers requests: on the topic that they name, or on a fixed one.
async fn respond(port: u16) {
    let client = Options::new("127.0.0.1", port).connect().await.unwrap();
    let mut requests = client.subscribe("rr/request").await.unwrap();
    tokio::spawn(async move {
        while let Some(request) = requests.recv().await {
            answer(&client, request).await;
        }
    });
}

async fn answer(client: &Client, request: Message) {
    let topic = request.properties.response_topic.unwrap_or("rr/fixed".into());
    let mut response = Message::new(&*topic, [b"re: ", &request.payload[..]].concat());
    response.properties.correlation_data = request.properties.correlation_data;
    client.publish(response).await.unwrap();
}

#[test]
fn rr_prints_the_same() {
    let Some(broker) = Broker::start(OPEN) else { return };
    let port = broker.port.to_string();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(respond(broker.port));
    for arguments in [
        vec!["-e", "rr/own", "-m", "hello"],
        vec!["-e", "rr/own", "-m", "hello", "-v", "-q", "1"],
        vec!["-e", "rr/own", "-n", "-F", "%t %p %l"],
        vec!["-e", "rr/fixed", "-m", "old", "-V", "311"],
    ] {
        let outputs = BOTH.map(|whose| {
            let all = [&["-p", &port, "-t", "rr/request", "-W", "30"][..], &arguments].concat();
            let output = finish_with_input(command(whose, "rr", &all), b"all of\nthe input");
            (output.status.code(), show(&output.stdout))
        });
        assert_eq!(outputs[0], outputs[1], "{arguments:?}");
        assert!(outputs[1].1.contains("re: "), "{outputs:?}");
    }
    // What mosquitto_rr does not do: it sends nothing of its standard input.
    for (flag, expected) in [("-s", "re: one\\ntwo\\n\\n"), ("-l", "re: one\\nre: two\\n")] {
        let all = ["-p", &port, "-t", "rr/request", "-e", "rr/own", "-W", "30", flag];
        let output = finish_with_input(command(Whose::Ours, "rr", &all), b"one\ntwo\n");
        assert_eq!(show(&output.stdout), expected);
    }
}

#[test]
fn passwords_from_file_and_environment() {
    if mosquitto().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let passwords = folder.path().join("passwords");
    std::fs::write(&passwords, "").unwrap();
    let made =
        Command::new("mosquitto_passwd").arg("-b").arg(&passwords).args(["u", "p w"]).output();
    assert!(made.unwrap().status.success());
    // Started by root, the broker reads it as another user.
    for path in [folder.path(), &passwords] {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(path, mode).unwrap();
    }
    let settings = format!("allow_anonymous false\npassword_file {}", passwords.display());
    let Some(broker) = Broker::start(&settings) else { return };
    let port = broker.port.to_string();
    let file = broker.file("secret", b"p w\nsecond line\n");
    let url = format!("mqtt://u:p%20w@127.0.0.1:{port}/a");
    let code = |arguments: &[&str], environment: &[(&str, &str)]| {
        let all = [&["-p", &port, "-t", "a", "-m", "x"], arguments].concat();
        let mut command = command(Whose::Ours, "pub", &all);
        command.envs(environment.iter().copied());
        finish(command.spawn().unwrap()).status.code()
    };
    assert_eq!(code(&["-u", "u", "-P", "p w"], &[]), Some(0));
    assert_eq!(code(&["-u", "u", "-P", "wrong"], &[]), Some(5));
    assert_eq!(code(&["-u", "u", "--password-file", &file], &[]), Some(0));
    let environment = [("SURGEMQ_USERNAME", "u"), ("SURGEMQ_PASSWORD", "p w")];
    assert_eq!(code(&[], &environment), Some(0));
    assert_eq!(code(&["-L", &url], &[]), Some(0));
    assert_eq!(code(&["-P", "p w"], &[]), Some(1), "a password without a name, before 5.0");
}

#[test]
fn default_files_are_read_and_overridden() {
    let Some(broker) = Broker::start(OPEN) else { return };
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    // The exit code, whether the filter in the file was subscribed to, and what was said.
    let run = |arguments: &[&str]| {
        broker.forget_log();
        let mut command = command(Whose::Ours, "sub", arguments);
        command.env("XDG_CONFIG_HOME", folder.path());
        let output = finish(command.spawn().unwrap());
        let log = broker.log.0.lock().unwrap().clone();
        (output.status.code(), log.contains("filter/of/file"), show(&output.stderr))
    };
    let port = format!("-p {}\n", broker.port);
    write("mosquitto_sub", &format!("# comment\n-h 127.0.0.1\n{port}\n-E\n-t filter/of/file\n"));
    assert_eq!(run(&[]), (Some(0), true, String::new()));
    // Ours wins over mosquitto's.
    write("surgemq_sub", &format!("{port}-E\n"));
    assert_eq!(run(&["-t", "x"]), (Some(0), false, String::new()));
    // The command line wins over the file.
    write("surgemq_sub", "-p 1\n-E\n");
    assert_eq!(run(&["-t", "x", "-p", &broker.port.to_string()]).0, Some(0));
    write("other", &format!("{port}-E\n-t filter/of/file\n-D connect user-property a b\n"));
    let other = folder.path().join("other");
    assert_eq!(run(&["-o", other.to_str().unwrap()]), (Some(0), true, String::new()));
    let (code, _, stderr) = run(&["-t", "x", "-o", "/nonexistent"]);
    assert!(code == Some(1) && stderr.contains("/nonexistent"), "{stderr}");
}

#[test]
fn a_closed_pipe_ends_sub_quietly() {
    let Some(broker) = Broker::start(OPEN) else { return };
    let port = broker.port.to_string();
    let mut child = command(Whose::Ours, "sub", &["-p", &port, "-t", "t"]).spawn().unwrap();
    broker.wait_for("Sending SUBACK", 1);
    drop(child.stdout.take());
    broker.publish(vec![Message::new("t", "x")]);
    let output = finish(child);
    assert_eq!((output.status.code(), show(&output.stderr)), (Some(0), String::new()));
}

#[test]
fn signals_disconnect_cleanly() {
    let Some(broker) = Broker::start(OPEN) else { return };
    let port = broker.port.to_string();
    for (name, signal, code) in [("sub", "-INT", 0), ("sub", "-TERM", 0), ("pub", "-INT", 130)] {
        broker.forget_log();
        let arguments = ["-p", &port, "-t", "t", "-V", "5", "-i", "client"];
        let mut command = command(Whose::Ours, name, &arguments);
        let child = command.stdin(Stdio::piped()).spawn().unwrap();
        // A publisher without input does nothing visible after CONNACK: a ping of -k would be
        // the next thing. Signals are caught from before CONNECT on.
        broker.wait_for(if name == "sub" { "Sending SUBACK" } else { "Sending CONNACK" }, 1);
        let pid = child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
        // The input stays open meanwhile, whose end would end `pub` too.
        broker.wait_for("Received DISCONNECT from client", 1);
        assert_eq!(finish(child).status.code(), Some(code), "{name} {signal}");
    }
}

#[test]
fn a_restarted_broker_loses_no_line() {
    let Some(mut broker) = Broker::start(OPEN) else { return };
    let program = mosquitto().unwrap();
    let port = broker.port.to_string();
    let mut command = command(Whose::Ours, "pub", &["-p", &port, "-t", "t", "-q", "1", "-l"]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut stderr = child.stderr.take().unwrap();
    let mut write = |range: std::ops::Range<u32>| {
        range.for_each(|n| writeln!(stdin, "{n}").unwrap());
        stdin.flush().unwrap();
    };
    write(0..10);
    broker.wait_for("Received PUBLISH", 10);
    broker.process.kill().unwrap();
    broker.process.wait().unwrap();
    write(10..20);
    let folder = broker.folder.path();
    let (process, log) = Broker::start_at(&program, broker.port, OPEN, folder).expect("port free");
    (broker.process, broker.log) = (process, log);
    write(20..30);
    drop(stdin);
    let output = finish(child);
    let mut said = String::new();
    stderr.read_to_string(&mut said).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("connecting again"), "{said}");
    broker.wait_for("Received PUBLISH", 20);
}

#[test]
fn sub_subscribes_again_at_a_restarted_broker() {
    let Some(mut broker) = Broker::start(OPEN) else { return };
    let program = mosquitto().unwrap();
    let port = broker.port.to_string();
    for version in ["311", "5"] {
        let arguments = ["-p", &port, "-t", "t/#", "-q", "1", "-C", "2", "-V", version];
        let child = command(Whose::Ours, "sub", &arguments).spawn().unwrap();
        broker.wait_for("Sending SUBACK", 1);
        broker.publish(vec![Message::new("t/1", "before")]);
        broker.process.kill().unwrap();
        broker.process.wait().unwrap();
        let folder = broker.folder.path();
        let again = Broker::start_at(&program, broker.port, OPEN, folder).expect("port free");
        (broker.process, broker.log) = again;
        broker.wait_for("Sending SUBACK", 1);
        broker.publish(vec![Message::new("t/2", "after").qos(QoS::AtLeastOnce)]);
        let output = finish(child);
        assert_eq!(show(&output.stdout), "before\\nafter\\n");
        assert!(show(&output.stderr).contains("connecting again"), "{}", show(&output.stderr));
        broker.forget_log();
    }
}

/// Mosquitto's client warns and exits with 0; who asked for an acknowledgement should know.
#[test]
fn a_refused_message_is_a_failure() {
    if mosquitto().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let rules = folder.path().join("acl");
    std::fs::write(&rules, "topic readwrite open/#\n").unwrap();
    for path in [folder.path(), &rules] {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(path, mode).unwrap();
    }
    let settings = format!("{OPEN}\nacl_file {}", rules.display());
    let Some(broker) = Broker::start(&settings) else { return };
    let port = broker.port.to_string();
    let publish = |topic| {
        let arguments = ["-p", &port, "-V", "5", "-q", "1", "-l", "-t", topic];
        let output = finish_with_input(command(Whose::Ours, "pub", &arguments), b"a\nb\n");
        (output.status.code(), show(&output.stderr))
    };
    assert_eq!(publish("open/x"), (Some(0), String::new()));
    let (code, stderr) = publish("closed/x");
    assert_eq!(code, Some(1));
    assert!(
        stderr.contains("message 2 was not delivered: the broker refused: not authorized"),
        "{stderr}"
    );
}

/// A broker that answers nothing more is not waited for without end.
#[test]
fn a_frozen_broker_is_given_up() {
    let Some(broker) = Broker::start(OPEN) else { return };
    let port = broker.port.to_string();
    let arguments = ["-p", &port, "-t", "t", "-q", "1", "-k", "1", "-W", "20"];
    let mut child = command(Whose::Ours, "sub", &arguments).spawn().unwrap();
    broker.wait_for("Sending SUBACK", 1);
    let pid = broker.process.id().to_string();
    assert!(Command::new("kill").args(["-STOP", &pid]).status().unwrap().success());
    let mut stderr = BufReader::new(child.stderr.take().unwrap()).lines();
    let first = stderr.next().unwrap().unwrap();
    assert_eq!(first, "surgemq: timed out waiting for the answer to a ping");
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Many lines through this crate's own broker: pipelined, complete, in order.
#[test]
fn many_lines_arrive_complete_and_in_order() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let server = surgemq::server::Server::builder().build();
    let address = runtime.block_on(server.listen("tcp://127.0.0.1:0")).unwrap();
    let port = address.port().to_string();
    let lines: String = (0..50_000).map(|n| format!("line {n}\n")).collect();
    for (version, qos) in [("311", "1"), ("5", "2"), ("31", "1")] {
        let watch = ["-h", "127.0.0.1", "-p", &port, "-V", version, "-t", "t", "-q", qos];
        let watch = [&watch[..], &["-C", "50000", "-W", "50", "-d"]].concat();
        let mut watcher = command(Whose::Ours, "sub", &watch).spawn().unwrap();
        let mut said = BufReader::new(watcher.stderr.take().unwrap()).lines();
        assert!(said.any(|line| line.unwrap().starts_with("subscribed")));
        // Somebody has to read what it says.
        std::thread::spawn(move || said.for_each(drop));
        let publish = ["-h", "127.0.0.1", "-p", &port, "-V", version, "-t", "t", "-q", qos, "-l"];
        let start = Instant::now();
        let output = finish_with_input(command(Whose::Ours, "pub", &publish), lines.as_bytes());
        assert_eq!((output.status.code(), show(&output.stderr)), (Some(0), String::new()));
        // One at a time would take far longer.
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
        let output = finish(watcher);
        assert!(output.stdout == lines.as_bytes(), "{version} at QoS {qos}");
    }
    runtime.block_on(server.stop(Duration::from_millis(100)));
}

/// A broker that takes the connection and says nothing kept `-W` and Ctrl-C from ending anything.
#[test]
fn a_silent_broker_does_not_hold_anybody() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    for (name, words) in [("sub", &["-t", "t"][..]), ("rr", &["-t", "t", "-e", "r", "-n"])] {
        let start = Instant::now();
        let arguments = [&["-h", "127.0.0.1", "-p", &port, "-W", "0.1"][..], words].concat();
        let output = finish(command(Whose::Ours, name, &arguments).spawn().unwrap());
        assert_eq!(output.status.code(), Some(27), "{name}: {}", show(&output.stderr));
        assert!(start.elapsed() < Duration::from_secs(8), "sooner than connecting is given up");
        listener.accept().unwrap();
    }
    let words = ["-h", "127.0.0.1", "-p", &port, "-t", "t", "-n"];
    for (signal, code) in [("-INT", 130), ("-TERM", 143)] {
        let start = Instant::now();
        let child = command(Whose::Ours, "pub", &words).spawn().unwrap();
        // Connected, so signals are listened to.
        let _silent = listener.accept().unwrap();
        let pid = child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
        assert_eq!(finish(child).status.code(), Some(code));
        assert!(start.elapsed() < Duration::from_secs(8), "sooner than connecting is given up");
    }
}

/// What is wrong is said in the words of the flag that it is wrong for.
#[test]
fn wrong_flags_are_told_plainly() {
    for (arguments, words) in [
        ("pub -t a -m x -q -1", "invalid value '-1' for '--qos <QOS>'"),
        ("sub -t a -C -1", "invalid value '-1' for '-C <N>'"),
        ("sub -t a -W 0", "not a number of seconds above 0"),
        ("sub -t a --cafile ca.crt", "TLS is not supported yet"),
        ("pub -t a -m x --psk-identity me", "TLS is not supported yet"),
        ("rr -t a -m x -e b --proxy socks5h://h", "proxies are not supported"),
        ("pub -t a -m x -D connect receive-maximum 0", "is not a value of receive-maximum"),
    ] {
        let (name, rest) = arguments.split_once(' ').unwrap();
        let words_of: Vec<&str> = rest.split(' ').collect();
        let output = finish(command(Whose::Ours, name, &words_of).spawn().unwrap());
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.contains(words), "{arguments}: {stderr}");
        assert_eq!(output.status.code(), Some(1), "{arguments}");
    }
    for name in ["pub", "sub", "rr"] {
        let output = finish(command(Whose::Ours, name, &["--version"]).spawn().unwrap());
        assert!(show(&output.stdout).starts_with("surgemq"), "{}", show(&output.stdout));
        assert_eq!(output.status.code(), Some(0));
    }
}
