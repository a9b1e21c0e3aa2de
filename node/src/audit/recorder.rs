//! What a door holds to write into the audit log: who is on the other side, and the number of the connection.

use tokio::net::UnixStream;
use weighlock_protocol::ManifestDigest;
use weighlock_protocol::audit::{
    Caller, Door, Entry, Event, Grounds, REASON_CHARS_MAX, TEXT_CHARS_MAX, bounded,
};

use super::{Audit, Why, caller};
use crate::daemon::Node;
use crate::error::{Error, Result};
use crate::fetch::blocking;

/// One connection's hand on the log.
pub(crate) struct Recorder {
    audit: Audit,
    caller: Caller,
    session: u64,
}

/// An entry that an artifact was handed out; grounds are missing yet.
#[derive(Clone)]
pub(crate) struct Grant {
    audit: Audit,
    entry: Entry,
    as_event: fn(Entry) -> Event,
}

impl Grant {
    /// Writes it; the number of the session. Blocks on the disk.
    pub(crate) fn write(&self, grounds: Grounds) -> u64 {
        let entry = Entry { grounds: Some(grounds), ..self.entry.clone() };
        self.audit.write(entry, self.as_event)
    }
}

/// A question for an artifact, before it is known what it means.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    /// As it was asked.
    pub(crate) text: String,
    pub(crate) door: Door,
}

impl Recorder {
    pub(crate) fn new(node: &Node, stream: &UnixStream) -> Self {
        Self { audit: node.audit.clone(), caller: caller::of(stream), session: 0 }
    }

    /// Notes what the client says of itself; the last word counts.
    pub(crate) fn introduce(&mut self, client: Option<&str>) {
        if let Some(client) = client {
            self.caller.runtime = Some(bounded(client, TEXT_CHARS_MAX));
        }
    }

    /// Notes that an artifact is handed out, before it is. Async, because it waits for the disk.
    pub(crate) async fn granted(
        &mut self,
        asked: &Asked,
        digest: ManifestDigest,
        grounds: Grounds,
    ) -> Result<()> {
        let grant = self.granting(asked, digest);
        self.session = blocking(move || Ok(grant.write(grounds))).await?;
        Ok(())
    }

    /// What [`Recorder::granted`] writes, for a worker that does other things on the way.
    pub(crate) fn granting(&self, asked: &Asked, digest: ManifestDigest) -> Grant {
        let as_event = if asked.door == Door::Loader { Event::Open } else { Event::Taken };
        Grant { audit: self.audit.clone(), entry: self.entry(asked, Some(digest), None, None), as_event }
    }

    /// Tells the number of the session that a [`Grant`] was written with.
    pub(crate) fn is_session(&mut self, session: u64) {
        self.session = session;
    }

    /// Notes the report of an evaluation, which is handed out to whoever may ask at all.
    pub(crate) async fn evidence(&mut self, digest: ManifestDigest) -> Result<()> {
        let asked = Asked { text: digest.to_string(), door: Door::Evidence };
        let entry = self.entry(&asked, Some(digest), Some(Grounds::Ungated), None);
        self.write(entry, Event::Taken).await
    }

    /// Notes that an artifact is not handed out.
    pub(crate) async fn refused(&mut self, node: &Node, asked: &Asked, error: &Error) {
        let meant = asked.text.parse().ok().and_then(|reference| node.facts.resolve(&reference).ok());
        let entry = self.entry(asked, meant, None, Some(error.message.as_str()));
        let _ = self.write(entry, Event::Refused).await;
    }

    /// Notes that it is open no more. Blocks on the disk for one small write, so that it also works while a task ends.
    pub(crate) fn closed(&self, digest: &ManifestDigest, why: Why) {
        self.audit.close(self.session, *digest, why);
    }

    fn entry(
        &self,
        asked: &Asked,
        digest: Option<ManifestDigest>,
        grounds: Option<Grounds>,
        reason: Option<&str>,
    ) -> Entry {
        Entry {
            session: self.session,
            reference: bounded(&asked.text, TEXT_CHARS_MAX),
            digest,
            door: asked.door,
            caller: self.caller.clone(),
            grounds,
            reason: reason.map(|reason| bounded(reason, REASON_CHARS_MAX)),
            since_ms: None,
        }
    }

    async fn write(&mut self, entry: Entry, as_event: fn(Entry) -> Event) -> Result<()> {
        let audit = self.audit.clone();
        self.session = blocking(move || Ok(audit.write(entry, as_event))).await?;
        Ok(())
    }
}
