//! Reads the sources and fails where the shape of the project is broken: a layer that uses what
//! is above it, a file without its `//!`, one that has grown past a subject, a changelog without
//! its heads, something new at the top level, unfinished marks.
//!
//! Code is looked at as tokens, with comments, strings and test modules taken out and `use`
//! declarations resolved to whole paths, so that a word in a comment is no alarm and a renamed
//! import no way round. What macros expand to is not seen.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// The layers from the lowest, and for each the folders of `src/` that it must not use besides
/// those that stand below it in this table.
const LAYERS: &[(&str, &[&str])] = &[
    ("mqtt", &[]),
    ("session", &[]),
    ("broker", &[]),
    ("store", &[]),
    ("auth", &["store"]),
    ("net", &["session", "broker", "store", "auth"]),
    ("client", &[]),
    ("server", &["client"]),
    ("bench", &[]),
    ("cli", &[]),
];

/// Paths of other crates that a layer must not name; a path stands for all that is under it.
const FORBIDDEN: &[(&[&str], &str, &[&str])] = &[
    (&["mqtt", "session", "broker", "store", "auth"], "knows no tokio", &["tokio"]),
    (
        &["mqtt", "session", "broker"],
        "does no I/O and starts or stops no threads",
        &[
            "std::fs",
            "std::process",
            "std::net::TcpStream",
            "std::net::TcpListener",
            "std::net::UdpSocket",
            "std::os::unix::net",
            "std::io::stdin",
            "std::io::stdout",
            "std::io::stderr",
            "std::thread::spawn",
            "std::thread::scope",
            "std::thread::Builder",
            "std::thread::sleep",
            "rustix::fs",
            "rustix::io",
            "rustix::net",
            "rustix::event",
            "socket2",
        ],
    ),
    (&["mqtt"], "knows no clock", &["std::time::Instant", "std::time::SystemTime"]),
    (
        &["session", "broker"],
        "is told the time",
        &[
            "std::time::Instant::now",
            "std::time::Instant::elapsed",
            "std::time::SystemTime::now",
            "std::time::SystemTime::elapsed",
            "rustix::time",
        ],
    ),
    (
        &["mqtt", "session", "broker"],
        "is told what is random",
        &["rand", "getrandom", "fastrand", "rustix::rand"],
    ),
    (
        &["mqtt", "session", "broker", "store", "auth", "net", "client", "server", "bench"],
        "knows no terminal",
        &["indicatif", "clap", "std::io::IsTerminal", "std::io::stdout"],
    ),
    (
        &["mqtt", "session", "broker", "store", "auth", "net", "client", "server", "bench"],
        "prints nothing",
        &["println!", "print!", "eprintln!", "eprint!"],
    ),
    (
        &["mqtt", "session", "broker", "store", "auth", "net", "client", "server"],
        "has errors with types",
        &["anyhow"],
    ),
];

const MAX_LINES: usize = 900;

#[test]
fn layers_use_only_what_is_below_them() {
    let mut faults = String::new();
    let files = rust_files(&root().join("src"));
    let tests: HashSet<PathBuf> = files.iter().flat_map(|f| f.test_modules()).collect();
    for file in &files {
        let in_test_module = file.path.ancestors().any(|a| tests.contains(&a.with_extension("")));
        if in_test_module {
            continue;
        }
        for (line, what) in layer_faults(&file.module(), &file.text) {
            let _ = writeln!(faults, "{}:{line}: {what}", file.name());
        }
    }
    assert!(faults.is_empty(), "\n{faults}");
}

#[test]
fn every_folder_of_src_has_its_place_in_the_layers() {
    for entry in fs::read_dir(root().join("src")).expect("src can be read") {
        let entry = entry.expect("src can be read");
        let name = entry.file_name().into_string().expect("names are UTF-8");
        if entry.path().is_dir() {
            assert!(
                layer_index(&name).is_some(),
                "src/{name}/ stands in no layer of tests/tidy.rs"
            );
        }
    }
}

#[test]
fn every_file_says_what_it_is() {
    for file in all_rust_files() {
        let first = file.text.lines().find(|line| !line.trim().is_empty()).unwrap_or("");
        assert!(first.starts_with("//! "), "{} does not open with `//!`", file.name());
    }
}

