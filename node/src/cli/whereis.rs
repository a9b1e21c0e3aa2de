//! `weighlock where REF`.

use clap::Args;
use weighlock_protocol::Reference;

use super::Context;
use super::output::{age, bytes, counted, table};
use crate::error::Result;
use crate::local::message::{AdminRequest, Evidence, Holder, Whereabouts};

/// Which hosts hold an artifact, and how much of it.
///
/// As their records say, and as neighbours tell while it is fetched or given. Exit code 4 when no host is known to.
#[derive(Debug, Args)]
pub(super) struct Where {
    /// ns/name:tag or ns/name@sha256:...
    reference: String,
}

impl Where {
    pub(super) fn run(self, context: &Context) -> Result<()> {
        let reference: Reference = self.reference.parse()?;
        let found: Whereabouts = context.ask(&AdminRequest::Where { reference: reference.to_string() })?;
        context.output.print(&found, text)
    }
}

fn text(found: &Whereabouts) -> String {
    let whole = found.holders.iter().filter(|holder| holder.complete).count();
    let part = found.holders.len() - whole;
    let mut out = format!("{} {}\n", found.reference, found.digest);
    out += &format!("{}, all of it on {}", bytes(found.total_bytes), counted(whole, "host"));
    if part > 0 {
        out += &format!(", a part of it on {}", counted(part, "host"));
    }
    if found.loaders_here > 0 {
        out += &format!("; open here by {}", counted(found.loaders_here, "loader"));
    }
    out += "\n\n";
    let cells = found.holders.iter().map(|holder| {
        vec![
            holder.name.clone(),
            holder.host.short(),
            holds(holder),
            state(holder),
            place(holder),
            holder.data.first().map_or("-".into(), ToString::to_string),
            holder.record_age_s.map_or("-".into(), age),
        ]
    });
    out + &table(
        &["NAME", "KEY", "HOLDS", "STATE", "PLACE", "DATA", "HEARD"],
        &[],
        &cells.collect::<Vec<_>>(),
    )
}

/// `all`, `43.2 %, 12 of 28 pieces`, `a part`.
fn holds(holder: &Holder) -> String {
    if holder.complete {
        return "all".into();
    }
    match (holder.held_percent, holder.held_pieces, holder.pieces) {
        (Some(percent), Some(held), Some(pieces)) => format!("{percent:.1} %, {held} of {pieces} pieces"),
        (Some(percent), ..) => format!("{percent:.1} %"),
        (None, ..) if holder.told_by == Evidence::Providers => "all or a part".into(),
        (None, ..) => "a part".into(),
    }
}

fn state(holder: &Holder) -> String {
    match (holder.this_host, holder.banned_s, holder.connected) {
        (true, ..) => "this host".into(),
        (false, Some(seconds), _) => format!("banned {seconds} s"),
        (false, None, true) => "connected".into(),
        (false, None, false) => "-".into(),
    }
}

/// Where it stands: its zone and rack, or `-`.
fn place(holder: &Holder) -> String {
    let label = |name: &str| holder.labels.get(name).cloned();
    let all: Vec<String> = [label("zone"), label("rack")].into_iter().flatten().collect();
    if all.is_empty() { "-".into() } else { all.join("/") }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use weighlock_protocol::{KeyId, ManifestDigest};

    use super::*;

    fn holder(name: &str) -> Holder {
        Holder {
            host: KeyId([7; 32]),
            name: name.into(),
            this_host: false,
            connected: false,
            complete: false,
            held_percent: None,
            held_bytes: None,
            held_pieces: None,
            pieces: None,
            told_by: Evidence::Record,
            near: None,
            labels: BTreeMap::new(),
            data: Vec::new(),
            record_age_s: None,
            banned_s: None,
        }
    }

    #[test]
    fn whole_and_partial_holders_are_told_apart() {
        let mut alpha =
            Holder { complete: true, connected: true, held_percent: Some(100.0), ..holder("alpha") };
        alpha.labels = BTreeMap::from([("rack".into(), "r7".into()), ("zone".into(), "z1".into())]);
        alpha.data = vec!["10.0.0.1:7401".parse().expect("an address")];
        let beta = Holder {
            this_host: true,
            held_percent: Some(43.2),
            held_pieces: Some(12),
            pieces: Some(28),
            ..holder("beta")
        };
        let gamma = Holder { banned_s: Some(9), record_age_s: Some(120), ..holder("gamma") };
        let found = Whereabouts {
            reference: "acme/model:1".into(),
            digest: ManifestDigest([1; 32]),
            total_bytes: 3 << 20,
            loaders_here: 1,
            holders: vec![alpha, beta, gamma],
        };
        let told = text(&found);
        let lines: Vec<&str> = told.lines().collect();
        assert_eq!(lines[1], "3.00 MiB, all of it on 1 host, a part of it on 2 hosts; open here by 1 loader");
        let key = "070707070707";
        assert_eq!(
            lines[4..],
            [
                format!("alpha  {key}  all                      connected   z1/r7  10.0.0.1:7401  -"),
                format!("beta   {key}  43.2 %, 12 of 28 pieces  this host   -      -              -"),
                format!("gamma  {key}  a part                   banned 9 s  -      -              2 min"),
            ]
        );
    }
}
