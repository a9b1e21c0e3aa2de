//! What a run of the statement world showed: a table for people, JSON for programs.

use std::fmt;

use serde::Serialize;

use super::check::FoldViolation;
use super::options::FoldOptions;

/// Counts of what happened.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct FoldCounts {
    /// Events that were handled.
    pub events: u64,
    /// Messages that hosts sent.
    pub messages: u64,
    /// Messages that the network lost, at random or between its parts.
    pub lost: u64,
    /// Gossip that came very late.
    pub late: u64,
    /// Gossip that came twice.
    pub duplicates: u64,
    /// Messages that their receiver would not hear: it was down, or the sender a stranger or banned.
    pub dropped: u64,
    /// Reconciliations begun.
    pub sessions: u64,
    /// Statements that hosts took in, or took more signatures of.
    pub accepted: u64,
    /// Statements for which a host had no room.
    pub over_limit: u64,
    /// Times that a host found another at fault.
    pub accusations: u64,
    /// Answers of liars that were none.
    pub lies: u64,
    /// Forgeries brought out.
    pub forgeries: u64,
    /// Things that hostile authors did.
    pub attacks: u64,
    /// Promotions said.
    pub promotions: u64,
    /// Cosignatures by witnesses that looked first.
    pub votes: u64,
    /// Rollbacks said.
    pub rollbacks: u64,
    /// Hosts restored from an old copy of their disk.
    pub restores: u64,
    /// Promotions that were a head somewhere.
    pub heads: u64,
    /// Hosts that joined by a ticket.
    pub joins: u64,
    /// Times that the network fell into parts.
    pub partitions: u64,
    /// Crashes.
    pub crashes: u64,
}

/// One run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FoldReport {
    /// What was run.
    pub options: FoldOptions,
    /// Statements that were really signed.
    pub statements: usize,
    /// Honest hosts that had to agree in the end.
    pub equal: usize,
    /// Rounds of reconciliation until they did; `None` if they never did.
    pub rounds: Option<u32>,
    /// What happened.
    pub counts: FoldCounts,
    /// Hash over every event and the final states: equal for equal runs.
    pub trace: String,
    /// What did not hold.
    pub violations: Vec<FoldViolation>,
}

#[derive(Serialize)]
struct Json<'a> {
    schema_version: u32,
    #[serde(flatten)]
    report: &'a FoldReport,
}

impl FoldReport {
    /// One JSON object on one line.
    pub fn json(&self) -> String {
        serde_json::to_string(&Json { schema_version: 1, report: self })
            .expect("plain numbers and texts always serialize")
    }
}

impl fmt::Display for FoldReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let c = &self.counts;
        let rounds = self.rounds.map_or("not reached".to_owned(), |n| format!("{n} rounds after healing"));
        writeln!(f, "{:<28}{} hosts, {rounds}", "equal", self.equal)?;
        writeln!(
            f,
            "{:<28}{} said, {} taken in, {} without room, {} joins",
            "statements", self.statements, c.accepted, c.over_limit, c.joins
        )?;
        writeln!(
            f,
            "{:<28}{} sent, {} lost, {} late, {} twice, {} not heard; {} reconciliations",
            "messages", c.messages, c.lost, c.late, c.duplicates, c.dropped, c.sessions
        )?;
        writeln!(
            f,
            "{:<28}{} attacks, {} forgeries, {} lies, {} accusations, {} partitions, {} crashes",
            "trouble", c.attacks, c.forgeries, c.lies, c.accusations, c.partitions, c.crashes
        )?;
        if self.options.witnesses > 0 {
            writeln!(
                f,
                "{:<28}{} promotions, {} of them heads, {} votes, {} rollbacks, {} restored",
                "channels", c.promotions, c.heads, c.votes, c.rollbacks, c.restores
            )?;
        }
        write!(f, "{:<28}{}", "trace", self.trace)?;
        for violation in &self.violations {
            let at = violation.at_ns as f64 / 1e9;
            write!(f, "\nVIOLATION at {at:.6} s: {}: {}", violation.check, violation.what)?;
        }
        Ok(())
    }
}
