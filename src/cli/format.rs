//! How a received message is printed: `-F`, `-v`, `-N`, in the manner of `mosquitto_sub`.

use std::io::Write;

use jiff::Zoned;
use jiff::fmt::strtime;

use super::json::Json;
use crate::client::Message;

/// The chosen way to print.
#[derive(Debug)]
pub(super) struct Printer {
    layout: Layout,
    /// Whether a line break follows each message.
    end_of_line: bool,
    /// Whether JSON is printed with line breaks and tabs.
    pretty: bool,
}

#[derive(Debug)]
enum Layout {
    Payload,
    TopicAndPayload,
    Format(Vec<Piece>),
}

/// A part of a `-F` format.
#[derive(Debug, PartialEq, Eq)]
enum Piece {
    Literal(Vec<u8>),
    Field(Field),
    /// `@` and a letter for strftime.
    Time(u8),
    /// `@N`
    Nanoseconds,
}

/// `%`, flags, width, precision and letter.
#[derive(Debug, PartialEq, Eq)]
struct Field {
    letter: u8,
    left: bool,
    zeros: bool,
    width: usize,
    precision: Option<usize>,
}

/// Wider fields than this are cut to it: a typing error should not fill the memory.
const MAX_WIDTH: usize = 1 << 20;

/// The payload is not JSON, but `%J` wants it to be.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NotJson;

impl Printer {
    /// `format` overrides `verbose`. An error says what is wrong with the format.
    pub(super) fn new(
        format: Option<&str>,
        verbose: bool,
        end_of_line: bool,
        pretty: bool,
    ) -> Result<Self, String> {
        let layout = match format {
            Some(format) => Layout::Format(parse(format.as_bytes())?),
            None if verbose => Layout::TopicAndPayload,
            None => Layout::Payload,
        };
        Ok(Self { layout, end_of_line, pretty })
    }

    /// Appends `message` to `out`. If it cannot be printed as wanted, what can be printed is.
    pub(super) fn print(&self, message: &Message, out: &mut Vec<u8>) -> Result<(), NotJson> {
        let mut result = Ok(());
        match &self.layout {
            // Nothing at all for an empty payload: not even a line break.
            Layout::Payload if message.payload.is_empty() => return Ok(()),
            Layout::Payload => out.extend_from_slice(&message.payload),
            Layout::TopicAndPayload if message.payload.is_empty() => {
                if self.end_of_line {
                    out.extend_from_slice(message.topic.as_bytes());
                    out.extend_from_slice(b" (null)");
                }
            }
            Layout::TopicAndPayload => {
                out.extend_from_slice(message.topic.as_bytes());
                out.push(b' ');
                out.extend_from_slice(&message.payload);
            }
            Layout::Format(pieces) => {
                let mut time = None;
                for piece in pieces {
                    let printed = self.print_piece(piece, message, &mut time, out);
                    result = result.and(printed);
                }
            }
        }
        if self.end_of_line {
            out.push(b'\n');
        }
        result
    }

    fn print_piece(
        &self,
        piece: &Piece,
        message: &Message,
        time: &mut Option<Zoned>,
        out: &mut Vec<u8>,
    ) -> Result<(), NotJson> {
        match piece {
            Piece::Literal(text) => out.extend_from_slice(text),
            Piece::Time(letter) => print_time(*letter, now(time), out),
            Piece::Nanoseconds => {
                let _ = write!(out, "{:09}", now(time).subsec_nanosecond());
            }
            Piece::Field(field) => return self.print_field(field, message, time, out),
        }
        Ok(())
    }

    fn print_field(
        &self,
        field: &Field,
        message: &Message,
        time: &mut Option<Zoned>,
        out: &mut Vec<u8>,
    ) -> Result<(), NotJson> {
        let properties = &message.properties;
        match field.letter {
            b'%' => out.push(b'%'),
            b'A' => field.number(properties.topic_alias.map(u32::from), out),
            b'C' => field.text(properties.content_type.as_deref(), out),
            b'D' => {
                out.extend_from_slice(properties.correlation_data.as_deref().unwrap_or_default())
            }
            b'E' => field.number(properties.message_expiry_secs, out),
            b'F' => field.number(properties.payload_format_indicator.map(u32::from), out),
            b'I' => field.text(Some(&iso_8601(now(time))), out),
            b'j' | b'J' if message.payload.is_empty() => {
                print_json(message, now(time), Json::Null, self.pretty, out);
            }
            b'j' => print_json(message, now(time), Json::text(&message.payload), self.pretty, out),
            b'J' => {
                let payload = Json::parse(&message.payload).ok_or(NotJson)?;
                print_json(message, now(time), payload, self.pretty, out);
            }
            b'l' => field.number(u32::try_from(message.payload.len()).ok(), out),
            b'm' => field.number(Some(message.packet_id.unwrap_or(0).into()), out),
            b'P' => print_user_properties(message, out),
            b'p' => field.payload(&message.payload, out),
            b'q' => out.push(b'0' + message.qos as u8),
            b'R' => {
                if properties.response_topic.is_some() {
                    field.text(properties.response_topic.as_deref(), out);
                }
            }
            b'r' => out.push(if message.retain { b'1' } else { b'0' }),
            b'S' => field.number(properties.subscription_identifiers.first().copied(), out),
            b't' => field.text(Some(&message.topic), out),
            b'U' => {
                let now = now(time).timestamp();
                let _ = write!(out, "{}.{:09}", now.as_second(), now.subsec_nanosecond());
            }
            b'x' => field.hex(&message.payload, b"0123456789abcdef", out),
            b'X' => field.hex(&message.payload, b"0123456789ABCDEF", out),
            other => unreachable!("{other} was refused when the format was read"),
        }
        Ok(())
    }
}

