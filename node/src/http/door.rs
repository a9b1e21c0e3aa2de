//! The HTTP port: so many connections at once, and none that says and takes nothing.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};
use tracing::info;

use crate::shortage::{self, Shortage};

/// Connections at once; further ones wait. Each holds a descriptor, which loaders need more.
const CONNECTIONS_MAX: usize = 128;
/// A connection on which nothing moves for this long is closed: an idle one, and a request or an answer that has
/// stalled. What takes longer to answer must say something meanwhile.
const IDLE_MAX: Duration = Duration::from_secs(30);

/// Accepts connections for the server.
pub(super) struct Door {
    listener: TcpListener,
    connections: Arc<Semaphore>,
    descriptors: Shortage,
    idle_max: Duration,
}

impl Door {
    pub(super) fn new(listener: TcpListener) -> Self {
        Self::with_limits(listener, CONNECTIONS_MAX, IDLE_MAX)
    }

    fn with_limits(listener: TcpListener, connections_max: usize, idle_max: Duration) -> Self {
        let connections = Arc::new(Semaphore::new(connections_max));
        Self { listener, connections, descriptors: Shortage::default(), idle_max }
    }
}

impl Listener for Door {
    type Io = Guarded;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Guarded, SocketAddr) {
        loop {
            let Ok(permit) = self.connections.clone().acquire_owned().await else {
                std::future::pending::<()>().await;
                continue;
            };
            match self.listener.accept().await {
                Ok((stream, address)) => {
                    if let Some(seconds) = self.descriptors.worked() {
                        info!(seconds, "HTTP connections are accepted again");
                    }
                    return (Guarded::new(stream, permit, self.idle_max), address);
                }
                Err(e) => {
                    if self.descriptors.failed() {
                        shortage::warn_not_accepted("an HTTP connection", &e);
                    }
                    tokio::time::sleep(shortage::PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that fails once nothing has moved on it for too long.
pub(super) struct Guarded {
    stream: TcpStream,
    idle_max: Duration,
    deadline: Pin<Box<Sleep>>,
    _permit: OwnedSemaphorePermit,
}

impl Guarded {
    fn new(stream: TcpStream, permit: OwnedSemaphorePermit, idle_max: Duration) -> Self {
        let deadline = Box::pin(tokio::time::sleep(idle_max));
        Self { stream, idle_max, deadline, _permit: permit }
    }

    /// Something moved, or the connection has been still for too long.
    fn watch<T>(&mut self, context: &mut Context<'_>, done: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if done.is_ready() {
            let next = Instant::now() + self.idle_max;
            self.deadline.as_mut().reset(next);
            return done;
        }
        match self.deadline.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for Guarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let done = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.watch(context, done)
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watch(context, done)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.watch(context, done)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn who_says_nothing_makes_room_for_the_next() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let at = listener.local_addr().expect("bound");
        let mut door = Door::with_limits(listener, 2, Duration::from_millis(200));
        let served = tokio::spawn(async move {
            loop {
                let (mut io, _) = door.accept().await;
                tokio::spawn(async move {
                    let mut byte = [0; 1];
                    while io.read_exact(&mut byte).await.is_ok() && io.write_all(&byte).await.is_ok() {}
                });
            }
        });
        let mut silent = Vec::new();
        for _ in 0..3 {
            silent.push(TcpStream::connect(at).await.expect("connected"));
        }
        // It waits until the silent ones are gone, and is then served for as long as it speaks.
        let mut honest = TcpStream::connect(at).await.expect("connected");
        for _ in 0..8 {
            honest.write_all(b"x").await.expect("sent");
            let mut answer = [0; 1];
            let read = tokio::time::timeout(Duration::from_secs(20), honest.read_exact(&mut answer));
            read.await.expect("in time").expect("answered");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        for mut stream in silent {
            let mut byte = [0; 1];
            let ended = tokio::time::timeout(Duration::from_secs(20), stream.read(&mut byte)).await;
            assert!(matches!(ended.expect("in time"), Ok(0) | Err(_)));
        }
        served.abort();
    }
}
