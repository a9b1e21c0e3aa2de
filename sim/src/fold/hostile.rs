//! What hostile authors do: speak twice, leave gaps, forge, flood, outlive their revocation, lie about the time.

use rand::RngExt;
use weighlock_protocol::statement::envelope::PAYLOAD_TYPE;
use weighlock_protocol::statement::{Chain, Envelope, Invite, Keypair, Kind, Labels, Statement, Target};
use weighlock_protocol::wire::control::{Blob, Request};
use weighlock_protocol::{ClusterId, StatementId, UnixTime};

use super::author::{admit, after, revoke};
use super::cast::key;
use super::host::EPOCH;
use super::world::{Event, FoldWorld, Message, pick};

impl FoldWorld {
    /// One thing that a hostile author does.
    pub(super) fn attack(&mut self) {
        self.counts.attacks += 1;
        let most = if self.options.witnesses > 0 { 17 } else { 13u32 };
        match self.rng.random_range(0..most) {
            0 | 1 => self.equivocate(),
            2 | 3 => self.leave_a_gap(),
            4 | 5 => self.forge(),
            6 => self.say_the_unknown(),
            7 => self.misdate(),
            8 => self.meddle(),
            9 => self.repeat(),
            10 => self.stuff(),
            11 => self.overuse(),
            13 | 14 => self.vote_twice(),
            15 | 16 => self.promote_falsely(),
            _ if self.options.flood => self.flood(),
            _ => self.usurp(),
        }
    }

    /// Two bodies for one place of a chain, at two hosts.
    fn equivocate(&mut self) {
        let (Some(one), Some(other)) = (self.someone(), self.someone()) else { return };
        let (author, chain, time) = self.stolen(one);
        let (a, b) = (self.ghost().key_id(), self.ghost().key_id());
        let first = self.cast.sign(&author, time, Some(chain), admit(a, time, None));
        let second = match self.rng.random_range(0..3u32) {
            0 => revoke(Target::Key { key: a, since: None }),
            1 => unknown("promote/v2"),
            _ => admit(b, time.plus(1), None),
        };
        let second = self.cast.sign(&author, time, Some(chain), second);
        self.say(one, &first);
        self.say(other, &second);
    }

    /// A statement whose predecessor comes late or never.
    fn leave_a_gap(&mut self) {
        let Some(host) = self.someone() else { return };
        let (author, chain, time) = self.stolen(host);
        let ghost = self.ghost().key_id();
        let held_back = self.cast.sign(&author, time, Some(chain), admit(ghost, time, None));
        let mut prev = held_back.id();
        for seq in chain.seq + 1..chain.seq + 1 + self.rng.random_range(1..4u64) {
            let chain = Some(Chain { seq, prev: Some(prev) });
            let kind = revoke(Target::Key { key: self.ghost().key_id(), since: None });
            let after = self.cast.sign(&author, time, chain, kind);
            prev = after.id();
            self.say(host, &after);
        }
        if self.rng.random_bool(0.6) {
            self.note(&held_back);
            let at = self.moment().max(self.now);
            self.queue.push(at, Event::Release { host, envelope: held_back.to_json() });
        }
    }

    /// An admin's key in the wrong hands, and its chain as `host` knows it; at times a stranger's.
    fn stolen(&mut self, host: usize) -> (Keypair, Chain, UnixTime) {
        let author = if self.rng.random_bool(0.8) {
            let n = self.an_admin();
            self.cast.admins[n].clone()
        } else {
            key(self.options.seed, "stranger", 0)
        };
        let chain = self.hosts[host].ledger.next_chain(&author.key_id());
        (author, chain, self.hosts[host].clock(self.now))
    }

