//! Tickets: one line of text that lets a host join a cluster while the admin is away.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use data_encoding::BASE64URL_NOPAD;
use serde::{Deserialize, Serialize};

use crate::id::{ClusterId, KeyId, StatementId};
use crate::statement::{
    Admit, Envelope, Invite, Keypair, Kind, Labels, Ledger, LedgerConfig, Signed, Statement, StatementError,
};
use crate::time::UnixTime;

/// Longest ticket accepted, in bytes of text.
pub const TICKET_LEN_MAX: usize = 1 << 20;
/// Most hosts that a ticket names as first contacts.
pub const BOOTSTRAP_MAX: usize = 64;
/// Most addresses of one kind for one of them.
pub const ADDRS_MAX: usize = 32;
/// Most roots in a ticket.
pub const ROOTS_MAX: usize = 256;

const PREFIX: &str = "weighlock";
const VERSION: &str = "1";
const CHECKSUM_LEN: usize = 4;
/// Stands first so that the text after the version never starts with a digit.
const LEAD: u8 = 0;

/// Why a text is not a ticket that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    /// Something else altogether.
    #[error(
        "not a ticket: it must start with `weighlock1`; paste the whole line that `weighlock invite` printed"
    )]
    Prefix,
    /// A format that this release does not know.
    #[error("the ticket has format {version}, this release reads format 1; upgrade weighlock on this host")]
    Newer {
        /// The format's number.
        version: String,
    },
    /// Characters are missing or wrong.
    #[error("the ticket is damaged or cut short; paste the whole line that `weighlock invite` printed")]
    Damaged,
    /// Over a limit of this module.
    #[error("the ticket is too large: {what}")]
    TooLarge {
        /// What there is too much of.
        what: &'static str,
    },
    /// Its parts do not belong together, or are forged.
    #[error("the ticket does not hold together ({reason}); ask an admin for a new one")]
    Inconsistent {
        /// What is wrong.
        reason: String,
    },
    /// Too late.
    #[error("the ticket expired at {expires}, it is {now}; ask an admin for a new one")]
    Expired {
        /// When it expired.
        expires: UnixTime,
        /// This host's time.
        now: UnixTime,
    },
}

/// A host to call first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bootstrap {
    /// Its key: whoever answers there must have it.
    pub host: KeyId,
    /// Its data plane.
    pub data_addrs: Vec<SocketAddr>,
    /// Its control plane.
    pub control_addrs: Vec<SocketAddr>,
}

/// All that a stranger needs to become a member. Whoever has it can join: it is a secret.
#[derive(Clone)]
pub struct Ticket {
    key: Keypair,
    roots: Vec<Envelope>,
    invite_envelope: Envelope,
    cluster: ClusterId,
    invite: Invite,
    bootstrap: Vec<Bootstrap>,
}

impl Ticket {
    /// A ticket for `invite`, made by who holds the ticket's key.
    ///
    /// `roots` is the chain from the first root to the one in force. It and the invite are proven here, up to the
    /// point where the invite waits for statements before it that a ticket does not carry.
    ///
    /// # Errors
    /// The parts do not belong together, or there are too many.
    pub fn new(
        key: Keypair,
        roots: Vec<Envelope>,
        invite: Envelope,
        bootstrap: Vec<Bootstrap>,
    ) -> Result<Self, TicketError> {
        let too_large = |what| Err(TicketError::TooLarge { what });
        if roots.len() > ROOTS_MAX {
            return too_large("it has more than 256 roots");
        }
        if bootstrap.len() > BOOTSTRAP_MAX {
            return too_large("it names more than 64 hosts");
        }
        if bootstrap.iter().any(|b| b.data_addrs.len() > ADDRS_MAX || b.control_addrs.len() > ADDRS_MAX) {
            return too_large("a host has more than 32 addresses");
        }
        let first = roots.first().ok_or_else(|| inconsistent("it has no root"))?;
        let cluster = ClusterId(first.id().0);
        let mut ledger = Ledger::new(LedgerConfig::new(cluster));
        let checked = roots.iter().map(|root| ledger.check(root)).collect::<Result<Vec<_>, _>>();
        ledger.apply_all(checked.map_err(|e| inconsistent(e.to_string()))?);
        if ledger.root_chain().count() != roots.len() {
            return Err(inconsistent("its roots do not follow from each other"));
        }
        let signed = ledger.check(&invite).map_err(|e| inconsistent(e.to_string()))?;
        let Kind::Invite(body) = &signed.statement().kind else {
            return Err(inconsistent("its invite is another kind of statement"));
        };
        if body.ticket != key.key_id() {
            return Err(inconsistent("its key is not the one that the invite names"));
        }
        Ok(Self { invite: body.clone(), key, roots, invite_envelope: invite, cluster, bootstrap })
    }

    /// The cluster that it leads to.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// The key that admits hosts.
    pub fn key_id(&self) -> KeyId {
        self.key.key_id()
    }

    /// The chain of roots, first to present.
    pub fn roots(&self) -> &[Envelope] {
        &self.roots
    }

    /// The invite's statement.
    pub fn invite_id(&self) -> StatementId {
        self.invite_envelope.id()
    }

