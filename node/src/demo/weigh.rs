//! The demo's second act: versions of the small model before the gate, good and bad.

use std::path::{Path, PathBuf};

use serde::Serialize;
use weighlock_protocol::gate::{Input, Outcome, Policy, Severity, judge};

use super::variants::{Variant, evaluate, write_variant};
use crate::error::{Error, Result};
use crate::weigh::report::Loaded;
use crate::weigh::side::Side;

/// What the candidates are held to.
pub(super) const POLICY: &str = "\
[metric.eval_loss]
direction = \"lower\"
max = 4.0
max_regression = 0.02
";

/// What the gate said of one candidate.
#[derive(Debug, Serialize)]
pub(super) struct Weighed {
    pub(super) candidate: &'static str,
    pub(super) outcome: Outcome,
    pub(super) eval_loss: f64,
    pub(super) why: String,
}

/// Weighs a better version, a badly quantized one, one with another tokenizer, and a report without samples, each against
/// the first version. `trained` is the model that is trained to the end.
///
/// # Errors
/// Something cannot be written or read. What the gate says is no error.
pub(super) fn weigh(dir: &Path, trained: &Path) -> Result<Vec<Weighed>> {
    let policy = Policy::parse(POLICY).map_err(Error::internal)?;
    let write = |name: &str, variant: Variant| -> Result<PathBuf> {
        let path = dir.join(name);
        write_variant(&path, variant)?;
        Ok(path)
    };
    let baseline = side(dir, &write("early", Variant::Early)?)?;
    let better = side(dir, trained)?;
    let quantized = side(dir, &write("quantized", Variant::Quantized)?)?;
    let tokenizer = side(dir, &write("tokenizer", Variant::Tokenizer)?)?;
    // As a harness without samples and standard errors reports it.
    let mut bare = better.clone();
    for (_, loaded) in &mut bare.reports {
        loaded.samples.clear();
        loaded.report.metrics.values_mut().for_each(|metric| (metric.stderr, metric.samples) = (None, None));
    }
    let candidates = [
        ("trained longer", better),
        ("the same, badly quantized", quantized),
        ("the same, another tokenizer", tokenizer),
        ("trained longer, no samples kept", bare),
    ];
    let weighed = candidates.into_iter().map(|(name, candidate)| {
        let verdict = judge(&Input {
            policy: &policy,
            candidate: candidate.evidence(),
            baseline: Some(baseline.evidence()),
            pinned: None,
            files: candidate.files.as_deref(),
        });
        let reason = verdict.reasons.iter().find(|finding| finding.severity != Severity::Warning);
        let comparison = verdict.metrics.first().and_then(|row| row.comparison.as_ref());
        let why = match (reason, comparison) {
            (Some(reason), _) => reason.message.clone(),
            (None, Some(c)) => format!(
                "changed by {:+.3} nats ({:+.3} to {:+.3}), {:.2} worse is allowed",
                c.regression, c.lower, c.upper, c.margin
            ),
            (None, None) => String::new(),
        };
        let eval_loss = verdict.metrics.first().and_then(|row| row.candidate).unwrap_or_default();
        Weighed { candidate: name, outcome: verdict.outcome, eval_loss, why }
    });
    Ok(weighed.collect())
}

fn side(dir: &Path, model: &Path) -> Result<Side> {
    let out = dir.join("reports").join(model.file_name().unwrap_or_default());
    evaluate(model, &out)?;
    let mut side = Side::of_path(model, &|_| {})?;
    side.add_report(Loaded::read(&out, &[])?, None)?;
    Ok(side)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_good_passes_and_each_bad_one_is_caught_for_its_own_reason() {
        let dir = tempfile::tempdir().expect("tempdir");
        let trained = dir.path().join("trained");
        write_variant(&trained, Variant::Trained).expect("written");
        let weighed = weigh(dir.path(), &trained).expect("weighed");
        let outcomes: Vec<Outcome> = weighed.iter().map(|one| one.outcome).collect();
        let expected = [Outcome::Pass, Outcome::Fail, Outcome::Fail, Outcome::NoEvidence];
        assert_eq!(outcomes, expected, "{weighed:#?}");
        assert!(weighed[1].why.contains("worse than the baseline"), "{}", weighed[1].why);
        assert!(weighed[2].why.contains("tokenizer"), "{}", weighed[2].why);
    }
}