impl Field {
    fn number(&self, number: Option<u32>, out: &mut Vec<u8>) {
        let Some(number) = number else {
            let pad = if self.zeros { b'0' } else { b' ' };
            return out.extend(std::iter::repeat_n(pad, self.width));
        };
        // C prints it as an int, expiry intervals beyond its range too.
        let number = number as i32;
        let width = self.width;
        // Writing into a Vec cannot fail.
        let _ = match (self.left, self.zeros) {
            (true, _) => write!(out, "{number:<width$}"),
            (false, true) => write!(out, "{number:0width$}"),
            (false, false) => write!(out, "{number:width$}"),
        };
    }

    fn text(&self, text: Option<&str>, out: &mut Vec<u8>) {
        let bytes = text.unwrap_or_default().as_bytes();
        let shown = &bytes[..bytes.len().min(self.precision.unwrap_or(usize::MAX))];
        self.padded(b' ', shown.len(), out, |out| out.extend_from_slice(shown));
    }

    fn payload(&self, payload: &[u8], out: &mut Vec<u8>) {
        // A width is also the most that is printed of a payload.
        let limit = if self.width > 0 { self.width } else { usize::MAX };
        let shown = &payload[..payload.len().min(limit)];
        self.padded(self.pad(), shown.len(), out, |out| out.extend_from_slice(shown));
    }

    fn hex(&self, payload: &[u8], digits: &[u8; 16], out: &mut Vec<u8>) {
        // The width counts digits, but whether the payload fits is asked of its bytes, and the
        // half of what fits is printed: so mosquitto_sub does.
        let shown = match self.width {
            0 => payload,
            width => &payload[..payload.len().min(width) / 2],
        };
        self.padded(self.pad(), 2 * shown.len(), out, |out| {
            out.extend(
                shown.iter().flat_map(|byte| {
                    [digits[usize::from(byte >> 4)], digits[usize::from(byte & 15)]]
                }),
            );
        });
    }

    const fn pad(&self) -> u8 {
        if self.zeros { b'0' } else { b' ' }
    }

    fn padded(&self, pad: u8, length: usize, out: &mut Vec<u8>, print: impl FnOnce(&mut Vec<u8>)) {
        let missing = self.width.saturating_sub(length);
        if !self.left {
            out.extend(std::iter::repeat_n(pad, missing));
        }
        print(out);
        if self.left {
            out.extend(std::iter::repeat_n(b' ', missing));
        }
    }
}

fn now(time: &mut Option<Zoned>) -> &Zoned {
    time.get_or_insert_with(Zoned::now)
}

fn iso_8601(now: &Zoned) -> String {
    now.strftime("%Y-%m-%dT%H:%M:%S%z").to_string()
}

/// C's strftime with one conversion, in the C locale. What it does not know stays as it is.
fn print_time(letter: u8, now: &Zoned, out: &mut Vec<u8>) {
    let format = match letter {
        b'c' => "%a %b %e %H:%M:%S %Y".to_owned(),
        b'x' | b'D' => "%m/%d/%y".to_owned(),
        b'X' | b'T' => "%H:%M:%S".to_owned(),
        b'r' => "%I:%M:%S %p".to_owned(),
        _ => format!("%{}", char::from(letter)),
    };
    match strtime::format(&format, now) {
        Ok(text) => out.extend_from_slice(text.as_bytes()),
        Err(_) => out.extend_from_slice(&[b'%', letter]),
    }
}

fn print_user_properties(message: &Message, out: &mut Vec<u8>) {
    for (n, (name, value)) in message.properties.user_properties.iter().enumerate() {
        let space = if n > 0 { " " } else { "" };
        let _ = write!(out, "{space}{name}:{value}");
    }
}

