//! Mutual TLS 1.3 for the data plane with libp2p certificates, so that one Ed25519 key names a host on both planes.
//!
//! The certificate format and its checks are libp2p's (its TLS specification). The configuration is our own because
//! the stock one offers ChaCha20 first, which costs half the throughput where AES has hardware support, and honours
//! `SSLKEYLOGFILE`, which would leak keys.

use std::sync::Arc;

use libp2p::PeerId;
use libp2p::identity::Keypair;
use libp2p_tls::certificate;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, cipher_suite};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, SignatureScheme};
use weighlock_protocol::KeyId;

use super::control;

/// Why a TLS configuration could not be made from a host key.
#[derive(Debug, thiserror::Error)]
#[error("cannot make a TLS certificate for the host key: {0}")]
pub struct TlsError(String);

/// A host's TLS identity for the lifetime of the process: a fresh certificate under its host key.
#[derive(Clone)]
pub struct Identity {
    certified: Arc<CertifiedKey>,
    provider: Arc<CryptoProvider>,
}

impl Identity {
    /// A certificate for `keypair`.
    ///
    /// # Errors
    /// The key cannot sign (it is not Ed25519, or the generator failed).
    pub fn new(keypair: &Keypair) -> Result<Self, TlsError> {
        let (certificate, key) = certificate::generate(keypair).map_err(|e| TlsError(e.to_string()))?;
        let mut provider = aws_lc_rs::default_provider();
        provider.cipher_suites = vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ];
        let key = provider.key_provider.load_private_key(key).map_err(|e| TlsError(e.to_string()))?;
        Ok(Self {
            certified: Arc::new(CertifiedKey::new(vec![certificate], key)),
            provider: Arc::new(provider),
        })
    }

    /// Accepts any well-formed libp2p certificate; who may do what is decided after the handshake, by ALPN.
    ///
    /// # Errors
    /// Never in practice: the suites above support QUIC.
    pub fn server(&self, alpn: &[&[u8]]) -> Result<QuicServerConfig, TlsError> {
        let mut config = rustls::ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| TlsError(e.to_string()))?
            .with_client_cert_verifier(Arc::new(Verifier { expected: None }))
            .with_cert_resolver(Arc::new(SingleCertAndKey::from((*self.certified).clone())));
        config.alpn_protocols = alpn.iter().map(|alpn| alpn.to_vec()).collect();
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        QuicServerConfig::try_from(config).map_err(|e| TlsError(e.to_string()))
    }

    /// Connects only to `expected`.
    ///
    /// # Errors
    /// Never in practice: the suites above support QUIC.
    pub fn client(&self, alpn: &[u8], expected: PeerId) -> Result<QuicClientConfig, TlsError> {
        let mut config = rustls::ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| TlsError(e.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Verifier { expected: Some(expected) }))
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from((*self.certified).clone())));
        config.alpn_protocols = vec![alpn.to_vec()];
        config.resumption = rustls::client::Resumption::disabled();
        config.enable_early_data = false;
        QuicClientConfig::try_from(config).map_err(|e| TlsError(e.to_string()))
    }
}

/// The host key that the other side of a connection proved. `None` for keys that are not Ed25519.
pub fn remote_key(connection: &quinn::Connection) -> Option<KeyId> {
    let identity = connection.peer_identity()?;
    let certificates = identity.downcast_ref::<Vec<CertificateDer<'static>>>()?;
    let parsed = certificate::parse(certificates.first()?).ok()?;
    control::key_id(parsed.peer_id())
}

/// Checks libp2p certificates: exactly one, self-signed, with the host key's signature over the certificate key.
#[derive(Debug)]
struct Verifier {
    expected: Option<PeerId>,
}

impl Verifier {
    fn check(
        &self,
        certificate: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
    ) -> Result<(), rustls::Error> {
        if !chain.is_empty() {
            return Err(rustls::Error::General("a libp2p host presents exactly one certificate".into()));
        }
        let parsed = certificate::parse(certificate)
            .map_err(|_| rustls::Error::InvalidCertificate(CertificateError::BadEncoding))?;
        if self.expected.is_some_and(|expected| expected != parsed.peer_id()) {
            return Err(rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure));
        }
        Ok(())
    }
}

fn signature(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, rustls::Error> {
    let bad = |_| rustls::Error::InvalidCertificate(CertificateError::BadSignature);
    let parsed = certificate::parse(certificate)
        .map_err(|_| rustls::Error::InvalidCertificate(CertificateError::BadEncoding))?;
    parsed.verify_signature(signed.scheme, message, signed.signature()).map_err(bad)?;
    Ok(HandshakeSignatureValid::assertion())
}

fn no_tls12() -> rustls::Error {
    rustls::Error::PeerIncompatible(rustls::PeerIncompatible::Tls13RequiredForQuic)
}

/// What libp2p hosts sign their handshakes with: a fresh ECDSA or Ed25519 certificate key.
const SCHEMES: [SignatureScheme; 3] = [
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::ED25519,
];

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.check(certificate, chain)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        SCHEMES.to_vec()
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.check(certificate, chain)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        SCHEMES.to_vec()
    }
}
