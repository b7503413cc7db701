//! The data directory as it should not be: in use, foreign, damaged.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// All files of a directory, by name.
pub(super) fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).expect("the directory can be read");
    entries
        .map(|entry| {
            let entry = entry.expect("the directory can be read");
            let bytes = fs::read(entry.path()).expect("the file can be read");
            (entry.file_name().to_string_lossy().into_owned(), bytes)
        })
        .collect()
}
