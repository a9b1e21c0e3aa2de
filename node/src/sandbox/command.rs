//! The evaluator's command line: split like a shell's, never run by one.

use std::path::Path;

use super::error::SandboxError;

/// Splits a command as a shell would, without expanding anything.
///
/// # Errors
/// An open quote, or no word at all.
pub fn split(command: &str) -> Result<Vec<String>, SandboxError> {
    let wrong = |why| SandboxError::Command { command: command.to_owned(), why };
    if command.contains('\0') {
        return Err(wrong("it has a zero byte"));
    }
    let words: Vec<String> =
        shlex::split(command).ok_or_else(|| wrong("a quote or a backslash is left open"))?;
    match words.first() {
        None => Err(wrong("it is empty")),
        Some(program) if program.is_empty() => Err(wrong("its program is an empty word")),
        Some(_) => Ok(words),
    }
}

/// Puts the directories where `{path}` and `{out}` stand. They stay within their word whatever they contain; a
/// placeholder inside a directory's name stands for itself.
pub(super) fn fill(words: &[String], path: &Path, out: &Path) -> Vec<String> {
    let (path, out) = (path.to_string_lossy(), out.to_string_lossy());
    let fill = |word: &String| {
        let parts: Vec<String> = word.split("{path}").map(|part| part.replace("{out}", &out)).collect();
        parts.join(&path)
    };
    words.iter().map(fill).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_split_as_a_shell_does() {
        let words = split(r#"sh -c 'cat "$1"/*' -- {path} a\ b "" "#).expect("words");
        assert_eq!(words, ["sh", "-c", "cat \"$1\"/*", "--", "{path}", "a b", ""]);
        for (command, why) in [
            ("", "empty"),
            ("  ", "empty"),
            ("a 'b", "left open"),
            ("a\\", "left open"),
            ("'' x", "empty word"),
        ] {
            let error = split(command).expect_err(command).to_string();
            assert!(error.contains(why), "{error}");
        }
        assert!(split("a\0b").is_err());
    }

    #[test]
    fn a_directory_stays_one_word_and_is_not_expanded_again() {
        let words = split("x --model={path} {out}/r.json {path}{out} {json}").expect("words");
        let filled = fill(&words, Path::new("/m o'd\"/{out}"), Path::new("/o/{path}"));
        assert_eq!(
            filled,
            ["x", "--model=/m o'd\"/{out}", "/o/{path}/r.json", "/m o'd\"/{out}/o/{path}", "{json}"]
        );
    }
}