    /// The invite's envelope.
    pub fn invite_envelope(&self) -> &Envelope {
        &self.invite_envelope
    }

    /// What the invite says.
    pub fn invite(&self) -> &Invite {
        &self.invite
    }

    /// Hosts to call first.
    pub fn bootstrap(&self) -> &[Bootstrap] {
        &self.bootstrap
    }

    /// Admits the host `host` at `now`, until `expires` or as long as the invite lets. The envelope proves itself: any
    /// member can let the host in.
    ///
    /// # Errors
    /// The ticket has expired, or the name or labels are not acceptable.
    pub fn admit(
        &self,
        host: KeyId,
        name: &str,
        labels: Labels,
        now: UnixTime,
        expires: UnixTime,
    ) -> Result<Envelope, TicketError> {
        if now > self.invite.expires {
            return Err(TicketError::Expired { expires: self.invite.expires, now });
        }
        let statement = Statement {
            cluster: Some(self.cluster),
            by: self.key.key_id(),
            time: now,
            chain: None,
            kind: Kind::Admit(Admit {
                host,
                name: name.to_owned(),
                labels,
                expires: expires.min(now.plus(self.invite.admit_secs_max)),
                invite: Some(self.invite_id()),
            }),
        };
        let envelope = statement.sign(&[&self.key]);
        Signed::parse(envelope.clone()).map_err(|e: StatementError| inconsistent(e.to_string()))?;
        Ok(envelope)
    }

    /// The line of text that [`FromStr`] reads. It is a secret, so this is no `Display`.
    pub fn to_text(&self) -> String {
        let wire = Wire {
            seed: self.key.seed(),
            roots: self.roots.clone(),
            invite: self.invite_envelope.clone(),
            bootstrap: self.bootstrap.clone(),
        };
        let mut bytes = vec![LEAD];
        bytes.extend(postcard::to_allocvec(&wire).expect("vectors of known length always serialize"));
        let checksum = blake3::hash(&bytes);
        bytes.extend_from_slice(&checksum.as_bytes()[..CHECKSUM_LEN]);
        format!("{PREFIX}{VERSION}{}", BASE64URL_NOPAD.encode(&bytes))
    }
}

impl FromStr for Ticket {
    type Err = TicketError;

    /// Reads and proves a ticket; white space around it is ignored.
    fn from_str(text: &str) -> Result<Self, TicketError> {
        let text = text.trim();
        if text.len() > TICKET_LEN_MAX {
            return Err(TicketError::TooLarge { what: "it is longer than 1 MiB" });
        }
        let rest = text.strip_prefix(PREFIX).ok_or(TicketError::Prefix)?;
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (version, body) = rest.split_at(digits);
        match version {
            "" => return Err(TicketError::Prefix),
            VERSION => {}
            _ => {
                return Err(TicketError::Newer { version: version.chars().take(9).collect() });
            }
        }
        let bytes = BASE64URL_NOPAD.decode(body.as_bytes()).map_err(|_| TicketError::Damaged)?;
        let split = bytes.len().checked_sub(CHECKSUM_LEN).ok_or(TicketError::Damaged)?;
        let (content, checksum) = bytes.split_at(split);
        if blake3::hash(content).as_bytes()[..CHECKSUM_LEN] != *checksum {
            return Err(TicketError::Damaged);
        }
        let content = content.strip_prefix(&[LEAD]).ok_or(TicketError::Damaged)?;
        let (wire, rest) = postcard::take_from_bytes::<Wire>(content).map_err(|_| TicketError::Damaged)?;
        if !rest.is_empty() {
            return Err(TicketError::Damaged);
        }
        Self::new(Keypair::from_seed(wire.seed), wire.roots, wire.invite, wire.bootstrap)
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket")
            .field("cluster", &self.cluster)
            .field("invite", &self.invite_id())
            .field("bootstrap", &self.bootstrap)
            .finish_non_exhaustive()
    }
}

#[derive(Serialize, Deserialize)]
struct Wire {
    seed: [u8; 32],
    roots: Vec<Envelope>,
    invite: Envelope,
    bootstrap: Vec<Bootstrap>,
}

