//! Small text files and chat templates, line by line.

use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use similar::{ChangeTag, TextDiff as Lines};

use super::DiffConfig;
use crate::inspect::json::parse_as_python;

/// Longest search for the smallest set of changed lines; past it a larger one is told.
const SEARCH_MAX: Duration = Duration::from_secs(2);

/// A unified diff.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TextDiff {
    /// Lines that only B has.
    pub lines_added: usize,
    /// Lines that only A has.
    pub lines_removed: usize,
    /// Hunk headers, and lines that begin with ` `, `-` or `+`.
    pub lines: Vec<String>,
    /// Lines that were left out at the end.
    pub lines_left_out: usize,
}

/// The difference of two texts; `None` if there is none.
pub(super) fn unified(a: &str, b: &str, config: &DiffConfig) -> Option<TextDiff> {
    if a == b {
        return None;
    }
    let lines = Lines::configure().timeout(SEARCH_MAX).diff_lines(a, b);
    let mut text = TextDiff { lines_added: 0, lines_removed: 0, lines: Vec::new(), lines_left_out: 0 };
    let mut push = |lines: &mut Vec<String>, line: String| {
        if lines.len() < config.text_lines_max {
            lines.push(line);
        } else {
            text.lines_left_out += 1;
        }
    };
    for hunk in lines.unified_diff().context_radius(config.text_context_lines).iter_hunks() {
        push(&mut text.lines, hunk.header().to_string());
        for change in hunk.iter_changes() {
            let sign = match change.tag() {
                ChangeTag::Equal => ' ',
                ChangeTag::Delete => {
                    text.lines_removed += 1;
                    '-'
                }
                ChangeTag::Insert => {
                    text.lines_added += 1;
                    '+'
                }
            };
            push(&mut text.lines, format!("{sign}{}", cut(change.value(), config.text_line_chars_max)));
        }
    }
    Some(text)
}

/// JSON in one form: keys sorted, one a line, so that only values differ. What is not JSON stays as it is. A chat
/// template inside is left out: it is compared on its own.
pub(super) fn normal_json(text: &str) -> String {
    let Ok(mut value) = serde_json::from_str::<Value>(text) else { return text.to_owned() };
    if let Value::Object(object) = &mut value
        && let Some(template) = object.get_mut("chat_template")
    {
        *template = Value::Null;
    }
    value.sort_all_objects();
    serde_json::to_string_pretty(&value).map_or_else(|_| text.to_owned(), |text| text + "\n")
}

/// The chat templates that a tokenizer configuration or `chat_template.json` holds, by name.
pub(super) fn templates_in_json(text: &str) -> Vec<(String, String)> {
    let Ok(value) = parse_as_python(text) else { return Vec::new() };
    let text = |value: &Value| value.as_str().map(str::to_owned);
    match &value["chat_template"] {
        Value::String(template) => vec![("default".into(), template.clone())],
        Value::Array(named) => {
            named.iter().filter_map(|one| Some((text(&one["name"])?, text(&one["template"])?))).collect()
        }
        _ => Vec::new(),
    }
}

fn cut(line: &str, chars_max: usize) -> String {
    let line = line.trim_end_matches(['\n', '\r']);
    match line.char_indices().nth(chars_max) {
        Some((at, _)) => format!("{}... ({} more)", &line[..at], line[at..].chars().count()),
        None => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changed_lines_stand_with_a_few_around_them() {
        let a: String = (0..20).map(|i| format!("line {i}\n")).collect();
        let b = a.replace("line 10", "line ten");
        let diff = unified(&a, &b, &DiffConfig::default()).expect("they differ");
        assert_eq!((diff.lines_added, diff.lines_removed, diff.lines_left_out), (1, 1, 0));
        assert_eq!(diff.lines[0], "@@ -8,7 +8,7 @@");
        assert_eq!(diff.lines[4..6], ["-line 10", "+line ten"]);
        assert_eq!(diff.lines.len(), 9);
        assert_eq!(unified(&a, &a, &DiffConfig::default()), None);
    }

    #[test]
    fn what_is_long_is_cut_and_counted() {
        let config = DiffConfig { text_lines_max: 5, text_line_chars_max: 8, ..DiffConfig::default() };
        let b: String = (0..30).map(|i| format!("é{i:010}\n")).collect();
        let diff = unified("", &b, &config).expect("they differ");
        assert_eq!((diff.lines.len(), diff.lines_left_out, diff.lines_added), (5, 26, 30));
        assert_eq!(diff.lines[1], "+é0000000... (3 more)");
    }

    #[test]
    fn json_differs_by_its_values_alone() {
        assert_eq!(normal_json(r#"{"b":1,"a":[2]}"#), normal_json("{\"a\": [2],\n \"b\": 1}"));
        assert_ne!(normal_json(r#"{"a":1}"#), normal_json(r#"{"a":2}"#));
        assert_eq!(normal_json("no JSON"), "no JSON");
        let with = |template: &str| normal_json(&format!(r#"{{"chat_template":"{template}"}}"#));
        assert_eq!(with("x"), with("y"));
    }

    #[test]
    fn templates_are_found_alone_and_by_name() {
        let found = |text| templates_in_json(text);
        assert_eq!(found(r#"{"chat_template":"{{x}}"}"#), [("default".to_owned(), "{{x}}".to_owned())]);
        let named = r#"{"chat_template":[{"name":"tool","template":"t"},{"name":3}]}"#;
        assert_eq!(found(named), [("tool".to_owned(), "t".to_owned())]);
        assert!(found("{}").is_empty() && found("[").is_empty());
    }
}
