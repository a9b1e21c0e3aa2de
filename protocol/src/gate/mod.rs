//! The gate: weighs a candidate against a baseline. Pure: reports, samples, policy and contracts in, a verdict out.

pub mod report;
pub mod samples;

pub use report::{Harness, HostProfile, Metric, Report, ReportError, Runtime, Scale};
pub use samples::{Sample, Samples};
