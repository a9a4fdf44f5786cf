//! TLS for hosts with authorities of their own.
//!
//! Owns the one rule that the TLS library does not have: a server whose
//! certificate is itself given as `ca` is believed. `openssl req -x509` marks
//! every certificate as an authority's, and an authority's certificate is
//! otherwise refused as a server's; what it says of its names and its time is
//! checked all the same. Reads files, opens no connection.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use rustls_platform_verifier::Verifier;

use crate::hosts::{HostsError, Tls};

#[derive(Debug, thiserror::Error)]
#[error("there is no certificate in it")]
struct Empty;

fn bad(path: &Path, error: impl std::error::Error + Send + Sync + 'static) -> HostsError {
    HostsError::Certificate {
        path: path.to_owned(),
        source: Box::new(error),
    }
}

/// The settings as the TLS library takes them.
pub(super) fn config(settings: &Tls) -> Result<ClientConfig, HostsError> {
    let whole = |error| bad(Path::new(""), error);
    let given = authorities(settings)?;
    let provider = CryptoProvider::get_default()
        .map_or_else(|| Arc::new(aws_lc_rs::default_provider()), Arc::clone);
    let usual = Verifier::new_with_extra_roots(given.iter().cloned(), Arc::clone(&provider))
        .map_err(whole)?;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(whole)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(WithGiven { usual, given }));
    let mut config = match shown(settings)? {
        None => builder.with_no_client_auth(),
        Some((path, pem)) => {
            let fail = |error| bad(&path, error);
            let chain = CertificateDer::pem_slice_iter(&pem)
                .collect::<Result<Vec<_>, _>>()
                .map_err(fail)?;
            let key = PrivateKeyDer::from_pem_slice(&pem).map_err(fail)?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| bad(&path, error))?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// The certificate to show and its key, in one text, and where it comes from.
pub(super) fn shown(settings: &Tls) -> Result<Option<(PathBuf, Vec<u8>)>, HostsError> {
    let Some((certificate, key)) = &settings.client else {
        return Ok(None);
    };
    let mut pem = read(certificate)?;
    if let Some(key) = key {
        pem.push(b'\n');
        pem.extend(read(key)?);
    }
    Ok(Some((certificate.clone(), pem)))
}

fn authorities(settings: &Tls) -> Result<Vec<CertificateDer<'static>>, HostsError> {
    let mut out = Vec::new();
    for path in &settings.ca {
        let certificates = CertificateDer::pem_slice_iter(&read(path)?)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| bad(path, error))?;
        if certificates.is_empty() {
            return Err(bad(path, Empty));
        }
        for certificate in &certificates {
            RootCertStore::empty()
                .add(certificate.clone())
                .map_err(|error| bad(path, error))?;
        }
        out.extend(certificates);
    }
    Ok(out)
}

fn read(path: &Path) -> Result<Vec<u8>, HostsError> {
    std::fs::read(path).map_err(|source| HostsError::Read {
        path: path.to_owned(),
        source,
    })
}

/// The usual checks, and the rule for certificates that are given.
#[derive(Debug)]
struct WithGiven {
    usual: Verifier,
    given: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for WithGiven {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let usual = self.usual.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        match usual {
            // This is found out after the time was checked, and before the name.
            Err(error) if is_authority(&error) && self.given.contains(end_entity) => {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.usual.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.usual.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.usual.supported_verify_schemes()
    }
}

/// Whether nothing is wrong but that the certificate is an authority's.
fn is_authority(error: &rustls::Error) -> bool {
    let rustls::Error::InvalidCertificate(CertificateError::Other(other)) = error else {
        return false;
    };
    matches!(
        other.0.downcast_ref::<webpki::Error>(),
        Some(webpki::Error::CaUsedAsEndEntity)
    )
}