    /// Something that nobody signed, from a liar to everyone near.
    fn forge(&mut self) {
        let Some(liar) = self.a_liar() else { return };
        let n = self.rng.random_range(0..self.said.len());
        let real = self.said[n].clone();
        let stranger = key(self.options.seed, "stranger", 1);
        let (admin, time) = (self.an_admin(), self.hosts[liar].clock(self.now));
        let admin = self.cast.admins[admin].clone();
        let forged = match self.rng.random_range(0..5u32) {
            // Another body under a real signature.
            0 => {
                let ghost = self.ghost().key_id();
                let chain = self.hosts[liar].ledger.next_chain(&admin.key_id());
                let body = Statement {
                    cluster: Some(self.cast.cluster),
                    by: admin.key_id(),
                    time,
                    chain: Some(chain),
                    kind: admit(ghost, time, None),
                };
                let payload = body.to_payload();
                self.truth.forged.insert(StatementId::of(&payload));
                assemble(&payload, &[(&real.signatures()[0].bytes, &admin)])
            }
            // A real body with one more signature that is none.
            1 => {
                let by = Statement::parse(real.payload()).expect("it was said").by;
                let author = real.signatures().iter().find(|s| s.key == by).expect("the author signed");
                let junk = stranger.sign(b"something else");
                let mut json = json(&real);
                json["signatures"] = serde_json::json!([
                    { "keyid": author.key.to_string(), "sig": base64(&author.bytes) },
                    { "keyid": admin.key_id().to_string(), "sig": base64(&junk.bytes) },
                ]);
                if author.key == admin.key_id() {
                    return;
                }
                json.to_string().into_bytes()
            }
            // One byte of a real body changed.
            2 => {
                let mut payload = real.payload().to_vec();
                let at = self.rng.random_range(0..payload.len());
                payload[at] ^= 1 << self.rng.random_range(0..8u32);
                self.truth.forged.insert(StatementId::of(&payload));
                let mut json = json(&real);
                json["payload"] = base64(&payload).into();
                json.to_string().into_bytes()
            }
            // In another cluster it may well be true.
            3 => {
                let kind = self.publish_kind();
                let foreign = Statement {
                    cluster: Some(ClusterId([7; 32])),
                    by: admin.key_id(),
                    time,
                    chain: None,
                    kind,
                };
                let foreign = foreign.sign(&[&admin]);
                self.truth.forged.insert(foreign.id());
                foreign.to_json()
            }
            // Signed, but not by the author that it names.
            _ => {
                let kind = self.publish_kind();
                let body = Statement {
                    cluster: Some(self.cast.cluster),
                    by: self.cast.offices.publishers[0].key_id(),
                    time,
                    chain: None,
                    kind,
                };
                let envelope = body.sign(&[&stranger]);
                self.truth.forged.insert(envelope.id());
                envelope.to_json()
            }
        };
        self.counts.forgeries += 1;
        self.forgeries.push(forged.clone());
        if self.rng.random_bool(0.5) {
            self.gossip(liar, None, &[forged]);
        } else {
            let to = self.rng.random_range(0..self.options.hosts);
            let push = Request::Push { statements: vec![Blob(forged)] };
            self.send(liar, to, Message::Ask { session: 0, bytes: push.encode() });
        }
    }

    fn a_liar(&mut self) -> Option<usize> {
        let o = &self.options;
        let liars: Vec<usize> = (o.hosts..o.hosts + o.liars).filter(|n| self.hosts[*n].up).collect();
        pick(&liars, &mut self.rng).copied()
    }

    /// A kind of a later release, with and without a place in a chain.
    fn say_the_unknown(&mut self) {
        let Some(host) = self.someone() else { return };
        let time = self.hosts[host].clock(self.now);
        let kind = unknown(["promote/v2", "publish/v2", "rollback/v2"][self.rng.random_range(0..3)]);
        let (author, chain) = if self.rng.random_bool(0.5) {
            let admin = self.an_admin();
            let author = self.cast.admins[admin].clone();
            // At home the chain goes on as it should; elsewhere it may fork.
            let home = self.home(admin);
            let chain = self.hosts[home].ledger.next_chain(&author.key_id());
            (author, Some(chain))
        } else {
            (self.a_publisher(), None)
        };
        let envelope = self.cast.sign(&author, time, chain, kind);
        self.say(host, &envelope);
    }

    /// Dates that no honest clock shows.
    fn misdate(&mut self) {
        let Some(host) = self.someone() else { return };
        let times = [UnixTime(0), UnixTime(u64::MAX), EPOCH.plus(1_000_000_000), UnixTime(EPOCH.0 - 100_000)];
        let time = times[self.rng.random_range(0..times.len())];
        let envelope = match self.rng.random_range(0..3u32) {
            0 => {
                let (author, kind) = (self.a_publisher(), self.publish_kind());
                self.cast.sign(&author, time, None, kind)
            }
            1 => {
                let Some(ticket) = self.a_ticket() else { return };
                let ghost = self.ghost().key_id();
                self.cast.sign(&ticket.key, time, None, admit(ghost, time, Some(ticket.invite.id())))
            }
            _ => {
                let admin = self.an_admin();
                let author = self.cast.admins[admin].clone();
                let chain = self.hosts[host].ledger.next_chain(&author.key_id());
                let kind = revoke(Target::Key { key: self.ghost().key_id(), since: Some(time) });
                self.cast.sign(&author, time, Some(chain), kind)
            }
        };
        self.say(host, &envelope);
    }

    /// A stranger signs what only others may say.
    fn meddle(&mut self) {
        let Some(host) = self.someone() else { return };
        let stranger = key(self.options.seed, "stranger", 2);
        let time = self.hosts[host].clock(self.now);
        let ghost = self.ghost().key_id();
        let kind = match self.rng.random_range(0..5u32) {
            0 => Kind::Root(after(&self.hosts[host].ledger, self.cast.root(1, None, &[0]))),
            1 => Kind::Invite(Invite {
                ticket: key(self.options.seed, "stranger", 3).key_id(),
                expires: UnixTime(u64::MAX),
                uses: u32::MAX,
                admit_secs_max: u64::MAX,
                labels: Labels::new(),
                note: String::new(),
            }),
            2 => admit(stranger.key_id(), time, None),
            3 => revoke(Target::Key { key: ghost, since: None }),
            _ => self.publish_kind(),
        };
        let next = self.hosts[host].ledger.next_chain(&stranger.key_id());
        let chain = kind.is_chained().then_some(next);
        let envelope = self.cast.sign(&stranger, time, chain, kind);
        self.say(host, &envelope);
    }

