//! The gate: weighs a candidate against a baseline. Pure: reports, samples, policy and contracts in, a verdict out.

mod json;
pub mod lm_eval;
pub mod ours;
pub mod report;
pub mod samples;

pub use report::{Harness, HostProfile, Metric, Report, ReportError, Runtime, Scale};
pub use samples::{Sample, Samples};
