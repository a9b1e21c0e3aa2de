//! `weighlock lock`: pins artifacts with how they scored, and checks what lies on disk against that.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use weighlock_cache::inspect;
use weighlock_protocol::gate::report::HostProfile;
use weighlock_protocol::lock::{Difference, Lock as LockFile, Package, Target, check, check_sizes};
use weighlock_protocol::manifest::{Contract, Manifest};
use weighlock_protocol::names::Selector;
use weighlock_protocol::{Artifact, ManifestDigest, Reference};

use super::evidence::About;
use super::output::{counted, table};
use super::{Context, gate, sides};
use crate::error::{Error, Kind, Result};
use crate::local::message::{AdminRequest, ManifestText, Weighed};
use crate::weigh::lock::{LOCK_FILE, read, read_if_there};
use crate::weigh::policy;
use crate::weigh::report::Loaded;

const AFTER_HELP: &str = "\
Without a daemon, --path pins what lies on disk under the name that is given:
  weighlock lock acme/support-bot:1.4.0 --path ./model --report ./results
  weighlock lock --check --path ./model

Exit codes: 0 done, or all as pinned; 7 something on disk is not what is pinned.";

/// Pin artifacts in weighlock.lock with how they scored, or check files against it.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Lock {
    /// ns/name:tag, or with --check the names of packages [default with --check: all]
    #[arg(required_unless_present = "check")]
    references: Vec<String>,
    /// Check what lies at --path against what is pinned; nothing is written
    #[arg(long)]
    check: bool,
    /// A directory or file that holds the artifact, instead of the cluster's
    #[arg(long, value_name = "PATH")]
    path: Option<PathBuf>,
    /// With --path: a report about it (may be repeated)
    #[arg(long, value_name = "FILE", requires = "path", conflicts_with = "check")]
    report: Vec<PathBuf>,
    #[command(flatten)]
    about: About,
    /// Only evidence from this hardware key [default: all there is]
    #[arg(long, value_name = "KEY")]
    hardware: Option<String>,
    /// The lock file
    #[arg(long, value_name = "FILE", default_value = LOCK_FILE)]
    lock_file: PathBuf,
    /// The policy whose digest is noted, if it is there
    #[arg(long, value_name = "FILE", default_value = policy::POLICY_FILE)]
    policy: PathBuf,
}

#[derive(Serialize)]
struct Locked {
    file: String,
    packages: Vec<Line>,
}

#[derive(Serialize)]
struct Line {
    name: Artifact,
    version: String,
    digest: ManifestDigest,
    targets: usize,
    metrics: usize,
}

#[derive(Serialize)]
struct Checked {
    path: String,
    package: String,
    same: bool,
    differences: Vec<String>,
}

impl Lock {
    pub(super) fn run(self, context: &Context) -> Result<ExitCode> {
        if self.check {
            return self.compare(context);
        }
        let mut lock = read_if_there(&self.lock_file)?.unwrap_or_default();
        let mut packages = Vec::new();
        for text in &self.references {
            let package = match &self.path {
                Some(path) => self.of_path(context, text, path)?,
                None => self.of_reference(context, text)?,
            };
            packages.push(Line {
                name: package.name.clone(),
                version: package.version.to_string(),
                digest: package.digest,
                targets: package.targets.len(),
                metrics: package.targets.iter().map(|target| target.metrics.len()).sum(),
            });
            lock.set(package).map_err(Error::invalid)?;
        }
        lock.set_generated_by(concat!("weighlock ", env!("CARGO_PKG_VERSION")));
        if context.daemon_runs() {
            lock.cluster = Some(context.cluster()?);
        }
        if self.policy.exists() {
            lock.policy = Some(policy::read(&self.policy)?.digest());
        }
        gate::write(&self.lock_file, lock.to_toml().as_bytes())?;
        let locked = Locked { file: self.lock_file.display().to_string(), packages };
        context.output.print(&locked, |locked| {
            let line = |line: &Line| {
                let scores = match line.metrics {
                    0 => "without scores".to_owned(),
                    n => format!("{} on {}", counted(n, "metric"), counted(line.targets, "target")),
                };
                format!("locked {}:{} {}, {scores}\n", line.name, line.version, line.digest)
            };
            locked.packages.iter().map(line).collect()
        })?;
        Ok(ExitCode::SUCCESS)
    }

    /// Pins what lies on disk.
    fn of_path(&self, context: &Context, text: &str, path: &Path) -> Result<Package> {
        let reference: Reference = text.parse()?;
        let tag = reference.require_tag()?.clone();
        if self.references.len() > 1 {
            return Err(Error::invalid("--path holds one artifact, and several are named"));
        }
        let mut side = sides::of_path(context, path)?;
        for file in &self.report {
            let mut loaded = Loaded::read(file, &[])?;
            self.about.fill(&mut loaded, context)?;
            side.add_report(loaded, None)?;
        }
        let targets = side.reports.iter().map(|(digest, loaded)| {
            let mut report = loaded.report.clone();
            if let Some(other) = report.artifact.filter(|other| Some(*other) != side.digest) {
                return Err(Error::invalid(format!(
                    "a report is about {other}, not about {}",
                    path.display()
                )));
            }
            report.host.get_or_insert(anywhere());
            Target::of_report(&report, *digest, None).map_err(Error::invalid)
        });
        let targets = targets.collect::<Result<_>>()?;
        let (Some(manifest), Some(contract)) = (&side.manifest, &side.contract) else {
            return Err(Error::internal("a path was hashed and has no manifest"));
        };
        Package::new(reference.artifact, tag, manifest, contract, targets).map_err(Error::invalid)
    }

