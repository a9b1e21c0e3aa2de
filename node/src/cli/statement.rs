//! `weighlock statement import|show`.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde::Serialize;
use serde_json::Value;
use weighlock_protocol::statement::envelope::ENVELOPE_BYTES_MAX;
use weighlock_protocol::statement::{Envelope, Kind, Signed};
use weighlock_protocol::{KeyId, Sha256, StatementId};

use super::Context;
use crate::error::{Error, Result};
use crate::local::message::{AdminRequest, Submitted};

/// Signed statements as files.
#[derive(Debug, Subcommand)]
pub(super) enum StatementCommand {
    /// Bring statements that were signed elsewhere into the cluster, such as a verdict of CI
    Import {
        /// DSSE envelopes
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// What a statement says and who signed it; the signatures are proven, nothing else
    ///
    /// Of a verdict it names the SHA-256 of the whole one: `sha256sum FILE` must be the same for the file that
    /// `weighlock gate --verdict-out FILE` wrote.
    Show {
        /// A DSSE envelope, or the id of a statement of the cluster
        #[arg(value_name = "FILE|ID")]
        file: PathBuf,
    },
}

#[derive(Serialize)]
struct Imported {
    items: Vec<Submitted>,
}

#[derive(Serialize)]
struct Shown {
    id: StatementId,
    signed_by: Vec<KeyId>,
    /// Of a verdict: SHA-256 of the file that `gate --verdict-out` writes.
    #[serde(skip_serializing_if = "Option::is_none")]
    verdict: Option<Sha256>,
    statement: Value,
}

impl StatementCommand {
    pub(super) fn run(self, context: &Context) -> Result<()> {
        match self {
            Self::Import { files } => import(context, &files),
            Self::Show { file } => show(context, &file),
        }
    }
}

fn import(context: &Context, files: &[PathBuf]) -> Result<()> {
    // All are read before any is handed in.
    let envelopes = files.iter().map(|file| Ok((file, read(file)?))).collect::<Result<Vec<_>>>()?;
    let mut items = Vec::new();
    for (file, envelope) in envelopes {
        let json = String::from_utf8(envelope.to_json()).map_err(Error::internal)?;
        let submitted: Submitted = context.ask(&AdminRequest::Submit { envelope: json })?;
        match (&submitted.pending, &submitted.hint) {
            (Some(why), Some(hint)) => {
                let none = format!("{} has no effect in this cluster: {why}", file.display());
                return Err(Error::refused(none).hint(hint));
            }
            // As it should be: hosts of a later release use it.
            (Some(why), None) => eprintln!("warning: {} has no effect on this host: {why}", file.display()),
            (None, _) => {}
        }
        items.push(submitted);
    }
    context.output.print(&Imported { items }, |imported| {
        let line =
            |s: &Submitted| format!("{} {}\n", if s.new { "imported" } else { "already there:" }, s.id);
        imported.items.iter().map(line).collect()
    })
}

fn show(context: &Context, file: &Path) -> Result<()> {
    let envelope = match file.to_str().filter(|_| !file.exists()) {
        Some(id) if id.trim_start_matches("sha256:").bytes().all(|b| b.is_ascii_hexdigit()) => {
            let text: String = context.ask(&AdminRequest::Envelope { id: id.to_owned() })?;
            Envelope::parse(text.as_bytes()).map_err(|e| Error::integrity(e.to_string()))?
        }
        _ => read(file)?,
    };
    let bad = |e: &dyn std::fmt::Display| Error::integrity(format!("{}: {e}", file.display()));
    let signed = Signed::parse(envelope).map_err(|e| bad(&e))?;
    let verified = signed.verify().map_err(|e| bad(&e))?;
    let shown = Shown {
        id: verified.id(),
        signed_by: verified.envelope().signatures().iter().map(|signature| signature.key).collect(),
        verdict: match &verified.body().kind {
            Kind::Verdict(said) => Some(said.ruling.verdict),
            _ => None,
        },
        statement: serde_json::from_slice(verified.envelope().payload()).map_err(Error::internal)?,
    };
    context.output.print(&shown, |shown| {
        let by: Vec<String> = shown.signed_by.iter().map(ToString::to_string).collect();
        let body = serde_json::to_string_pretty(&shown.statement).unwrap_or_default();
        let of = |digest: Sha256| format!("whole verdict (gate --verdict-out): sha256 {}\n", digest.hex());
        let verdict = shown.verdict.map(of).unwrap_or_default();
        format!("{}\nsigned by {}\n{verdict}\n{body}\n", shown.id, by.join(", "))
    })
}

fn read(file: &Path) -> Result<Envelope> {
    let shown = file.display();
    let fail = |e: std::io::Error| Error::invalid(format!("cannot read {shown}: {e}"));
    let size = std::fs::metadata(file).map_err(fail)?.len();
    if size > ENVELOPE_BYTES_MAX as u64 {
        return Err(Error::invalid(format!(
            "{shown} has {size} bytes; at most {ENVELOPE_BYTES_MAX} are accepted"
        ))
        .hint("is it a statement?"));
    }
    Envelope::parse(&std::fs::read(file).map_err(fail)?).map_err(|e| Error::invalid(format!("{shown}: {e}")))
}
