//! `weighlock init`.

use clap::Args;
use weighlock_cache::Store;

use super::Context;
use crate::error::{Error, Result};
use crate::{cluster, daemon, keys};

/// Create a cluster on this host and its admin key. `up` does the same where there is no cluster yet.
#[derive(Debug, Args)]
pub(super) struct Init {
    /// Name of the cluster, for people
    #[arg(long, default_value = "weighlock")]
    name: String,
}

impl Init {
    pub(super) fn run(self, context: &Context) -> Result<()> {
        let store: Store = daemon::open_store(&context.dirs, &context.config)?;
        let host = keys::host_key(&context.dirs.data)?;
        let name = cluster::host_name(context.config.name.as_deref());
        if self.name.is_empty() || self.name.len() > 64 || self.name.chars().any(char::is_control) {
            return Err(Error::invalid("a cluster name has 1 to 64 bytes without control characters"));
        }
        let founded =
            cluster::found(&store, &context.dirs.keys, &host, &name, &context.config.labels, &self.name)?;
        context.output.print(&founded, |f| {
            format!(
                "created cluster {} ({})\nadmin key: {}\nBack this key up: without it nobody can be invited or revoked. Next: weighlock up\n",
                f.name,
                f.cluster.short(),
                f.admin_key.display()
            )
        })
    }
}
