//! `weighlock peers`.

use clap::Args;

use super::Context;
use super::output::{age, bytes, table};
use super::top::place;
use crate::error::Result;
use crate::local::message::{AdminRequest, PeerRow};

/// Other hosts of the cluster, as seen from here.
///
/// SHARES counts the artifacts that both fetch or give now as neighbours, IN and OUT the pieces on their way. A near
/// neighbour stands in the same rack, or racks are not known.
#[derive(Debug, Args)]
pub(super) struct Peers {}

impl Peers {
    pub(super) fn run(self, context: &Context) -> Result<()> {
        let rows: Vec<PeerRow> = context.ask(&AdminRequest::Peers)?;
        context.output.print(&rows, |rows| {
            if rows.is_empty() {
                return "no other hosts; `weighlock invite` makes a ticket for one\n".into();
            }
            let cells = rows.iter().map(|row| {
                let state = match (row.connected, row.banned_s) {
                    (_, Some(seconds)) => format!("banned {seconds} s"),
                    (true, None) => "connected".into(),
                    (false, None) => "-".into(),
                };
                vec![
                    row.name.clone(),
                    row.host.short(),
                    state,
                    row.rtt_ms.map_or("-".into(), |ms| format!("{ms:.1} ms")),
                    if row.version.is_empty() { "-".into() } else { row.version.clone() },
                    row.hardware.clone(),
                    row.data.first().map_or("-".into(), ToString::to_string),
                    place(row.shared.near).into(),
                    row.held.to_string(),
                    row.shared.shared.len().to_string(),
                    row.shared.in_flight.to_string(),
                    row.shared.uploads.to_string(),
                    bytes(row.fetched_bytes),
                    bytes(row.sent_bytes),
                    row.record_age_s.map_or("-".into(), age),
                ]
            });
            table(
                &[
                    "NAME", "KEY", "STATE", "RTT", "VERSION", "HARDWARE", "DATA", "PLACE", "HOLDS", "SHARES",
                    "IN", "OUT", "FETCHED", "SENT", "HEARD",
                ],
                &[3, 8, 9, 10, 11, 12, 13],
                &cells.collect::<Vec<_>>(),
            )
        })
    }
}
