//! From the TOML text of `gate.toml` to a policy.

use std::collections::{BTreeMap, BTreeSet};

use toml::de::DeTable;

use super::read::{Item, Reader, line};
use super::{
    ALPHA_DEFAULT, CONFIDENCE_DEFAULT, ContractRule, Guard, LiveRule, MetricRule, OnExpiry, OtherHardware,
    POLICY_BYTES_MAX, POLICY_VERSION, Pairing, Policy, PolicyError, Publish, StageRule,
};
use crate::gate::contract::ContractField;
use crate::gate::stats::{Direction, Margin};
use crate::id::Sha256;
use crate::names::Stage;

pub(super) fn policy(text: &str) -> Result<Policy, PolicyError> {
    if text.len() > POLICY_BYTES_MAX {
        return Err(PolicyError(format!("the policy is longer than {POLICY_BYTES_MAX} bytes; shorten it")));
    }
    let table = DeTable::parse(text).map_err(|error| {
        let line = error.span().map_or(1, |span| line(text, span.start));
        let message = error.message().replace('\n', " ");
        PolicyError(format!("line {line}: not TOML: {message}; see https://toml.io"))
    })?;
    let mut top = Reader::new(text, String::new(), table.get_ref());
    let publish = top
        .take("publish")
        .map(|item| item.choice(&[("open", Publish::Open), ("requires-verdict", Publish::RequiresVerdict)]));
    let other_hardware = top
        .take("other_hardware")
        .map(|item| item.choice(&[("refuse", OtherHardware::Refuse), ("warn", OtherHardware::Warn)]));
    let on_expiry = top
        .take("on_expiry")
        .map(|item| item.choice(&[("serve", OnExpiry::Serve), ("stop", OnExpiry::Stop)]));
    let max_drift = top.take("drift").map(|item| drift(&item)).transpose()?;
    let policy = Policy {
        version: POLICY_VERSION,
        publish: publish.transpose()?.unwrap_or_default(),
        suites: top.take("suites").map(|item| suites(&item)).transpose()?.unwrap_or_default(),
        other_hardware: other_hardware.transpose()?.unwrap_or_default(),
        metrics: top
            .take("metric")
            .map(|item| metrics(&item, max_drift.is_some()))
            .transpose()?
            .unwrap_or_default(),
        contract: top.take("contract").map(|item| contract(&item)).transpose()?.unwrap_or_default(),
        max_drift,
        stages: top.take("stage").map(|item| stages(&item)).transpose()?.unwrap_or_default(),
        ladder: top.take("ladder").map(|item| ladder(&item)).transpose()?.unwrap_or(Stage::ALL.into()),
        on_expiry: on_expiry.transpose()?.unwrap_or_default(),
        allow_ungated: top.take("allow_ungated").map(|item| item.bool()).transpose()?.unwrap_or_default(),
        live: top.take("live").map(|item| live(&item)).transpose()?,
    };
    top.finish()?;
    let asks_for_nothing = policy.metrics.is_empty()
        && policy.contract == ContractRule::default()
        && policy.stages.is_empty()
        && policy.live.is_none();
    if asks_for_nothing {
        let hint = "name at least one metric, such as [metric.eval_loss] with direction and max_regression";
        return Err(PolicyError(format!("the policy asks for nothing; {hint}")));
    }
    Ok(policy)
}

fn ladder(item: &Item<'_>) -> Result<Vec<Stage>, PolicyError> {
    let all: Vec<(&str, Stage)> = Stage::ALL.iter().map(|stage| (stage.as_str(), *stage)).collect();
    let rungs: Vec<Stage> = item.items()?.iter().map(|item| item.choice(&all)).collect::<Result<_, _>>()?;
    let climbs = rungs.windows(2).all(|pair| pair[0] < pair[1]);
    if !climbs || rungs.last() != Some(&Stage::Production) {
        let hint = "such as [\"sandbox\", \"production\"]";
        return Err(item.error("does not name stages once each, lowest first, up to production", hint));
    }
    Ok(rungs)
}

