//! Ends a control plane: goodbye, finish what is under way, close.

use std::time::Duration;

use futures::StreamExt;
use libp2p::PeerId;
use tokio::time::{Instant, timeout_at};

use super::driver::ControlDriver;

/// How long the goodbye may take to leave.
const GOODBYE: Duration = Duration::from_millis(300);

impl ControlDriver {
    /// The stop order: (1) no more commands, so reconciliations end; (2) a last host record that says
    /// "leaving"; (3) jobs in the store finish; (4) connections close. Each step is bounded.
    pub(super) async fn stop(mut self) {
        let deadline = Instant::now() + self.config.timing.stop_max;
        self.commands.close();
        while self.commands.try_recv().is_ok() {}
        self.requests.clear();
        if let Some(mut record) = self.record.take() {
            record.leaving = true;
            // It was within its limits before.
            let _ = self.announce(record);
            let goodbye = (Instant::now() + GOODBYE).min(deadline);
            while let Ok(event) = timeout_at(goodbye, self.swarm.select_next_some()).await {
                self.on_swarm(event);
            }
        }
        while let Ok(Some(_)) = timeout_at(deadline, self.tasks.join_next()).await {}
        let connected: Vec<PeerId> = self.swarm.connected_peers().copied().collect();
        for peer in connected {
            let _ = self.swarm.disconnect_peer_id(peer);
        }
        while self.swarm.connected_peers().next().is_some() {
            if timeout_at(deadline, self.swarm.select_next_some()).await.is_err() {
                break;
            }
        }
    }
}
