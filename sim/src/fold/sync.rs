//! A host's side of reconciliations: those it began, and the answers it gives.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use weighlock_protocol::StatementId;
use weighlock_protocol::Time;
use weighlock_protocol::statement::reconcile::{
    Next, ReconcileConfig, ReconcileError, Reconciliation, differing, ids_page, named,
};
use weighlock_protocol::wire::control::{Blob, BucketIds, Request, Response};

use super::host::{Host, Ingested};

/// A reconciliation that this host began.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) id: u64,
    pub(super) begun: Time,
    machine: Reconciliation,
}

/// What follows from an answer.
#[derive(Debug)]
pub(super) struct Heard {
    /// The next question; `None` ends the session.
    pub(super) ask: Option<Request>,
    /// What came with the answer.
    pub(super) ingested: Ingested,
    /// Why the peer is at fault.
    pub(super) offence: Option<String>,
}

impl Host {
    /// Begins a reconciliation with `peer`, giving up one that still runs.
    pub(super) fn begin(&mut self, peer: usize, id: u64, now: Time, config: ReconcileConfig) -> Request {
        let (machine, request) = Reconciliation::begin(config, &self.ledger);
        self.sessions.insert(peer, Session { id, begun: now, machine });
        request
    }

    /// Takes the answer of `peer` to session `id`.
    pub(super) fn answered(&mut self, peer: usize, id: u64, answer: Response) -> Heard {
        let mut heard = Heard { ask: None, ingested: Ingested::default(), offence: None };
        let Some(mut session) = self.sessions.remove(&peer) else { return heard };
        if session.id != id {
            // A late answer to a session that was given up.
            self.sessions.insert(peer, session);
            return heard;
        }
        match session.machine.answered(&self.ledger, answer) {
            Ok(statements) => {
                let bytes: Vec<Vec<u8>> = statements.into_iter().map(|s| s.0).collect();
                heard.ingested = self.ingest(&bytes);
                if let Some(reason) = heard.ingested.refused.take() {
                    heard.offence = Some(reason);
                    return heard;
                }
            }
            Err(e) => {
                heard.offence = Some(e.to_string());
                return heard;
            }
        }
        heard.ask = match session.machine.next(&self.ledger) {
            Ok(Next::Ask(request)) => Some(request),
            Ok(Next::Push(ids)) => {
                let statements = self.read(&ids).into_iter().map(Blob).collect();
                Some(Request::Push { statements })
            }
            Ok(Next::Done) | Err(ReconcileError::TooLong | ReconcileError::Rubbish(_)) => None,
        };
        if heard.ask.is_some() {
            self.sessions.insert(peer, session);
        }
        heard
    }

    /// Answers an honest request honestly.
    pub(super) fn answer(&mut self, request: Request, config: &ReconcileConfig) -> (Response, Ingested) {
        let mut ingested = Ingested::default();
        let response = match request {
            Request::Summary { summary } => match differing(&self.ledger, &summary.0) {
                Ok(buckets) => Response::Differing { buckets },
                Err(reason) => {
                    ingested.refused = Some(reason);
                    Response::Differing { buckets: Vec::new() }
                }
            },
            Request::Ids { buckets, after } => {
                Response::Ids { buckets: ids_page(&self.ledger, &buckets, after, config) }
            }
            Request::Statements { ids } => {
                let dealt = ids.len().min(config.ask_max);
                let statements = self.read(&named(&self.ledger, &ids[..dealt]));
                Response::Statements {
                    statements: statements.into_iter().map(Blob).collect(),
                    done: u32::try_from(dealt).unwrap_or(u32::MAX),
                }
            }
            Request::Push { statements } => {
                let bytes: Vec<Vec<u8>> = statements.into_iter().map(|s| s.0).collect();
                ingested = self.ingest(&bytes);
                Response::Pushed { accepted: u32::try_from(ingested.accepted.len()).unwrap_or(u32::MAX) }
            }
            Request::Hello(_) | Request::Manifest { .. } | Request::Audit { .. } => Response::Busy,
        };
        (response, ingested)
    }
}

/// What a liar answers. Some of it is rubbish on sight, some only hides or makes up statements.
pub(super) fn lie(request: &Request, forged: &[Vec<u8>], rng: &mut ChaCha8Rng) -> Response {
    let made_up = |rng: &mut ChaCha8Rng| StatementId(rng.random());
    match (request, rng.random_range(0..4u32)) {
        (Request::Summary { .. }, 0) => Response::Differing { buckets: Vec::new() },
        (Request::Summary { .. }, _) => Response::Differing { buckets: (0..=u8::MAX).collect() },
        (Request::Ids { buckets, .. }, 0) => Response::Ids {
            buckets: buckets
                .iter()
                .map(|bucket| BucketIds { bucket: *bucket, ids: Vec::new(), complete: true })
                .collect(),
        },
        (Request::Ids { buckets, .. }, 1) => {
            let ids = buckets.first().map(|bucket| {
                let mut id = made_up(rng);
                id.0[0] = *bucket;
                BucketIds { bucket: *bucket, ids: vec![id], complete: false }
            });
            Response::Ids { buckets: ids.into_iter().collect() }
        }
        (Request::Ids { .. }, 2) => Response::Ids { buckets: Vec::new() },
        (Request::Ids { .. }, _) => Response::Ids {
            buckets: vec![BucketIds { bucket: rng.random(), ids: vec![made_up(rng)], complete: true }],
        },
        (Request::Statements { ids }, 0) => {
            Response::Statements { statements: Vec::new(), done: u32::try_from(ids.len()).unwrap_or(0) }
        }
        (Request::Statements { ids }, 1) => Response::Statements {
            statements: forged.iter().take(1).cloned().map(Blob).collect(),
            done: u32::try_from(ids.len()).unwrap_or(0),
        },
        (Request::Statements { .. }, 2) => Response::Statements { statements: Vec::new(), done: u32::MAX },
        (Request::Statements { .. }, _) => {
            Response::Statements { statements: vec![Blob(vec![b'{'; 40])], done: 1 }
        }
        (Request::Push { .. }, 0) => Response::Busy,
        (Request::Push { .. } | Request::Hello(_) | Request::Manifest { .. } | Request::Audit { .. }, _) => {
            Response::Pushed { accepted: u32::MAX }
        }
    }
}
