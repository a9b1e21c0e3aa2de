//! `weighlock completions SHELL`.

use clap::Args;
use clap_complete::Shell;

use super::Context;
use crate::error::Result;

/// Print a completion script, for example: weighlock completions bash > /etc/bash_completion.d/weighlock
#[derive(Debug, Args)]
pub(super) struct Completions {
    shell: Shell,
}

impl Completions {
    pub(super) fn run(self, _context: &Context, command: &mut clap::Command) -> Result<()> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, command, "weighlock", &mut script);
        // Into a pipe that closes early: nothing to say.
        let _ = std::io::Write::write_all(&mut std::io::stdout(), &script);
        Ok(())
    }
}
