//! Which files an import takes from a path, and which it refuses to follow.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use walkdir::WalkDir;
use weighlock_protocol::manifest::path_is_safe;

use super::{InspectConfig, InspectError, Options};

/// A regular file that the scan selected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    /// Path inside the artifact.
    pub(crate) path: String,
    /// Where to read it, links resolved.
    pub(crate) source: PathBuf,
    /// Length in bytes.
    pub(crate) size: u64,
}

/// Lists the selected files under `root` by path, or `root` itself if it is a file.
///
/// Never taken, without a word: `.git`, `.gitattributes`, `.cache/huggingface` at the top, `.DS_Store`,
/// `*.incomplete`, and `*.lock` inside a Hub cache.
pub(crate) fn scan(root: &Path, options: &Options) -> Result<Vec<Found>, InspectError> {
    let limits = &options.limits;
    let filter = Filter::new(options)?;
    let real_root = fs::canonicalize(root).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => InspectError::Missing { path: root.to_owned() },
        _ => InspectError::Io { path: root.to_owned(), error },
    })?;
    let metadata =
        fs::metadata(&real_root).map_err(|error| InspectError::Io { path: root.to_owned(), error })?;
    if metadata.is_file() {
        let name = match root.file_name() {
            Some(name) => name.to_owned(),
            None => real_root.file_name().unwrap_or_default().to_owned(),
        };
        let name = name.to_str().ok_or_else(|| InspectError::NotUtf8 { path: root.to_owned() })?;
        let path = safe(name.to_owned(), root, limits)?;
        return Ok(vec![Found { path, source: real_root, size: metadata.len() }]);
    }
    if !metadata.is_dir() {
        return Err(InspectError::Special { path: root.to_owned() });
    }

    let home = Home::new(real_root);
    let mut found = Vec::new();
    let mut entries = 0;
    // A depth of one more than allowed shows that something lies too deep.
    let mut walk = WalkDir::new(&home.root)
        .min_depth(1)
        .max_depth(limits.depth_max + 1)
        .follow_links(true)
        .sort_by_file_name()
        .into_iter()
        .filter_entry(|entry| !home.skips(entry.path()));
    while let Some(entry) = walk.next() {
        entries += 1;
        if entries > limits.entries_max {
            return Err(InspectError::Entries { path: root.to_owned(), limit: limits.entries_max });
        }
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) => match home.walk_error(error, &filter) {
                Some(error) => return Err(error),
                None => continue,
            },
        };
        let path = entry.path();
        let file_type = entry.file_type();
        if file_type.is_dir() {
            if filter.excludes_below(&home.relative(path)?) {
                walk.skip_current_dir();
                continue;
            }
            if entry.path_is_symlink() {
                home.check_link(path)?;
            }
            if entry.depth() > limits.depth_max {
                return Err(InspectError::Depth { path: path.to_owned(), limit: limits.depth_max });
            }
            continue;
        }
        let relative = home.relative(path)?;
        if !filter.takes(&relative) {
            continue;
        }
        if entry.depth() > limits.depth_max {
            return Err(InspectError::Depth { path: path.to_owned(), limit: limits.depth_max });
        }
        if !file_type.is_file() {
            return Err(InspectError::Special { path: path.to_owned() });
        }
        let source = home.check_link(path)?;
        let metadata =
            fs::metadata(&source).map_err(|error| InspectError::Io { path: path.to_owned(), error })?;
        if found.len() == limits.files_max {
            return Err(InspectError::Files { path: root.to_owned(), limit: limits.files_max });
        }
        found.push(Found { path: safe(relative, path, limits)?, source, size: metadata.len() });
    }
    if found.is_empty() {
        return Err(InspectError::Empty { path: root.to_owned() });
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

/// The directory under scan, and the only other place that its links may lead to.
struct Home {
    root: PathBuf,
    /// `blobs/` beside `snapshots/`, if the root lies in a Hub cache.
    blobs: Option<PathBuf>,
}

/// The mark of `weighlock path` and `pull`, and what a project pins: about an artifact, and not in it, whichever command looks.
const OF_NO_ARTIFACT: [&str; 2] = [".weighlock", "weighlock.lock"];

impl Home {
    fn new(root: PathBuf) -> Self {
        let blobs = root.ancestors().find_map(|at| {
            let snapshots = at.parent()?;
            let repo = snapshots.parent()?;
            let name = repo.file_name()?.to_str()?;
            let is_repo = ["models--", "datasets--", "spaces--"].iter().any(|kind| name.starts_with(kind));
            (snapshots.file_name()? == "snapshots" && is_repo).then(|| repo.join("blobs"))
        });
        Self { root, blobs }
    }

    fn relative(&self, path: &Path) -> Result<String, InspectError> {
        let not_utf8 = || InspectError::NotUtf8 { path: path.to_owned() };
        let relative = path.strip_prefix(&self.root).unwrap_or(path);
        let mut parts = Vec::new();
        for part in relative.components() {
            match part {
                Component::Normal(part) => parts.push(part.to_str().ok_or_else(not_utf8)?),
                _ => return Err(not_utf8()),
            }
        }
        Ok(parts.join("/"))
    }

    fn skips(&self, path: &Path) -> bool {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            return false;
        };
        matches!(name, ".git" | ".gitattributes" | ".DS_Store")
            || name.ends_with(".incomplete")
            || (self.blobs.is_some() && name.ends_with(".lock"))
            || path == self.root.join(".cache/huggingface")
            || OF_NO_ARTIFACT.iter().any(|own| path == self.root.join(own))
    }

    /// Where `path` really lies, which must be in the root or, for files, in the Hub cache's blobs.
    fn check_link(&self, path: &Path) -> Result<PathBuf, InspectError> {
        let target =
            fs::canonicalize(path).map_err(|error| InspectError::Io { path: path.to_owned(), error })?;
        let in_blobs = || {
            let blobs = self.blobs.as_ref().and_then(|blobs| fs::canonicalize(blobs).ok());
            blobs.is_some_and(|blobs| target.starts_with(blobs) && target.is_file())
        };
        if target.starts_with(&self.root) || in_blobs() {
            Ok(target)
        } else {
            Err(InspectError::LinkLeaves { path: path.to_owned(), target })
        }
    }

    /// What a failed step of the walk means; `None` if it concerns a file that is not taken anyway.
    fn walk_error(&self, error: walkdir::Error, filter: &Filter) -> Option<InspectError> {
        let path = error.path().unwrap_or(&self.root).to_owned();
        let is_cycle = error.loop_ancestor().is_some();
        let is_link = fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_symlink());
        let taken = match self.relative(&path) {
            Ok(relative) if is_cycle => !filter.excludes_below(&relative),
            Ok(relative) => filter.takes(&relative) && !self.skips(&path),
            Err(error) => return Some(error),
        };
        if is_link && !taken {
            return None;
        }
        let too_many_links = Some(rustix::io::Errno::LOOP.raw_os_error());
        let is_cycle =
            is_cycle || error.io_error().is_some_and(|error| error.raw_os_error() == too_many_links);
        // The bare error: walkdir's own text repeats the path, unescaped.
        let error = error.into_io_error().unwrap_or_else(|| io::ErrorKind::Other.into());
        Some(match fs::read_link(&path) {
            Ok(_) if is_cycle => InspectError::LinkCycle { path },
            Ok(target) if error.kind() == io::ErrorKind::NotFound => {
                InspectError::LinkDangles { path, target }
            }
            _ => InspectError::Io { path, error },
        })
    }
}