fn suites(item: &Item<'_>) -> Result<BTreeSet<Sha256>, PolicyError> {
    let one = |item: &Item<'_>| {
        item.text()?
            .parse::<Sha256>()
            .map_err(|error| item.error(error, "copy the suite's digest from a report"))
    };
    item.items()?.iter().map(one).collect()
}

fn metrics(item: &Item<'_>, all_drift: bool) -> Result<BTreeMap<String, MetricRule>, PolicyError> {
    let named = item.table()?.rest()?;
    named.into_iter().map(|(name, item)| Ok((name, metric(&item, all_drift)?))).collect()
}

/// `all_drift`: the policy limits the drift of every metric.
fn metric(item: &Item<'_>, all_drift: bool) -> Result<MetricRule, PolicyError> {
    let mut reader = item.table()?;
    let direction = reader
        .take("direction")
        .map(|item| item.choice(&[("lower", Direction::Lower), ("higher", Direction::Higher)]));
    let max = reader.take("max");
    let max_value = max.as_ref().map(Item::number).transpose()?;
    let min = reader.take("min").map(|item| item.number()).transpose()?;
    if let (Some(item), Some(max), Some(min)) = (&max, max_value, min)
        && max < min
    {
        return Err(item.error(format_args!("is {max}, below min, {min}"), "swap them"));
    }
    let max_regression = reader.take("max_regression").map(|item| item.margin()).transpose()?;
    let max_drift = reader.take("max_drift").map(|item| item.margin()).transpose()?;
    let confidence = reader.take("confidence").map(|item| within(&item, 0.5, 1.0)).transpose()?;
    let required = reader.take("required").map(|item| item.bool()).transpose()?;
    let min_n = reader.take("min_n").map(|item| item.count()).transpose()?;
    let paired = reader.take("paired").map(|item| {
        item.choice(&[("auto", Pairing::Auto), ("required", Pairing::Required), ("never", Pairing::Never)])
    });
    let min_overlap = reader.take("min_overlap").map(|item| share(&item)).transpose()?;
    reader.finish()?;
    let is_bounded = max_value.is_some() || min.is_some();
    if !is_bounded && max_regression.is_none() && max_drift.is_none() && !all_drift {
        return Err(item.error("has no rule", "add max_regression, max_drift, max or min"));
    }
    let direction = direction.transpose()?;
    Ok(MetricRule {
        direction: direction.ok_or_else(|| {
            item.error("does not say which way is better", "add direction = \"lower\" or \"higher\"")
        })?,
        max: max_value,
        min,
        max_regression,
        max_drift,
        confidence: confidence.unwrap_or(CONFIDENCE_DEFAULT),
        required: required.unwrap_or(true),
        min_n,
        paired: paired.transpose()?.unwrap_or_default(),
        min_overlap: min_overlap.unwrap_or(1.0),
    })
}

fn contract(item: &Item<'_>) -> Result<ContractRule, PolicyError> {
    let mut reader = item.table()?;
    let all: Vec<(&str, ContractField)> =
        ContractField::ALL.iter().map(|field| (field.as_str(), *field)).collect();
    let allow = reader.take("allow").map(|item| item.items()?.iter().map(|item| item.choice(&all)).collect());
    let deny_pickle = reader.take("deny_pickle").map(|item| item.bool()).transpose()?;
    let required_files = reader
        .take("required_files")
        .map(|item| item.items()?.iter().map(|item| item.text().map(str::to_owned)).collect());
    let min_max_seq_len = reader.take("min_max_seq_len").map(|item| item.count()).transpose()?;
    reader.finish()?;
    Ok(ContractRule {
        allow: allow.transpose()?.unwrap_or_default(),
        deny_pickle: deny_pickle.unwrap_or_default(),
        required_files: required_files.transpose()?.unwrap_or_default(),
        min_max_seq_len,
    })
}

fn drift(item: &Item<'_>) -> Result<Margin, PolicyError> {
    let mut reader = item.table()?;
    let margin = reader.take("max_regression").map(|item| item.margin()).transpose()?;
    reader.finish()?;
    margin.ok_or_else(|| item.error("has no max_regression", "add it, or remove the section"))
}

