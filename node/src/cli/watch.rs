//! `weighlock watch REF --exec CMD`: says when a channel's head moves, and runs a reload hook.

use std::process::Command;
use std::time::Duration;

use clap::Args;
use weighlock_protocol::audit::Door;
use weighlock_protocol::{ManifestDigest, Reference, Selector};

use super::{Context, connect};
use crate::error::{Error, Kind, Result};
use crate::local::message::{AdminRequest, ChannelHead, Event, Introduction, LoaderRequest, OpenFor, Viewed};
use crate::sandbox;

/// Pause before a daemon that is gone is looked for again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

const AFTER_HELP: &str = "\
CMD is run without a shell, once for the head that there is and once each time that it moves, after
its files are here; a rollback is a move too. {path} stands for the read-only directory, {digest}
for the digest, {ref} for the channel. For example:
  weighlock watch acme/support-bot:production --exec 'systemctl reload vllm'";

/// Say when the head of a channel moves, and run a reload hook.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Watch {
    /// ns/name:stage
    reference: String,
    /// The hook
    #[arg(long, value_name = "CMD")]
    exec: Option<String>,
    /// Say and do nothing about the head that there is now
    #[arg(long)]
    skip_first: bool,
    /// End after the first head that is told
    #[arg(long)]
    once: bool,
}

/// The hook's words, and the number by which the daemon knows who runs it.
struct Hook {
    id: u64,
    words: Vec<String>,
}

impl Watch {
    pub(super) fn run(self, context: &Context) -> Result<()> {
        let reference: Reference = self.reference.parse()?;
        if !matches!(reference.selector, Selector::Stage(_)) {
            return Err(Error::invalid(format!("{reference} is no channel"))
                .hint("watch a stage, such as ns/name:production"));
        }
        let hook = self.exec.as_deref().map(sandbox::split).transpose();
        let hook = hook.map_err(|e| Error::invalid(format!("--exec: {e}")))?;
        let id = getrandom::u64().map_err(Error::internal)?;
        let hook = hook.map(|words| Hook { id, words });
        if hook.is_some() {
            // Who may watch may not have views made; better said now than when a head has moved.
            let _: Introduction = context.ask(&AdminRequest::Introduction)?;
        }
        let mut last: Option<ChannelHead> = None;
        let mut first = true;
        loop {
            match self.listen(context, &reference, hook.as_ref(), &mut last, &mut first) {
                Ok(()) => return Ok(()),
                // A daemon that is restarted is no reason for a hook to be forgotten.
                Err(error) if error.kind == Kind::Unavailable && !first => {
                    if !context.output.is_quiet() {
                        eprintln!("warning: {}; looks again", error.message);
                    }
                    std::thread::sleep(RETRY_PAUSE);
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn listen(
        &self,
        context: &Context,
        reference: &Reference,
        hook: Option<&Hook>,
        last: &mut Option<ChannelHead>,
        first: &mut bool,
    ) -> Result<()> {
        let mut client = connect(&context.dirs.loader_socket())?;
        client
            .send(&LoaderRequest::Watch { reference: reference.to_string(), hook: hook.map(|hook| hook.id) })
            .map_err(|e| super::lost(&e))?;
        loop {
            let head = match client.recv::<Event>().map_err(|e| super::lost(&e))?.0 {
                Event::Head(head) => head,
                Event::Error(error) => return Err(error),
                _ => return Err(Error::internal("the daemon sent an answer of the wrong kind")),
            };
            let skip = std::mem::take(first) && self.skip_first;
            let same =
                last.as_ref().is_some_and(|last| last.digest == head.digest && last.closed == head.closed);
            if skip || same {
                *last = Some(head);
                continue;
            }
            context.output.print(&head, line)?;
            if let (Some(hook), Some(digest), None) = (hook, head.digest, &head.closed) {
                run(context, hook, reference, digest)?;
            }
            // Not before the hook has run: who comes back after a daemon's restart must run it still.
            *last = Some(head);
            if self.once {
                return Ok(());
            }
        }
    }
}

fn line(head: &ChannelHead) -> String {
    match (&head.digest, &head.closed) {
        (None, _) => format!("{} has no head\n", head.reference),
        (Some(digest), Some(why)) => format!("{} is {digest}, which does not open: {why}\n", head.reference),
        (Some(digest), None) if head.rolled_back => {
            format!("{} is {digest}, rolled back to\n", head.reference)
        }
        (Some(digest), None) => format!("{} is {digest}\n", head.reference),
    }
}

/// Runs the hook. One that fails is said and forgotten: the next move may fare better.
fn run(context: &Context, hook: &Hook, reference: &Reference, digest: ManifestDigest) -> Result<()> {
    let by_digest = Reference { artifact: reference.artifact.clone(), selector: Selector::Digest(digest) };
    let viewed: Viewed = match context.ask(&AdminRequest::View {
        reference: by_digest.to_string(),
        purpose: OpenFor::Use,
        door: Door::Path,
    }) {
        Ok(viewed) => viewed,
        // Shut again: another head will be told. All else may pass, so it is tried anew.
        Err(error) if error.kind != Kind::Refused => {
            return Err(Error::unavailable(format!("{digest} is not here: {}", error.message)));
        }
        Err(error) => {
            eprintln!("warning: {digest} is not opened: {}", error.message);
            return Ok(());
        }
    };
    let path = viewed.path.to_string_lossy();
    let filled: Vec<String> = hook
        .words
        .iter()
        .map(|word| {
            word.replace("{path}", &path)
                .replace("{digest}", &digest.to_string())
                .replace("{ref}", &reference.to_string())
        })
        .collect();
    let Some((program, arguments)) = filled.split_first() else { return Ok(()) };
    let started = Command::new(program).args(arguments).spawn().inspect(|_| {
        // What ran before has been told, so the directory of a head that was called bad may go.
        let told = context.ask::<()>(&AdminRequest::HookStarted { hook: hook.id, digest });
        if let Err(error) = told {
            eprintln!("warning: the daemon was not told that the hook runs: {}", error.message);
        }
    });
    match started.and_then(|mut child| child.wait()) {
        Ok(status) if status.success() => {}
        Ok(status) => eprintln!("warning: the hook for {digest} ended with {status}"),
        Err(e) => eprintln!("warning: the hook {program} does not run: {e}"),
    }
    Ok(())
}
