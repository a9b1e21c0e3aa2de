//! The text that the model learns from, and its fixed split into training and validation documents.

/// Every document whose position is a multiple of this, less one, is for validation.
pub const VALIDATION_STRIDE: usize = 4;

const TEXT: &str = include_str!("corpus.txt");

/// One paragraph of the corpus on a single line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Stable name: the position in the corpus, from zero (`canals-004`).
    pub id: String,
    /// Printable ASCII without line breaks.
    pub text: String,
}

/// All documents in the order of the file. Paragraphs are separated by a blank line.
pub fn documents() -> Vec<Document> {
    TEXT.split("\n\n")
        .enumerate()
        .map(|(index, paragraph)| Document {
            id: format!("canals-{index:03}"),
            text: paragraph.split_whitespace().collect::<Vec<_>>().join(" "),
        })
        .collect()
}

/// The documents to learn from: three of four.
pub fn training_documents() -> Vec<Document> {
    split(|index| !is_validation(index))
}

/// The documents to evaluate on: every fourth. No model in this crate trains on them.
pub fn validation_documents() -> Vec<Document> {
    split(is_validation)
}

fn is_validation(index: usize) -> bool {
    index % VALIDATION_STRIDE == VALIDATION_STRIDE - 1
}

fn split(keep: impl Fn(usize) -> bool) -> Vec<Document> {
    documents()
        .into_iter()
        .enumerate()
        .filter(|(index, _)| keep(*index))
        .map(|(_, document)| document)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_split_covers_the_corpus_and_shares_nothing() {
        let all = documents();
        let (training, validation) = (training_documents(), validation_documents());
        assert!(all.len() >= 60, "{} documents", all.len());
        assert_eq!(training.len() + validation.len(), all.len());
        assert_eq!(validation.len(), all.len() / VALIDATION_STRIDE);
        let distinct: BTreeSet<&str> = all.iter().map(|document| document.text.as_str()).collect();
        assert_eq!(distinct.len(), all.len(), "a paragraph stands twice");
        for document in &validation {
            assert!(!training.iter().any(|other| other.text == document.text), "{}", document.id);
        }
    }

    #[test]
    fn documents_are_plain_text_of_some_length() {
        for document in documents() {
            assert!(document.text.len() >= 100, "{} is short", document.id);
            let plain = document.text.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic());
            assert!(plain, "{} holds other than printable ASCII", document.id);
        }
    }
}