#[test]
fn files_have_one_subject() {
    for file in rust_files(&root().join("src")) {
        let lines = file.text.lines().count();
        assert!(lines <= MAX_LINES, "{} has {lines} lines, over {MAX_LINES}", file.name());
    }
}

#[test]
fn nothing_is_left_unfinished() {
    let mut faults = String::new();
    for file in all_rust_files() {
        for (line, what) in unfinished(&tokens(&file.text)) {
            let _ = writeln!(faults, "{}:{line}: {what}", file.name());
        }
    }
    assert!(faults.is_empty(), "\n{faults}");
}

#[test]
fn the_top_level_is_fixed() {
    const ALLOWED: &[&str] = &[
        "Cargo.toml",
        "Cargo.lock",
        "src",
        "tests",
        "scripts",
        "README.md",
        "CHANGELOG.md",
        "LICENSE",
        "target",
    ];
    for entry in fs::read_dir(root()).expect("the top level can be read") {
        let name = entry.expect("the top level can be read").file_name();
        let name = name.to_string_lossy();
        assert!(
            name.starts_with('.') || ALLOWED.contains(&name.as_ref()),
            "{name} does not belong to the top level"
        );
    }
}

#[test]
fn the_changelog_has_its_heads() {
    let text = fs::read_to_string(root().join("CHANGELOG.md")).expect("there is a CHANGELOG.md");
    if let Err(fault) = changelog_shape(&text) {
        panic!("CHANGELOG.md: {fault}");
    }
}

