//! Tells a loader what the head of a channel is, and each time that it moves; rollbacks included.

use std::time::Duration;

use rustix::net::RecvFlags;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::broadcast::error::RecvError;
use weighlock_protocol::{Reference, Selector};

use super::{Failed, Session};
use crate::cluster::now;
use crate::error::Error;
use crate::local::frame;
use crate::local::message::{ChannelHead, Event};

/// How often it looks without being told of a change: what is expired does not open any more.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);

impl Session {
    /// Runs until the loader sends something else or closes the socket.
    pub(super) async fn watch(
        &mut self,
        stream: &mut UnixStream,
        text: &str,
        hook: Option<u64>,
    ) -> Result<(), Failed> {
        let reference: Reference = text.parse().map_err(Error::from)?;
        if !matches!(reference.selector, Selector::Stage(_)) {
            return Err(Error::invalid(format!("{reference} is no channel"))
                .hint("watch a stage, such as ns/name:production")
                .into());
        }
        let node = self.node.clone();
        let hook = hook.map(|id| node.views.hook(id));
        let mut changes = self.node.facts.changes();
        let mut said = None;
        loop {
            let head = self.head(&reference);
            if said.as_ref() != Some(&head) {
                if let (Some(hook), Some(digest), None) = (&hook, head.digest, &head.closed) {
                    hook.told(digest);
                }
                frame::write(stream, &Event::Head(head.clone())).await.map_err(Failed::Socket)?;
                said = Some(head);
            }
            let look = tokio::time::sleep(LOOK_INTERVAL);
            tokio::pin!(look);
            loop {
                tokio::select! {
                    () = self.node.stop.cancelled() => {
                        return Err(Error::unavailable("the daemon is stopping").into());
                    }
                    done = has_more(stream) => return done.map_err(Failed::Socket),
                    () = &mut look => break,
                    change = changes.recv() => match change {
                        Ok(change) if change.moves => break,
                        Ok(_) => {}
                        Err(RecvError::Lagged(_)) => break,
                        Err(RecvError::Closed) => return Ok(()),
                    }
                }
            }
        }
    }

    fn head(&self, reference: &Reference) -> ChannelHead {
        let facts = &self.node.facts;
        let Selector::Stage(stage) = &reference.selector else {
            return ChannelHead::none(reference);
        };
        let ledger = facts.ledger();
        let Some(head) = ledger.head(&reference.artifact, *stage, facts.hardware()) else {
            return ChannelHead::none(reference);
        };
        let closed = ledger.may_open(&reference.artifact, &head.manifest, facts.hardware(), now()).err();
        ChannelHead {
            reference: reference.to_string(),
            digest: Some(head.manifest),
            statement: Some(head.statement),
            since: Some(head.since.0),
            rolled_back: head.rolled_back,
            closed: closed.map(|closed| closed.to_string()),
        }
    }
}

/// Returns once the loader has sent something, which is left where it is, or has closed the socket.
async fn has_more(stream: &UnixStream) -> std::io::Result<()> {
    loop {
        stream.ready(Interest::READABLE).await?;
        let peek = stream.try_io(Interest::READABLE, || {
            let mut byte = [0; 1];
            Ok(rustix::net::recv(stream, &mut byte, RecvFlags::PEEK | RecvFlags::DONTWAIT)?)
        });
        match peek {
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
            Ok(_) => return Ok(()),
        }
    }
}
