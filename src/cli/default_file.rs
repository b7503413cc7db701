//! The command line as `pub`, `sub` and `rr` understand it: preceded by the user's file of
//! default options (or by the one named with `-o`), and with the three or four words behind `-D`
//! put together, which clap could not tell apart from what follows.
//!
//! The file has one option on a line, with its value behind it; lines that start with `#` say
//! nothing. It is `surgemq_pub` (`surgemq_sub`, `surgemq_rr`) in `$XDG_CONFIG_HOME` or
//! `~/.config`; when it is missing, `mosquitto_pub` (and so on) there.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Command;

/// Between the words of one `-D`: a character that cannot be typed into a property by mistake.
pub(super) const SEPARATOR: char = '\u{1f}';

/// Rewrites the arguments of the process. `command` is the description of the whole command line.
pub(super) fn expand(arguments: Vec<OsString>, command: &Command) -> anyhow::Result<Vec<OsString>> {
    let Some(name) = arguments.get(1).and_then(|name| name.to_str()) else { return Ok(arguments) };
    if !matches!(name, "pub" | "sub" | "rr") {
        return Ok(arguments);
    }
    let Some(subcommand) = command.find_subcommand(name) else { return Ok(arguments) };
    let values = ValueOptions::of(subcommand);
    let given = &arguments[2..];
    let file = match values.find(given, "-o")? {
        Some(path) => Some(PathBuf::from(path)),
        None => default_file(name),
    };
    let mut expanded = arguments[..2].to_vec();
    if let Some(path) = file {
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read the options file {}", path.display()))?;
        for line in text.lines() {
            let words = words_of_line(line, &values);
            expanded.extend(values.join_properties(&words).with_context(|| in_file(&path, line))?);
        }
    }
    expanded.extend(values.join_properties(given)?);
    Ok(expanded)
}

fn in_file(path: &Path, line: &str) -> String {
    format!("in {}: {line}", path.display())
}

fn default_file(name: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("XDG_CONFIG_HOME")
        .filter(|folder| !folder.is_empty())
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".config")))?;
    ["surgemq", "mosquitto"]
        .map(|program| folder.join(format!("{program}_{name}")))
        .into_iter()
        .find(|path| path.is_file())
}

/// An option and, behind the first space, its value; `-D` has several.
fn words_of_line(line: &str, values: &ValueOptions) -> Vec<OsString> {
    let line = line.trim_end_matches('\r');
    if line.starts_with('#') || line.trim().is_empty() {
        return Vec::new();
    }
    match line.trim_start().split_once(' ') {
        None => vec![line.trim().into()],
        Some((option, rest)) if values.is_property(option) => {
            std::iter::once(option).chain(rest.split_whitespace()).map(Into::into).collect()
        }
        Some((option, value)) => vec![option.into(), value.into()],
    }
}

/// Which options take a value, so that a value that looks like an option is not taken for one.
struct ValueOptions(Vec<String>);

impl ValueOptions {
    fn of(subcommand: &Command) -> Self {
        let mut names = Vec::new();
        for argument in subcommand.get_arguments().filter(|a| a.get_action().takes_values()) {
            names.extend(argument.get_short().map(|short| format!("-{short}")));
            names.extend(argument.get_long().map(|long| format!("--{long}")));
        }
        Self(names)
    }

    fn takes_value(&self, option: &str) -> bool {
        self.0.iter().any(|name| name == option)
    }

    fn is_property(&self, option: &str) -> bool {
        matches!(option, "-D" | "--property")
    }

    /// The value of `wanted`, if it is given.
    fn find(&self, arguments: &[OsString], wanted: &str) -> anyhow::Result<Option<OsString>> {
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            let Some(option) = argument.to_str() else { continue };
            if option == wanted {
                return match rest.next() {
                    Some(value) => Ok(Some(value.clone())),
                    None => bail!("{wanted} needs a value"),
                };
            }
            if self.takes_value(option) {
                rest.next();
            }
        }
        Ok(None)
    }

    /// Makes one value of the words behind each `-D`: command, property, value, and for a user
    /// property its name before the value.
    fn join_properties(&self, arguments: &[OsString]) -> anyhow::Result<Vec<OsString>> {
        let mut joined = Vec::with_capacity(arguments.len());
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            joined.push(argument.clone());
            let Some(option) = argument.to_str() else { continue };
            if self.is_property(option) {
                let mut words = Vec::new();
                let mut wanted = 3;
                while words.len() < wanted {
                    let word = rest.next().and_then(|word| word.to_str());
                    let Some(word) = word else {
                        bail!("{option} needs a command, a property and a value");
                    };
                    if words.len() == 1 && word.eq_ignore_ascii_case("user-property") {
                        wanted = 4;
                    }
                    words.push(word);
                }
                joined.push(words.join(&SEPARATOR.to_string()).into());
            } else if self.takes_value(option) {
                joined.extend(rest.next().cloned());
            }
        }
        Ok(joined)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values() -> ValueOptions {
        ValueOptions(["-D", "--property", "-m", "-o", "-t"].map(Into::into).to_vec())
    }

    fn words(text: &str) -> Vec<OsString> {
        text.split(' ').map(Into::into).collect()
    }

    #[test]
    fn properties_are_joined() {
        let joined = |text| {
            let all = values().join_properties(&words(text)).map_err(|error| error.to_string())?;
            let text: Vec<_> = all.iter().map(|word| word.to_str().unwrap()).collect();
            Ok::<_, String>(text.join(" ").replace(SEPARATOR, "+"))
        };
        assert_eq!(
            joined("-t a -D publish content-type x -m b").unwrap(),
            "-t a -D publish+content-type+x -m b"
        );
        assert_eq!(
            joined("-D connect user-property n -v -m b").unwrap(),
            "-D connect+user-property+n+-v -m b"
        );
        assert_eq!(joined("-m -D -t a").unwrap(), "-m -D -t a", "a value is not an option");
        assert!(joined("-D publish content-type").is_err());
    }

    #[test]
    fn options_file_is_found_behind_values() {
        assert_eq!(values().find(&words("-m -o -o f"), "-o").unwrap(), Some("f".into()));
        assert_eq!(values().find(&words("-m -o"), "-o").unwrap(), None);
        assert!(values().find(&words("-o"), "-o").is_err());
    }

    #[test]
    fn lines() {
        let line = |text| words_of_line(text, &values());
        assert!(line("# -t a").is_empty() && line("").is_empty());
        assert_eq!(line("-t a b"), ["-t", "a b"]);
        assert_eq!(line("-D publish content-type x"), words("-D publish content-type x"));
        assert_eq!(line("-v\r"), ["-v"]);
    }
}
