//! Signed facts: in-toto statements in DSSE envelopes, per-signer chains, and the fold that turns them into state.
//!
//! Bytes become an [`Envelope`], an envelope becomes a `Signed<Statement, Unverified>`, its signatures make that
//! `Verified`, [`Ledger::check`] makes it [`Checked`] for one cluster, and [`Ledger::apply`] adds it to the set.
//! State is a function of that set alone: `chain` says which statements stand in line, `authority` who may say
//! what, `tags` what was published, `weighed` what was measured and judged, `ladder` which manifest is the head of
//! each channel and what may be opened.

mod alarm;
mod authority;
pub mod body;
mod chain;
pub mod envelope;
mod glob;
mod ladder;
mod ledger;
mod payload;
pub mod promotion;
mod query;
pub mod reconcile;
mod summary;
mod tags;
pub mod weighed;
mod why;

pub use alarm::Alarm;
pub use body::{
    Admit, Chain, Invite, Kind, Labels, Publish, Revoke, Role, RoleSpec, Root, Statement, Target,
};
pub use envelope::{Envelope, Keypair, Signature, Signed, StatementError, Unverified, Verified};
pub use glob::NamespaceGlob;
pub use ladder::{Ballot, Closed, Draft, Event, Grounds, Head, Heard, Hold, PolicyStatus, Vote};
pub use ledger::{Applied, Checked, Ledger, LedgerConfig, Refusal, SAID_SHARE};
pub use promotion::{
    Approval, Channel, Cosignature, Follow, HARDWARE_ANY, OnChannel, Promotion, Rollback, Scope, SetPolicy,
    is_hardware_key,
};
pub use query::{Denied, InviteStatus, Member, Revocation, RootStatus};
pub use summary::{BUCKETS, Bucket, BucketsError, Entry, Summary};
pub use tags::{Published, Resolution};
pub use weighed::{Evaluate, Findings, Ruling, Said};
pub use why::{Status, Why};

#[cfg(test)]
mod tests;
