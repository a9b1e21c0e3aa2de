//! One frame of `weighlock top`: counters of the daemon, and what two looks make of them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Serialize;
use weighlock_protocol::{KeyId, ManifestDigest};

use crate::cli::output::{age, bytes, table};
use crate::cli::progress::{NO_SPACE, disk_full};
use crate::cli::rate::{Rate, duration, percent};
use crate::local::message::{Activity, ArtifactActivity, PeerActivity};

/// What is shown, also as JSON. Rates are `None` at the first look.
#[derive(Debug, Serialize)]
pub(super) struct View {
    at_ms: u64,
    host: KeyId,
    name: String,
    fetched_bytes: u64,
    sent_bytes: u64,
    fetched_bytes_per_s: Option<u64>,
    sent_bytes_per_s: Option<u64>,
    artifacts: Vec<ArtifactLine>,
    peers: Vec<PeerLine>,
}

#[derive(Debug, Serialize)]
struct ArtifactLine {
    #[serde(flatten)]
    now: ArtifactActivity,
    rate_bytes_per_s: Option<u64>,
    /// Seconds until all of it is here; only while it is fetched and moves.
    left_s: Option<u64>,
}

#[derive(Debug, Serialize)]
struct PeerLine {
    #[serde(flatten)]
    now: PeerActivity,
    fetched_bytes_per_s: Option<u64>,
    sent_bytes_per_s: Option<u64>,
}

/// Remembers earlier looks. Bounded by what the daemon tells: what is gone is forgotten.
#[derive(Debug, Default)]
pub(super) struct Rates {
    last_ms: u64,
    all: [Rate; 2],
    /// With the phase that it is the rate of.
    artifacts: BTreeMap<ManifestDigest, (String, Rate)>,
    peers: BTreeMap<KeyId, [Rate; 2]>,
}

impl Rates {
    /// Takes one more look.
    pub(super) fn note(&mut self, now: Activity) -> View {
        if now.at_ms < self.last_ms {
            // The daemon was started anew.
            *self = Self::default();
        }
        self.last_ms = now.at_ms;
        let [fetched_bytes_per_s, sent_bytes_per_s] =
            both(&mut self.all, now.at_ms, now.fetched_bytes, now.sent_bytes);
        let (digests, hosts): (BTreeSet<_>, BTreeSet<_>) = (
            now.artifacts.iter().map(|one| one.digest).collect(),
            now.peers.iter().map(|one| one.host).collect(),
        );
        self.artifacts.retain(|digest, _| digests.contains(digest));
        self.peers.retain(|host, _| hosts.contains(host));
        let artifact = |one: ArtifactActivity| {
            let (phase, rate) = self.artifacts.entry(one.digest).or_default();
            if *phase != one.phase {
                (*phase, *rate) = (one.phase.clone(), Rate::default());
            }
            rate.note(now.at_ms, one.done_bytes);
            let missing = one.total_bytes.saturating_sub(one.done_bytes);
            let left_s = rate.left_s(missing).filter(|_| one.phase == "fetch");
            ArtifactLine { rate_bytes_per_s: rate.bytes_per_s(), left_s, now: one }
        };
        let peer = |one: PeerActivity| {
            let rates = self.peers.entry(one.host).or_default();
            let [fetched_bytes_per_s, sent_bytes_per_s] =
                both(rates, now.at_ms, one.fetched_bytes, one.sent_bytes);
            PeerLine { fetched_bytes_per_s, sent_bytes_per_s, now: one }
        };
        let mut view = View {
            at_ms: now.at_ms,
            host: now.host,
            name: now.name,
            fetched_bytes: now.fetched_bytes,
            sent_bytes: now.sent_bytes,
            fetched_bytes_per_s,
            sent_bytes_per_s,
            artifacts: now.artifacts.into_iter().map(artifact).collect(),
            peers: now.peers.into_iter().map(peer).collect(),
        };
        // An order that does not jump about: by state, then by name.
        view.artifacts.sort_by_cached_key(|line| (line.now.phase == "serve", line.name()));
        view.peers.sort_by_cached_key(|line| (line.now.shared.shared.is_empty(), line.now.name.clone()));
        view
    }
}

fn both(rates: &mut [Rate; 2], at_ms: u64, fetched: u64, sent: u64) -> [Option<u64>; 2] {
    rates[0].note(at_ms, fetched);
    rates[1].note(at_ms, sent);
    [rates[0].bytes_per_s(), rates[1].bytes_per_s()]
}

