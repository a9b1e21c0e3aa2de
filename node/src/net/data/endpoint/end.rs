//! How a data plane comes to its end: what is being sent is finished, then everything closes.

use std::time::Duration;

use quinn::VarInt;
use weighlock_protocol::wire::data::close;

use super::DataPlane;

impl DataPlane {
    /// Answers that are being sent now.
    pub fn sending(&self) -> usize {
        self.inner.config.uploads_max.saturating_sub(self.inner.uploads.available_permits())
    }

    /// Waits until nothing is being served, so that peers need not fetch again what is on its way. New requests are
    /// still answered.
    pub async fn drained(&self) {
        let all = u32::try_from(self.inner.config.uploads_max).unwrap_or(u32::MAX);
        let _ = self.inner.uploads.acquire_many(all).await;
    }

    /// Closes everything and waits for its tasks. The cancellation token must have been cancelled.
    pub async fn stopped(&self) {
        self.inner.endpoint.close(VarInt::from_u32(close::DONE), b"shutting down");
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
        // Lets the close frames reach the wire.
        let _ = tokio::time::timeout(Duration::from_secs(1), self.inner.endpoint.wait_idle()).await;
    }
}
