//! `weighlock policy show|check`.

use std::path::PathBuf;

use clap::Subcommand;
use serde::Serialize;
use weighlock_protocol::Sha256;
use weighlock_protocol::gate::Policy;

use super::Context;
use crate::error::Result;
use crate::weigh::policy::{POLICY_FILE, read};

const EXAMPLE: &str = "\
A policy says what a candidate must show. For example, gate.toml:

  [metric.eval_loss]          # the name of a metric in the reports
  direction = \"lower\"
  max = 3.0                   # never above this
  max_regression = 0.02       # against the baseline: a number, or a share of its value such as \"0.5%\"
  confidence = 0.99           # of that; 0.95 if it is not said

  [contract]
  allow = [\"quantization\"]    # what may change; tokenizer, template and the rest may not
  deny_pickle = true";

/// What a candidate must show.
#[derive(Debug, Subcommand)]
#[command(after_help = EXAMPLE)]
pub(super) enum PolicyCommand {
    /// Read a policy and say what it asks for
    Show {
        /// The policy
        #[arg(default_value = POLICY_FILE)]
        file: PathBuf,
    },
    /// Read a policy and say what is wrong with it, if anything is
    Check {
        /// The policy
        #[arg(default_value = POLICY_FILE)]
        file: PathBuf,
    },
}

#[derive(Serialize)]
struct Shown {
    digest: Sha256,
    policy: Policy,
}

impl PolicyCommand {
    pub(super) fn run(self, context: &Context) -> Result<()> {
        let (Self::Show { file } | Self::Check { file }) = &self;
        let policy = read(file)?;
        let shown = Shown { digest: policy.digest(), policy };
        context.output.print(&shown, |shown| match self {
            Self::Show { .. } => shown.policy.to_string(),
            Self::Check { .. } => format!("{} is a policy: {}\n", file.display(), shown.digest),
        })
    }
}