impl View {
    /// A table for people. `store` is where the daemon keeps things.
    pub(super) fn text(&self, store: &Path) -> String {
        let mut out = format!(
            "{}, up {}: fetched {} ({}), sent {} ({})\n",
            self.name,
            age(self.at_ms / 1000),
            bytes(self.fetched_bytes),
            speed(self.fetched_bytes_per_s),
            bytes(self.sent_bytes),
            speed(self.sent_bytes_per_s),
        );
        if self.artifacts.iter().any(|line| line.now.phase == NO_SPACE) {
            out += &format!("{}\n", disk_full(store));
        }
        out += "\n";
        if self.artifacts.is_empty() {
            out += "nothing is fetched or given to others\n";
        } else {
            let rows: Vec<Vec<String>> = self.artifacts.iter().map(ArtifactLine::cells).collect();
            out += &table(
                &[
                    "ARTIFACT",
                    "STATE",
                    "DONE",
                    "SIZE",
                    "RATE",
                    "LEFT",
                    "SOURCES",
                    "NEIGHBOURS",
                    "IN",
                    "OUT",
                    "PIECES",
                    "OPEN",
                ],
                &[2, 3, 4, 5, 6, 7, 8, 9, 10, 11],
                &rows,
            );
        }
        out += "\n";
        if self.peers.is_empty() {
            out += "no other host is connected\n";
        } else {
            let rows: Vec<Vec<String>> = self.peers.iter().map(PeerLine::cells).collect();
            out += &table(
                &["PEER", "KEY", "STATE", "PLACE", "SHARES", "IN", "OUT", "FETCHED", "RATE", "SENT", "RATE"],
                &[4, 5, 6, 7, 8, 9, 10],
                &rows,
            );
        }
        out
    }
}

impl ArtifactLine {
    /// Its first name, and how many more it has; its digest where it has none.
    fn name(&self) -> String {
        match self.now.names.as_slice() {
            [] => self.now.digest.short(),
            [only] => only.clone(),
            [first, more @ ..] => format!("{first} +{}", more.len()),
        }
    }

    fn cells(&self) -> Vec<String> {
        let one = &self.now;
        let moves = one.phase != "serve";
        let known = |text: String| if moves { text } else { "-".into() };
        vec![
            self.name(),
            one.phase.clone(),
            percent(one.done_bytes, one.total_bytes),
            bytes(one.total_bytes),
            known(speed(self.rate_bytes_per_s)),
            self.left_s.map_or("-".into(), duration),
            known(format!("{} of {}", one.sources_now, one.sources)),
            one.links.to_string(),
            one.in_flight.to_string(),
            one.uploads.to_string(),
            format!("{}/{}", one.held_pieces, one.pieces),
            one.loaders.to_string(),
        ]
    }
}

impl PeerLine {
    fn cells(&self) -> Vec<String> {
        let one = &self.now;
        let state = match (one.banned_s, one.connected) {
            (Some(seconds), _) => format!("banned {}", duration(seconds)),
            (None, true) => "connected".into(),
            (None, false) => "-".into(),
        };
        vec![
            one.name.clone(),
            one.host.short(),
            state,
            place(one.shared.near).into(),
            one.shared.shared.len().to_string(),
            one.shared.in_flight.to_string(),
            one.shared.uploads.to_string(),
            bytes(one.fetched_bytes),
            speed(self.fetched_bytes_per_s),
            bytes(one.sent_bytes),
            speed(self.sent_bytes_per_s),
        ]
    }
}

/// `near`, `far`, or `-` where the two are not neighbours.
pub(in crate::cli) fn place(near: Option<bool>) -> &'static str {
    match near {
        Some(true) => "near",
        Some(false) => "far",
        None => "-",
    }
}