fn print_json(message: &Message, now: &Zoned, payload: Json, pretty: bool, out: &mut Vec<u8>) {
    let time = now.strftime("%Y-%m-%dT%H:%M:%S.%6fZ%z").to_string();
    let payload_length = u32::try_from(message.payload.len()).unwrap_or(u32::MAX);
    let mut pairs = vec![
        (b"tst".to_vec(), Json::text(time)),
        (b"topic".to_vec(), Json::text(&*message.topic)),
        (b"qos".to_vec(), Json::number(message.qos as u8)),
        (b"retain".to_vec(), Json::number(u8::from(message.retain))),
        (b"payloadlen".to_vec(), Json::number(payload_length)),
    ];
    if let Some(id) = message.packet_id {
        pairs.push((b"mid".to_vec(), Json::number(id)));
    }
    let properties = json_properties(message);
    if !properties.is_empty() {
        pairs.push((b"properties".to_vec(), Json::Object(properties)));
    }
    pairs.push((b"payload".to_vec(), payload));
    Json::Object(pairs).print(pretty, out);
}

/// In the order in which mosquitto's broker sends them: it appends what it computes itself.
fn json_properties(message: &Message) -> Vec<(Vec<u8>, Json)> {
    let properties = &message.properties;
    let mut pairs = Vec::new();
    let mut add = |name: &str, value: Option<Json>| {
        pairs.extend(value.map(|value| (name.as_bytes().to_vec(), value)));
    };
    for identifier in &properties.subscription_identifiers {
        add("subscription-identifier", Some(Json::number(*identifier)));
    }
    let format = properties.payload_format_indicator;
    add("payload-format-indicator", format.map(|is_text| Json::number(u8::from(is_text))));
    add("content-type", properties.content_type.as_deref().map(Json::text));
    add("response-topic", properties.response_topic.as_deref().map(Json::text));
    add("correlation-data", properties.correlation_data.as_ref().map(Json::text));
    if !properties.user_properties.is_empty() {
        let user = properties.user_properties.iter();
        let user = user.map(|(name, value)| (name.as_bytes().to_vec(), Json::text(&**value)));
        add("user-properties", Some(Json::Object(user.collect())));
    }
    add("message-expiry-interval", properties.message_expiry_secs.map(Json::number));
    add("topic-alias", properties.topic_alias.map(Json::number));
    pairs
}

/// Takes a `-F` format apart.
fn parse(format: &[u8]) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let mut literal = Vec::new();
    let mut rest = format.iter().copied().peekable();
    while let Some(byte) = rest.next() {
        let piece = match byte {
            b'%' => Piece::Field(parse_field(&mut rest)?),
            b'@' => match rest.next().ok_or("incomplete format specifier")? {
                b'@' => {
                    literal.push(b'@');
                    continue;
                }
                b'N' => Piece::Nanoseconds,
                letter => Piece::Time(letter),
            },
            b'\\' => {
                literal.push(escape(rest.next().ok_or("incomplete escape specifier")?)?);
                continue;
            }
            other => {
                literal.push(other);
                continue;
            }
        };
        if !literal.is_empty() {
            pieces.push(Piece::Literal(std::mem::take(&mut literal)));
        }
        pieces.push(piece);
    }
    if !literal.is_empty() {
        pieces.push(Piece::Literal(literal));
    }
    Ok(pieces)
}

type Rest<I> = std::iter::Peekable<I>;

fn parse_field<I: Iterator<Item = u8>>(rest: &mut Rest<I>) -> Result<Field, String> {
    let left = rest.next_if_eq(&b'-').is_some();
    let zeros = rest.next_if_eq(&b'0').is_some();
    let width = parse_number(rest).unwrap_or(0);
    let precision = rest.next_if_eq(&b'.').map(|_| parse_number(rest).unwrap_or(0));
    let letter = rest.next().ok_or("incomplete format specifier")?;
    if !b"%ACDEFIjJlmPpqRrStUxX".contains(&letter) {
        return Err(format!("invalid format specifier '{}'", char::from(letter)));
    }
    Ok(Field { letter, left, zeros, width, precision })
}

fn parse_number<I: Iterator<Item = u8>>(rest: &mut Rest<I>) -> Option<usize> {
    let mut number = None;
    while let Some(digit) = rest.next_if(u8::is_ascii_digit) {
        let sum = number.unwrap_or(0) * 10 + usize::from(digit - b'0');
        number = Some(sum.min(MAX_WIDTH));
    }
    number
}

