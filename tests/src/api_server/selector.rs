// SPDX-License-Identifier: MIT OR Apache-2.0
//! Label and field selectors: which objects a request is about.

use serde_json::Value;

/// Requirements that must all be met.
#[derive(Clone, Debug, Default)]
pub(super) struct Selector {
    requirements: Vec<Requirement>,
}

#[derive(Clone, Debug)]
struct Requirement {
    /// A label's key, or a field's path.
    key: String,
    is_label: bool,
    test: Test,
}

#[derive(Clone, Debug)]
enum Test {
    Exists,
    Missing,
    Equals(String),
    Differs(String),
}

impl Selector {
    /// Adds what a selector's text demands; parts are separated by commas.
    pub(super) fn and(mut self, text: &str, is_label: bool) -> Self {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        self.requirements.extend(parts.map(|part| parse(part, is_label)));
        self
    }

    pub(super) fn matches(&self, object: &Value) -> bool {
        self.requirements.iter().all(|requirement| requirement.is_met_by(object))
    }
}

fn parse(part: &str, is_label: bool) -> Requirement {
    let (key, test) = if let Some((key, value)) = part.split_once("!=") {
        (key, Test::Differs(value.to_owned()))
    } else if let Some((key, value)) = part.split_once('=') {
        (key, Test::Equals(value.trim_start_matches('=').to_owned()))
    } else if let Some(key) = part.strip_prefix('!') {
        (key, Test::Missing)
    } else {
        (part, Test::Exists)
    };
    Requirement { key: key.trim().to_owned(), is_label, test }
}

impl Requirement {
    fn is_met_by(&self, object: &Value) -> bool {
        let value = if self.is_label {
            object["metadata"]["labels"].get(&self.key)
        } else {
            object.pointer(&format!("/{}", self.key.replace('.', "/")))
        };
        let text = value.and_then(Value::as_str);
        match &self.test {
            Test::Exists => value.is_some(),
            Test::Missing => value.is_none(),
            Test::Equals(wanted) => text == Some(wanted),
            Test::Differs(unwanted) => text != Some(unwanted),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn labels_and_fields_are_tested() {
        let object = json!({"metadata": {"name": "web", "labels": {"a/b": ""}}, "spec": {"clusterIP": "None"}});
        for (text, is_label, expected) in [
            ("!a/b", true, false),
            ("!a/c", true, true),
            ("a/b", true, true),
            ("a/b=,!x", true, true),
            ("spec.clusterIP!=None", false, false),
            ("spec.clusterIP!=", false, true),
            ("metadata.name=web", false, true),
            ("metadata.name==dns", false, false),
            ("", true, true),
        ] {
            assert_eq!(Selector::default().and(text, is_label).matches(&object), expected, "{text}");
        }
    }
}
