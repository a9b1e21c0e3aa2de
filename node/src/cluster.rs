//! Founding a cluster and joining one: the statements that a host writes about itself before it meets others.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use weighlock_cache::Store;
use weighlock_protocol::statement::{
    Admit, Chain, Envelope, Keypair, Kind, Labels, NamespaceGlob, Role, RoleSpec, Root, Statement,
};
use weighlock_protocol::wire::join::Contact;
use weighlock_protocol::{ClusterId, KeyId, UnixTime};

use crate::error::{Error, Result};
use crate::keys;

/// A first root is due for renewal after this many seconds: one year.
pub const ROOT_SECONDS: u64 = 365 * 86_400;
/// An admission without a ticket lasts this many seconds: one year.
pub const ADMIT_SECONDS: u64 = 365 * 86_400;

/// Members whose addresses are remembered over a restart.
pub const CONTACTS_MAX: usize = 1024;

/// Settings of the store that say which cluster it belongs to.
const SETTING_CLUSTER: &str = "cluster";
const SETTING_JOIN: &str = "join";
const SETTING_CONTACTS: &str = "contacts";

/// The time by this host's clock.
pub fn now() -> UnixTime {
    UnixTime(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}

/// The name of this host for lists: as configured, else the system's.
pub fn host_name(configured: Option<&str>) -> String {
    let uname = rustix::system::uname();
    let name = configured
        .filter(|name| !name.is_empty())
        .map_or_else(|| uname.nodename().to_string_lossy().into_owned(), str::to_owned);
    name.chars().filter(|c| !c.is_control()).take(64).collect()
}

/// What a joiner still has to hand in, kept until a member took it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PendingJoin {
    /// Root chain, invite and admission as DSSE JSON text.
    pub statements: Vec<String>,
    /// Whom to ask.
    pub contacts: Vec<Contact>,
}

/// The cluster that a store belongs to, if it does.
///
/// # Errors
/// The store cannot be read.
pub fn of(store: &Store) -> Result<Option<ClusterId>> {
    setting(store, SETTING_CLUSTER)
}

/// What a joiner still has to hand in.
///
/// # Errors
/// The store cannot be read.
pub fn pending_join(store: &Store) -> Result<Option<PendingJoin>> {
    setting(store, SETTING_JOIN)
}

/// Marks it as handed in.
///
/// # Errors
/// The store cannot be written.
pub fn join_done(store: &Store) -> Result<()> {
    set(store, SETTING_JOIN, None::<&PendingJoin>)
}

/// Members' addresses from the last run.
///
/// # Errors
/// The store cannot be read.
pub fn contacts(store: &Store) -> Result<Vec<Contact>> {
    Ok(setting(store, SETTING_CONTACTS)?.unwrap_or_default())
}

/// Adds members' addresses to those that are remembered; newer ones of a host replace its older ones.
///
/// # Errors
/// The store cannot be written.
pub fn add_contacts(store: &Store, more: &[Contact]) -> Result<()> {
    let mut all: BTreeMap<_, _> =
        contacts(store)?.into_iter().map(|contact| (contact.host, contact)).collect();
    let before = all.clone();
    all.extend(more.iter().map(|contact| (contact.host, contact.clone())));
    if all == before {
        return Ok(());
    }
    let all: Vec<Contact> = all.into_values().take(CONTACTS_MAX).collect();
    set(store, SETTING_CONTACTS, Some(&all))
}

/// Drops the addresses that are remembered of a member.
///
/// # Errors
/// The store cannot be written.
pub fn drop_contact(store: &Store, host: &KeyId) -> Result<()> {
    let mut all = contacts(store)?;
    let before = all.len();
    all.retain(|contact| contact.host != *host);
    if all.len() == before { Ok(()) } else { set(store, SETTING_CONTACTS, Some(&all)) }
}

/// A founded cluster.
#[derive(Debug, Clone, Serialize)]
pub struct Founded {
    /// Its id.
    pub cluster: ClusterId,
    /// Its name.
    pub name: String,
    /// Where the admin key lies. Who has it rules the cluster; without it nobody is invited or revoked.
    pub admin_key: PathBuf,
}

/// Makes a cluster whose first member is this host and whose one admin key is written to `keys_dir`. Nothing is in
/// the store unless all of it is.
///
/// # Errors
/// The store belongs to a cluster already, or a key cannot be written.
pub fn found(
    store: &Store,
    keys_dir: &Path,
    host: &Keypair,
    host_name: &str,
    labels: &Labels,
    name: &str,
) -> Result<Founded> {
    if let Some(cluster) = of(store)? {
        return Err(Error::refused(format!("this store already belongs to cluster {}", cluster.short()))
            .hint("another --data-dir makes another host"));
    }
    let admin = keys::generate()?;
    let time = now();
    let everywhere: Vec<NamespaceGlob> = vec!["*".parse().map_err(Error::internal)?];
    let role =
        |keys: BTreeSet<_>, members| RoleSpec { keys, threshold: 1, namespaces: everywhere.clone(), members };
    let admins = BTreeSet::from([admin.key_id()]);
    let roles = BTreeMap::from([
        (Role::Admin, role(admins.clone(), false)),
        (Role::Publisher, role(admins.clone(), true)),
        (Role::Evaluator, role(admins.clone(), false)),
        (Role::Promoter, role(admins, false)),
        (Role::Witness, role(BTreeSet::from([host.key_id()]), false)),
    ]);
    let root = Root {
        version: 1,
        prev_root: None,
        name: name.to_owned(),
        roles,
        expires: time.plus(ROOT_SECONDS),
        settled: BTreeMap::new(),
    };
    let root = Statement {
        cluster: None,
        by: admin.key_id(),
        time,
        chain: Some(Chain { seq: 0, prev: None }),
        kind: Kind::Root(root),
    }
    .sign(&[&admin]);
    let cluster = ClusterId(root.id().0);
    let admit = Admit {
        host: host.key_id(),
        name: host_name.to_owned(),
        labels: labels.clone(),
        expires: time.plus(ADMIT_SECONDS),
        invite: None,
    };
    let admit = Statement {
        cluster: Some(cluster),
        by: admin.key_id(),
        time,
        chain: Some(Chain { seq: 1, prev: Some(root.id()) }),
        kind: Kind::Admit(admit),
    }
    .sign(&[&admin]);
    // The key first: a cluster without its key would be lost, a key without a cluster is only litter.
    let admin_key = keys::admin_key_path(keys_dir, &cluster);
    keys::save(&admin_key, &admin)?;
    belong(store, cluster, &[root, admit], None)?;
    Ok(Founded { cluster, name: name.to_owned(), admin_key })
}

/// Commits that this store belongs to `cluster`, with its first statements.
///
/// # Errors
/// The store cannot be written.
pub fn belong(
    store: &Store,
    cluster: ClusterId,
    statements: &[Envelope],
    join: Option<&PendingJoin>,
) -> Result<()> {
    let rows: Vec<_> = statements.iter().map(|envelope| (envelope.id(), envelope.to_json())).collect();
    store.append_statements(&rows).map_err(Error::from)?;
    set(store, SETTING_JOIN, join)?;
    // Last: without this setting the rest means nothing and is written again.
    set(store, SETTING_CLUSTER, Some(&cluster))
}

fn setting<T: serde::de::DeserializeOwned>(store: &Store, key: &str) -> Result<Option<T>> {
    store.setting(key).map_err(Error::from)
}

fn set<T: Serialize>(store: &Store, key: &str, value: Option<&T>) -> Result<()> {
    store.set_setting(key, value).map_err(Error::from)
}
