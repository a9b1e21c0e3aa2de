//! `weighlock df`: what uses the store.

use clap::Args;

use super::Context;
use super::output::{bytes, counted, table};
use crate::error::Result;
use crate::local::message::AdminRequest;
use crate::local::store::DiskUse;

/// What uses the disk, what of it may go, and how much there may be.
#[derive(Debug, Args)]
pub(super) struct Df {}

impl Df {
    pub(super) fn run(self, context: &Context) -> Result<()> {
        let used: DiskUse = context.ask(&AdminRequest::DiskUse)?;
        context.output.print(&used, text)
    }
}

fn text(d: &DiskUse) -> String {
    let row = |what: &str, n: u64, note: String| vec![what.to_owned(), bytes(n), note];
    let quota = match d.quota_bytes {
        0 => "no quota (store.quota_bytes)".to_owned(),
        quota => format!("of {} (store.quota_bytes)", bytes(quota)),
    };
    let rows = [
        row("layers", d.layer_bytes, counted(d.layers, "layer")),
        row("  shared", d.shared_bytes, "in more than one artifact".into()),
        row("  pinned", d.pinned_bytes, "`weighlock pin --list`".into()),
        row("  protected", d.protected_bytes, "may not go; `weighlock gc --dry-run` says why".into()),
        row("partial", d.partial_bytes, "on its way here".into()),
        row("directories", d.view_bytes, "copies of `weighlock path`".into()),
        row("quarantine", d.quarantine_bytes, "damaged, set aside".into()),
        row("staging", d.staging_bytes, "imports under way".into()),
        row("audit log", d.audit_bytes, String::new()),
        row("metadata", d.metadata_bytes, format!("and {} in reserve", bytes(d.reserve_bytes))),
        row("used", d.used_bytes, quota),
        row("reclaimable", d.reclaimable_bytes, "`weighlock gc --all` frees it".into()),
        row(
            "free on disk",
            d.free_bytes,
            format!("{} stay free (limits.free_bytes_min)", bytes(d.floor_bytes)),
        ),
    ];
    format!("{}\n{}", d.data_dir.display(), table(&["WHAT", "BYTES", ""], &[1], &rows))
}
