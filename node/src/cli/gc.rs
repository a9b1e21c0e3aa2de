//! `weighlock gc [--dry-run] [--all]`: lets go of what may go.

use clap::Args;

use super::Context;
use super::output::{age, bytes, table};
use crate::cluster::now;
use crate::error::Result;
use crate::local::message::AdminRequest;
use crate::local::store::Collected;

const AFTER_HELP: &str = "\
The daemon does this by itself when the store is over its quota (store.quota_bytes), when the
disk is under its floor (limits.free_bytes_min), and when an add or a fetch needs room.

Kept are: what followed channels run, ran (two heads) and are about to run; what is pinned, open,
on its way here, or was handed out as a directory within the last day; and what too few other
hosts hold (store.min_copies, 2 where nothing is said). The rest goes, the least recently used
first. Leftovers go before: damaged layers, layers of no artifact, directories that are idle.";

/// Let go of what nobody needs, until there is room.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Gc {
    /// Only tell what would go, and why the rest stays
    #[arg(long, short = 'n')]
    dry_run: bool,
    /// All that may go, even if there is room
    #[arg(long, short)]
    all: bool,
}

impl Gc {
    pub(super) fn run(self, context: &Context) -> Result<()> {
        let request = AdminRequest::Gc { dry_run: self.dry_run, all: self.all };
        let collected: Collected = context.ask(&request)?;
        context.output.print(&collected, text)
    }
}

fn text(collected: &Collected) -> String {
    let now = now().0;
    let since = |time: u64| if time == 0 { "?".into() } else { age(now.saturating_sub(time)) };
    let mut out = String::new();
    if !collected.gone.is_empty() {
        let rows = collected.gone.iter().map(|gone| {
            let used = gone.last_used.map_or_else(|| "-".into(), since);
            vec![gone.kind.clone(), short(&gone.name), bytes(gone.bytes), used]
        });
        let head = if collected.dry_run { "WOULD GO" } else { "WENT" };
        out += &table(&[head, "NAME", "FREES", "LAST USED"], &[2], &rows.collect::<Vec<_>>());
        out.push('\n');
    }
    if !collected.kept.is_empty() {
        let rows = collected.kept.iter().map(|kept| {
            let because = match kept.because.is_empty() {
                true => "may go when room is needed".to_owned(),
                false => kept.because.join("; "),
            };
            vec![short(&kept.name), bytes(kept.bytes), since(kept.last_used), because]
        });
        out += &table(&["STAYS", "SIZE", "LAST USED", "BECAUSE"], &[1], &rows.collect::<Vec<_>>());
        out.push('\n');
    }
    out += &match (collected.dry_run, collected.freed_bytes) {
        (false, freed) => format!("{} freed\n", bytes(freed)),
        (true, freed) => format!("{} would be freed\n", bytes(freed)),
    };
    if collected.short_bytes > 0 {
        out += &format!(
            "the store is still {} too full, and nothing more may go\n",
            bytes(collected.short_bytes)
        );
    }
    out
}

/// Digests and layer names are long.
fn short(name: &str) -> String {
    let hex = name.strip_prefix("sha256:").unwrap_or(name);
    let long = hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit());
    if long { name[..name.len() - 52].to_owned() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::short;

    #[test]
    fn long_names_are_cut_and_others_stay() {
        assert_eq!(short(&"a".repeat(64)), "a".repeat(12));
        assert_eq!(short(&format!("sha256:{}", "a".repeat(64))), format!("sha256:{}", "a".repeat(12)));
        assert_eq!(short("acme/bot:1.0.0"), "acme/bot:1.0.0");
    }
}
