//! Who connects: asked anew before every connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

/// What CONNECT said: user name, password, user properties.
type Said = (Option<String>, Option<String>, Vec<String>);

impl Broker {
    /// Reads CONNECT and answers with `reason`.
    async fn answer(&self, reason: ReasonCode) -> (Peer, Said) {
        let (stream, _) = timeout(SOON, self.listener.accept()).await.unwrap().unwrap();
        let mut peer = Peer { stream, input: Vec::new() };
        let said = peer
            .expect(|packet| match packet {
                Packet::Connect(connect) => (
                    connect.username.map(str::to_owned),
                    connect.password.map(|p| String::from_utf8(p.to_vec()).unwrap()),
                    connect.properties.user_properties.iter().map(|p| p.1.to_owned()).collect(),
                ),
                other => panic!("not CONNECT: {other:?}"),
            })
            .await;
        let properties = Properties::default();
        peer.send(&Packet::ConnAck(ConnAck { session_present: false, reason, properties })).await;
        (peer, said)
    }
}

/// Counts its calls, into the password and a user property.
fn counting(options: Options) -> Options {
    let calls = Arc::new(AtomicU32::new(0));
    options.credentials("user", "first").login_with(move |mut login| {
        let call = calls.fetch_add(1, Ordering::Relaxed);
        async move {
            login.password = Some(format!("token {call}").into());
            login.user_properties.push(("call".into(), call.to_string().into()));
            if call == 1 { Err("the token server is away") } else { Ok(login) }
        }
    })
}

fn said(call: u32) -> Said {
    (Some("user".to_owned()), Some(format!("token {call}")), vec![call.to_string()])
}

#[tokio::test]
async fn every_connection_has_a_login_of_its_own() {
    let broker = Broker::start().await;
    let options = counting(broker.options());
    let (client, (peer, first)) =
        tokio::join!(options.connect(), broker.answer(ReasonCode::Success));
    let client = client.unwrap();
    let mut events = client.events();
    assert_eq!(first, said(0));
    drop(peer);
    // The source fails once, which is a failed attempt like any other.
    let (_peer, third) = broker.answer(ReasonCode::Success).await;
    assert_eq!(third, said(2));
    let mut errors = Vec::new();
    loop {
        match timeout(SOON, events.next()).await.unwrap().unwrap() {
            Event::Lost { error } => errors.push(error.to_string()),
            Event::Connected { .. } if !errors.is_empty() => break,
            _ => {}
        }
    }
    assert_eq!(
        errors.last().unwrap(),
        "no login for the next connection: the token server is away"
    );
}

/// A token that expires while it is used is refused, or the broker disconnects: the next one is
/// better. Without a source of logins that is the end.
#[tokio::test]
async fn a_refused_login_is_tried_again_with_the_next_one() {
    for renews in [true, false] {
        let broker = Broker::start().await;
        let options = if renews { counting(broker.options()) } else { broker.options() };
        let (client, (mut peer, _)) =
            tokio::join!(options.connect(), broker.answer(ReasonCode::Success));
        let client = client.unwrap();
        let reason = ReasonCode::NotAuthorized;
        let properties = Properties::default();
        peer.send(&Packet::Disconnect(Disconnect { reason, properties })).await;
        if !renews {
            let error = timeout(SOON, client.closed()).await.unwrap();
            assert!(matches!(error, Error::Disconnected { .. }), "{error}");
            continue;
        }
        let (_, second) = broker.answer(ReasonCode::BadUserNameOrPassword).await;
        assert_eq!(second, said(2));
        let (_peer, third) = broker.answer(ReasonCode::Success).await;
        assert_eq!(third, said(3));
    }
}

#[tokio::test]
async fn a_login_that_does_not_come_or_cannot_be_sent_is_an_error() {
    let broker = Broker::start().await;
    let never = broker.options().connect_timeout(Duration::from_millis(20));
    let never = never.login_with(|_| std::future::pending::<Result<Login, Error>>());
    let error = never.connect().await.unwrap_err();
    assert!(matches!(error, Error::Timeout("the login of the next connection")), "{error}");
    let ask = |mut login: Login| async {
        login.username = None;
        login.password = Some("secret".into());
        Ok::<_, Error>(login)
    };
    assert!(!format!("{:?}", ask(Login::default()).await).contains("secret"));
    let error = broker.options().version(Version::V311).login_with(ask).connect().await;
    assert!(matches!(error, Err(Error::Options(_))));
}
