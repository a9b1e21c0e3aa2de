//! `weighlock adopt [DIR] [REF]`: what other tools have downloaded becomes this host's copy.

use std::path::{Path, PathBuf};

use clap::Args;
use weighlock_protocol::Reference;

use super::output::{bytes, counted};
use super::{Context, absolute};
use crate::error::{Error, Result};
use crate::local::message::{Added, AdminRequest, Adopted};

/// Look through a directory, such as the cache of huggingface_hub, for files of artifacts that the cluster knows, and
/// keep them as this host's copy, so that it need not fetch them and gives them to others. Files share their disk
/// blocks with the store where the file system can, else they are copied. With a reference, publish a model of the
/// directory under it, as `weighlock add` does.
#[derive(Debug, Args)]
pub(super) struct Adopt {
    /// Where to look [default: $HF_HUB_CACHE, $HF_HOME/hub, else ~/.cache/huggingface/hub]
    dir: Option<PathBuf>,
    /// ns/name:tag, to publish what lies in DIR: a model's directory, or one repository of a Hub cache
    #[arg(requires = "dir")]
    reference: Option<String>,
    /// Only say what would be taken
    #[arg(long, conflicts_with = "reference")]
    dry_run: bool,
}

impl Adopt {
    pub(super) fn run(self, context: &Context) -> Result<()> {
        let dir = match self.dir {
            Some(dir) => dir,
            None => hub_cache(|name| std::env::var_os(name)).ok_or_else(|| {
                Error::invalid("there is no default directory without HOME")
                    .hint("name one: `weighlock adopt DIR`")
            })?,
        };
        let path = absolute(dir)?;
        if let Some(text) = self.reference {
            let reference: Reference = text.parse()?;
            let request = AdminRequest::Add {
                path: snapshot(&path)?,
                reference: reference.to_string(),
                include: Vec::new(),
                exclude: Vec::new(),
                datasets: Vec::new(),
                origin: None,
            };
            let added: Added = context.ask(&request)?;
            for warning in &added.warnings {
                eprintln!("warning: {warning}");
            }
            return context.output.print(&added, |a| {
                format!(
                    "{} {} {}\n{} in {}, {} new: {} share their disk blocks, {} copied\n{}",
                    if a.new { "added" } else { "already there:" },
                    a.reference,
                    a.digest,
                    bytes(a.total_bytes),
                    counted(a.files, "file"),
                    bytes(a.new_bytes),
                    bytes(a.reflinked_bytes),
                    bytes(a.copied_bytes),
                    because(a.copied_because.as_deref())
                )
            });
        }
        let adopted: Adopted = context.ask(&AdminRequest::Adopt { path, dry_run: self.dry_run })?;
        context.output.print(&adopted, text)
    }
}

fn text(a: &Adopted) -> String {
    let done = if a.dry_run { "would adopt" } else { "adopted" };
    let mut out = format!(
        "{done} {} from {}: {} share their disk blocks, {} copied\n",
        counted(a.files, "file"),
        a.path.display(),
        bytes(a.reflinked_bytes),
        bytes(a.copied_bytes)
    );
    out += &because(a.copied_because.as_deref());
    for row in &a.artifacts {
        let rest = match row.files - row.files_here {
            0 => String::new(),
            rest => format!("; `weighlock pull` fetches the other {}", counted(rest, "file")),
        };
        out += &format!(
            "{}: {} of {} here{rest}\n",
            row.names.join(" "),
            row.files_here,
            counted(row.files, "file")
        );
    }
    for warning in &a.warnings {
        out += &format!("left out {warning}\n");
    }
    out
}

fn because(why: Option<&str>) -> String {
    why.map_or_else(String::new, |why| format!("copied, since {why}\n"))
}

/// Where huggingface_hub keeps its cache.
fn hub_cache(variable: impl Fn(&str) -> Option<std::ffi::OsString>) -> Option<PathBuf> {
    let of = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    of("HF_HUB_CACHE")
        .or_else(|| of("HUGGINGFACE_HUB_CACHE"))
        .or_else(|| Some(of("HF_HOME")?.join("hub")))
        .or_else(|| Some(of("XDG_CACHE_HOME")?.join("huggingface/hub")))
        .or_else(|| Some(of("HOME")?.join(".cache/huggingface/hub")))
}

/// The snapshot of a repository in a Hub cache that `main` names, or the only one; other directories are what they are.
fn snapshot(path: &Path) -> Result<PathBuf> {
    let snapshots = path.join("snapshots");
    if !snapshots.is_dir() || !path.join("blobs").is_dir() {
        return Ok(path.to_owned());
    }
    if let Ok(commit) = std::fs::read_to_string(path.join("refs/main")) {
        let named = snapshots.join(commit.trim());
        if named.parent() == Some(&*snapshots) && named.is_dir() {
            return Ok(named);
        }
    }
    let entries =
        std::fs::read_dir(&snapshots).map_err(|e| Error::invalid(format!("{}: {e}", snapshots.display())))?;
    let all: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    match all.as_slice() {
        [only] => Ok(only.clone()),
        all => Err(Error::invalid(format!("{} has {}", snapshots.display(), counted(all.len(), "snapshot")))
            .hint("name one of them instead of the repository")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_directory_is_the_one_of_huggingface_hub() {
        let with = |set: &'static [(&str, &str)]| {
            hub_cache(|name| set.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).into()))
        };
        assert_eq!(with(&[("HOME", "/h"), ("HF_HOME", "/x"), ("HF_HUB_CACHE", "/c")]), Some("/c".into()));
        assert_eq!(with(&[("HOME", "/h"), ("HF_HOME", "/x")]), Some("/x/hub".into()));
        assert_eq!(with(&[("HOME", "/h"), ("HF_HOME", "")]), Some("/h/.cache/huggingface/hub".into()));
        assert_eq!(with(&[]), None);
    }
}