fn inconsistent(reason: impl Into<String>) -> TicketError {
    TicketError::Inconsistent { reason: reason.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statement::{Applied, Chain, NamespaceGlob, Role, RoleSpec, Root};
    use std::collections::{BTreeMap, BTreeSet};

    const NOW: UnixTime = UnixTime(1_800_000_000);

    fn key(n: u8) -> Keypair {
        Keypair::from_seed([n; 32])
    }

    fn root() -> Envelope {
        let admin = RoleSpec {
            keys: BTreeSet::from([key(1).key_id()]),
            threshold: 1,
            namespaces: vec!["*".parse::<NamespaceGlob>().expect("glob")],
            members: false,
        };
        let root = Statement {
            cluster: None,
            by: key(1).key_id(),
            time: NOW,
            chain: Some(Chain { seq: 0, prev: None }),
            kind: Kind::Root(Root {
                version: 1,
                prev_root: None,
                name: "lab".to_owned(),
                roles: BTreeMap::from([(Role::Admin, admin)]),
                expires: NOW.plus(1_000_000),
                settled: BTreeMap::new(),
            }),
        };
        root.sign(&[&key(1)])
    }

    fn invite(root: &Envelope) -> Envelope {
        let invite = Statement {
            cluster: Some(ClusterId(root.id().0)),
            by: key(1).key_id(),
            time: NOW,
            chain: Some(Chain { seq: 1, prev: Some(root.id()) }),
            kind: Kind::Invite(Invite {
                ticket: key(0xab).key_id(),
                expires: NOW.plus(3_600),
                uses: 1,
                admit_secs_max: 86_400,
                labels: Labels::new(),
                note: "for the new rack".to_owned(),
            }),
        };
        invite.sign(&[&key(1)])
    }

    fn ticket() -> Ticket {
        let bootstrap = Bootstrap {
            host: key(50).key_id(),
            data_addrs: vec!["10.0.0.1:7000".parse().expect("address")],
            control_addrs: vec!["[fd00::1]:7001".parse().expect("address")],
        };
        Ticket::new(key(0xab), vec![root()], invite(&root()), vec![bootstrap]).expect("consistent")
    }

    #[test]
    fn a_ticket_survives_being_pasted() {
        let text = ticket().to_text();
        assert!(text.starts_with("weighlock1A"), "{text}");
        assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)));
        let read: Ticket = format!("  {text}\n").parse().expect("reads");
        assert_eq!(read.to_text(), text);
        assert_eq!((read.cluster(), read.bootstrap()), (ClusterId(root().id().0), ticket().bootstrap()));
        assert_eq!(read.key_id(), key(0xab).key_id());
    }

    #[test]
    fn a_host_admits_itself_with_it() {
        let ticket = ticket();
        let mut ledger = Ledger::new(LedgerConfig::new(ticket.cluster()));
        let host = key(60).key_id();
        let labels = Labels::from([("gpu".to_owned(), "h100".to_owned())]);
        let admission =
            ticket.admit(host, "node-7", labels, NOW.plus(5), NOW.plus(1_000_000)).expect("in time");
        for envelope in [&ticket.roots()[0], ticket.invite_envelope(), &admission] {
            let checked = ledger.check(envelope).expect("proves itself");
            assert_eq!(ledger.apply(checked), Applied::Effective);
        }
        let member = ledger.member(&host, NOW.plus(6)).expect("member");
        assert_eq!((member.name.as_str(), member.expires), ("node-7", NOW.plus(86_405)));
        let late = ticket.admit(host, "node-7", Labels::new(), NOW.plus(3_601), NOW.plus(5_000));
        assert!(matches!(late, Err(TicketError::Expired { .. })));
        let name = ticket.admit(host, "\u{1b}[2J", Labels::new(), NOW, NOW.plus(5_000));
        assert!(matches!(name, Err(TicketError::Inconsistent { .. })));
    }

    #[test]
    fn what_is_no_ticket_says_why() {
        let text = ticket().to_text();
        let error = |text: &str| text.parse::<Ticket>().expect_err("refused");
        assert_eq!(error(""), TicketError::Prefix);
        assert_eq!(error("acme/bot:1"), TicketError::Prefix);
        assert_eq!(error("weighlockAAAA"), TicketError::Prefix);
        assert_eq!(error("weighlock1"), TicketError::Damaged);
        let newer = text.replacen("weighlock1", "weighlock12", 1);
        assert_eq!(error(&newer), TicketError::Newer { version: "12".to_owned() });
        for cut in [1, 2, 3, 4, 7, text.len() / 2] {
            assert_eq!(error(&text[..text.len() - cut]), TicketError::Damaged, "cut by {cut}");
        }
        for at in (10..text.len()).step_by(37) {
            let mut bytes = text.clone().into_bytes();
            bytes[at] = if bytes[at] == b'x' { b'y' } else { b'x' };
            let error = error(&String::from_utf8(bytes).expect("ascii"));
            assert_eq!(error, TicketError::Damaged, "character {at}");
        }
        let long = format!("{text}{}", "A".repeat(TICKET_LEN_MAX));
        assert!(matches!(error(&long), TicketError::TooLarge { .. }));
    }

    #[test]
    fn parts_that_do_not_belong_together_are_refused() {
        let refused = |key, roots, invite| {
            let error = Ticket::new(key, roots, invite, Vec::new()).expect_err("refused");
            assert!(matches!(error, TicketError::Inconsistent { .. }), "{error}");
        };
        refused(key(2), vec![root()], invite(&root()));
        refused(key(0xab), Vec::new(), invite(&root()));
        refused(key(0xab), vec![root()], root());
        refused(key(0xab), vec![invite(&root())], invite(&root()));
        refused(key(0xab), vec![root(), root()], invite(&root()));
    }

    #[test]
    fn the_secret_is_not_printed() {
        let text = format!("{:?}", ticket());
        assert!(!text.contains("171, 171") && !text.to_lowercase().contains("abab"), "{text}");
        assert!(text.contains("10.0.0.1"), "{text}");
    }
}
