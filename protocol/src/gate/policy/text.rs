//! A policy as people read it.

use std::fmt;

use super::{Guard, MetricRule, OnExpiry, OtherHardware, Pairing, Policy, Publish};
use crate::gate::stats::{Direction, Margin};

impl fmt::Display for Margin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Margin::Absolute(size) => write!(f, "{size}"),
            // To nine digits, so that 0.5 % does not read 0.5000000000000001 %.
            Margin::Relative(share) => write!(f, "{} %", libm::round(share * 1e11) / 1e9),
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Direction::Lower => "lower is better",
            Direction::Higher => "higher is better",
        })
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "policy {}", self.digest())?;
        for (name, rule) in &self.metrics {
            writeln!(f, "metric {name}: {}", self.rule_text(rule))?;
        }
        if self.metrics.is_empty() {
            writeln!(f, "no metric: nothing passes the gate")?;
        }
        for suite in &self.suites {
            writeln!(f, "suite {suite} counts")?;
        }
        writeln!(
            f,
            "runs on different hardware: {}",
            match self.other_hardware {
                OtherHardware::Refuse => "no evidence",
                OtherHardware::Warn => "compared, with a warning",
            }
        )?;
        let list = |names: &mut dyn Iterator<Item = String>| names.collect::<Vec<_>>().join(", ");
        let contract = &self.contract;
        if contract.allow.is_empty() {
            writeln!(f, "contract: no change beside weights, datasets and lineage")?;
        } else {
            let allowed = list(&mut contract.allow.iter().map(|field| field.as_str().to_owned()));
            writeln!(f, "contract: {allowed} may change, beside weights, datasets and lineage")?;
        }
        if let Some(tokens) = contract.min_max_seq_len {
            writeln!(f, "contract: a context of {tokens} tokens or more")?;
        }
        if contract.deny_pickle {
            writeln!(f, "files: no pickles")?;
        }
        if !contract.required_files.is_empty() {
            writeln!(f, "files: {} must be there", list(&mut contract.required_files.iter().cloned()))?;
        }
        writeln!(f, "ladder: {}", list(&mut self.ladder.iter().map(ToString::to_string)))?;
        if self.on_expiry == OnExpiry::Stop {
            writeln!(f, "a head whose promotion has expired no longer opens")?;
        }
        if self.allow_ungated {
            writeln!(f, "--ungated opens without evidence, and is logged")?;
        }
        for (stage, rule) in &self.stages {
            let mut parts = Vec::new();
            parts.extend(rule.min_requests.map(|n| format!("{n} requests")));
            parts.extend(rule.min_duration.map(|s| format!("{s} s")));
            parts.extend(
                rule.approvals.map(|n| format!("{n} {}", if n == 1 { "approval" } else { "approvals" })),
            );
            if !rule.hardware.is_empty() {
                parts.push(format!("evidence on {}", list(&mut rule.hardware.iter().cloned())));
            }
            parts.extend(rule.valid_for.map(|s| format!("renewed every {s} s")));
            writeln!(f, "stage {}: {}", stage.as_str(), parts.join(", "))?;
        }
        if let Some(live) = &self.live {
            for (name, guard) in &live.guards {
                match guard {
                    Guard::MaxRatio(ratio) => writeln!(f, "live {name}: up to {ratio} times the baseline's")?,
                    Guard::MaxDelta(delta) => writeln!(f, "live {name}: up to {delta} above the baseline's")?,
                }
            }
            writeln!(f, "live: {} wrong alarms at most, all guards together", live.alpha)?;
        }
        write!(
            f,
            "publish: {}",
            match self.publish {
                Publish::Open => "open",
                Publish::RequiresVerdict => "only with a passing verdict",
            }
        )
    }
}

impl Policy {
    fn rule_text(&self, rule: &MetricRule) -> String {
        let mut parts = vec![rule.direction.to_string()];
        parts.extend(rule.max.map(|max| format!("at most {max}")));
        parts.extend(rule.min.map(|min| format!("at least {min}")));
        parts.extend(rule.max_regression.map(|margin| format!("at most {margin} worse than the baseline")));
        parts.extend(
            self.drift_of(rule).map(|margin| format!("at most {margin} worse than the pinned baseline")),
        );
        parts.push(format!("confidence {}", rule.confidence));
        parts.extend(rule.min_n.map(|n| format!("{n} samples or more")));
        match rule.paired {
            Pairing::Auto => {}
            Pairing::Required => parts.push("paired".to_owned()),
            Pairing::Never => parts.push("not paired".to_owned()),
        }
        if rule.min_overlap < 1.0 {
            parts.push(format!("{} of all samples in both runs", rule.min_overlap));
        }
        if !rule.required {
            parts.push("optional".to_owned());
        }
        parts.join(", ")
    }
}
