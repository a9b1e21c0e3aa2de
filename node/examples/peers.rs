//! The other two transfers of `tests/bench/pair`: iroh-blobs over an iroh endpoint, and plain QUIC under our TLS.
//!
//! `peers iroh-serve FILE DIR`, `peers iroh-fetch DIR HASH ID ADDR`, `peers raw-serve BYTES PACKET` and
//! `peers raw-fetch BYTES PACKET HOST ADDR`. Each prints one JSON object when it is ready. A fetching one waits for a
//! line on its standard input, fetches, and prints the seconds. All stay until their standard input ends, so that
//! whoever started them can read what they used.

use std::error::Error;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use iroh::endpoint::{Endpoint, RelayMode, presets};
use iroh::protocol::Router;
use iroh::{EndpointAddr, EndpointId};
use iroh_blobs::api::blobs::{AddPathOptions, ImportMode};
use iroh_blobs::store::fs::FsStore;
use iroh_blobs::{BlobFormat, BlobsProtocol, Hash};
use libp2p::PeerId;
use libp2p::identity::Keypair;
use quinn::{EndpointConfig, TokioRuntime};
use weighlock::net::data::DataConfig;
use weighlock::net::tls::Identity;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const ALPN: &[u8] = b"weighlock/bench/0";
/// What the serving side hands to QUIC at once, and the fetching side takes at once.
const BLOCK_BYTES: usize = 1 << 20;

#[tokio::main]
async fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["iroh-serve", file, dir] => iroh_serve(Path::new(file), Path::new(dir)).await,
        ["iroh-fetch", dir, hash, id, addr] => {
            iroh_fetch(
                Path::new(dir),
                hash.parse()?,
                EndpointAddr::new(id.parse::<EndpointId>()?).with_ip_addr(addr.parse()?),
            )
            .await
        }
        ["raw-serve", bytes, packet] => raw_serve(bytes.parse()?, packet.parse()?).await,
        ["raw-fetch", bytes, packet, host, addr] => {
            raw_fetch(bytes.parse()?, packet.parse()?, host.parse()?, addr.parse()?).await
        }
        _ => Err("usage: peers iroh-serve|iroh-fetch|raw-serve|raw-fetch ...".into()),
    }
}

/// An endpoint at its defaults, without the relays and name servers of others.
async fn iroh_endpoint() -> Outcome<Endpoint> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = Endpoint::builder(presets::Empty).crypto_provider(provider);
    Ok(builder.relay_mode(RelayMode::Disabled).clear_ip_transports().bind_addr(LOOPBACK)?.bind().await?)
}

async fn iroh_serve(file: &Path, dir: &Path) -> Outcome<()> {
    let store = FsStore::load(dir).await?;
    let options =
        AddPathOptions { path: file.to_owned(), format: BlobFormat::Raw, mode: ImportMode::TryReference };
    let tag = store.add_path_with_opts(options).await?;
    let endpoint = iroh_endpoint().await?;
    let addr = endpoint.bound_sockets()[0];
    let router =
        Router::builder(endpoint.clone()).accept(iroh_blobs::ALPN, BlobsProtocol::new(&store, None)).spawn();
    say(&format!(r#"{{"hash": "{}", "id": "{}", "addr": "{addr}"}}"#, tag.hash, endpoint.id()));
    until_closed().await;
    router.shutdown().await?;
    store.shutdown().await?;
    Ok(())
}

async fn iroh_fetch(dir: &Path, hash: Hash, from: EndpointAddr) -> Outcome<()> {
    let store = FsStore::load(dir).await?;
    let endpoint = iroh_endpoint().await?;
    let connection = endpoint.connect(from, iroh_blobs::ALPN).await?;
    order().await?;
    let began = Instant::now();
    let stats = store.remote().fetch(connection.clone(), hash).await?;
    let seconds = began.elapsed().as_secs_f64();
    say(&format!(r#"{{"seconds": {seconds}, "bytes": {}}}"#, stats.payload_bytes_read));
    until_closed().await;
    connection.close(0u32.into(), b"");
    endpoint.close().await;
    store.shutdown().await?;
    Ok(())
}

fn quic_endpoint(packet: u16, server: Option<quinn::ServerConfig>) -> Outcome<quinn::Endpoint> {
    let socket = UdpSocket::bind(LOOPBACK)?;
    let wish = DataConfig::default().socket_buffer_bytes;
    let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&socket, wish);
    let _ = rustix::net::sockopt::set_socket_send_buffer_size(&socket, wish);
    let mut config = EndpointConfig::default();
    config.max_udp_payload_size(packet)?;
    Ok(quinn::Endpoint::new(config, server, socket, Arc::new(TokioRuntime))?)
}

fn transport(packet: u16) -> Arc<quinn::TransportConfig> {
    let config = DataConfig { packet_bytes_max: packet, ..DataConfig::default() };
    let mut transport = config.transport();
    if let Some(transport) = Arc::get_mut(&mut transport) {
        // As a member's has it.
        transport.receive_window(config.connection_window_bytes.into());
    }
    transport
}

async fn raw_serve(bytes: u64, packet: u16) -> Outcome<()> {
    let keypair = Keypair::generate_ed25519();
    let crypto = Identity::new(&keypair)?.server(&[ALPN])?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(transport(packet));
    let endpoint = quic_endpoint(packet, Some(config))?;
    let peer = PeerId::from(keypair.public());
    say(&format!(r#"{{"host": "{peer}", "addr": "{}"}}"#, endpoint.local_addr()?));
    let serving = tokio::spawn(async move {
        let block = Bytes::from(vec![7; BLOCK_BYTES]);
        let connection = endpoint.accept().await.ok_or("closed")?.await?;
        let (mut send, mut recv) = connection.accept_bi().await?;
        recv.read_to_end(16).await?;
        let mut left = bytes;
        while left > 0 {
            let len = left.min(block.len() as u64);
            send.write_chunk(block.slice(..len as usize)).await?;
            left -= len;
        }
        send.finish()?;
        connection.closed().await;
        Outcome::Ok(())
    });
    until_closed().await;
    serving.abort();
    Ok(())
}

async fn raw_fetch(bytes: u64, packet: u16, host: PeerId, addr: SocketAddr) -> Outcome<()> {
    let crypto = Identity::new(&Keypair::generate_ed25519())?.client(ALPN, host)?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(transport(packet));
    let endpoint = quic_endpoint(packet, None)?;
    let connection = endpoint.connect_with(config, addr, "weighlock")?.await?;
    order().await?;
    let began = Instant::now();
    let (mut send, mut recv) = connection.open_bi().await?;
    send.write_all(b"go").await?;
    send.finish()?;
    let mut taken = 0;
    while let Some(chunk) = recv.read_chunk(BLOCK_BYTES, true).await? {
        taken += chunk.bytes.len() as u64;
    }
    let seconds = began.elapsed().as_secs_f64();
    if taken != bytes {
        return Err(format!("{taken} bytes came instead of {bytes}").into());
    }
    let packet = connection.stats().path.current_mtu;
    say(&format!(r#"{{"seconds": {seconds}, "bytes": {taken}, "packet_bytes": {packet}}}"#));
    until_closed().await;
    connection.close(0u32.into(), b"");
    endpoint.wait_idle().await;
    Ok(())
}

fn say(line: &str) {
    println!("{line}");
    let _ = std::io::stdout().flush();
}

/// Waits for one line.
async fn order() -> Outcome<()> {
    match tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new())).await?? {
        0 => Err("nobody wants it any more".into()),
        _ => Ok(()),
    }
}

async fn until_closed() {
    while order().await.is_ok() {}
}
