//! `weighlock invite`.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use weighlock_protocol::statement::{Envelope, Invite as Body, Kind};
use weighlock_protocol::ticket::{Bootstrap, Ticket};
use weighlock_protocol::{StatementId, UnixTime};

use super::Context;
use super::member::{admin_keys, sign_and_submit};
use super::output::counted;
use crate::error::{Error, Result};
use crate::local::message::{AdminRequest, Introduction};
use crate::{cluster, keys};

/// Make a ticket that lets hosts join. Whoever has it can join until it expires: it is a secret.
///
/// On the new host: weighlock join TICKET (or --file, or WEIGHLOCK_TICKET), then weighlock up.
#[derive(Debug, Args)]
pub(super) struct Invite {
    /// How long the ticket admits hosts: 30m, 12h, 7d
    #[arg(long, default_value = "24h", value_parser = seconds)]
    expires: u64,
    /// How many hosts it admits (best effort while hosts cannot see each other)
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    uses: u32,
    /// How long an admission lasts: 30d, 365d
    #[arg(long, default_value = "365d", value_parser = seconds)]
    admit_for: u64,
    /// Label of the hosts that it admits, as key=value (may be repeated)
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    label: Vec<(String, String)>,
    /// A note for people
    #[arg(long, default_value = "")]
    note: String,
    /// Write the ticket to this file (mode 0600) instead of printing it
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// An admin's key, more where the root asks for more [default: the cluster's in the keys directory]
    #[arg(long, value_name = "FILE", env = "WEIGHLOCK_ADMIN_KEY")]
    key: Vec<PathBuf>,
}

#[derive(Serialize)]
struct Invited {
    invite: StatementId,
    expires: UnixTime,
    uses: u32,
    ticket: Option<String>,
    file: Option<PathBuf>,
}

impl Invite {
    pub(super) fn run(self, context: &Context) -> Result<()> {
        let intro: Introduction = context.ask(&AdminRequest::Introduction)?;
        let admins = admin_keys(context, &self.key, &intro.cluster)?;
        let ticket_key = keys::generate()?;
        let body = Body {
            ticket: ticket_key.key_id(),
            expires: cluster::now().plus(self.expires),
            uses: self.uses,
            admit_secs_max: self.admit_for,
            labels: self.label.into_iter().collect::<BTreeMap<_, _>>(),
            note: self.note,
        };
        let expires = body.expires;
        // Before anybody hears of the invite: without its ticket it is of no use, and it stays.
        let path = self.file.clone();
        let file = path.as_deref().map(Secret::create).transpose()?;
        let (envelope, submitted) = sign_and_submit(context, &admins, Kind::Invite(body))?;
        let roots = intro.roots.iter().map(|json| Envelope::parse(json.as_bytes()));
        let roots = roots.collect::<Result<Vec<_>, _>>().map_err(Error::internal)?;
        let here = Bootstrap { host: intro.host, data_addrs: intro.data, control_addrs: intro.control };
        let ticket = Ticket::new(ticket_key, roots, envelope, vec![here]).map_err(Error::internal)?.to_text();
        if let Some(file) = file {
            file.write(&ticket)?;
        }
        let printed = self.file.is_none().then_some(ticket);
        let invited =
            Invited { invite: submitted.id, expires, uses: self.uses, ticket: printed, file: self.file };
        context.output.print(&invited, |i| match (&i.ticket, &i.file) {
            (Some(ticket), _) => ticket.clone(),
            (None, file) => {
                let file = file.as_ref().map_or(String::new(), |f| f.display().to_string());
                format!("ticket in {file}, for {} until {}\n", counted(i.uses as usize, "host"), i.expires)
            }
        })
    }
}

/// A new file of mode 0600, which goes again if nothing is written to it.
struct Secret<'a> {
    path: &'a Path,
    file: Option<File>,
}

impl<'a> Secret<'a> {
    fn create(path: &'a Path) -> Result<Self> {
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(path).map_err(|e| {
            Error::invalid(format!("cannot write {}: {e}", path.display()))
                .hint("name a new file with --file")
        })?;
        Ok(Self { path, file: Some(file) })
    }

    fn write(mut self, text: &str) -> Result<()> {
        let fail =
            |e: std::io::Error| Error::unavailable(format!("cannot write {}: {e}", self.path.display()));
        if let Some(file) = &mut self.file {
            writeln!(file, "{text}").and_then(|()| file.sync_all()).map_err(fail)?;
        }
        self.file = None;
        Ok(())
    }
}

impl Drop for Secret<'_> {
    fn drop(&mut self) {
        if self.file.is_some() {
            let _ = std::fs::remove_file(self.path);
        }
    }
}

/// `30m`, `12h`, `7d`, `90s` in seconds.
pub(super) fn seconds(text: &str) -> Result<u64, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let factor = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err("write a number and s, m, h or d, for example 24h".into()),
    };
    let number: u64 =
        number.parse().map_err(|_| "write a number and s, m, h or d, for example 24h".to_owned())?;
    number.checked_mul(factor).filter(|s| *s > 0 && *s <= 100 * 365 * 86_400).ok_or("out of range".into())
}

/// `key=value`.
pub(super) fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write key=value, for example rack=r12".into()),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn durations_have_units() {
        assert_eq!(super::seconds("24h"), Ok(86_400));
        assert_eq!(super::seconds("90s"), Ok(90));
        for bad in ["", "5", "h", "0d", "-1h", "1w", "99999999999999999999d"] {
            assert!(super::seconds(bad).is_err(), "{bad}");
        }
    }
}
