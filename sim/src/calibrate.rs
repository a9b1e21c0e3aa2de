//! Measures how often the gate is wrong: pairs of runs whose true difference is known, weighed with its very code.
//!
//! Each world is drawn twice: *at the margin*, where every pass is a wrong one, and as *A/A*, without any true
//! difference, where every fail is a wrong one. Both may happen no more often than one less the confidence; at the
//! margin a fail may not either.

pub mod worlds;

use std::fmt;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use weighlock_protocol::gate::stats::{
    Call, Comparison, Direction, Estimate, Question, compare_paired, compare_unpaired,
};

use worlds::{Draw, World};

/// Confidences that each world is weighed at.
pub const CONFIDENCES: [f64; 2] = [0.95, 0.99];
/// Standard errors that a measured rate may be above the nominal one.
const SLACK: f64 = 3.0;

/// How each draw of one world at one confidence was called, in counts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Calls {
    /// Not worse by more than the margin.
    pub passes: u64,
    /// Worse by more than the margin.
    pub fails: u64,
    /// Neither.
    pub undecided: u64,
}

/// One world at one confidence.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// What was drawn.
    pub world: &'static str,
    /// Confidence of each bound.
    pub confidence: f64,
    /// Where the true regression is the margin.
    pub at_margin: Calls,
    /// Where there is none.
    pub same: Calls,
    /// Whether no rate is above the nominal one by more than chance.
    pub holds: bool,
    /// Whether it must hold. Elsewhere the row shows what no method can see.
    pub promised: bool,
}

/// All rows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Calibration {
    /// Version of this JSON form.
    pub schema_version: u32,
    /// Draws of each world.
    pub pairs: u64,
    /// The only randomness.
    pub seed: u64,
    /// By world and confidence.
    pub rows: Vec<Row>,
}

/// Draws `pairs` of each world whose name contains `only`, each world from a stream of its own.
pub fn run(pairs: u64, seed: u64, only: &str) -> Calibration {
    let worlds = worlds::all();
    let chosen = worlds.iter().enumerate().filter(|(_, world)| world.name.contains(only));
    let rows = chosen.flat_map(|(stream, world)| {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream as u64);
        rows(world, pairs, &mut rng)
    });
    Calibration { schema_version: 1, pairs, seed, rows: rows.collect() }
}

impl Calibration {
    /// The worlds that were promised to hold and do not.
    pub fn broken(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(|row| row.promised && !row.holds)
    }

    /// One line.
    pub fn json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

impl fmt::Display for Calibration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Wrong calls in {} pairs each, seed {}, in per cent.\n", self.pairs, self.seed)?;
        writeln!(
            f,
            "| data | nominal | false pass at the margin | false fail at the margin | false fail A/A | right pass A/A | holds |"
        )?;
        writeln!(f, "|---|---|---|---|---|---|---|")?;
        let percent = |count: u64| 100.0 * count as f64 / self.pairs.max(1) as f64;
        for row in &self.rows {
            let holds = match (row.holds, row.promised) {
                (true, _) => "yes",
                (false, true) => "**no**",
                (false, false) => "no, not promised",
            };
            writeln!(
                f,
                "| {} | {:.1} | {:.2} | {:.2} | {:.2} | {:.2} | {holds} |",
                row.world,
                100.0 * (1.0 - row.confidence),
                percent(row.at_margin.passes),
                percent(row.at_margin.fails),
                percent(row.same.fails),
                percent(row.same.passes),
            )?;
        }
        Ok(())
    }
}

fn rows(world: &World, pairs: u64, rng: &mut ChaCha8Rng) -> [Row; 2] {
    let mut rows = CONFIDENCES.map(|confidence| Row {
        world: world.name,
        confidence,
        at_margin: Calls::default(),
        same: Calls::default(),
        holds: true,
        promised: world.promised,
    });
    for _ in 0..pairs {
        for is_same in [false, true] {
            let draw = (world.draw)(rng, !is_same);
            for row in &mut rows {
                let calls = if is_same { &mut row.same } else { &mut row.at_margin };
                calls.count(weigh(world, &draw, row.confidence));
            }
        }
    }
    for row in &mut rows {
        let nominal = 1.0 - row.confidence;
        let allowed = nominal + SLACK * (nominal * row.confidence / pairs.max(1) as f64).sqrt();
        let wrong = [row.at_margin.passes, row.at_margin.fails, row.same.fails];
        row.holds = wrong.iter().all(|count| *count as f64 <= allowed * pairs as f64);
    }
    rows
}

impl Calls {
    fn count(&mut self, comparison: Option<Comparison>) {
        match comparison.map(|comparison| comparison.call) {
            Some(Call::NotWorse) => self.passes += 1,
            Some(Call::Worse) => self.fails += 1,
            Some(Call::Undecided(_) | Call::TooFew { .. }) | None => self.undecided += 1,
        }
    }
}

fn weigh(world: &World, draw: &Draw, confidence: f64) -> Option<Comparison> {
    let question =
        Question { direction: Direction::Lower, scale: world.scale, margin: world.margin, confidence };
    match draw {
        Draw::Paired { candidate, baseline } => compare_paired(&question, candidate, baseline, 1.0).ok(),
        Draw::Unpaired { candidate, baseline } => {
            let (candidate, baseline) =
                (Estimate::of_samples(candidate, world.scale)?, Estimate::of_samples(baseline, world.scale)?);
            Some(compare_unpaired(&question, &candidate, &baseline))
        }
        Draw::Reported { candidate, baseline } => {
            let (candidate, baseline) = (Estimate::of_report(candidate)?, Estimate::of_report(baseline)?);
            Some(compare_unpaired(&question, &candidate, &baseline))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gate_is_wrong_no_more_often_than_it_says() {
        // Few draws, so this finds a broken method and not a slightly wrong one; the command draws 10,000.
        let calibration = run(150, 1, "");
        let broken: Vec<&Row> = calibration.broken().collect();
        assert!(broken.is_empty(), "{broken:#?}");
        let passes: u64 = calibration.rows.iter().map(|row| row.same.passes).sum();
        assert!(passes > 1_000, "it does pass what is the same: {passes}");
        let few =
            calibration.rows.iter().find(|row| row.world.contains(", 5 documents")).expect("it is there");
        assert_eq!(
            (few.at_margin.undecided, few.same.undecided),
            (150, 150),
            "five documents decide nothing"
        );
    }
}
