//! `weighlock ls`.

use clap::Args;

use super::Context;
use super::output::{bytes, table};
use super::rate::percent;
use crate::error::Result;
use crate::local::message::{AdminRequest, ArtifactRow};

/// Artifacts of the cluster and what of them is here.
#[derive(Debug, Args)]
pub(super) struct Ls {
    /// Only artifacts whose ns/name:tag contains this, or of this digest (sha256:..., ns/name@sha256:..., also shortened)
    filter: Option<String>,
}

impl Ls {
    pub(super) fn run(self, context: &Context) -> Result<()> {
        let mut rows: Vec<ArtifactRow> = context.ask(&AdminRequest::List)?;
        if let Some(filter) = &self.filter {
            rows.retain(|row| matches(row, filter));
        }
        context.output.print(&rows, |rows| {
            if rows.is_empty() && self.filter.is_some() {
                return "nothing matches\n".into();
            }
            if rows.is_empty() {
                return "nothing here yet; `weighlock add PATH ns/name:tag` adds a checkpoint\n".into();
            }
            let cells = rows.iter().map(|row| {
                let here = match (row.complete, row.held_bytes) {
                    (true, _) => "all".into(),
                    (false, 0) => "-".into(),
                    (false, held) => percent(held, row.total_bytes),
                };
                let digest = row.digest.map_or("CONFLICT".into(), |digest| digest.short());
                let files = row.files.map_or("?".into(), |n| n.to_string());
                let name = format!("{}:{}", row.artifact, row.tag);
                vec![name, digest, files, bytes(row.total_bytes), here, row.copies_elsewhere.to_string()]
            });
            let mut out = table(
                &["ARTIFACT", "DIGEST", "FILES", "SIZE", "HERE", "ELSEWHERE"],
                &[2, 3, 4, 5],
                &cells.collect::<Vec<_>>(),
            );
            for row in rows.iter().filter(|row| row.problem.is_some()) {
                out += &format!(
                    "{}:{}: {}\n",
                    row.artifact,
                    row.tag,
                    row.problem.as_deref().unwrap_or_default()
                );
            }
            out
        })
    }
}

/// By name, or by the beginning of a digest as `ls` and `inspect` print it.
fn matches(row: &ArtifactRow, filter: &str) -> bool {
    let digest = row.digest.map_or(String::new(), |digest| digest.to_string());
    match filter.split_once('@') {
        Some((artifact, prefix)) => row.artifact == artifact && digest.starts_with(prefix),
        None if filter.starts_with("sha256:") => digest.starts_with(filter),
        None => format!("{}:{}", row.artifact, row.tag).contains(filter),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weighlock_protocol::{KeyId, ManifestDigest};

    #[test]
    fn a_filter_takes_names_and_digests() {
        let digest = ManifestDigest::of(b"");
        let row = ArtifactRow {
            artifact: "acme/bot".into(),
            tag: "1.0.0".into(),
            digest: Some(digest),
            files: None,
            total_bytes: 0,
            held_bytes: 0,
            complete: false,
            copies_elsewhere: 0,
            publisher: KeyId([1; 32]),
            published: 0,
            problem: None,
        };
        let short = &digest.hex()[..8];
        for filter in ["bot", "acme/bot:1", &format!("acme/bot@sha256:{short}"), &format!("sha256:{short}")] {
            assert!(matches(&row, filter), "{filter}");
        }
        for filter in ["cat", short, &format!("acme/cat@sha256:{short}"), "acme/bot@sha256:00000000"] {
            assert!(!matches(&row, filter), "{filter}");
        }
    }
}