fn speed(rate: Option<u64>) -> String {
    rate.map_or("-".into(), |rate| format!("{}/s", bytes(rate)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::message::Shared;

    const MIB: u64 = 1 << 20;

    fn artifact(n: u8, phase: &str, done_bytes: u64) -> ArtifactActivity {
        ArtifactActivity {
            digest: ManifestDigest([n; 32]),
            names: vec![format!("acme/m{n}:1")],
            phase: phase.into(),
            done_bytes,
            total_bytes: 100 * MIB,
            reused_bytes: 0,
            sources: 2,
            sources_now: 1,
            links: 3,
            in_flight: 4,
            uploads: 5,
            held_pieces: 20,
            pieces: 100,
            loaders: 1,
        }
    }

    fn activity(at_ms: u64, artifacts: Vec<ArtifactActivity>, fetched_bytes: u64) -> Activity {
        let shared = Shared {
            shared: artifacts.iter().map(|one| one.digest).collect(),
            in_flight: 4,
            uploads: 5,
            near: Some(false),
        };
        let peer = PeerActivity {
            host: KeyId([9; 32]),
            name: "beta".into(),
            connected: true,
            shared,
            banned_s: None,
            fetched_bytes,
            sent_bytes: 0,
        };
        let host = KeyId([8; 32]);
        let name = "alpha".to_owned();
        Activity { at_ms, host, name, fetched_bytes, sent_bytes: 0, artifacts, peers: vec![peer] }
    }

    #[test]
    fn two_looks_give_rates_and_the_time_left() {
        let mut rates = Rates::default();
        let first = rates.note(activity(5_000, vec![artifact(1, "fetch", 20 * MIB)], 20 * MIB));
        assert_eq!((first.fetched_bytes_per_s, first.artifacts[0].left_s), (None, None));
        let view = rates.note(activity(7_000, vec![artifact(1, "fetch", 40 * MIB)], 40 * MIB));
        assert_eq!(view.fetched_bytes_per_s, Some(10 * MIB));
        assert_eq!(view.peers[0].fetched_bytes_per_s, Some(10 * MIB));
        assert_eq!((view.artifacts[0].rate_bytes_per_s, view.artifacts[0].left_s), (Some(10 * MIB), Some(6)));
        let text = view.text(Path::new("/srv"));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "alpha, up just now: fetched 40.00 MiB (10.00 MiB/s), sent 0 B (0 B/s)");
        let cells: Vec<&str> = lines[3].split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
        let expected = [
            "acme/m1:1",
            "fetch",
            "40.0 %",
            "100.00 MiB",
            "10.00 MiB/s",
            "6 s",
            "1 of 2",
            "3",
            "4",
            "5",
            "20/100",
            "1",
        ];
        assert_eq!(cells, expected);
        let cells: Vec<&str> = lines[6].split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
        let expected = [
            "beta",
            "090909090909",
            "connected",
            "far",
            "1",
            "4",
            "5",
            "40.00 MiB",
            "10.00 MiB/s",
            "0 B",
            "0 B/s",
        ];
        assert_eq!(cells, expected);
        assert!(!text.contains('\u{1b}'));
    }

    #[test]
    fn a_new_phase_a_new_daemon_and_what_is_gone_begin_anew() {
        let mut rates = Rates::default();
        rates.note(activity(1_000, vec![artifact(1, "reuse", 0), artifact(2, "serve", 100 * MIB)], 0));
        let view = rates.note(activity(2_000, vec![artifact(1, "fetch", 50 * MIB)], 0));
        assert_eq!(view.artifacts[0].rate_bytes_per_s, None, "what was reused says nothing of the fetch");
        assert_eq!(rates.artifacts.len(), 1, "what is gone is forgotten");
        let view = rates.note(activity(500, vec![artifact(1, "fetch", 60 * MIB)], 0));
        assert_eq!(view.artifacts[0].rate_bytes_per_s, None, "another daemon");
    }

    #[test]
    fn what_is_fetched_comes_before_what_is_given() {
        let all = vec![artifact(1, "serve", 100 * MIB), artifact(3, "no space", 0), artifact(2, "fetch", 0)];
        let view = Rates::default().note(activity(1_000, all, 0));
        let names: Vec<String> = view.artifacts.iter().map(ArtifactLine::name).collect();
        assert_eq!(names, ["acme/m2:1", "acme/m3:1", "acme/m1:1"]);
        let text = view.text(Path::new("/srv/store"));
        assert!(text.lines().nth(1).is_some_and(|line| line.contains("room in /srv/store")), "{text}");
        let given: Vec<&str> = text.lines().filter(|line| line.starts_with("acme/m1:1")).collect();
        assert!(given[0].contains("serve") && given[0].contains("100.0 %"), "{given:?}");
    }

    #[test]
    fn an_idle_host_says_so() {
        let mut idle = activity(1_000, Vec::new(), 0);
        idle.peers.clear();
        let text = Rates::default().note(idle).text(Path::new("/srv"));
        assert!(text.contains("nothing is fetched") && text.contains("no other host"), "{text}");
    }

    #[test]
    fn names_are_short() {
        let mut line = ArtifactLine { now: artifact(1, "serve", 0), rate_bytes_per_s: None, left_s: None };
        line.now.names = vec!["a/b:1".into(), "a/c:1".into(), "a/d:1".into()];
        assert_eq!(line.name(), "a/b:1 +2");
        line.now.names.clear();
        assert_eq!(line.name(), "010101010101");
    }
}
