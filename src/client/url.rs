//! `mqtt://[user[:password]@]host[:port][/topic]`.

use super::Error;

/// The parts of a broker's URL.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BrokerUrl {
    /// Host name or address; an IPv6 address without its brackets.
    pub host: String,
    /// Port: 1883 when none is given.
    pub port: u16,
    /// User name, percent-decoded.
    pub username: Option<String>,
    /// Password, percent-decoded.
    pub password: Option<String>,
    /// What follows the first slash, percent-decoded: the topic of command-line clients.
    pub topic: Option<String>,
}

impl BrokerUrl {
    /// Takes `url` apart. Schemes: `mqtt` and `tcp`.
    pub fn parse(url: &str) -> Result<Self, Error> {
        let error = |what| Error::Url { url: without_password(url), what };
        let (scheme, rest) = url.split_once("://").ok_or(error("it has no scheme (mqtt://)"))?;
        match scheme.to_ascii_lowercase().as_str() {
            "mqtt" | "tcp" => {}
            "mqtts" | "ssl" | "tls" => return Err(error("TLS is not supported yet")),
            "ws" | "wss" => return Err(error("WebSocket is not supported yet")),
            _ => return Err(error("its scheme is not mqtt")),
        }
        let (authority, topic) = match rest.split_once('/') {
            Some((authority, topic)) => (authority, Some(topic)),
            None => (rest, None),
        };
        let (credentials, address) = match authority.rsplit_once('@') {
            Some((credentials, address)) => (Some(credentials), address),
            None => (None, authority),
        };
        let decode = |text| percent_decode(text).ok_or(error("a percent escape is not UTF-8 text"));
        let (mut username, mut password) = (None, None);
        if let Some(credentials) = credentials {
            let (user, secret) = match credentials.split_once(':') {
                Some((user, secret)) => (user, Some(secret)),
                None => (credentials, None),
            };
            username = Some(decode(user)?);
            password = secret.map(decode).transpose()?;
        }
        let (host, port) = split_port(address).ok_or(error("its port is not a number"))?;
        if host.is_empty() {
            return Err(error("it names no host"));
        }
        let topic = topic.filter(|topic| !topic.is_empty()).map(decode).transpose()?;
        Ok(Self { host: host.to_owned(), port: port.unwrap_or(1883), username, password, topic })
    }
}

/// Splits `host`, `host:port`, `[v6]` or `[v6]:port`; `None` if the port is no port.
fn split_port(address: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = if let Some(rest) = address.strip_prefix('[') {
        let (host, rest) = rest.split_once(']')?;
        match rest.strip_prefix(':') {
            Some(port) => (host, Some(port)),
            None if rest.is_empty() => (host, None),
            None => return None,
        }
    } else {
        match address.rsplit_once(':') {
            // More than one colon: an IPv6 address without brackets.
            Some((host, _)) if host.contains(':') => (address, None),
            Some((host, port)) => (host, Some(port)),
            None => (address, None),
        }
    };
    match port.filter(|port| !port.is_empty()) {
        Some(port) => Some((host, Some(port.parse().ok().filter(|port| *port > 0)?))),
        None => Some((host, None)),
    }
}

fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let escaped = (first == b'%')
            .then(|| Some(hex(*tail.first()?)? * 16 + hex(*tail.get(1)?)?))
            .flatten();
        match escaped {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8(bytes).ok()
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

/// What may be shown to a person or written to a log.
fn without_password(url: &str) -> String {
    let start = url.find("://").map_or(0, |at| at + 3);
    let authority_end = url[start..].find('/').map_or(url.len(), |at| start + at);
    let Some(at) = url[start..authority_end].rfind('@').map(|at| start + at) else {
        return url.to_owned();
    };
    match url[start..at].find(':') {
        Some(colon) => format!("{}:***{}", &url[..start + colon], &url[at..]),
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(
        url: &str,
        host: &str,
        port: u16,
        user: Option<&str>,
        pw: Option<&str>,
        topic: Option<&str>,
    ) {
        let expected = BrokerUrl {
            host: host.into(),
            port,
            username: user.map(Into::into),
            password: pw.map(Into::into),
            topic: topic.map(Into::into),
        };
        assert_eq!(BrokerUrl::parse(url).unwrap(), expected, "{url}");
    }

    #[test]
    fn parts() {
        check("mqtt://h", "h", 1883, None, None, None);
        check("tcp://127.0.0.1:1884/", "127.0.0.1", 1884, None, None, None);
        check("mqtt://[::1]:1/a/b", "::1", 1, None, None, Some("a/b"));
        check("mqtt://[::1]", "::1", 1883, None, None, None);
        check("MQTT://u@h/t", "h", 1883, Some("u"), None, Some("t"));
        check("mqtt://u%40x:p%3A%2Fw@h:9/%23", "h", 9, Some("u@x"), Some("p:/w"), Some("#"));
        check("mqtt://:p@h", "h", 1883, Some(""), Some("p"), None);
        check("mqtt://u:50%@h", "h", 1883, Some("u"), Some("50%"), None);
    }

    #[test]
    fn refusals_hide_the_password() {
        for url in [
            "h:1",
            "http://h",
            "mqtt://",
            "mqtt://h:x",
            "mqtt://h:0",
            "mqtt://h:70000",
            "mqtts://h",
        ] {
            assert!(BrokerUrl::parse(url).is_err(), "{url}");
        }
        let error = BrokerUrl::parse("http://user:secret@h/t").unwrap_err().to_string();
        assert!(error.contains("user:***@h/t") && !error.contains("secret"), "{error}");
    }
}
