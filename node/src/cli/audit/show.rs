//! The audit log as people read it.

use weighlock_protocol::UnixTime;
use weighlock_protocol::audit::{Caller, Entry, Event, Grounds, Line};

use crate::audit::{Held, Page};
use crate::cli::output::{counted, table};
use crate::cli::when::When;

/// Events, newest last.
pub(super) fn events(page: &Page) -> String {
    if page.events.is_empty() {
        return format!("nothing of that is in the log of {}{}\n", page.name, kept(page));
    }
    let rows: Vec<Vec<String>> = page.events.iter().map(row).collect();
    let more = if page.next.is_some() { "older ones are left out; --limit shows more\n" } else { "" };
    let head = ["TIME", "EVENT", "REFERENCE", "DIGEST", "WHO", "PROCESS", "RUNTIME", "WHY"];
    format!("{}{more}{}", table(&head, &[], &rows), lost(page))
}

/// What was open.
pub(super) fn held(page: &Page, at: When) -> String {
    let span = if at.until_ms - at.from_ms > 1 {
        format!("from {} to {}", time(at.from_ms), time(at.until_ms))
    } else {
        format!("at {}", time(at.from_ms))
    };
    let mut out = format!("{} {span}: {} open\n", page.name, counted(page.open.len(), "artifact"));
    if page.oldest.is_none_or(|(_, oldest)| oldest > at.from_ms) {
        out += &format!("warning: this log tells of no earlier time than that{}\n", kept(page));
    }
    if !page.open.is_empty() {
        let rows: Vec<Vec<String>> = page.open.iter().map(held_row).collect();
        let head = ["REFERENCE", "DIGEST", "SINCE", "UNTIL", "WHO", "PROCESS", "RUNTIME", "GROUNDS"];
        out += &table(&head, &[], &rows);
    }
    if !page.taken.is_empty() {
        out += "\nCopies and directories handed out before; how long they were used is not known:\n";
        let rows: Vec<Vec<String>> = page.taken.iter().map(row).collect();
        let head = ["TIME", "EVENT", "REFERENCE", "DIGEST", "WHO", "PROCESS", "RUNTIME", "GROUNDS"];
        out += &table(&head, &[], &rows);
    }
    out + &lost(page)
}

fn row(line: &Line) -> Vec<String> {
    let mut cells = vec![time(line.time_ms)];
    let dashes = |n| vec!["-".to_owned(); n];
    match &line.event {
        Event::Open(entry) => cells.extend(["open".to_owned()].into_iter().chain(who_what(entry))),
        Event::Taken(entry) => {
            cells.extend([entry.door.name().to_owned()].into_iter().chain(who_what(entry)));
        }
        Event::Refused(entry) => cells.extend(["refused".to_owned()].into_iter().chain(who_what(entry))),
        Event::Close(closed) => {
            cells.extend(["close".into(), closed.reference.clone(), closed.digest.short()]);
            cells.extend(dashes(3));
            cells.push(closed.reason.clone());
        }
        Event::Gap(gap) => {
            cells.push("gap".into());
            cells.extend(dashes(5));
            cells.push(format!(
                "{} not written since {}: {}",
                counted(gap.lost as usize, "event"),
                time(gap.from_ms),
                gap.reason
            ));
        }
        Event::Start { version } => {
            cells.push("start".into());
            cells.extend(dashes(5));
            cells.push(format!("the daemon, version {version}"));
        }
        Event::Stop {} => {
            cells.push("stop".into());
            cells.extend(dashes(5));
            cells.push("the daemon".into());
        }
        Event::Segment(_) | Event::Checkpoint { .. } | Event::Other => cells.extend(dashes(7)),
    }
    cells
}

/// Reference, digest, who, process, runtime, grounds or reason.
fn who_what(entry: &Entry) -> [String; 6] {
    let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
    let why = match (&entry.grounds, &entry.reason) {
        (Some(grounds), _) => grounds_text(grounds),
        (None, reason) => or_dash(reason),
    };
    [
        entry.reference.clone(),
        entry.digest.map_or("-".into(), |digest| digest.short()),
        who(&entry.caller),
        process(&entry.caller),
        or_dash(&entry.caller.runtime),
        why,
    ]
}

fn held_row(held: &Held) -> Vec<String> {
    let [reference, digest, who, process, runtime, grounds] = who_what(&held.entry);
    let until = match (held.closed_ms, held.closed.as_deref()) {
        (Some(at), Some(why @ ("closed" | "socket closed"))) => format!("{} ({why})", time(at)),
        (Some(at), why) => format!("{} ({})", time(at), why.unwrap_or("closed")),
        (None, _) => "still open".into(),
    };
    vec![reference, digest, time(held.opened_ms), until, who, process, runtime, grounds]
}

