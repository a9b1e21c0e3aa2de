//! What the gate knows of one side: digest, contract, files, and the reports about it.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use serde::Deserialize;
use weighlock_cache::plan::{Plan, PlanFile};
use weighlock_cache::{ImportProgress, StoreConfig, identify, inspect};
use weighlock_protocol::gate::verdict::NamedReport;
use weighlock_protocol::gate::{Evidence, Samples};
use weighlock_protocol::manifest::{CONTRACT_BYTES_MAX, Contract, Manifest};
use weighlock_protocol::{Artifact, ManifestDigest, Sha256};

use super::report::Loaded;
use crate::error::{Error, Result};

/// One side of a comparison.
#[derive(Debug, Clone, Default)]
pub(crate) struct Side {
    /// As the user named it.
    pub(crate) label: String,
    /// `ns/name`, where that is known.
    pub(crate) artifact: Option<Artifact>,
    pub(crate) digest: Option<ManifestDigest>,
    pub(crate) contract: Option<Contract>,
    /// Where it was read or made here.
    pub(crate) manifest: Option<Manifest>,
    pub(crate) files: Option<Vec<String>>,
    pub(crate) reports: Vec<(Sha256, Loaded)>,
    /// How its evaluator was shut in, in one line, where it was run here.
    pub(crate) sandbox: String,
    /// Its files as they were when they were hashed, where it is a path.
    pub(crate) stamps: Option<Stamps>,
}

/// What tells that a path was changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stamps {
    path: PathBuf,
    /// Name, length, inode, and time of the last change.
    files: Vec<(String, u64, u64, (i64, i64))>,
}

impl Stamps {
    fn of(path: &Path, plan: &Plan) -> Result<Self> {
        let stamp = |file: &PlanFile| {
            let meta = std::fs::metadata(&file.source)
                .map_err(|e| Error::invalid(format!("cannot read {}: {e}", file.source.display())))?;
            Ok((file.path.clone(), meta.len(), meta.ino(), (meta.mtime(), meta.mtime_nsec())))
        };
        let files = plan.files.iter().map(stamp).collect::<Result<_>>()?;
        Ok(Self { path: path.to_owned(), files })
    }
}

impl Side {
    /// What a path is: its files are read and hashed as an import would, and nothing is written.
    ///
    /// # Errors
    /// It cannot be imported.
    pub(crate) fn of_path(path: &Path, progress: &(dyn Fn(ImportProgress) + Sync)) -> Result<Self> {
        let plan = inspect::plan(path, &inspect::Options::default()).map_err(Error::from)?;
        let stamps = Some(Stamps::of(path, &plan)?);
        let known = identify(&plan, &StoreConfig::default(), progress, &AtomicBool::new(false))?;
        Ok(Self {
            label: path.display().to_string(),
            files: Some(plan.files.iter().map(|file| file.path.clone()).collect()),
            stamps,
            ..Self::of_manifest(&known.manifest, Some(known.contract))
        })
    }

    /// Whether its files are still those that were hashed.
    ///
    /// # Errors
    /// They are not.
    pub(crate) fn check_unchanged(&self) -> Result<()> {
        let Some(stamps) = &self.stamps else { return Ok(()) };
        let plan = inspect::plan(&stamps.path, &inspect::Options::default()).map_err(Error::from)?;
        if Stamps::of(&stamps.path, &plan)? == *stamps {
            return Ok(());
        }
        Err(Error::invalid(format!("{} changed while it was evaluated", stamps.path.display()))
            .hint("evaluate it again, and let nothing write to it meanwhile"))
    }

    /// A manifest, with its contract where that is at hand.
    pub(crate) fn of_manifest(manifest: &Manifest, contract: Option<Contract>) -> Self {
        Self {
            label: manifest.digest().to_string(),
            digest: Some(manifest.digest()),
            contract,
            manifest: Some(manifest.clone()),
            files: Some(manifest.files().iter().map(|file| file.path.clone()).collect()),
            ..Self::default()
        }
    }

    /// What `weighlock inspect --json` printed, or a manifest: for a runner that has no weights.
    ///
    /// # Errors
    /// Neither of them.
    pub(crate) fn of_manifest_file(path: &Path) -> Result<Self> {
        let shown = path.display();
        let size =
            std::fs::metadata(path).map_err(|e| Error::invalid(format!("cannot read {shown}: {e}")))?;
        if size.len() > CONTRACT_BYTES_MAX {
            return Err(Error::invalid(format!("{shown} has more than {CONTRACT_BYTES_MAX} bytes")));
        }
        let bytes = std::fs::read(path).map_err(|e| Error::invalid(format!("cannot read {shown}: {e}")))?;
        if let Ok(manifest) = Manifest::parse(&bytes) {
            return Ok(Self { label: shown.to_string(), ..Self::of_manifest(&manifest, None) });
        }
        // Lines of progress may stand before the object.
        let last = bytes.trim_ascii().rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
        let parsed = serde_json::from_slice(&bytes).or_else(|_| serde_json::from_slice(last));
        let printed: Printed = parsed.map_err(|e| {
            Error::invalid(format!("{shown} is neither a manifest nor what `inspect --json` prints: {e}"))
                .hint("make it with `weighlock inspect REF --json`, or `inspect PATH --hash --json`")
        })?;
        Ok(Self {
            label: shown.to_string(),
            digest: Some(printed.digest),
            contract: printed.contract,
            files: Some(printed.files.into_iter().map(|file| file.path).collect()),
            ..Self::default()
        })
    }

    /// A report about it; `digest` is that of the bytes that evidence stores, where they are known.
    ///
    /// # Errors
    /// It cannot be written down.
    pub(crate) fn add_report(&mut self, mut loaded: Loaded, digest: Option<Sha256>) -> Result<()> {
        let digest = match digest {
            Some(digest) => digest,
            None => {
                // Bound as evidence is, so that its digest is that of the report which `evidence add` stores.
                loaded.report.artifact = loaded.report.artifact.or(self.digest);
                loaded.digest()?
            }
        };
        self.reports.push((digest, loaded));
        Ok(())
    }

    pub(crate) fn reports(&self) -> impl Iterator<Item = &Loaded> {
        self.reports.iter().map(|(_, loaded)| loaded)
    }

    pub(crate) fn report_digests(&self) -> impl Iterator<Item = Sha256> {
        self.reports.iter().map(|(digest, _)| *digest)
    }

    /// As the gate takes it.
    pub(crate) fn evidence(&self) -> Evidence<'_> {
        let mut samples: BTreeMap<String, &Samples> = BTreeMap::new();
        for (_, loaded) in &self.reports {
            samples.extend(loaded.samples.iter().map(|(metric, samples)| (metric.clone(), samples)));
        }
        Evidence {
            digest: self.digest,
            contract: self.contract.as_ref(),
            reports: self
                .reports
                .iter()
                .map(|(digest, loaded)| NamedReport { digest: *digest, report: &loaded.report })
                .collect(),
            samples,
        }
    }

    /// The hardware key that its reports name, if they name one.
    pub(crate) fn hardware(&self) -> Option<&str> {
        self.reports().find_map(|loaded| loaded.report.host.as_ref()).map(|host| host.hardware.as_str())
    }
}

/// What `weighlock inspect --json` prints, as far as the gate needs it.
#[derive(Deserialize)]
struct Printed {
    digest: ManifestDigest,
    files: Vec<PrintedFile>,
    #[serde(default)]
    contract: Option<Contract>,
}

#[derive(Deserialize)]
struct PrintedFile {
    path: String,
}
