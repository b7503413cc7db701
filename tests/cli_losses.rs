//! `surgemq pub` and a broker that closes the connection on a message that it does not like.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Reads one packet of 3.1.1, which must be short.
fn packet(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut packet = vec![0; 2];
    stream.read_exact(&mut packet)?;
    assert!(packet[1] < 128, "a short packet");
    packet.resize(2 + usize::from(packet[1]), 0);
    stream.read_exact(&mut packet[2..])?;
    Ok(packet)
}

/// Acknowledges PUBLISHes to the topic `t` at QoS 1 until one says "bad"; then closes. Gives the
/// payloads, and whether the client has said goodbye.
fn serve(stream: &mut TcpStream) -> (Vec<String>, bool) {
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("it is a socket");
    let mut payloads = Vec::new();
    loop {
        let Ok(packet) = packet(stream) else { return (payloads, false) };
        let answer = match packet[0] & 0xF0 {
            0x10 => vec![0x20, 2, 0, 0],
            0x30 => {
                payloads.push(String::from_utf8_lossy(&packet[7..]).into_owned());
                if packet[7..] == *b"bad" {
                    return (payloads, false);
                }
                vec![0x40, 2, packet[5], packet[6]]
            }
            0xE0 => return (payloads, true),
            _ => panic!("unexpected: {packet:x?}"),
        };
        stream.write_all(&answer).expect("the client reads");
    }
}

/// One line that the broker does not take kept all that followed from being delivered, and made
/// the client connect again for ever.
#[test]
fn one_line_that_costs_the_connection_does_not_stop_the_others() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("there is a free port");
    let port = listener.local_addr().expect("it is bound").port().to_string();
    let broker = std::thread::spawn(move || {
        let mut all = Vec::new();
        loop {
            let (mut stream, _) = listener.accept().expect("a client comes");
            let (payloads, done) = serve(&mut stream);
            all.extend(payloads);
            if done {
                return all;
            }
        }
    });
    let mut client = Command::new(env!("CARGO_BIN_EXE_surgemq"))
        .args(["pub", "-h", "127.0.0.1", "-p", &port, "-t", "t", "-q", "1", "-l"])
        .args(["--max-losses", "2"])
        .env("XDG_CONFIG_HOME", "/nonexistent")
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it was built");
    let lines = b"good\nbad\nlast\n";
    client.stdin.take().expect("piped").write_all(lines).expect("it reads");
    let output = client.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let told = "message 2 was not delivered: the connection was lost 2 times in a row";
    assert!(said.contains(told), "{said}");
    let seen = broker.join().expect("all were short packets");
    let count = |payload: &str| seen.iter().filter(|seen| *seen == payload).count();
    assert_eq!((count("good"), count("last")), (1, 1), "{seen:?}");
    // Behind "good" and before "last" it is not known yet to be the one at fault.
    assert!((2..=4).contains(&count("bad")), "{seen:?}");
}