#[test]
fn the_code_map_names_every_module() {
    let lib = fs::read_to_string(root().join("src/lib.rs")).expect("there is a src/lib.rs");
    let map: String = lib.lines().filter(|line| line.starts_with("//!")).collect();
    for (folder, _) in LAYERS {
        if root().join("src").join(folder).is_dir() {
            let named = map.contains(&format!("`{folder}`"))
                || map.contains(&format!("`{folder}/`"))
                || map.contains(&format!("[`{folder}`]"));
            assert!(named, "the documentation of src/lib.rs does not name `{folder}`");
        }
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

struct SourceFile {
    path: PathBuf,
    text: String,
}

impl SourceFile {
    fn name(&self) -> String {
        let path = self.path.strip_prefix(root()).expect("it lies below the top level");
        path.display().to_string()
    }

    /// The module path from the crate down: `src/session/link.rs` is `["session", "link"]`.
    fn module(&self) -> Vec<String> {
        let path = self.path.strip_prefix(root().join("src")).expect("it lies in src");
        let mut module: Vec<String> = path
            .with_extension("")
            .iter()
            .map(|part| part.to_string_lossy().into_owned())
            .collect();
        if matches!(module.last().map(String::as_str), Some("mod" | "lib" | "main")) {
            module.pop();
        }
        module
    }

    /// The files of modules that are declared here behind `#[cfg(test)]`, without `.rs`.
    fn test_modules(&self) -> Vec<PathBuf> {
        let folder = match self.path.file_stem().and_then(|stem| stem.to_str()) {
            Some("mod" | "lib" | "main") => {
                self.path.parent().expect("a file has a folder").to_path_buf()
            }
            _ => self.path.with_extension(""),
        };
        without_tests(&tokens(&self.text)).1.iter().map(|name| folder.join(name)).collect()
    }
}

fn rust_files(folder: &Path) -> Vec<SourceFile> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a source folder can be read") {
            let path = entry.expect("a source folder can be read").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("a source file can be read");
                files.push(SourceFile { path, text });
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    files
}

fn all_rust_files() -> Vec<SourceFile> {
    let mut files = rust_files(&root().join("src"));
    files.extend(rust_files(&root().join("tests")));
    files
}

fn layer_index(folder: &str) -> Option<usize> {
    LAYERS.iter().position(|(name, _)| *name == folder)
}

/// What the source of `module` does that its layer must not: line and words.
fn layer_faults(module: &[String], text: &str) -> Vec<(usize, String)> {
    let Some(folder) = module.first() else { return Vec::new() };
    let Some(index) = layer_index(folder) else { return Vec::new() };
    let above = LAYERS[index + 1..].iter().map(|(name, _)| *name);
    let refused: Vec<String> =
        above.chain(LAYERS[index].1.iter().copied()).map(|name| format!("crate::{name}")).collect();
    let (code, _) = without_tests(&tokens(text));
    let mut faults = Vec::new();
    for (line, path) in paths(module, &code) {
        if let Some(hit) = refused.iter().find(|refused| is_under(&path, refused)) {
            faults.push((line, format!("src/{folder}/ must not use {hit}")));
        }
        for (folders, rule, forbidden) in FORBIDDEN {
            if folders.contains(&folder.as_str()) && forbidden.iter().any(|f| is_under(&path, f)) {
                faults.push((line, format!("src/{folder}/ {rule}, but here is {path}")));
            }
        }
    }
    faults
}

fn is_under(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

fn unfinished(tokens: &[Token]) -> Vec<(usize, String)> {
    const MACROS: &[&str] = &["todo", "unimplemented", "dbg"];
    let mut faults = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        let next = tokens.get(at + 1).map_or("", |token| token.text.as_str());
        if MACROS.contains(&token.text.as_str()) && next == "!" {
            faults.push((token.line, format!("`{}!`", token.text)));
        }
        let before = at.checked_sub(2).map(|from| &tokens[from..at]);
        let attribute = before.is_some_and(|before| before[0].text == "#" && before[1].text == "[");
        if attribute && token.text == "ignore" {
            faults.push((token.line, "`#[ignore]`".to_owned()));
        }
    }
    faults
}

fn changelog_shape(text: &str) -> Result<(), String> {
    const KINDS: &[&str] = &["Added", "Changed", "Fixed", "Removed"];
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    if lines.next() != Some("# Changelog") {
        return Err("the first line is not '# Changelog'".to_owned());
    }
    let mut heads = 0;
    let mut kind = None;
    for line in lines {
        if let Some(head) = line.strip_prefix("## ") {
            if heads == 0 && head.trim_matches(['[', ']']) != "Unreleased" {
                return Err(format!("the first head is '{head}', not 'Unreleased'"));
            }
            heads += 1;
            kind = None;
        } else if let Some(head) = line.strip_prefix("### ") {
            let place = KINDS.iter().position(|kind| *kind == head);
            if place.is_none() {
                return Err(format!("'{head}' is none of {}", KINDS.join(", ")));
            }
            if place <= kind {
                return Err(format!("'{head}' stands twice or out of order"));
            }
            kind = place;
        } else if heads > 0 && kind.is_none() {
            return Err(format!("under no head of {}: '{line}'", KINDS.join(", ")));
        }
    }
    if heads == 0 { Err("there is no '## Unreleased'".to_owned()) } else { Ok(()) }
}

/// A word, a literal or one sign of the source.
#[derive(Debug, Clone, PartialEq)]
struct Token {
    text: String,
    line: usize,
}

/// Cuts Rust source into tokens. Comments vanish; a string becomes `""`, a character `''`.
fn tokens(source: &str) -> Vec<Token> {
    let bytes = source.as_bytes();
    let mut tokens = Vec::new();
    let (mut at, mut line) = (0, 1);
    while at < bytes.len() {
        let start = at;
        at = match bytes[at] {
            b'/' if bytes[at..].starts_with(b"//") => end_of_line(bytes, at),
            b'/' if bytes[at..].starts_with(b"/*") => end_of_block_comment(bytes, at),
            b'"' => end_of_string(bytes, at),
            b'\'' => end_of_quote(bytes, at),
            byte if is_word(byte) => end_of_word(bytes, at),
            _ => at + 1,
        };
        let text = &source[start..at];
        let text = match bytes[start] {
            b'/' if at > start + 1 => "",
            byte if byte.is_ascii_whitespace() => "",
            b'"' => "\"\"",
            b'\'' if at > start + 1 => "''",
            byte if is_word(byte) && text.ends_with(['"', '#', '\'']) => "\"\"",
            _ => text,
        };
        if !text.is_empty() {
            tokens.push(Token { text: text.to_owned(), line });
        }
        line += bytes[start..at].iter().filter(|byte| **byte == b'\n').count();
    }
    tokens
}

/// Bytes beyond ASCII count as letters, so that a token never ends inside a character.
fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

fn end_of_line(bytes: &[u8], at: usize) -> usize {
    bytes[at..].iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |n| at + n)
}