    /// Pins an artifact of the cluster, with the newest report of each suite on each kind of hardware.
    fn of_reference(&self, context: &Context, text: &str) -> Result<Package> {
        let reference: Reference = text.parse()?;
        let tag = reference.require_tag()?.clone();
        let weighed: Weighed = context.ask(&AdminRequest::Weighed { reference: reference.to_string() })?;
        let side = sides::without_reports(context, &reference, &weighed)?;
        let exact = Reference { selector: Selector::Digest(weighed.digest), ..reference.clone() };
        let text: ManifestText = context.ask(&AdminRequest::Manifest { reference: exact.to_string() })?;
        let manifest = Manifest::parse(text.manifest.as_bytes()).map_err(Error::integrity)?;
        let contract = side.contract.ok_or_else(|| {
            Error::unavailable(format!("the contract of {reference} is not here"))
                .hint("`weighlock pull` fetches it")
        })?;
        let wanted = |said: &&crate::local::message::SaidRow<_>| {
            let said: &weighlock_protocol::statement::Findings = &said.said;
            self.hardware.as_ref().is_none_or(|key| *key == said.hardware)
        };
        let mut newest = std::collections::BTreeMap::new();
        for said in weighed.evaluations.iter().filter(wanted) {
            newest.insert((said.said.hardware.clone(), said.said.suite), said);
        }
        let targets = newest.into_values().map(|said| {
            let mut report = sides::stored(context, said, weighed.digest)?.report;
            report.host.get_or_insert(anywhere());
            Target::of_report(&report, said.said.report, Some(said.said.evidence)).map_err(Error::invalid)
        });
        let targets = targets.collect::<Result<_>>()?;
        Package::new(reference.artifact, tag, &manifest, &contract, targets).map_err(Error::invalid)
    }

    fn compare(&self, context: &Context) -> Result<ExitCode> {
        let lock = read(&self.lock_file)?;
        let path = self.path.as_deref().ok_or_else(|| {
            Error::invalid("--check needs to know where the files lie").hint("say it with --path DIR")
        })?;
        let package = self.meant(&lock)?;
        // What sizes tell, they tell at once.
        let plan = inspect::plan(path, &inspect::Options::default()).map_err(Error::from)?;
        let sizes = plan.files.iter().map(|file| (file.path.as_str(), file.size));
        let mut differences = check_sizes(package, sizes);
        let read = differences.is_empty();
        if read {
            let side = sides::of_path(context, path)?;
            if let (Some(manifest), Some(contract)) = (&side.manifest, &side.contract) {
                differences = against(package, manifest, contract);
            }
        }
        let checked = Checked {
            path: path.display().to_string(),
            package: format!("{}:{}", package.name, package.version),
            same: differences.is_empty(),
            differences: differences.iter().map(ToString::to_string).collect(),
        };
        context.output.print(&checked, |c| match c.same {
            true => format!("{} is {}, as pinned\n", c.path, c.package),
            false => {
                let rows: Vec<_> = c.differences.iter().map(|line| vec![line.clone()]).collect();
                let unread = if read { "" } else { "(names and sizes differ, so no contents were read)\n" };
                let table = table(&["DIFFERENCE"], &[], &rows);
                format!("{} is not {} as pinned\n{table}{unread}", c.path, c.package)
            }
        })?;
        Ok(if checked.same { ExitCode::SUCCESS } else { ExitCode::from(Kind::Integrity.exit_code()) })
    }

    /// The package that a check is about.
    fn meant<'a>(&self, lock: &'a LockFile) -> Result<&'a Package> {
        let named: Vec<&Package> = match self.references.as_slice() {
            [] => lock.packages().iter().collect(),
            [one] => {
                let meant = |package: &&Package| {
                    let name = package.name.to_string();
                    *one == name || *one == format!("{name}:{}", package.version)
                };
                let on = |package: &&Package| {
                    self.hardware.as_ref().is_none_or(|key| package.hardware().contains(key.as_str()))
                };
                lock.packages().iter().filter(meant).filter(on).collect()
            }
            _ => return Err(Error::invalid("--path holds one artifact, and several are named")),
        };
        match named.as_slice() {
            [one] => Ok(one),
            [] => Err(Error::not_found(format!("{} pins no such package", self.lock_file.display()))
                .hint("`weighlock lock REF` pins one")),
            [first, rest @ ..] if rest.iter().all(|other| other.digest == first.digest) => Ok(first),
            _ => Err(Error::invalid(format!("{} pins several packages", self.lock_file.display()))
                .hint("name the one that is meant as ns/name:tag, and with --hardware")),
        }
    }
}

/// For a report that does not say where it ran.
fn anywhere() -> HostProfile {
    HostProfile { hardware: "any".to_owned(), model: String::new(), memory_gib: None }
}

/// What differs, but for what no file tells: on what it was trained, and in which run.
fn against(package: &Package, manifest: &Manifest, contract: &Contract) -> Vec<Difference> {
    let pinned = package.contract();
    let contract =
        Contract { datasets: pinned.datasets.clone(), lineage: pinned.lineage.clone(), ..contract.clone() };
    let mut differences = check(package, manifest, &contract);
    if !pinned.datasets.is_empty() || pinned.lineage.is_some() {
        // It was published with more than a path has.
        differences.retain(|difference| !matches!(difference, Difference::Manifest { .. }));
    }
    differences
}
