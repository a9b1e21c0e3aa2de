//! `weighlock demo`: three daemons on this machine share a model.

use std::path::PathBuf;

use clap::Args;

use super::Context;
use crate::demo::Variant;
use crate::error::Result;

/// Three daemons on this machine share a model and the gate weighs four; takes a minute, leaves nothing behind.
#[derive(Debug, Args)]
pub(super) struct Demo {
    /// A checkpoint to share; a small language model is trained when absent
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Only train the small language model and write its checkpoint to this new directory
    #[arg(long, value_name = "DIR", conflicts_with = "model")]
    write_model: Option<PathBuf>,
    /// With --write-model: in which state
    #[arg(long, value_enum, default_value_t = Variant::Trained, requires = "write_model")]
    variant: Variant,
    /// Only evaluate such a model; an evaluator for `weighlock eval`
    #[arg(long, value_name = "DIR", requires = "out", conflicts_with_all = ["model", "write_model"])]
    evaluate: Option<PathBuf>,
    /// With --evaluate: where report and samples go
    #[arg(long, value_name = "DIR", requires = "evaluate")]
    out: Option<PathBuf>,
}

impl Demo {
    pub(super) fn run(self, context: &Context) -> Result<()> {
        if let (Some(model), Some(out)) = (&self.evaluate, &self.out) {
            let summary = crate::demo::evaluate(model, out)?;
            return context.output.print(&summary, |s| {
                let loss = s["eval_loss"].as_f64().unwrap_or_default();
                format!("validation loss {loss:.4} nats over {} documents\n", s["documents"])
            });
        }
        if let Some(dir) = self.write_model {
            let summary = crate::demo::write_variant(&dir, self.variant)?;
            return context.output.print(&summary, |s| {
                let loss = s["eval_loss"].as_f64().unwrap_or_default();
                format!(
                    "wrote {} ({} parameters, validation loss {loss:.4} nats)\n",
                    dir.display(),
                    s["parameters"]
                )
            });
        }
        crate::demo::run(self.model.as_deref(), context.output.is_json())
    }
}
