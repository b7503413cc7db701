//! JSON as `mosquitto_sub` prints it: numbers and white space in the manner of cJSON, text as the
//! bytes it is made of, objects with their keys in order and even repeated.
//!
//! `serde_json` cannot do this: it wants UTF-8, drops repeated keys and prints `27.0` where cJSON
//! prints `27`.

use std::io::Write;

/// A JSON value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Json {
    Null,
    Bool(bool),
    Number(f64),
    Text(Vec<u8>),
    Array(Vec<Self>),
    Object(Vec<(Vec<u8>, Self)>),
}

/// Deeper nesting is refused, as cJSON does.
const MAX_DEPTH: usize = 1000;

impl Json {
    pub(super) fn text(text: impl AsRef<[u8]>) -> Self {
        Self::Text(text.as_ref().to_vec())
    }

    pub(super) fn number(number: impl Into<f64>) -> Self {
        Self::Number(number.into())
    }

    /// Reads a whole document; `None` if it is not JSON.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let mut parser = Parser { rest: bytes };
        parser.skip_space();
        let value = parser.value(0)?;
        parser.skip_space();
        parser.rest.is_empty().then_some(value)
    }

    /// Appends the value to `out`, on one line or with tabs and line breaks.
    pub(super) fn print(&self, pretty: bool, out: &mut Vec<u8>) {
        self.print_at(0, pretty, out);
    }

    fn print_at(&self, depth: usize, pretty: bool, out: &mut Vec<u8>) {
        match self {
            Self::Null => out.extend_from_slice(b"null"),
            Self::Bool(true) => out.extend_from_slice(b"true"),
            Self::Bool(false) => out.extend_from_slice(b"false"),
            Self::Number(number) => print_number(*number, out),
            Self::Text(text) => print_text(text, out),
            Self::Array(items) => {
                out.push(b'[');
                for (n, item) in items.iter().enumerate() {
                    if n > 0 {
                        out.extend_from_slice(if pretty { b", " } else { b"," });
                    }
                    item.print_at(depth + 1, pretty, out);
                }
                out.push(b']');
            }
            Self::Object(pairs) => print_object(pairs, depth + 1, pretty, out),
        }
    }
}

fn print_object(pairs: &[(Vec<u8>, Json)], depth: usize, pretty: bool, out: &mut Vec<u8>) {
    let tabs = |count: usize, out: &mut Vec<u8>| out.extend(std::iter::repeat_n(b'\t', count));
    out.push(b'{');
    if pretty {
        out.push(b'\n');
    }
    for (n, (name, value)) in pairs.iter().enumerate() {
        if pretty {
            tabs(depth, out);
        }
        print_text(name, out);
        out.extend_from_slice(if pretty { b":\t" } else { b":" });
        value.print_at(depth, pretty, out);
        if n + 1 < pairs.len() {
            out.push(b',');
        }
        if pretty {
            out.push(b'\n');
        }
    }
    if pretty {
        tabs(depth - 1, out);
    }
    out.push(b'}');
}

/// Integers as such; others with 15 significant digits if that is exact, with 17 if not.
fn print_number(number: f64, out: &mut Vec<u8>) {
    // Writing into a Vec cannot fail.
    if !number.is_finite() {
        out.extend_from_slice(b"null");
    } else if number == f64::from(number as i32) {
        let _ = write!(out, "{}", number as i32);
    } else {
        let short = significant(number, 15);
        let exact = short.parse() == Ok(number);
        out.extend_from_slice(if exact { short } else { significant(number, 17) }.as_bytes());
    }
}

/// C's `%.<digits>g`.
fn significant(number: f64, digits: usize) -> String {
    let scientific = format!("{number:.*e}", digits - 1);
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if exponent < -4 || exponent >= i32::try_from(digits).unwrap_or(i32::MAX) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{}e{sign}{:02}", without_zeros(mantissa), exponent.abs());
    }
    let decimals = usize::try_from(digits as i32 - 1 - exponent).unwrap_or(0);
    without_zeros(&format!("{number:.decimals$}")).to_owned()
}

fn without_zeros(text: &str) -> &str {
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { text }
}

fn print_text(text: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    for &byte in text {
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            8 => out.extend_from_slice(b"\\b"),
            12 => out.extend_from_slice(b"\\f"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0..32 => {
                let _ = write!(out, "\\u{byte:04x}");
            }
            _ => out.push(byte),
        }
    }
    out.push(b'"');
}

struct Parser<'a> {
    rest: &'a [u8],
}