fn stages(item: &Item<'_>) -> Result<BTreeMap<Stage, StageRule>, PolicyError> {
    let mut reader = item.table()?;
    let mut found = BTreeMap::new();
    for stage in Stage::ALL {
        if let Some(item) = reader.take(stage.as_str()) {
            found.insert(stage, self::stage(&item)?);
        }
    }
    reader.finish()?;
    Ok(found)
}

fn stage(item: &Item<'_>) -> Result<StageRule, PolicyError> {
    let mut reader = item.table()?;
    let rule = StageRule {
        min_requests: reader.take("min_requests").map(|item| item.count()).transpose()?,
        min_duration: reader.take("min_duration").map(|item| item.duration()).transpose()?,
        approvals: reader.take("approvals").map(|item| item.count()).transpose()?,
        hardware: reader.take("hardware").map(|item| hardware(&item)).transpose()?.unwrap_or_default(),
        valid_for: reader.take("valid_for").map(|item| item.duration()).transpose()?,
    };
    reader.finish()?;
    if rule == StageRule::default() {
        let hint = "add min_requests, min_duration, approvals, hardware or valid_for, or remove the section";
        return Err(item.error("asks for nothing", hint));
    }
    Ok(rule)
}

fn hardware(item: &Item<'_>) -> Result<BTreeSet<String>, PolicyError> {
    let key = |item: &Item<'_>| {
        let text = item.text()?;
        let part = |part: &str| {
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        let is_key =
            text == "any" || text.split_once('/').is_some_and(|(vendor, arch)| part(vendor) && part(arch));
        let hint = "write vendor/arch such as nvidia/sm_90, or any";
        is_key
            .then(|| text.to_owned())
            .ok_or_else(|| item.error("has an entry that is not a hardware key", hint))
    };
    item.items()?.iter().map(key).collect()
}

fn live(item: &Item<'_>) -> Result<LiveRule, PolicyError> {
    let mut reader = item.table()?;
    let alpha = reader.take("alpha").map(|item| within(&item, 0.0, 0.5)).transpose()?;
    let guards: BTreeMap<String, Guard> = reader
        .rest()?
        .into_iter()
        .map(|(name, item)| Ok((name, guard(&item)?)))
        .collect::<Result<_, PolicyError>>()?;
    if guards.is_empty() {
        return Err(item.error("has no guard", "add one such as [live.latency_p99] with max_ratio"));
    }
    Ok(LiveRule { alpha: alpha.unwrap_or(ALPHA_DEFAULT), guards })
}

fn guard(item: &Item<'_>) -> Result<Guard, PolicyError> {
    let mut reader = item.table()?;
    let ratio = reader.take("max_ratio");
    let delta = reader.take("max_delta");
    reader.finish()?;
    let bad = |item: &Item<'_>| {
        item.error("is not above 0", "give how far the candidate may be above the baseline")
    };
    match (ratio, delta) {
        (Some(item), None) => {
            let ratio = item.number()?;
            if ratio > 0.0 { Ok(Guard::MaxRatio(ratio)) } else { Err(bad(&item)) }
        }
        (None, Some(item)) => {
            let delta = item.number()?;
            if delta >= 0.0 { Ok(Guard::MaxDelta(delta)) } else { Err(bad(&item)) }
        }
        _ => Err(item.error("needs one of max_ratio and max_delta", "give one of the two")),
    }
}

/// A number between the two, neither of which it may be.
fn within(item: &Item<'_>, low: f64, high: f64) -> Result<f64, PolicyError> {
    let number = item.number()?;
    if number > low && number < high {
        return Ok(number);
    }
    Err(item.error(format_args!("is {number}"), format_args!("give a number above {low} and below {high}")))
}

/// A number above 0 and up to 1.
fn share(item: &Item<'_>) -> Result<f64, PolicyError> {
    let number = item.number()?;
    let hint = "give a share above 0, and 1 for all samples";
    if number > 0.0 && number <= 1.0 {
        Ok(number)
    } else {
        Err(item.error(format_args!("is {number}"), hint))
    }
}
