//! Samples of groups: a group's mean over tasks is a mean over the tasks' samples.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::samples::{Statistic, statistic};
use super::{Figure, is_group, leaves};
use crate::gate::ours::agrees;
use crate::gate::samples::{SAMPLE_ID_MAX, SAMPLES_MAX};
use crate::gate::{Sample, Samples, Scale};

/// Adds the samples of each group's metric whose tasks all have some, if they give the group's value: each sample
/// counting the same, or each task (the harness's `weight_by_size`).
pub(super) fn add_groups(
    top: &Map<String, Value>,
    figures: &[Figure],
    bound: &mut BTreeMap<String, Samples>,
) {
    let mut pooled = BTreeMap::new();
    for group in figures.iter().filter(|figure| is_group(top, &figure.task)) {
        let tasks = leaves(top, &group.task);
        let of_group = |figure: &&Figure| {
            tasks.contains(figure.task.as_str())
                && (&figure.metric, &figure.filter) == (&group.metric, &group.filter)
        };
        let parts: Option<Vec<(&Figure, &Samples)>> =
            figures.iter().filter(of_group).map(|part| Some((part, bound.get(&part.name)?))).collect();
        let Some(parts) = parts.filter(|parts| !parts.is_empty()) else { continue };
        let means = parts.iter().all(|(part, _)| {
            matches!(statistic(top, &part.task, &part.metric), Statistic::Mean | Statistic::Unknown)
        });
        if !means || parts.iter().map(|(_, samples)| samples.len()).sum::<usize>() > SAMPLES_MAX {
            continue;
        }
        let samples = [false, true].into_iter().filter_map(|per_task| pool(&parts, per_task));
        if let Some(samples) = { samples }.find(|samples| agrees(Scale::Mean, group.value, samples)) {
            pooled.insert(group.name.clone(), samples);
        }
    }
    bound.extend(pooled);
}

/// All samples under one name each, or `None` if a name gets too long.
fn pool(parts: &[(&Figure, &Samples)], per_task: bool) -> Option<Samples> {
    let mut all = Vec::new();
    for (part, samples) in parts {
        for sample in samples.iter() {
            let id = format!("{}:{}", part.task, sample.id);
            if id.len() > SAMPLE_ID_MAX {
                return None;
            }
            let weight = if per_task { sample.weight / samples.len() as f64 } else { sample.weight };
            all.push(Sample { id, weight, ..sample.clone() });
        }
    }
    Samples::new(all).ok()
}