fn end_of_block_comment(bytes: &[u8], mut at: usize) -> usize {
    let mut depth = 0;
    while at < bytes.len() {
        if bytes[at..].starts_with(b"/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if bytes[at..].starts_with(b"*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    bytes.len()
}

fn end_of_string(bytes: &[u8], at: usize) -> usize {
    let mut at = at + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// A character literal; of a lifetime only the quote.
fn end_of_quote(bytes: &[u8], at: usize) -> usize {
    if bytes.get(at + 1) == Some(&b'\\') {
        let close = bytes[at + 3..].iter().position(|byte| *byte == b'\'');
        return close.map_or(bytes.len(), |n| at + 3 + n + 1);
    }
    let first = bytes.get(at + 1).copied().unwrap_or(0);
    let width = match first {
        0..0x80 => 1,
        0x80..0xE0 => 2,
        0xE0..0xF0 => 3,
        0xF0.. => 4,
    };
    if bytes.get(at + 1 + width) == Some(&b'\'') { at + width + 2 } else { at + 1 }
}

/// A word, or the whole string or character when the word is its prefix: `b""`, `r#""#`, `b' '`.
fn end_of_word(bytes: &[u8], at: usize) -> usize {
    let end = bytes[at..].iter().position(|b| !is_word(*b)).map_or(bytes.len(), |n| at + n);
    let word = &bytes[at..end];
    let next = bytes.get(end).copied();
    match (word, next) {
        (b"b" | b"c", Some(b'"')) => end_of_string(bytes, end),
        (b"b", Some(b'\'')) => end_of_quote(bytes, end),
        (b"r" | b"br" | b"cr", Some(b'"' | b'#')) => {
            let hashes = bytes[end..].iter().take_while(|byte| **byte == b'#').count();
            if bytes.get(end + hashes) != Some(&b'"') {
                return end; // a raw identifier
            }
            let mut close = vec![b'"'];
            close.resize(hashes + 1, b'#');
            let from = end + hashes + 1;
            let length = bytes[from..].windows(close.len()).position(|w| w == close);
            length.map_or(bytes.len(), |n| from + n + close.len())
        }
        _ => end,
    }
}

/// The tokens without items behind `#[cfg(test)]`, and the names of modules that those declare in
/// files of their own.
fn without_tests(tokens: &[Token]) -> (Vec<Token>, Vec<String>) {
    const CFG_TEST: &[&str] = &["#", "[", "cfg", "(", "test", ")", "]"];
    let is = |at: usize, text: &str| tokens.get(at).is_some_and(|token| token.text == text);
    let (mut kept, mut modules) = (Vec::new(), Vec::new());
    let mut at = 0;
    while at < tokens.len() {
        if !CFG_TEST.iter().enumerate().all(|(n, text)| is(at + n, text)) {
            kept.push(tokens[at].clone());
            at += 1;
            continue;
        }
        at += CFG_TEST.len();
        let end = end_of_item(tokens, at);
        if is(end - 1, ";") && is(end - 3, "mod") {
            modules.push(tokens[end - 2].text.clone());
        }
        at = end;
    }
    (kept, modules)
}

/// Behind the first `;` or closed `{}` that stands in no other bracket.
fn end_of_item(tokens: &[Token], from: usize) -> usize {
    let mut depth = 0;
    for (at, token) in tokens.iter().enumerate().skip(from) {
        match token.text.as_str() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" => depth -= 1,
            "}" => {
                depth -= 1;
                // The braces of a `use` are followed by its semicolon.
                let semicolon = tokens.get(at + 1).is_some_and(|next| next.text == ";");
                if depth == 0 && !semicolon {
                    return at + 1;
                }
            }
            ";" if depth == 0 => return at + 1,
            _ => {}
        }
    }
    tokens.len()
}

/// Every path in the code, from its root: `crate::…`, or the name of another crate. The name of a
/// macro ends with `!`.
fn paths(module: &[String], code: &[Token]) -> Vec<(usize, String)> {
    let mut imports = HashMap::new();
    let mut found = Vec::new();
    let mut at = 0;
    while at < code.len() {
        if code[at].text == "use" {
            at = use_tree(code, at + 1, &mut Vec::new(), &mut |line, segments, alias| {
                let path = resolve(module, segments);
                imports.insert(alias.to_owned(), path.clone());
                found.push((line, path));
            });
            continue;
        }
        at += 1;
    }
    let mut plain = Vec::new();
    let mut at = 0;
    while at < code.len() {
        if code[at].text == "use" {
            at = end_of_item(code, at);
        } else if code[at].text.starts_with(|c: char| c.is_alphabetic() || c == '_') {
            let line = code[at].line;
            let (mut segments, end) = path_at(code, at);
            if code.get(end).is_some_and(|token| token.text == "!") {
                segments.last_mut().expect("a path has a segment").push('!');
            }
            plain.push((line, segments));
            at = end;
        } else {
            at += 1;
        }
    }
    for (line, segments) in plain {
        let path = match imports.get(&segments[0]) {
            Some(import) if segments.len() > 1 => format!("{import}::{}", segments[1..].join("::")),
            Some(_) => continue, // its import was looked at
            None => resolve(module, &segments),
        };
        found.push((line, path));
    }
    found
}

/// The segments of the path at `at`, and where it ends.
fn path_at(code: &[Token], mut at: usize) -> (Vec<String>, usize) {
    let mut segments = vec![code[at].text.clone()];
    while is_double_colon(code, at + 1)
        && code.get(at + 3).is_some_and(|t| t.text.starts_with(|c: char| c.is_alphabetic()))
    {
        segments.push(code[at + 3].text.clone());
        at += 3;
    }
    (segments, at + 1)
}

fn is_double_colon(code: &[Token], at: usize) -> bool {
    code.get(at).is_some_and(|t| t.text == ":") && code.get(at + 1).is_some_and(|t| t.text == ":")
}

/// Reports every leaf of a `use` declaration: line, segments and the name it gets here. Returns
/// where it ends.
fn use_tree(
    code: &[Token],
    mut at: usize,
    prefix: &mut Vec<String>,
    leaf: &mut dyn FnMut(usize, &[String], &str),
) -> usize {
    let depth = prefix.len();
    let mut line = 0;
    let mut alias = None;
    while let Some(token) = code.get(at) {
        match token.text.as_str() {
            ":" => at += 1,
            "{" => {
                at += 1;
                while code.get(at).is_some_and(|token| token.text != "}") {
                    at = use_tree(code, at, prefix, leaf);
                    if code.get(at).is_some_and(|token| token.text == ",") {
                        at += 1;
                    }
                }
                prefix.truncate(depth);
                return at + 1;
            }
            "as" => {
                alias = code.get(at + 1).map(|token| token.text.clone());
                at += 2;
            }
            ";" | "," | "}" => break,
            text => {
                line = token.line;
                if text != "self" || prefix.is_empty() {
                    prefix.push(text.to_owned());
                }
                at += 1;
            }
        }
    }
    if let Some(last) = prefix.last() {
        leaf(line, prefix, &alias.unwrap_or_else(|| last.clone()));
    }
    prefix.truncate(depth);
    at
}

/// `self`, `super` and `crate` made one; `core` and `alloc` are named `std`.
fn resolve(module: &[String], segments: &[String]) -> String {
    let mut from: Vec<&str> = Vec::new();
    let mut rest = segments.iter().map(String::as_str).peekable();
    match rest.peek().copied() {
        Some("crate") => {
            rest.next();
            from.push("crate");
        }
        Some("self" | "super") => {
            from.push("crate");
            from.extend(module.iter().map(String::as_str));
            while let Some(step @ ("self" | "super")) = rest.peek().copied() {
                rest.next();
                if step == "super" && from.len() > 1 {
                    from.pop();
                }
            }
        }
        Some("core" | "alloc") => {
            rest.next();
            from.push("std");
        }
        _ => {}
    }
    from.extend(rest);
    from.join("::")
}

mod the_reader_itself {
    use super::*;

    fn module(path: &str) -> Vec<String> {
        path.split("::").map(str::to_owned).collect()
    }

    fn faults(path: &str, source: &str) -> usize {
        layer_faults(&module(path), source).len()
    }

    #[test]
    fn sees_layers_through_groups_aliases_and_super() {
        assert_eq!(faults("mqtt", "use crate::session::Link;"), 1);
        assert_eq!(faults("mqtt::decode", "use super::super::broker;"), 1);
        assert_eq!(faults("session", "use crate::{mqtt::{QoS, Packet}, broker::{self, A}};"), 2);
        assert_eq!(faults("session", "fn f() -> crate::server::Server { x }"), 1);
        assert_eq!(faults("broker", "use std::time; fn f() { time::Instant::now(); }"), 1);
        assert_eq!(faults("broker", "use std::time::Instant as I; fn f() { I::now(); }"), 1);
        assert_eq!(
            faults("broker", "fn f() { core::mem::drop(std::net::TcpStream::connect(x)) }"),
            1
        );
        assert_eq!(faults("net", "use crate::session::Link;"), 1);
        assert_eq!(faults("auth", "use crate::store;"), 1);
        assert_eq!(faults("client", "use crate::server::Server;"), 1);
        assert_eq!(faults("server", "use crate::client::Client;"), 1);
        assert_eq!(faults("bench", "fn f() { println!(\"x\"); }"), 1);
        assert_eq!(faults("bench", "fn f() { let bar = indicatif::ProgressBar::new(1); }"), 1);
    }

    #[test]
    fn gives_no_false_alarm() {
        assert_eq!(faults("mqtt", "// tokio, std::time::Instant, crate::session\nfn f() {}"), 0);
        assert_eq!(faults("mqtt", "/* use tokio::net; /* nested */ use tokio; */ fn f() {}"), 0);
        assert_eq!(faults("mqtt", "const A: &str = \"use tokio::net; \\\" println!\";"), 0);
        assert_eq!(faults("mqtt", "const A: &str = r#\"tokio::net \" println!()\"#;"), 0);
        assert_eq!(
            faults("mqtt", "#[cfg(test)] mod tests { use tokio::net; fn f() { println!() } }"),
            0
        );
        assert_eq!(
            faults("mqtt", "#[cfg(test)]\n#[allow(x)]\nuse tokio::{net, time};\nfn f() {}"),
            0
        );
        assert_eq!(faults("session", "use crate::mqtt::Packet; use std::time::Instant;"), 0);
        assert_eq!(
            faults("session", "struct tokio_like; fn f<'a>(x: &'a str, c: char) { c == '\"'; }"),
            0
        );
        assert_eq!(faults("broker", "use std::net::SocketAddr; use super::session::Link;"), 0);
        assert_eq!(faults("cli", "use crate::{server, client, bench}; fn f() { println!() }"), 0);
        assert_eq!(faults("session", "struct A { broker: u8 } fn f(a: A) { a.broker; }"), 0);
    }

    #[test]
    fn finds_test_modules_in_other_files() {
        let source = "#[cfg(test)]\nmod tests;\nmod real;\n#[cfg(test)] pub(crate) mod more;";
        assert_eq!(without_tests(&tokens(source)).1, ["tests", "more"]);
    }

    #[test]
    fn finds_unfinished_marks_only_in_code() {
        let marks = |source: &str| unfinished(&tokens(source)).len();
        assert_eq!(marks("fn f() { todo!() }"), 1);
        assert_eq!(marks("#[ignore = \"slow\"] fn f() { dbg!(1); unimplemented!(); }"), 3);
        assert_eq!(marks("// todo!()\nfn todo() { let ignore = \"dbg!\"; f(&[ignore]) }"), 0);
    }

    #[test]
    fn keeps_the_line_numbers() {
        let source = "/* a\nb */\n\"x\ny\"\nr\"\n\"\nword";
        let last = tokens(source).pop().expect("there are tokens");
        assert_eq!(last, Token { text: "word".to_owned(), line: 7 });
    }

    #[test]
    fn knows_a_good_changelog() {
        let good =
            "# Changelog\n\n## Unreleased\n\n### Added\n- A.\n\n### Fixed\n- B.\n\n## 0.1.0\n";
        assert_eq!(changelog_shape(good), Ok(()));
        assert!(changelog_shape("# Changelog\n## 0.1.0\n### Added\n").is_err());
        assert!(changelog_shape("# Changelog\n## Unreleased\n- A.\n").is_err());
        assert!(changelog_shape("# Changelog\n## Unreleased\n### Fixed\n### Added\n").is_err());
        assert!(changelog_shape("# Changelog\n## Unreleased\n### News\n- A.\n").is_err());
        assert!(changelog_shape("# Changelog\n").is_err());
    }
}
