//! `weighlock drain`: a host gets ready to be restarted or taken away.

use std::time::{Duration, Instant};

use clap::Args;

use super::Context;
use super::output::counted;
use crate::error::{Error, Kind, Result};
use crate::local::fleet::Draining;
use crate::local::message::AdminRequest;

const AFTER_HELP: &str = "\
A drained host begins no fetch and gives nothing new to others; they are told that it leaves and
take what they need elsewhere. What is under way is finished. Loaders still open what is here.
SIGTERM does the same for at most limits.drain_timeout_s and then ends the daemon. A daemon that
is started again is not drained.

Exit codes: 0 done, 6 not in time (--wait) or no daemon.";

/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(200);

/// Get this host ready to be restarted or taken away: nothing new begins, what is under way is finished.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Drain {
    /// Wait until nothing is fetched here and nothing is sent to others any more
    #[arg(long)]
    wait: bool,
    /// With --wait: how long at most
    #[arg(long, value_name = "SECONDS", requires = "wait", default_value_t = 300,
        value_parser = clap::value_parser!(u64).range(..=604_800))]
    timeout: u64,
    /// Take part again
    #[arg(long, conflicts_with = "wait")]
    undo: bool,
}

impl Drain {
    pub(super) fn run(self, context: &Context) -> Result<()> {
        let ask = |on| context.ask::<Draining>(&AdminRequest::Drain { on });
        let mut now = ask(Some(!self.undo))?;
        let (began, limit) = (Instant::now(), Duration::from_secs(self.timeout));
        while self.wait && !now.is_done() {
            if !now.draining {
                return Err(Error::new(Kind::Unavailable, "somebody ended the draining meanwhile")
                    .hint("`weighlock status` tells what the daemon does"));
            }
            let Some(left) = limit.checked_sub(began.elapsed()) else {
                return Err(Error::unavailable(format!(
                    "after {} s there is still {}",
                    self.timeout,
                    under_way(&now)
                ))
                .hint("wait longer (--timeout), or stop it all the same: what is fetched here resumes, others go elsewhere"));
            };
            std::thread::sleep(left.min(PAUSE));
            now = ask(None)?;
        }
        context.output.print(&now, text)
    }
}

fn text(now: &Draining) -> String {
    if !now.draining {
        return "this host takes part again\n".into();
    }
    let open = match now.open {
        0 => String::new(),
        open => format!("loaders have {} open and keep what they have mapped\n", counted(open, "artifact")),
    };
    let state = match now.is_done() {
        true => "drained: nothing is under way".to_owned(),
        false => format!("draining: {}", under_way(now)),
    };
    format!("{state}\n{open}")
}

fn under_way(now: &Draining) -> String {
    format!(
        "{} being fetched, {} to others",
        counted(now.fetches, "artifact"),
        counted(now.sending, "upload")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_under_way_is_told() {
        let mut now = Draining { draining: true, fetches: 2, sending: 1, open: 0 };
        assert_eq!(text(&now), "draining: 2 artifacts being fetched, 1 upload to others\n");
        (now.fetches, now.sending, now.open) = (0, 0, 1);
        assert!(now.is_done());
        assert!(text(&now).starts_with("drained: nothing is under way\nloaders have 1 artifact open"));
        now.draining = false;
        assert!(!now.is_done() && text(&now).contains("takes part again"));
    }
}
