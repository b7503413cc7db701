//! What a JSON document is made of, for tests that hold its keys fast.

use std::collections::BTreeSet;

use serde_json::Value;

/// Every key of the document, as paths; arrays count as their first element.
pub(crate) fn keys(document: &Value) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    collect(document, "", &mut all);
    all
}

fn collect(value: &Value, path: &str, all: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                all.insert(path.clone());
                collect(value, &path, all);
            }
        }
        Value::Array(items) => {
            if let Some(first) = items.first() {
                collect(first, path, all);
            }
        }
        _ => {}
    }
}