/// `--include` and `--exclude`.
struct Filter {
    include: Option<GlobSet>,
    exclude: GlobSet,
}

impl Filter {
    fn new(options: &Options) -> Result<Self, InspectError> {
        let include = if options.include.is_empty() { None } else { Some(globs(&options.include)?) };
        Ok(Self { include, exclude: globs(&options.exclude)? })
    }

    fn takes(&self, path: &str) -> bool {
        self.include.as_ref().is_none_or(|include| include.is_match(path)) && !self.exclude.is_match(path)
    }

    /// Whether the directory, or all that it holds, is excluded by name (`dir`, `dir/`, `dir/*`).
    fn excludes_below(&self, directory: &str) -> bool {
        self.exclude.is_match(directory) || self.exclude.is_match(format!("{directory}/"))
    }
}

fn globs(patterns: &[String]) -> Result<GlobSet, InspectError> {
    let bad = |glob: &str, error: globset::Error| InspectError::Glob {
        glob: glob.to_owned(),
        reason: error.kind().to_string(),
    };
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        // As the Hub's own tools read it: `*` crosses `/`, and a directory means what is in it.
        let whole = if pattern.ends_with('/') { format!("{pattern}*") } else { pattern.clone() };
        let glob = GlobBuilder::new(&whole).literal_separator(false).build();
        set.add(glob.map_err(|error| bad(pattern, error))?);
    }
    set.build().map_err(|error| bad("", error))
}

fn safe(relative: String, path: &Path, limits: &InspectConfig) -> Result<String, InspectError> {
    if relative.len() > limits.path_bytes_max {
        return Err(InspectError::PathTooLong { path: path.to_owned(), limit: limits.path_bytes_max });
    }
    if !path_is_safe(&relative) || relative.contains(char::is_control) {
        return Err(InspectError::UnsafeName { path: path.to_owned() });
    }
    Ok(relative)
}

#[cfg(test)]
mod tests;