/// The pod, else the container, else the user.
fn who(caller: &Caller) -> String {
    match (&caller.pod, &caller.container, caller.uid) {
        (Some(pod), ..) => format!("pod {pod}"),
        (None, Some(container), _) => format!("container {:.12}", container),
        (None, None, Some(uid)) => format!("uid {uid}"),
        (None, None, None) => "-".into(),
    }
}

fn process(caller: &Caller) -> String {
    let name = caller.process.as_deref().unwrap_or("-");
    caller.pid.map_or(name.to_owned(), |pid| format!("{name} ({pid})"))
}

fn grounds_text(grounds: &Grounds) -> String {
    match grounds {
        Grounds::Ungated => "ungated".into(),
        Grounds::Promoted { statement, stage, hardware } => {
            format!("promoted to {stage} on {hardware} by {}", statement.short())
        }
        Grounds::Evaluator { key } => format!("evaluator {}", key.short()),
        Grounds::Exempt { statement } => format!("exempt by policy {}", statement.short()),
    }
}

fn time(ms: u64) -> String {
    UnixTime(ms / 1000).to_string()
}

fn kept(page: &Page) -> String {
    page.oldest.map_or(String::new(), |(_, ms)| format!(", which goes back to {}", time(ms)))
}

fn lost(page: &Page) -> String {
    match page.lost {
        0 => String::new(),
        lost => format!(
            "warning: {} could not be written since this log began\n",
            counted(lost as usize, "event")
        ),
    }
}

#[cfg(test)]
mod tests {
    use weighlock_protocol::ManifestDigest;
    use weighlock_protocol::audit::Door;

    use super::*;

    fn entry() -> Entry {
        Entry {
            session: 3,
            reference: "acme/bot:production".into(),
            digest: Some(ManifestDigest([0xab; 32])),
            door: Door::Loader,
            caller: Caller {
                uid: Some(1000),
                pid: Some(77),
                process: Some("python3".into()),
                pod: Some("8d2c41a6-9a7c-4a54-8a2e-0f7d8a0c1b2d".into()),
                runtime: Some("weighlock-python 0.1.0 vllm 0.6.3".into()),
                ..Caller::default()
            },
            grounds: Some(Grounds::Ungated),
            reason: None,
            since_ms: None,
        }
    }

    #[test]
    fn what_was_open_on_a_day_is_told_with_its_pod_and_runtime() {
        let open = Held { entry: entry(), opened_ms: 1_772_000_000_000, closed_ms: None, closed: None };
        let page = Page {
            name: "gpu-17".into(),
            oldest: Some((1, 1_770_000_000_000)),
            open: vec![open],
            ..Page::default()
        };
        let told = held(&page, When { from_ms: 1_772_496_000_000, until_ms: 1_772_582_400_000 });
        let lines: Vec<&str> = told.lines().collect();
        assert_eq!(lines[0], "gpu-17 from 2026-03-03T00:00:00Z to 2026-03-04T00:00:00Z: 1 artifact open");
        for word in [
            "acme/bot:production",
            "abababababab",
            "2026-02-25T06:13:20Z",
            "still open",
            "pod 8d2c41a6",
            "python3 (77)",
            "vllm 0.6.3",
            "ungated",
        ] {
            assert!(lines[2].contains(word), "{word} is not in {}", lines[2]);
        }
        let early = held(&page, When { from_ms: 1, until_ms: 2 });
        assert!(early.contains("warning: this log tells of no earlier time"), "{early}");
    }

    #[test]
    fn refusals_and_gaps_tell_why() {
        let refused = Entry { grounds: None, reason: Some("no evidence".into()), ..entry() };
        let line = |event| Line {
            seq: 1,
            prev: weighlock_protocol::Sha256([0; 32]),
            time_ms: 1_772_496_000_000,
            event,
        };
        let gap = weighlock_protocol::audit::Gap {
            lost: 2,
            from_ms: 1_772_495_000_000,
            until_ms: 1_772_496_000_000,
            reason: "No space left on device".into(),
        };
        let page = Page {
            events: vec![line(Event::Refused(refused)), line(Event::Gap(gap))],
            lost: 2,
            ..Page::default()
        };
        let told = events(&page);
        assert!(told.lines().nth(1).is_some_and(|row| row.ends_with("no evidence")), "{told}");
        assert!(told.contains("2 events not written since"), "{told}");
        assert!(told.ends_with("warning: 2 events could not be written since this log began\n"), "{told}");
    }
}