impl Parser<'_> {
    fn skip_space(&mut self) {
        while let Some((&first, rest)) = self.rest.split_first()
            && first <= b' '
        {
            self.rest = rest;
        }
    }

    fn next(&mut self) -> Option<u8> {
        let (&first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(first)
    }

    fn take(&mut self, prefix: &[u8]) -> bool {
        let rest = self.rest.strip_prefix(prefix);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    /// Takes `byte` with the space around it.
    fn take_mark(&mut self, byte: u8) -> bool {
        self.skip_space();
        let taken = self.take(&[byte]);
        self.skip_space();
        taken
    }

    fn value(&mut self, depth: usize) -> Option<Json> {
        if depth > MAX_DEPTH {
            return None;
        }
        match self.rest.first()? {
            b'n' => self.take(b"null").then_some(Json::Null),
            b't' => self.take(b"true").then_some(Json::Bool(true)),
            b'f' => self.take(b"false").then_some(Json::Bool(false)),
            b'"' => self.string().map(Json::Text),
            b'[' => self.array(depth).map(Json::Array),
            b'{' => self.object(depth).map(Json::Object),
            _ => self.number(),
        }
    }

    fn number(&mut self) -> Option<Json> {
        let is_part = |byte: &u8| matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E');
        let length = self.rest.iter().take_while(|byte| is_part(byte)).count();
        let (text, rest) = self.rest.split_at(length);
        if !matches!(text.first()?, b'-' | b'0'..=b'9') {
            return None;
        }
        self.rest = rest;
        std::str::from_utf8(text).ok()?.parse().ok().map(Json::Number)
    }

    fn array(&mut self, depth: usize) -> Option<Vec<Json>> {
        let mut items = Vec::new();
        self.take_mark(b'[');
        if self.take_mark(b']') {
            return Some(items);
        }
        loop {
            items.push(self.value(depth + 1)?);
            if self.take_mark(b']') {
                return Some(items);
            }
            if !self.take_mark(b',') {
                return None;
            }
        }
    }

    fn object(&mut self, depth: usize) -> Option<Vec<(Vec<u8>, Json)>> {
        let mut pairs = Vec::new();
        self.take_mark(b'{');
        if self.take_mark(b'}') {
            return Some(pairs);
        }
        loop {
            let name = self.string()?;
            if !self.take_mark(b':') {
                return None;
            }
            pairs.push((name, self.value(depth + 1)?));
            if self.take_mark(b'}') {
                return Some(pairs);
            }
            if !self.take_mark(b',') {
                return None;
            }
        }
    }

    fn string(&mut self) -> Option<Vec<u8>> {
        if !self.take(b"\"") {
            return None;
        }
        let mut text = Vec::new();
        loop {
            match self.next()? {
                b'"' => return Some(text),
                b'\\' => self.escape(&mut text)?,
                byte => text.push(byte),
            }
        }
    }

    fn escape(&mut self, text: &mut Vec<u8>) -> Option<()> {
        text.push(match self.next()? {
            byte @ (b'"' | b'\\' | b'/') => byte,
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => {
                let character = self.unicode()?;
                text.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                return Some(());
            }
            _ => return None,
        });
        Some(())
    }

    fn unicode(&mut self) -> Option<char> {
        let first = self.hex()?;
        if !(0xD800..0xDC00).contains(&first) {
            return char::from_u32(first);
        }
        let second = if self.take(b"\\u") { self.hex()? } else { return None };
        (0xDC00..0xE000)
            .contains(&second)
            .then(|| char::from_u32(0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00)))
            .flatten()
    }

    fn hex(&mut self) -> Option<u32> {
        (0..4).try_fold(0, |sum, _| Some(sum * 16 + char::from(self.next()?).to_digit(16)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(input: &str, plain: &str, pretty: &str) {
        let value = Json::parse(input.as_bytes()).unwrap_or_else(|| panic!("not JSON: {input}"));
        let print = |pretty| {
            let mut out = Vec::new();
            value.print(pretty, &mut out);
            String::from_utf8(out).unwrap()
        };
        assert_eq!((print(false).as_str(), print(true).as_str()), (plain, pretty), "{input}");
    }

    #[test]
    fn reprinted() {
        check(" null ", "null", "null");
        check(
            r#"{ "a" : [1, 2.0,{}], "a":true,"b":"x\u00e9\ud83d\ude00\/\n" }"#,
            "{\"a\":[1,2,{}],\"a\":true,\"b\":\"xé😀/\\n\"}",
            "{\n\t\"a\":\t[1, 2, {\n\t\t}],\n\t\"a\":\ttrue,\n\t\"b\":\t\"xé😀/\\n\"\n}",
        );
        check("[]", "[]", "[]");
    }

    #[test]
    fn numbers_as_c_prints_them() {
        for (input, output) in [
            ("27.0", "27"),
            ("-0.5", "-0.5"),
            ("0.1", "0.1"),
            ("21.37", "21.37"),
            ("1e20", "1e+20"),
            ("123456789012", "123456789012"),
            ("0.00001", "1e-05"),
            ("1e-7", "1e-07"),
            ("0.30000000000000004", "0.30000000000000004"),
            ("3.141592653589793", "3.1415926535897931"),
            ("2147483648", "2147483648"),
        ] {
            check(input, output, output);
        }
    }

    #[test]
    fn refused() {
        for input in
            ["", "{", "[1,]", "{\"a\"}", "{a:1}", "1 2", "\"\\x\"", "nul", "\"\\ud800x\"", "x"]
        {
            assert_eq!(Json::parse(input.as_bytes()), None, "{input}");
        }
        assert_eq!(Json::parse("[".repeat(100_000).as_bytes()), None);
    }
}
