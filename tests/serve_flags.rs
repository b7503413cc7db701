//! `surgemq serve` as an operator meets it: where it listens, and what it says about what it cannot
//! do. What it does as a broker is in `tests/it`.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv6Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

fn serve(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_surgemq"));
    command.arg("serve").args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs what must fail.
fn refused(arguments: &[&str]) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = serve(arguments).output().unwrap();
    (status.code(), String::from_utf8(stderr).unwrap())
}

/// A broker that is stopped with its owner.
struct Running(Child);

impl Running {
    /// The broker and its start-up line, or none when it has ended.
    fn start(arguments: &[&str]) -> (Self, String) {
        let mut process = serve(arguments).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        (Self(process), line)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// [::] took the port of 0.0.0.0 too and then failed, and nobody was told that there was no IPv6.
#[test]
fn a_port_is_served_over_both_families() {
    if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_err() {
        eprintln!("skipped: no IPv6 here");
        return;
    }
    // A free port may be somebody else's a moment later.
    for _ in 0..10 {
        let port = TcpListener::bind("[::]:0").unwrap().local_addr().unwrap().port();
        let (broker, line) = Running::start(&["-p", &port.to_string()]);
        if line.is_empty() {
            continue;
        }
        for address in [format!("0.0.0.0:{port}"), format!("[::]:{port}")] {
            assert!(line.contains(&address), "{line}");
        }
        TcpStream::connect(("127.0.0.1", port)).unwrap();
        TcpStream::connect((Ipv6Addr::LOCALHOST, port)).unwrap();
        drop(broker);
        return;
    }
    panic!("no port stays free");
}

#[test]
fn a_port_in_use_is_told_of_either_family() {
    let mut taken = vec![TcpListener::bind("0.0.0.0:0").unwrap()];
    taken.extend(TcpListener::bind((Ipv6Addr::LOCALHOST, 0)));
    for listener in taken {
        let port = listener.local_addr().unwrap().port().to_string();
        let (code, stderr) = refused(&["-p", &port]);
        assert_eq!(code, Some(3), "{stderr}");
        assert!(stderr.contains(&format!("{port} is in use by another program")), "{stderr}");
    }
}

#[test]
fn wrong_values_are_told_plainly() {
    for (arguments, code, words) in [
        ("--bind :1883", 3, "':1883' names no host: 0.0.0.0:1883 is all of IPv4"),
        ("--bind 1883", 3, "not an address of the form"),
        ("--bind 127.0.0.1:0 --data-dir /dev/null", 5, "the data directory cannot be used"),
        ("--max-connections 0", 2, "not a number above 0"),
        ("--max-sessions 0", 2, "not a number above 0"),
        ("--max-packet-size 0", 2, "invalid value '0'"),
        ("--max-connect-size 0", 2, "invalid value '0'"),
        ("--threads 0", 2, "not a number above 0"),
        ("--durability none", 2, "--data-dir"),
        ("--receive-buffer 4G", 2, "less than 4G"),
    ] {
        let (was, stderr) = refused(&arguments.split(' ').collect::<Vec<_>>());
        assert_eq!(was, Some(code), "{arguments}: {stderr}");
        assert!(stderr.contains(words), "{arguments}: {stderr}");
    }
}

/// The first line that could not be logged was a panic: of a connection, of the ticker, of the thread
/// that writes the data directory, and at the end an exit code of 101.
#[test]
fn a_log_that_cannot_be_written_harms_nobody() {
    let full = || File::options().write(true).open("/dev/full").unwrap();
    let patience = Duration::from_secs(10);
    // A free port may be somebody else's a moment later.
    for _ in 0..10 {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut command = serve(&["-v", "--bind", &format!("127.0.0.1:{port}")]);
        let mut broker = Running(command.stdout(full()).stderr(full()).spawn().unwrap());
        let deadline = Instant::now() + patience;
        let client = loop {
            if let Some(status) = broker.0.try_wait().unwrap() {
                assert_eq!(status.code(), Some(3), "{status}");
                break None;
            }
            if let Ok(client) = TcpStream::connect(("127.0.0.1", port)) {
                break Some(client);
            }
            assert!(Instant::now() < deadline, "it does not listen");
            std::thread::sleep(Duration::from_millis(10));
        };
        let Some(mut client) = client else { continue };
        client.set_read_timeout(Some(patience)).unwrap();
        client.write_all(b"\x10\x0d\0\x04MQTT\x04\x02\0\0\0\x01x\xc0\0").unwrap();
        let mut answers = [0; 6];
        client.read_exact(&mut answers).unwrap();
        assert_eq!(answers, [0x20, 2, 0, 0, 0xD0, 0]);
        drop(client);
        let pid = rustix::process::Pid::from_child(&broker.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let status = broker.0.wait().unwrap();
        assert!(status.success(), "{status}");
        return;
    }
    panic!("no port stays free");
}