    /// Something old once more.
    fn repeat(&mut self) {
        let Some(host) = self.someone() else { return };
        let n = self.rng.random_range(0..self.said.len());
        let again = self.said[n].to_json();
        self.inject(host, &[again]);
    }

    /// Signatures of strangers on a real statement, at times more than are kept.
    fn stuff(&mut self) {
        let n = self.rng.random_range(0..self.said.len());
        let real = self.said[n].clone();
        let many = if self.rng.random_bool(0.2) { 70 } else { self.rng.random_range(1..4) };
        for some in (0..many).collect::<Vec<usize>>().chunks(40) {
            let Some(host) = self.someone() else { return };
            let mut envelope = real.clone();
            for n in some {
                envelope.endorse(&key(self.options.seed, "endorser", *n));
            }
            self.say(host, &envelope);
        }
    }

    /// A ticket admits more hosts than it may, in different places and with dates turned around.
    fn overuse(&mut self) {
        let Some(ticket) = self.a_ticket() else { return };
        let n = self.cast.tickets.iter().position(|t| t.key.key_id() == ticket.key.key_id());
        for ghost in self.cast.ghosts.clone() {
            let (Some(host), Some(n)) = (self.someone(), n) else { return };
            if self.cast.tickets[n].signed >= self.options.idle_per_author_max {
                return;
            }
            self.cast.tickets[n].signed += 1;
            let clock = self.hosts[host].clock(self.now);
            let time = UnixTime(clock.0.saturating_sub(self.rng.random_range(0..1_000)));
            let kind = admit(ghost.key_id(), time, Some(ticket.invite.id()));
            let envelope = self.cast.sign(&ticket.key, time, None, kind);
            self.say(host, &envelope);
        }
    }

    /// Junk by keys that cost nothing, more than there is room for.
    fn flood(&mut self) {
        let Some(liar) = self.a_liar() else { return };
        let time = self.hosts[liar].clock(self.now);
        let round = self.rng.random_range(0..1_000_000usize);
        let batch = self.rng.random_bool(0.5);
        let mut all: Vec<Vec<u8>> = Vec::new();
        for n in 0..self.options.idle_max {
            let junk = key(self.options.seed, "junk", if n % 2 == 0 { round } else { round + n });
            let chained = self.rng.random_bool(0.5);
            let (kind, chain) = if chained {
                let ghost = self.ghost().key_id();
                let chain = Chain { seq: n as u64 + 1, prev: Some(StatementId([9; 32])) };
                (revoke(Target::Key { key: ghost, since: None }), Some(chain))
            } else {
                (self.publish_kind(), None)
            };
            let envelope = self.cast.sign(&junk, time, chain, kind);
            self.note(&envelope);
            all.push(envelope.to_json());
        }
        if batch {
            self.inject(liar, &all);
        } else {
            all.iter().for_each(|one| self.inject(liar, std::slice::from_ref(one)));
        }
    }

    /// A root that lacks signatures.
    fn usurp(&mut self) {
        let Some(host) = self.someone() else { return };
        let (author, chain, time) = self.stolen(host);
        if self.options.threshold < 2 {
            // One stolen key is then the cluster; no fold helps.
            return;
        }
        let root = after(&self.hosts[host].ledger, self.cast.root(1, None, &[0]));
        let envelope = self.cast.sign(&author, time, Some(chain), Kind::Root(root));
        self.say(host, &envelope);
    }
}

fn unknown(name: &str) -> Kind {
    Kind::Unknown { predicate_type: format!("https://weighlock.dev/{name}") }
}

fn json(envelope: &Envelope) -> serde_json::Value {
    serde_json::from_slice(&envelope.to_json()).expect("an envelope is JSON")
}

/// An envelope of `payload` with signatures that may be anything.
fn assemble(payload: &[u8], signatures: &[(&[u8; 64], &Keypair)]) -> Vec<u8> {
    let signatures: Vec<serde_json::Value> = signatures
        .iter()
        .map(|(bytes, key)| serde_json::json!({ "keyid": key.key_id().to_string(), "sig": base64(*bytes) }))
        .collect();
    let wire = serde_json::json!({ "payload": base64(payload), "payloadType": PAYLOAD_TYPE, "signatures": signatures });
    wire.to_string().into_bytes()
}

/// Base64 as in RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for some in bytes.chunks(3) {
        let word = some.iter().fold(0u32, |word, b| word << 8 | u32::from(*b)) << (8 * (3 - some.len()));
        for n in 0..4 {
            let digit = DIGITS[(word >> (18 - 6 * n) & 63) as usize];
            out.push(if n <= some.len() { char::from(digit) } else { '=' });
        }
    }
    out
}
