//! What two runs of lm-evaluation-harness must have in common to be compared.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::{at, text};
use crate::id::Sha256;

/// Keys of a task's config that do not say what is asked and how it is scored. `metadata` holds the model's arguments
/// and the path of the task's file; its version stands in `versions`.
const LEFT_OUT: [&str; 8] = [
    "metadata",
    "task_alias",
    "tag",
    "group",
    "group_alias",
    "should_decontaminate",
    "doc_to_decontamination_query",
    "unsafe_code",
];
/// Keys under which a path names a file of this machine.
const PATHS: [&str; 2] = ["dataset_path", "dataset_kwargs"];

/// SHA-256 over the names of all tasks and, of each, its version, its number of examples and its config: data set,
/// split, prompt, target, choices, generation settings, filters and metrics, with functions as their source; then
/// over the groups, the system instruction and, with examples in the prompt, how they were drawn.
///
/// Not in it: the model, the harness's version, the chat template (the report has it apart), addresses in memory,
/// directories of this machine, and `task_hashes`: those are there only if samples were logged, depend on `--limit`,
/// and hold the prompts, which a chat template makes the model's own. Other data under the same name shows in the
/// samples, whose names hold document and target.
pub(super) fn digest(top: &Map<String, Value>) -> Sha256 {
    let keys =
        |key: &str| top.get(key).and_then(Value::as_object).into_iter().flatten().map(|(name, _)| name);
    let names: BTreeSet<&String> = ["results", "versions", "configs"].into_iter().flat_map(keys).collect();
    let mut tasks = BTreeMap::new();
    let mut examples = false;
    for name in names {
        let shots = at(top, &["n-shot", name]);
        examples |= shots.and_then(Value::as_u64).is_some_and(|shots| shots > 0);
        let mut config = at(top, &["configs", name]).cloned().unwrap_or_default();
        if let Some(config) = config.as_object_mut() {
            config.retain(|key, _| !LEFT_OUT.contains(&key.as_str()));
        }
        let part = |value: Option<&Value>| value.cloned().unwrap_or_default();
        tasks.insert(
            name.clone(),
            Value::Array(vec![part(at(top, &["versions", name])), part(shots), config]),
        );
    }
    let chat = !text(top, "chat_template_sha").is_empty();
    let drawn = match examples {
        true => at(top, &["config", "fewshot_seed"]).cloned(),
        false => None,
    };
    // Taking turns is the default where there is a chat, and said also where there is none.
    let one_turn = examples && chat && top.get("fewshot_as_multiturn") == Some(&Value::Bool(false));
    let whole = Value::Array(vec![
        Value::Object(tasks.into_iter().collect()),
        top.get("group_subtasks").cloned().unwrap_or_default(),
        text(top, "system_instruction").into(),
        drawn.unwrap_or_default(),
        one_turn.into(),
    ]);
    let mut canonical = "weighlock lm-evaluation-harness suite v1\n".to_owned();
    write(&whole, false, &mut canonical);
    Sha256::of(canonical.as_bytes())
}

/// JSON with sorted keys and without nulls in objects, whatever wrote it.
fn write(value: &Value, path: bool, out: &mut String) {
    match value {
        Value::Object(object) => {
            let sorted: BTreeMap<&String, &Value> =
                object.iter().filter(|(_, value)| !value.is_null()).collect();
            out.push('{');
            for (key, value) in sorted {
                write(&Value::String(key.clone()), false, out);
                out.push(':');
                write(value, path || PATHS.contains(&key.as_str()), out);
                out.push(',');
            }
            out.push('}');
        }
        Value::Array(values) => {
            out.push('[');
            for value in values {
                write(value, path, out);
                out.push(',');
            }
            out.push(']');
        }
        Value::String(text) => {
            let text = if path { without_directories(text) } else { text };
            out.push_str(&Value::String(without_addresses(text)).to_string());
        }
        plain => out.push_str(&plain.to_string()),
    }
}

/// `<function f at 0x7f12...>` becomes `<function f at 0x>`.
fn without_addresses(text: &str) -> String {
    let mut parts = text.split(" at 0x");
    let mut clean = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        clean.push_str(" at 0x");
        clean.push_str(part.trim_start_matches(|c: char| c.is_ascii_hexdigit()));
    }
    clean
}

/// The last component of an absolute path; all of anything else.
fn without_directories(text: &str) -> &str {
    let drive = text.as_bytes().get(1..3).is_some_and(|at| at == b":\\" || at == b":/");
    match text.starts_with('/') || text.starts_with("~/") || text.starts_with("file://") || drive {
        true => text.trim_end_matches(['/', '\\']).rsplit(['/', '\\']).next().unwrap_or(text),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_directories_are_left_out() {
        let text = "partial(<function f at 0x7f3a>, <function g at 0x55>) at noon";
        assert_eq!(without_addresses(text), "partial(<function f at 0x>, <function g at 0x>) at noon");
        assert_eq!(without_addresses("look at 0 x"), "look at 0 x");
        assert_eq!(without_directories("/home/someone/data/test.jsonl"), "test.jsonl");
        assert_eq!(without_directories("C:\\data\\test.jsonl"), "test.jsonl");
        assert_eq!(without_directories("/data/"), "data");
        assert_eq!(without_directories("EleutherAI/lambada_openai"), "EleutherAI/lambada_openai");
        assert_eq!(without_directories("hf://datasets/a/b.json"), "hf://datasets/a/b.json");
    }
}