fn escape(letter: u8) -> Result<u8, String> {
    Ok(match letter {
        b'\\' => b'\\',
        b'0' => 0,
        b'a' => 7,
        b'e' => 27,
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'v' => 11,
        other => return Err(format!("invalid escape specifier '{}'", char::from(other))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::MessageProperties;
    use crate::mqtt::QoS;

    fn message() -> Message {
        Message {
            packet_id: Some(7),
            qos: QoS::AtLeastOnce,
            properties: MessageProperties {
                content_type: Some("text".into()),
                message_expiry_secs: Some(60),
                user_properties: vec![("k".into(), "v".into()), ("k".into(), "w".into())],
                ..MessageProperties::default()
            },
            ..Message::new("a/b", "hello")
        }
    }

    fn check(format: &str, expected: &str) {
        let printer = Printer::new(Some(format), false, false, false).unwrap();
        let mut out = Vec::new();
        printer.print(&message(), &mut out).unwrap();
        assert_eq!(String::from_utf8_lossy(&out), expected, "{format}");
    }

    #[test]
    fn fields() {
        check("%t %p %q %r %l %m", "a/b hello 1 0 5 7");
        check("%%|%P|%C|%E|%A|%R", "%|k:v k:w|text|60||");
        check(r"\\\0\a\e\n\r\t\v@@", "\\\0\u{7}\u{1b}\n\r\t\u{b}@");
    }

    #[test]
    fn widths() {
        check("%6t|%-6t|%.2t|%6.2t|%-6.2t", "   a/b|a/b   |a/|    a/|a/    ");
        check("%03l|%-3l|%3l|%-03l", "005|5  |  5|5  ");
        check("%3A|%03A|%8C|%-8C", "   |000|    text|text    ");
        check("%8p|%-8p|%3p|%08p", "   hello|hello   |hel|000hello");
        check("%x|%X|%4x|%12x|%-12x|", "68656c6c6f|68656C6C6F|6865|        6865|6865        |");
    }

    #[test]
    fn wrong_formats_are_refused() {
        for (format, what) in [
            ("%", "incomplete format specifier"),
            ("%-", "incomplete format specifier"),
            ("%10", "incomplete format specifier"),
            ("%5.", "incomplete format specifier"),
            ("@", "incomplete format specifier"),
            ("%k", "invalid format specifier 'k'"),
            ("%0-5t", "invalid format specifier '-'"),
            ("\\", "incomplete escape specifier"),
            ("\\q", "invalid escape specifier 'q'"),
        ] {
            assert_eq!(
                Printer::new(Some(format), false, true, false).unwrap_err(),
                what,
                "{format}"
            );
        }
    }

    #[test]
    fn times() {
        let now: Zoned = "2024-02-03T04:05:06.007008009+01:00[+01:00]".parse().unwrap();
        for (letter, expected) in [
            (b'Y', "2024"),
            (b'm', "02"),
            (b'd', "03"),
            (b'e', " 3"),
            (b'H', "04"),
            (b'M', "05"),
            (b'S', "06"),
            (b'z', "+0100"),
            (b'j', "034"),
            (b'a', "Sat"),
            (b'B', "February"),
            (b'c', "Sat Feb  3 04:05:06 2024"),
            (b'D', "02/03/24"),
            (b'F', "2024-02-03"),
            (b'T', "04:05:06"),
            (b'R', "04:05"),
            (b'r', "04:05:06 AM"),
            (b's', "1706929506"),
            (b'u', "6"),
            (b'w', "6"),
            (b'G', "2024"),
            (b'V', "05"),
            (b'U', "04"),
            (b'W', "05"),
            (b'k', " 4"),
            (b'l', " 4"),
            (b'p', "AM"),
            (b'P', "am"),
            (b'C', "20"),
            (b'y', "24"),
            (b'g', "24"),
            (b'h', "Feb"),
            (b'n', "\n"),
            (b't', "\t"),
            (b'?', "%?"),
        ] {
            let mut out = Vec::new();
            print_time(letter, &now, &mut out);
            assert_eq!(String::from_utf8_lossy(&out), expected, "@{}", char::from(letter));
        }
        assert_eq!(iso_8601(&now), "2024-02-03T04:05:06+0100");
    }

    #[test]
    fn plain_and_verbose() {
        let print = |verbose, end_of_line, message: &Message| {
            let printer = Printer::new(None, verbose, end_of_line, false).unwrap();
            let mut out = Vec::new();
            printer.print(message, &mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        let empty = Message::new("a/b", "");
        assert_eq!(print(false, true, &message()), "hello\n");
        assert_eq!(print(false, false, &message()), "hello");
        assert_eq!(print(true, true, &message()), "a/b hello\n");
        assert_eq!(print(false, true, &empty), "");
        assert_eq!(print(true, true, &empty), "a/b (null)\n");
        assert_eq!(print(true, false, &empty), "");
    }

    #[test]
    fn json_wants_json() {
        let printer = Printer::new(Some("x %J"), false, true, false).unwrap();
        let mut out = Vec::new();
        assert_eq!(printer.print(&message(), &mut out), Err(NotJson));
        assert_eq!(out, b"x \n");
    }
}
