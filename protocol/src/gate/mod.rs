//! The gate: weighs a candidate against a baseline. Pure: reports, samples, policy and contracts in, a verdict out.

pub mod contract;
mod json;
pub mod junit;
pub mod lm_eval;
pub mod ours;
pub mod policy;
pub mod reasons;
pub mod render;
pub mod report;
pub mod samples;
pub mod stats;
pub mod verdict;

pub use contract::{ContractChange, ContractField};
pub use policy::{OnExpiry, Policy, PolicyError};
pub use reasons::{Reason, Severity};
pub use report::{Harness, HostProfile, Metric, Report, ReportError, Runtime, Scale};
pub use samples::{Sample, Samples};
pub use stats::{Direction, Margin};
pub use verdict::{Evidence, Input, Outcome, Verdict, judge};
