//! `weighlock scrub [REF]`: reads layers again and proves them.

use clap::Args;
use weighlock_protocol::Reference;

use super::Context;
use super::output::{bytes, counted};
use crate::error::{Error, Result};
use crate::local::message::{AdminRequest, Scrubbed};

/// Read what lies in this host's store again, prove every byte, and heal what is damaged from other hosts. The daemon
/// does so by itself, slowly (configuration section `integrity`). Exit code 7 if something stays damaged.
#[derive(Debug, Args)]
pub(super) struct Scrub {
    /// ns/name:tag or ns/name@sha256:... [default: all layers]
    reference: Option<String>,
    /// All layers, said out loud
    #[arg(long, conflicts_with = "reference")]
    all: bool,
    /// Bytes per second, as in 50M; as fast as the disk gives them by default
    #[arg(long, value_name = "BYTES", value_parser = rate)]
    rate: Option<u64>,
}

impl Scrub {
    pub(super) fn run(self, context: &Context) -> Result<()> {
        let reference = self.reference.as_deref().map(str::parse::<Reference>).transpose()?;
        let request = AdminRequest::Scrub {
            reference: reference.map(|reference| reference.to_string()),
            bytes_per_s: self.rate.unwrap_or(0),
        };
        let scrubbed: Scrubbed = context.ask(&request)?;
        context.output.print(&scrubbed, text)?;
        let left = scrubbed.damaged.iter().filter(|row| !row.healed).count();
        if left > 0 {
            return Err(Error::integrity(format!(
                "{} damaged, and no reachable host has what is missing",
                if left == 1 { "1 layer stays".to_owned() } else { format!("{left} layers stay") }
            ))
            .hint("nothing of it is handed out; it heals by itself once a host that has it is connected, or `weighlock add` it again"));
        }
        Ok(())
    }
}

fn text(s: &Scrubbed) -> String {
    let mut out = format!("read {} in {}, {:.1} s\n", bytes(s.bytes), counted(s.layers, "layer"), s.seconds);
    if s.trees_rebuilt > 0 {
        out += &format!("{} built anew\n", counted(s.trees_rebuilt, "tree"));
    }
    for row in &s.damaged {
        let state = if row.healed { "healed" } else { "DAMAGED" };
        out += &format!(
            "{state}: layer {}: {} of {}: {}\n",
            &row.layer[..12.min(row.layer.len())],
            row.bad_groups,
            counted(usize::try_from(row.groups).unwrap_or(usize::MAX), "group"),
            row.reason
        );
    }
    if s.damaged.is_empty() {
        out += "nothing is damaged\n";
    }
    out
}

/// `50M`, `1G`, `4096`.
fn rate(text: &str) -> std::result::Result<u64, String> {
    let text = text.trim().trim_end_matches("iB").trim_end_matches('B');
    let (digits, unit) = match text.char_indices().next_back() {
        Some((at, 'k' | 'K')) => (&text[..at], 1u64 << 10),
        Some((at, 'm' | 'M')) => (&text[..at], 1 << 20),
        Some((at, 'g' | 'G')) => (&text[..at], 1 << 30),
        _ => (text, 1),
    };
    let number: u64 = digits.parse().map_err(|_| "bytes per second, such as 50M".to_owned())?;
    match number.checked_mul(unit) {
        Some(0) | None => Err("bytes per second, at least 1, such as 50M".into()),
        Some(rate) => Ok(rate),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_read_as_people_write_them() {
        assert_eq!(rate("50M"), Ok(50 << 20));
        assert_eq!(rate("1GiB"), Ok(1 << 30));
        assert_eq!(rate("4096"), Ok(4096));
        for bad in ["", "0", "fast", "-1", "99999999999999999999G"] {
            assert!(rate(bad).is_err(), "{bad}");
        }
    }
}
